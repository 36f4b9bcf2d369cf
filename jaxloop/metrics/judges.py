"""Language models as judges: the quality and the political-lean scores of arXiv 2504.03814
(appendix B.3), and how well a judge agrees with people.

A judge is any `jaxloop.lm` model or any OpenAI-compatible endpoint. A reply that is no score is
counted, never guessed.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.endpoint import Endpoint, Reply, Unreachable, complete
from jaxloop.metrics.tokens import check_texts

_TOP = 20  # the paper's judge looks for a number among the 20 likeliest first tokens
_REPLY_TOKENS = 6  # enough for "100" in three tokens, with a space before and something after


@dataclass(frozen=True)
class Prompt:
    """What a judge is asked. "{text}" is replaced by the text; `none`: the reply -1 means that the
    question does not apply to the text.
    """

    name: str
    system: str
    user: str = ""
    none: bool = False

    def messages(self, text: str, role: str = "system") -> list[dict]:
        """The conversation: a system message (and a user message where the prompt has one), or all
        of it as one user message.
        """
        system, user = self.system.replace("{text}", text), self.user.replace("{text}", text)
        if role == "user":
            return [{"role": "user", "content": f"{system} {user}" if user else system}]
        return [
            {"role": "system", "content": system},
            *([{"role": "user", "content": user}] if user else []),
        ]


# The prompts are the experiment's own (B.3), as its code sends them: the quality prompt whole as a
# system message, the text of the other as the user's.
QUALITY = Prompt(
    "quality",
    "On a scale of 0 to 100, evaluate the post. A score of 0 indicates that the post is of very "
    "low quality, semantically meaningless, and contains "
    "broken-off or repetitive text, while a score of 100 means that the post is of very high "
    "quality, addressing a complex topic with advanced "
    "vocabulary, phrasing, and style.\n\nPost: {text}\n\nReply ONLY with the integer score "
    "(0-100). DO NOT reply with text.",
)
POLITICAL_LEAN = Prompt(
    "political_lean",
    "Score the following post on a continual scale from 0 (left-wing) to 100 (right-wing) where "
    'a score of 0 means "The post reflects radical left-wing '
    'ideology" and a score of 100 means "The post reflects radical right-wing ideology", and a '
    'score of 50 means "The post reflects a neutral '
    'ideology". Reply with -1 if the post is not political. Reply ONLY with the integer score '
    "(0-100 or -1). DO NOT reply with text. Here is the text:",
    user="{text}",
    none=True,
)
# The paper names this judge, not its words.
ENGLISH = Prompt(
    "english",
    "Is the following text written in English? Reply with 1 if it is and with 0 if it is not. DO "
    "NOT reply with text.\n\nText: {text}",
)
PROMPTS = {prompt.name: prompt for prompt in (QUALITY, POLITICAL_LEAN, ENGLISH)}


class Judgement(NamedTuple):
    """A judge's scores of n texts.

    score       [n] float64 in [0, 100]: the likeliest score; nan where there is none
    expected    [n] float64: mean of 0..100 under the probabilities of the first token, renormalised over them; nan where these are not known
    none        [n] bool: the judge says that the question does not apply (-1)
    unparsable  [n] bool: the reply is no score
    """

    score: np.ndarray
    expected: np.ndarray
    none: np.ndarray
    unparsable: np.ndarray


def judge(
    texts: Sequence[str],
    backend,
    prompt: Prompt = QUALITY,
    *,
    role: str = "system",
    batch: int | None = None,
) -> Judgement:
    """Scores of texts by a judge (arXiv 2504.03814, B.3).

    backend  a `jaxloop.lm` model, or an `Endpoint`
    role     "system" as the paper sends it, or "user" for models whose template has no system message
    batch    padded tokens of a batch of a local model
    A local model whose tokenizer has 0..100 as single tokens is read from the distribution of its
      first token, after one prefill: the
    likeliest number or -1, if among the 20 likeliest tokens. Other models, and endpoints, write a
    short reply, which must be a number.
    With `Endpoint(max_tokens=1)` the first of its top tokens that is a number counts, as in the
    paper's code; right only for models such as
    Llama 3 that have 0..100 as single tokens. Texts too long for a local model are cut. No texts:
    empty arrays.
    Raises ValueError for bad texts, a role, template or context that does not fit,
    `endpoint.Unreachable` for an endpoint that is down.
    """
    texts = check_texts(texts)
    if role not in ("system", "user"):
        raise ValueError(f"role is {role!r}; allowed are 'system' and 'user'.")
    if not texts:
        return _judgement([], [])
    if isinstance(backend, Endpoint):
        return _from_replies(
            complete(backend, [prompt.messages(text, role) for text in texts]),
            prompt,
            backend.max_tokens == 1,
        )
    return _by_model(texts, backend, prompt, role, batch)


# ---- endpoints
# --------------------------------------------------------------------------------------------------------


def parse_reply(reply: str, none: bool = False) -> int | None:
    """The score in a reply: a whole number from 0 to 100 (or -1 if `none`), alone on the first line
    but for "/100" or a full stop; else None.
    """
    lines = reply.strip().splitlines()
    match = (
        re.fullmatch(r"\s*(-1|\d{1,3})(?:\s*/\s*100)?\s*\.?\s*", lines[0], re.ASCII)
        if lines
        else None
    )
    value = int(match[1]) if match else None
    return value if value is not None and (0 <= value <= 100 or (none and value == -1)) else None


def _from_replies(replies: Sequence[Reply], prompt: Prompt, first_token: bool) -> Judgement:
    if first_token:
        values = [_first_number(reply, prompt.none) for reply in replies]
        known = True
    else:
        values = [parse_reply(reply.text, prompt.none) for reply in replies]
        # Probabilities of first tokens are those of scores only if the model writes numbers of two
        # digits as one token.
        two = [
            (str(v), max(r.first, key=lambda t: t[1])[0].strip())
            for v, r in zip(values, replies)
            if v is not None and v >= 10 and r.first
        ]
        known = bool(two) and all(text == token for text, token in two)
    expected = [
        _expected(reply) if known and v is not None and v >= 0 else np.nan
        for v, reply in zip(values, replies, strict=True)
    ]
    return _judgement(values, expected)


def _first_number(reply: Reply, none: bool) -> int | None:
    for token, _ in sorted(reply.first or ((reply.text, 0.0),), key=lambda t: -t[1]):
        token = token.strip()
        if none and token in ("-", "-1"):
            return -1
        if token.isascii() and token.isdigit():
            return int(token) if int(token) <= 100 else None
    return None


def _expected(reply: Reply) -> float:
    numbers = [
        (int(token), p)
        for token, p in ((t.strip(), np.exp(p)) for t, p in reply.first)
        if token.isascii() and token.isdigit() and int(token) <= 100
    ]
    total = sum(p for _, p in numbers)
    return sum(value * p for value, p in numbers) / total if total else np.nan


def _judgement(values: Sequence[int | None], expected) -> Judgement:
    """-1 says "none", None says "unparsable"."""
    score = np.array([np.nan if v is None or v < 0 else v for v in values], np.float64)
    none, unparsable = (
        np.array([v == -1 for v in values], bool),
        np.array([v is None for v in values], bool),
    )
    return Judgement(score, np.asarray(expected, np.float64), none, unparsable)


# ---- models of jaxloop.lm
# ---------------------------------------------------------------------------------------------


def _by_model(texts, model, prompt: Prompt, role: str, batch) -> Judgement:
    from jaxloop.lm.io.tokenizer import as_text, reading_special

    template = chat_template(model.name)
    if template is not None:
        texts = [as_text(model.tokenizer, text) for text in texts]
        model = model._replace(tokenizer=reading_special(model.tokenizer))
    prompts = [
        _render(model, template, prompt.messages(text, role))
        for text in _cut(texts, model, template, prompt, role)
    ]
    tokens = number_tokens(model.tokenizer)
    single = {value for _, value, spaced in tokens if not spaced} >= set(range(101))
    return (
        _first_tokens(model, prompts, tokens, prompt.none, batch)
        if single
        else _short_replies(model, prompts, prompt)
    )


def chat_template(name: str) -> str | None:
    """The chat template in a model directory (chat_template.jinja, or tokenizer_config.json); None
    where it has none, or for a hub id not here.
    """
    from jaxloop.lm.io import huggingface

    try:
        folder = huggingface.locate(name) if name else None
    except ValueError:
        return None
    if folder is None:
        return None
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf8")
    file = folder / "tokenizer_config.json"
    found = (
        json.loads(file.read_text(encoding="utf8")).get("chat_template") if file.exists() else None
    )
    if isinstance(found, list):
        found = next((t["template"] for t in found if t.get("name") == "default"), None)
    return found


def _render(model, template: str | None, messages: list[dict]) -> str:
    """The text that the model reads: its chat template's, or the messages on lines of their own
    where it has none.
    """
    if template is None:
        return "\n".join(message["content"] for message in messages) + "\n"
    tokenizer = model.tokenizer
    name = lambda i: None if i is None else tokenizer.backend.id_to_token(i)  # noqa: E731
    special = dict(
        bos_token=name(tokenizer.bos) or "",
        eos_token=name(tokenizer.eos),
        pad_token=name(tokenizer.pad),
    )
    try:
        text = _compiled(template).render(messages=messages, add_generation_prompt=True, **special)
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {model.name} cannot render messages of {roles} ({error}); "
            "role = 'user' sends one user message."
        ) from None
    # The tokenizer puts BOS in front by itself.
    return (
        text.removeprefix(special["bos_token"])
        if special["bos_token"] and tokenizer.encode([""])[0][:1] == [tokenizer.bos]
        else text
    )


@functools.lru_cache(maxsize=8)
def _compiled(template: str):
    import datetime

    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals |= dict(
        raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(
        x, ensure_ascii=False, indent=indent
    )
    return environment.from_string(template)


def _cut(texts, model, template, prompt: Prompt, role: str) -> list[str]:
    """Texts whose prompt would not fit into the model's context, cut to as many tokens as do."""
    around = len(model.tokenizer.encode([_render(model, template, prompt.messages("", role))])[0])
    room = (
        model.spec.context - around - _REPLY_TOKENS - 4
    )  # joined tokens may be a few more than the parts
    if room < 16:
        raise ValueError(
            f"the {prompt.name} prompt has {around} tokens, which leave no room for a text in "
            f"the {model.spec.context} tokens of {model.name}."
        )
    ids = model.tokenizer.encode(texts, special=False)
    return [
        text if len(i) <= room else model.tokenizer.decode([i[:room]])[0]
        for text, i in zip(texts, ids, strict=True)
    ]


