"""Language models as judges: the quality and political-lean scores of arXiv 2504.03814 (B.3).

A judge is any `jaxloop.lm` model or any OpenAI-compatible endpoint. `judge_validation` says how
well a judge agrees with people.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxloop import lm
from jaxloop.lm import Model
from jaxloop.metrics.base import TEXTS, UNIT_INTERVAL, Metric, Unavailable
from jaxloop.metrics.corpus import Corpus, Texts
from jaxloop.metrics.endpoint import Endpoint, Unreachable, complete
from jaxloop.metrics.judge_model import judge_by_model
from jaxloop.metrics.judge_replies import (
    ENGLISH,
    POLITICAL_LEAN,
    PROMPTS,
    QUALITY,
    Judgement,
    Prompt,
    from_replies,
    judgement,
)
from jaxloop.metrics.tokens import check_texts
from jaxloop.runtime.atomic_io import cache_folder


def judge(
    texts: Sequence[str],
    backend: Model | Endpoint,
    prompt: Prompt = QUALITY,
    *,
    role: str = "system",
    batch: int | None = None,
) -> Judgement:
    """Return a judge's scores of texts (arXiv 2504.03814, B.3).

    A local model whose tokenizer has 0..100 as single tokens is read from the distribution of its
    first token, after one prefill: the likeliest number or -1, if among the 20 likeliest tokens.
    Other models, and endpoints, write a short reply, which must be a number. With
    `Endpoint(max_tokens=1)` the first of its top tokens that is a number counts, as in the paper's
    code; right only for models such as Llama 3 that have 0..100 as single tokens. Texts too long
    for a local model are cut.

    Args:
        role: "system" as the paper sends it, or "user" for models whose template has no system
            message.
        batch: padded tokens of a batch of a local model.

    Raises:
        ValueError: bad texts, or a role, template or context that does not fit.
        endpoint.Unreachable: the endpoint is down.
    """
    texts = check_texts(texts)
    if role not in ("system", "user"):
        raise ValueError(f"role is {role!r}; allowed are 'system' and 'user'.")
    if not texts:
        return judgement([], [])
    if isinstance(backend, Endpoint):
        replies = complete(backend, [prompt.messages(text, role) for text in texts])
        return from_replies(replies, prompt, first_token=backend.max_tokens == 1)
    return judge_by_model(texts, backend, prompt, role, batch)


# ---- metrics


class _Judge(NamedTuple):
    """The options that choose a judge: a local model, or with `url` one behind an endpoint."""

    model: str | None
    url: str | None
    key: str
    concurrency: int
    cache: str | None
    role: str


@functools.lru_cache(maxsize=2)
def _loaded(name: str) -> Model:
    return lm.load(name)


@functools.lru_cache(maxsize=4)
def _judged(texts: tuple[str, ...], prompt: Prompt, model: str, options: _Judge) -> Judgement:
    """Cached, so that the metrics of one judge ask it once."""
    if options.url is None:
        return judge(texts, _loaded(model), prompt, role=options.role)
    endpoint = Endpoint(
        options.url,
        model,
        options.key,
        options.concurrency,
        cache=options.cache or str(cache_folder() / "judges.sqlite"),
    )
    return judge(texts, endpoint, prompt, role=options.role)


def _ask(texts: Texts, prompt: Prompt, options: _Judge) -> tuple[Corpus, Judgement]:
    if options.model is None:
        raise ValueError(
            f"the {prompt.name} judge has no model; name one, as in "
            f"judge_{prompt.name}(model='…') or with url='http://…' too."
        )
    corpus = Corpus.of(texts)
    try:
        return corpus, _judged(tuple(corpus.texts), prompt, options.model, options)
    except Unreachable as error:
        raise Unavailable(str(error)) from None


def _text_scores(texts: Texts, prompt: Prompt, variant: str, options: _Judge) -> list[np.ndarray]:
    if variant not in ("score", "expected"):
        raise ValueError(f"variant is {variant!r}; allowed are 'score' and 'expected'.")
    corpus, judged = _ask(texts, prompt, options)
    return corpus.split(judged.score if variant == "score" else judged.expected)


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
) -> np.ndarray:
    """Mean quality that a judge gives the texts, in [0, 100]: [c] float64.

    Source: arXiv 2504.03814, quality. Replies that are no score are left out (`judge_unparsable`
    counts them); none left, or no text: nan. An endpoint that is down makes the metric nan.

    Args:
        model: a directory or hub id, or, with url, the model that an OpenAI-compatible endpoint
            serves.
        variant: "expected" takes the mean score under the judge's probabilities instead of the
            likeliest.
        key: the environment variable that holds the endpoint's key.
        concurrency: requests in flight at once.
        cache: the file that keeps everything the endpoint answered; None: judges.sqlite in the
            cache folder.
        role: as in `judge`.
    """
    options = _Judge(model, url, key, concurrency, cache, role)
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
) -> list[np.ndarray]:
    """`judge_quality` of each text, [chains] arrays [n]; nan where the reply is no score."""
    options = _Judge(model, url, key, concurrency, cache, role)
    return _text_scores(texts, QUALITY, variant, options)


def judge_political_lean(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    variant: str = "score",
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
) -> np.ndarray:
    """Mean political lean of the texts that are political, from 0 (left) to 100 (right): [c].

    Source: arXiv 2504.03814, section 6. Texts that the judge finds not political (-1) and replies
    that are no score are left out; none left: nan. Options as in `judge_quality`.
    """
    options = _Judge(model, url, key, concurrency, cache, role)
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
) -> list[np.ndarray]:
    """`judge_political_lean` of each text, [chains] arrays [n].

    nan where the text is not political or the reply is no score.
    """
    options = _Judge(model, url, key, concurrency, cache, role)
    return _text_scores(texts, POLITICAL_LEAN, variant, options)


def judge_not_political(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
) -> np.ndarray:
    """Share of the texts that a judge finds not political, in [0, 1]: [c] float64.

    Source: arXiv 2504.03814, figure 13b. Of the texts with a readable reply; none: nan. Options as
    in `judge_quality`.
    """
    options = _Judge(model, url, key, concurrency, cache, role)
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
) -> np.ndarray:
    """Share of the texts that a judge takes for English, in [0, 1]: [c] float64.

    Source: arXiv 2504.03814, cleaning of 100M_tweets. Replies that are no 0 or 1 are left out; none
    left, or no text: nan. Options as in `judge_quality`.
    """
    return _means(judge_englishes(texts, model, url, key, concurrency, cache, role))


def judge_englishes(
    texts: Texts,
    model: str | None = None,
    url: str | None = None,
    key: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    cache: str | None = None,
    role: str = "system",
) -> list[np.ndarray]:
    """`judge_english` of each text, 0 or 1: [chains] arrays [n].

    nan where the reply is neither.
    """
    options = _Judge(model, url, key, concurrency, cache, role)
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
) -> np.ndarray:
    """Share of the texts to which a judge's reply is no score, in [0, 1]: [c] float64.

    With equal options the judge is asked once for this and for its scores. No text: 0.

    Args:
        prompt: "quality", "political_lean" or "english"; the other options are those of
            `judge_quality`.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt is {prompt!r}; allowed are {', '.join(map(repr, PROMPTS))}.")
    options = _Judge(model, url, key, concurrency, cache, role)
    corpus, judged = _ask(texts, PROMPTS[prompt], options)
    return np.atleast_1d(corpus.mean(judged.unparsable.astype(np.float64)))


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
