"""Language models as judges: the quality and political-lean scores of arXiv 2504.03814 (B.3).

A judge is any `jaxloop.lm` model or any OpenAI-compatible endpoint. `judge_validation` says how
well a judge agrees with people.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxloop import lm
from jaxloop.lm import Model
from jaxloop.lm.io import huggingface
from jaxloop.metrics.base import TEXTS, UNIT_INTERVAL, Metric, Unavailable
from jaxloop.metrics.corpus import Corpus, Texts
from jaxloop.metrics.endpoint import Endpoint, Reply, Unreachable, complete, probe, unanswered
from jaxloop.metrics.judge_model import are_all_scores, judge_by_model, number_tokens
from jaxloop.metrics.judge_replies import (
    DOES_NOT_APPLY,
    ENGLISH,
    POLITICAL_LEAN,
    PROMPTS,
    QUALITY,
    QUALITY_LEVEL,
    Judgement,
    Prompt,
    from_replies,
    judgement,
    within,
)
from jaxloop.metrics.tokens import check_texts
from jaxloop.runtime.atomic_io import cache_folder
from jaxloop.runtime.log import LOGGER

# How a score is read from what a judge answers, see `judge`.
READINGS = ("first_token", "short")
# Characters of a reply that is no score, in a warning.
_SHOWN = 60


def judge(
    texts: Sequence[str],
    backend: Model | Endpoint,
    prompt: Prompt = QUALITY,
    *,
    role: str = "system",
    batch: int | None = None,
    reply: str | None = None,
) -> Judgement:
    """Return a judge's scores of texts (arXiv 2504.03814, B.3).

    There are two readings. "first_token", that of the paper's code: of the 20 likeliest first
    tokens the likeliest that is a number (or -1) is the score; right only for models such as
    Llama 3 that have 0..100 as single tokens. "short": the model writes a short reply, which must
    be a number. Texts too long for a local model are cut.

    Args:
        role: "system" as the paper sends it, or "user" for models whose template has no system
            message.
        batch: padded tokens of a batch of a local model.
        reply: the reading; None takes "first_token" for a local model that has 0..100 as single
            tokens and for an endpoint with max_tokens=1, else "short".

    Raises:
        ValueError: bad texts, or a role, template or context that does not fit.
        endpoint.Unreachable: the endpoint is down.
    """
    texts = check_texts(texts)
    if role not in ("system", "user"):
        raise ValueError(f"role is {role!r}; allowed are 'system' and 'user'.")
    _check_reading(reply)
    if not texts:
        return judgement([], [])
    if isinstance(backend, Endpoint):
        backend = _read_by(backend, reply)
        replies = complete(backend, [prompt.messages(text, role) for text in texts])
        found = from_replies(replies, prompt, first_token=backend.max_tokens == 1)
    else:
        found = judge_by_model(texts, backend, prompt, role, batch, reply)
    return within(found, prompt.most)


def _check_reading(reply: str | None) -> None:
    if reply not in (None, *READINGS):
        raise ValueError(
            f"reply is {reply!r}; allowed are {', '.join(map(repr, READINGS))} and None."
        )


def _read_by(endpoint: Endpoint, reply: str | None) -> Endpoint:
    """The endpoint with the length of replies that a reading needs."""
    if reply is None:
        return endpoint
    first = dataclasses.replace(endpoint, max_tokens=1)
    return first if reply == "first_token" else dataclasses.replace(endpoint, max_tokens=8)


# ---- metrics


class Judge(NamedTuple):
    """The options that choose a judge: a local model, or with `url` one behind an endpoint."""

    model: str | None
    url: str | None = None
    key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    cache: str | None = None
    role: str = "system"
    reply: str | None = None
    timeout: float = 60.0

    def endpoint(self) -> Endpoint:
        """Return the endpoint of a judge that has a `url`."""
        return _read_by(
            Endpoint(
                str(self.url),
                str(self.model),
                self.key,
                self.concurrency,
                timeout=self.timeout,
                cache=self.cache or str(cache_folder() / "judges.sqlite"),
            ),
            self.reply,
        )


@functools.lru_cache(maxsize=2)
def _loaded(name: str) -> Model:
    return lm.load(name)


@functools.lru_cache(maxsize=64)
def _silent(url: str, model: str) -> set[str]:
    """Holds "silent" after the judge has been found down, so that the next question is short."""
    return set()


@functools.lru_cache(maxsize=4)
def _judged(texts: tuple[str, ...], prompt: Prompt, options: Judge) -> Judgement:
    """Cached, so that the metrics of one judge ask it once."""
    if options.url is None and not texts:
        # All that can be wrong with a judge that lies here is seen without its weights.
        huggingface.describe(huggingface.locate(str(options.model)))
        return judgement([], [])
    if options.url is None:
        backend: Model | Endpoint = _loaded(str(options.model))
        found = judge(texts, backend, prompt, role=options.role, reply=options.reply)
    else:
        silent = _silent(options.url, str(options.model))
        try:
            if silent and lacks_replies(texts, options, prompt):
                ask_once(options, prompt)
            found = judge(texts, options.endpoint(), prompt, role=options.role)
        except Unreachable:
            silent.add("silent")
            raise
        silent.clear()
    if count := int(found.unparsable.sum()):
        LOGGER.warning(
            "judge %s: %s of %s replies of %s are no score%s; they are left out of means",
            prompt.name,
            f"{count:,}",
            f"{len(texts):,}",
            options.model,
            f", such as {found.example[:_SHOWN]!r}" if found.example else "",
        )
    return found


def lacks_replies(texts: Sequence[str], options: Judge, prompt: Prompt = QUALITY) -> bool:
    """Return whether a judge at an address must be asked about any of the texts."""
    distinct = dict.fromkeys(texts)
    asked = [prompt.messages(text, options.role) for text in distinct]
    return unanswered(options.endpoint(), asked) > 0


def ask_once(options: Judge, prompt: Prompt = QUALITY) -> Reply:
    """Ask the endpoint of a judge about one short text, and return its reply.

    Raises:
        endpoint.Unreachable: it does not answer.
    """
    return probe(options.endpoint(), prompt.messages("Hello.", options.role))


def _ask(texts: Texts, prompt: Prompt, options: Judge) -> tuple[Corpus, Judgement]:
    if options.model is None:
        raise ValueError(
            f"the {prompt.name} judge has no model; name one, as in "
            f"judge_{prompt.name}(model='…') or with url='http://…' too."
        )
    _check_reading(options.reply)
    if options.url is not None:
        options.endpoint()  # refuses a malformed address even where there are no texts
    corpus = Corpus.of(texts)
    try:
        return corpus, _judged(tuple(corpus.texts), prompt, options)
    except Unreachable as error:
        raise Unavailable(str(error)) from None


def _text_scores(texts: Texts, prompt: Prompt, variant: str, options: Judge) -> list[np.ndarray]:
    _check_variant(variant, options)
    corpus, judged = _ask(texts, prompt, options)
    return corpus.split(judged.score if variant == "score" else judged.expected)


def _check_variant(variant: str, options: Judge) -> None:
    if variant not in ("score", "expected"):
        raise ValueError(f"variant is {variant!r}; allowed are 'score' and 'expected'.")
    if variant == "score" or options.url is not None or options.model is None:
        return
    if options.reply == "short" or not _has_probabilities(options.model):
        raise ValueError(
            "variant = 'expected' needs the probabilities of first tokens that are scores, which "
            f"{options.model} does not give: its replies are read as text; take variant = 'score'."
        )


@functools.lru_cache(maxsize=4)
def _has_probabilities(model: str) -> bool:
    _, tokenizer = huggingface.describe(huggingface.locate(model))
    return are_all_scores(number_tokens(tokenizer))


def _means(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of each chain's values that are not nan; nan where there is none."""
    return np.array([np.nanmean(v) if np.isfinite(v).any() else np.nan for v in values])