def number_tokens(tokenizer) -> list[tuple[int, int, bool]]:
    """(token, value, whether a space stands before it) of every token that is a whole number; -1
    stands for "-" and "-1".
    """
    texts = tokenizer.decode([[i] for i in range(tokenizer.vocab_size)])
    found = []
    for token, text in enumerate(texts):
        bare = text.removeprefix(" ")
        if bare.isascii() and bare.isdigit() and (bare == "0" or bare[0] != "0"):
            found.append((token, int(bare), bare != text))
        elif bare in ("-", "-1"):
            found.append((token, -1, bare != text))
    return found


def _first_tokens(model, prompts, tokens, none: bool, batch) -> Judgement:
    from jaxloop.lm.encoder import encoder

    chosen = [(token, value) for token, value, _ in tokens if value >= 0 or none]
    ids, values = np.array([t for t, _ in chosen], np.int32), np.array([v for _, v in chosen])
    run = functools.partial(_next_token, model.spec, model.params, ids)
    rows = encoder.over_batches(
        run,
        model.tokenizer.encode(prompts),
        limit=model.spec.context,
        batch=batch or encoder.default_batch(model.params),
    )
    rank, logs = rows[:, 0], rows[:, 1:].astype(np.float64)
    best = values[logs.argmax(1)]
    score = [None if r >= _TOP or v > 100 else int(v) for r, v in zip(rank, best, strict=True)]
    scale = (values >= 0) & (values <= 100)
    logs = np.ascontiguousarray(
        logs[:, scale]
    )  # a row is then summed the same way, however many there are
    share = np.exp(logs - logs.max(1, keepdims=True))
    expected = (share * values[scale]).sum(1) / share.sum(1)
    return _judgement(
        score, [np.nan if s is None or s < 0 else e for s, e in zip(score, expected, strict=True)]
    )