def judge_quality(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    variant: str = "score",
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Mean quality that a judge gives the texts, in [0, 100]: [c] float64.

    Source: arXiv 2504.03814, quality. Replies that are no score are left out (`judge_unparsable`
    counts them); none left, or no text: nan. An endpoint that is down makes the metric nan.

    Args:
        model: a directory or hub id, or, with url, the model that an OpenAI-compatible endpoint
            serves.
        variant: "expected" takes the mean score under the judge's probabilities instead of the
            likeliest. A local model that writes numbers in several tokens is refused then; behind
            an endpoint its values are nan.
        key: the environment variable that holds the endpoint's key.
        concurrency: requests in flight at once.
        cache: the file that keeps everything the endpoint answered; None: judges.sqlite in the
            cache folder.
        role, reply: as in `judge`.
        timeout: seconds that the endpoint may stay silent.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    return _means(_text_scores(texts, QUALITY, variant, options))


def judge_qualities(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    variant: str = "score",
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> list[np.ndarray]:
    """`judge_quality` of each text, [chains] arrays [n]; nan where the reply is no score."""
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    return _text_scores(texts, QUALITY, variant, options)


def judge_quality_level(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Mean quality that a judge gives the texts on a scale of 0 (low), 1 and 2 (good): [c].

    Source: arXiv 2504.03814, figure 9; the released code, whose criteria the prompt has in other
    words. Replies that are none of the three are left out. Options as in `judge_quality`.
    """
    return _means(
        judge_quality_levels(texts, model, url, key, concurrency, cache, role, reply, timeout)
    )


def judge_quality_levels(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> list[np.ndarray]:
    """`judge_quality_level` of each text, 0, 1 or 2: [chains] arrays [n].

    nan where the reply is none of them.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    return _text_scores(texts, QUALITY_LEVEL, "score", options)


def judge_political_lean(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    variant: str = "score",
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Mean political lean of the texts that are political, from 0 (left) to 100 (right): [c].

    Source: arXiv 2504.03814, section 6. Texts that the judge finds not political (-1) and replies
    that are no score are left out; none left: nan. Options as in `judge_quality`.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    return _means(_text_scores(texts, POLITICAL_LEAN, variant, options))


def judge_political_leans(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    variant: str = "score",
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> list[np.ndarray]:
    """`judge_political_lean` of each text, [chains] arrays [n].

    -1 where the text is not political, nan where the reply is no score.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    _check_variant(variant, options)
    corpus, judged = _ask(texts, POLITICAL_LEAN, options)
    values = judged.score if variant == "score" else judged.expected
    return corpus.split(np.where(judged.none, float(DOES_NOT_APPLY), values))


def judge_not_political(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Share of the texts that a judge finds not political, in [0, 1]: [c] float64.

    Source: arXiv 2504.03814, figure 13b. Of the texts with a readable reply; none: nan. Options as
    in `judge_quality`.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    corpus, judged = _ask(texts, POLITICAL_LEAN, options)
    values = np.where(judged.unparsable, np.nan, judged.none.astype(np.float64))
    return _means(corpus.split(values))


def judge_english(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Share of the texts that a judge takes for English, in [0, 1]: [c] float64.

    Source: arXiv 2504.03814, cleaning of 100M_tweets. Replies that are no 0 or 1 are left out; none
    left, or no text: nan. Options as in `judge_quality`.
    """
    return _means(judge_englishes(texts, model, url, key, concurrency, cache, role, reply, timeout))


def judge_englishes(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> list[np.ndarray]:
    """`judge_english` of each text, 0 or 1: [chains] arrays [n].

    nan where the reply is neither.
    """
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    corpus, judged = _ask(texts, ENGLISH, options)
    values = np.where(np.isin(judged.score, (0, 1)), judged.score, np.nan)
    return corpus.split(values)


def judge_unparsable(
    texts: Texts,
    prompt: str = "quality",
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
    reply: str | None = None,
    timeout: float = 60.0,
) -> np.ndarray:
    """Share of the texts to which a judge's reply is no score, in [0, 1]: [c] float64.

    With equal options the judge is asked once for this and for its scores. No text: 0.

    Args:
        prompt: "quality", "quality_level", "political_lean" or "english"; the other options are
            those of `judge_quality`.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt is {prompt!r}; allowed are {', '.join(map(repr, PROMPTS))}.")
    options = Judge(model, url, key, concurrency, cache, role, reply, timeout)
    corpus, judged = _ask(texts, PROMPTS[prompt], options)
    return np.atleast_1d(corpus.mean(judged.unparsable.astype(np.float64)))


# The prompts of the metrics that leave out replies that are no score.
PROMPT_OF = {
    "judge_quality": QUALITY.name,
    "judge_quality_level": QUALITY_LEVEL.name,
    "judge_political_lean": POLITICAL_LEAN.name,
    "judge_not_political": POLITICAL_LEAN.name,
    "judge_english": ENGLISH.name,
}
_OLD_OPTIONS = {"reading": "variant"}
_SCALE = (0, 100)

METRICS = (
    Metric(
        "judge_quality",
        judge_quality,
        TEXTS,
        _SCALE,
        per_text=judge_qualities,
        old_options=_OLD_OPTIONS,
    ),
    Metric(
        "judge_quality_level", judge_quality_level, TEXTS, (0, 2), per_text=judge_quality_levels
    ),
    Metric(
        "judge_political_lean",
        judge_political_lean,
        TEXTS,
        _SCALE,
        per_text=judge_political_leans,
        old_options=_OLD_OPTIONS,
    ),
    Metric("judge_not_political", judge_not_political, TEXTS, UNIT_INTERVAL),
    Metric("judge_english", judge_english, TEXTS, UNIT_INTERVAL, per_text=judge_englishes),
    Metric("judge_unparsable", judge_unparsable, TEXTS, UNIT_INTERVAL),
)