@functools.cache
def _program():
    import jax
    import jax.numpy as jnp

    from jaxloop.lm.model import transformer

    @functools.partial(jax.jit, static_argnames=("spec", "target"))
    def next_token(spec, params, ids_K, tokens_RT, length_R, target):
        """How many tokens are likelier than the likeliest of `ids_K`, and the log-probabilities of
        these: [R, 1 + K].
        """
        x_RTD = transformer.hidden(spec, params, tokens_RT, target=target)
        last_RD = jnp.take_along_axis(x_RTD, jnp.maximum(length_R - 1, 0)[:, None, None], 1)[:, 0]
        logits_RV = transformer.project(spec, params, transformer.finish(spec, params, last_RD))
        logs_RK = logits_RV[:, ids_K] - jax.nn.logsumexp(logits_RV, -1, keepdims=True)
        rank_R = (logits_RV > logits_RV[:, ids_K].max(-1, keepdims=True)).sum(-1)
        return jnp.concatenate([rank_R[:, None].astype(jnp.float32), logs_RK], -1)

    return next_token


def _next_token(spec, params, ids, tokens, length):
    from jaxloop.lm.target import target_of

    return _program()(spec, params, ids, tokens, length, target_of(spec, params))


def _short_replies(model, prompts, prompt: Prompt) -> Judgement:
    import jax

    from jaxloop.lm import family

    settings = family.SampleSettings(decoder="greedy", max_new_tokens=_REPLY_TOKENS)
    task = family.SampleTask(jax.random.key(0), None, prompts, np.arange(len(prompts)))
    (result,) = family.sample(model, [task], settings)
    return _judgement(
        [parse_reply(text, prompt.none) for text in result.texts], np.full(len(prompts), np.nan)
    )


# ---- metrics
# ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _model(name: str):
    from jaxloop import lm

    return lm.load(name)


@functools.lru_cache(maxsize=4)
def _judged(
    texts: tuple[str, ...],
    prompt: Prompt,
    model: str,
    url: str | None,
    key: str,
    concurrency: int,
    cache: str | None,
    role: str,
) -> Judgement:
    """Kept, so that the metrics of one judge ask it once."""
    backend = (
        _model(model)
        if url is None
        else Endpoint(url, model, key, concurrency, cache=cache or str(_default_cache()))
    )
    return judge(texts, backend, prompt, role=role)


def _default_cache() -> Path:
    from jaxloop.runtime.atomic_io import cache_folder

    return cache_folder() / "judges.sqlite"


def _ask(texts, prompt, model, url, key, concurrency, cache, role) -> tuple[Corpus, Judgement]:
    from jaxloop.metrics.registry import Unavailable

    if model is None:
        raise ValueError(
            f"the {prompt.name} judge has no model; name one, as in "
            f"judge_{prompt.name}(model='…') or with url='http://…' too."
        )
    corpus = Corpus.of(texts)
    try:
        return corpus, _judged(
            tuple(corpus.texts), prompt, model, url, key, concurrency, cache, role
        )
    except Unreachable as error:
        raise Unavailable(str(error)) from None


def _mean_score(texts, prompt, reading, *backend):
    if reading not in ("score", "expected"):
        raise ValueError(f"reading is {reading!r}; allowed are 'score' and 'expected'.")
    corpus, found = _ask(texts, prompt, *backend)
    values = corpus.by_text(getattr(found, reading))
    return [values] if corpus.single else values


def _mean(values):
    return np.array([np.nanmean(v) if np.isfinite(v).any() else np.nan for v in values])


def judge_quality(
    texts,
    model=None,
    url=None,
    reading="score",
    key="OPENAI_API_KEY",
    concurrency=8,
    cache=None,
    role="system",
):
    """Mean quality that a judge gives the texts, in [0, 100] (arXiv 2504.03814, quality): [c]
    float64.

    model is a directory or hub id, or, with url, the model that an OpenAI-compatible endpoint
    serves. reading "expected" takes the mean score under the judge's probabilities instead of the
    likeliest. Replies that are no score are left out (`judge_unparsable` counts them); none left,
    or no text: nan. An endpoint that is down makes the metric nan, and everything it answered is in
    `cache` (by default judges.sqlite in the cache folder).
    """
    return _mean(_mean_score(texts, QUALITY, reading, model, url, key, concurrency, cache, role))


def judge_qualities(
    texts,
    model=None,
    url=None,
    reading="score",
    key="OPENAI_API_KEY",
    concurrency=8,
    cache=None,
    role="system",
):
    """`judge_quality` of each text, [chains] arrays [n]; nan where the reply is no score."""
    return _mean_score(texts, QUALITY, reading, model, url, key, concurrency, cache, role)


def judge_political_lean(
    texts,
    model=None,
    url=None,
    reading="score",
    key="OPENAI_API_KEY",
    concurrency=8,
    cache=None,
    role="system",
):
    """Mean political lean, from 0 (left) to 100 (right), of the texts that the judge finds
    political (arXiv 2504.03814, section 6): [c] float64.

    Texts that it finds not political (-1) and replies that are no score are left out; none left:
    nan. Options as in `judge_quality`.
    """
    return _mean(
        _mean_score(texts, POLITICAL_LEAN, reading, model, url, key, concurrency, cache, role)
    )


def judge_political_leans(
    texts,
    model=None,
    url=None,
    reading="score",
    key="OPENAI_API_KEY",
    concurrency=8,
    cache=None,
    role="system",
):
    """`judge_political_lean` of each text, [chains] arrays [n]; nan where it is not political or
    the reply is no score.
    """
    return _mean_score(texts, POLITICAL_LEAN, reading, model, url, key, concurrency, cache, role)


def judge_not_political(
    texts, model=None, url=None, key="OPENAI_API_KEY", concurrency=8, cache=None, role="system"
):
    """Share of the texts that a judge finds not political, in [0, 1] (arXiv 2504.03814, figure
    13b): [c] float64.

    Of the texts with a readable reply; none: nan. Options as in `judge_quality`.
    """
    corpus, found = _ask(texts, POLITICAL_LEAN, model, url, key, concurrency, cache, role)
    values = np.where(found.unparsable, np.nan, found.none.astype(np.float64))
    return _mean([values] if corpus.single else corpus.by_text(values))


def judge_english(
    texts, model=None, url=None, key="OPENAI_API_KEY", concurrency=8, cache=None, role="system"
):
    """Share of the texts that a judge takes for English, in [0, 1] (arXiv 2504.03814, cleaning of
    100M_tweets): [c] float64.

    Replies that are no 0 or 1 are left out; none left, or no text: nan. Options as in
    `judge_quality`.
    """
    return _mean(judge_englishes(texts, model, url, key, concurrency, cache, role))


def judge_englishes(
    texts, model=None, url=None, key="OPENAI_API_KEY", concurrency=8, cache=None, role="system"
):
    """`judge_english` of each text, 0 or 1: [chains] arrays [n]; nan where the reply is neither."""
    corpus, found = _ask(texts, ENGLISH, model, url, key, concurrency, cache, role)
    values = np.where(np.isin(found.score, (0, 1)), found.score, np.nan)
    return [values] if corpus.single else corpus.by_text(values)


def judge_unparsable(
    texts,
    prompt="quality",
    model=None,
    url=None,
    key="OPENAI_API_KEY",
    concurrency=8,
    cache=None,
    role="system",
):
    """Share of the texts to which a judge's reply is no score, in [0, 1]: [c] float64; no text: 0.

    prompt is "quality" or "political_lean"; the other options are those of `judge_quality`, and
    with equal options the judge is asked once.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt is {prompt!r}; allowed are {', '.join(map(repr, PROMPTS))}.")
    corpus, found = _ask(texts, PROMPTS[prompt], model, url, key, concurrency, cache, role)
    return np.atleast_1d(corpus.by_chain(corpus.mean(found.unparsable.astype(np.float64))))


# ---- agreement with people
# --------------------------------------------------------------------------------------------


class Validation(NamedTuple):
    """How a judge's scores correlate with those of people; intervals are 95% of a bootstrap over
    stories.
    """

    n: int
    unparsable: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]


GENERATORS = ("fusion", "s2s", "gpt_kg", "gpt", "plan_write")


def read_openmeva(
    path, generators: Sequence[str] = GENERATORS
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(texts, mean human score, story of each text) of a file of the OpenMEVA form (Guan et al.
    2021, mans_roc.json).

    The file maps a story to {"prompt": str, "gen": {generator: {"text": str, "score": [numbers]}}};
    a text is the prompt and what the generator wrote after it, without a space between (arXiv
    2504.03814's code). ValueError for a file of another form.
    """
    try:
        stories = json.loads(Path(path).read_text(encoding="utf8"))
        rows = [
            (s["prompt"] + s["gen"][g]["text"], fmean(s["gen"][g]["score"]), i)
            for i, s in enumerate(stories.values())
            for g in generators
        ]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        needed = f"each story needs 'prompt' and, in 'gen', {', '.join(generators)}"
        raise ValueError(
            f"{path} is not of the OpenMEVA form ({type(error).__name__} {error}); {needed}."
        ) from None
    if not rows or not np.isfinite([score for _, score, _ in rows]).all():
        raise ValueError(f"{path} holds no stories, or a story without human scores.")
    return (
        [text for text, _, _ in rows],
        np.array([score for _, score, _ in rows]),
        np.array([story for _, _, story in rows]),
    )


def validate_judge(
    scorer: Callable[[list[str]], "Judgement | np.ndarray"],
    path,
    *,
    generators: Sequence[str] = GENERATORS,
    draws: int = 2000,
    seed: int = 0,
) -> Validation:
    """Pearson and Spearman correlation of a judge's scores with people's, on a file of the OpenMEVA
    form.

    scorer  texts -> `Judgement`, or scores [n] with nan where there is none; such as lambda texts:
    judge(texts, model) Texts of one story are not independent, so the bootstrap draws stories.
    Texts without a score are left out and counted. A correlation of fewer than two scores, or of
    equal ones, is nan. The paper's judge reaches 0.516 and 0.522 (arXiv 2504.03814, table 2).
    """
    texts, human, story = read_openmeva(path, generators)
    found = scorer(texts)
    score = np.asarray(found.score if isinstance(found, Judgement) else found, np.float64)
    if score.shape != human.shape:
        raise ValueError(
            f"the scorer gave scores of shape {list(score.shape)} for {len(texts)} texts, one "
            "each is needed."
        )
    valid = np.isfinite(score)
    score, human, story = score[valid], human[valid], story[valid]
    members = [np.flatnonzero(story == s) for s in np.unique(story)]
    rng = np.random.default_rng(seed)
    sampled = []
    for _ in range(draws if len(members) > 1 else 0):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        sampled.append((_pearson(score[rows], human[rows]), _spearman(score[rows], human[rows])))
    intervals = [_interval(column) for column in zip(*sampled)] or [(np.nan, np.nan)] * 2
    return Validation(
        len(score),
        int((~valid).sum()),
        _pearson(score, human),
        intervals[0],
        _spearman(score, human),
        intervals[1],
    )


def _pearson(x, y) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _spearman(x, y) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(x), rankdata(y))


def _interval(values) -> tuple[float, float]:
    finite = np.array([v for v in values if np.isfinite(v)])
    return (
        tuple(np.quantile(finite, (0.025, 0.975)).tolist())
        if len(finite)
        else (float("nan"), float("nan"))
    )
