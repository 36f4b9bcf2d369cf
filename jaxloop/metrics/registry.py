"""Names for metrics: what a config's `metrics = [...]` may hold, and one call that evaluates a list
of them on many chains.

Adding a metric is one function and one line in `_METRICS`. A function takes the inputs it `needs`,
each with a leading chain axis, and returns one number per chain; its keyword arguments can be set
in the name: "knn_cosine_diversity(k=50)".
"""

import ast
import difflib
import inspect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxloop.metrics import (
    bleu,
    classifiers,
    distances,
    judges,
    lexical,
    losses,
    quality,
    semantic,
    sentiment,
)
from jaxloop.metrics.corpus import Corpus

INPUTS = {
    "texts": "the texts of each chain: [c] lists of strings",
    "reference_texts": "texts to compare with: one list for all chains, or [c] lists",
    "contexts": "the context (document) that each text belongs to: [c] lists",
    "embeddings": "[c, n, d] array, [c] arrays, or a function from a list of strings to [n, d]",
    "reference_embeddings": "[m, d] array to compare with, or [c] arrays; if absent, "
    "reference_texts under `embeddings`, if a function",
    "projection": "the evaluation UMAP (metrics/umap.py): a function from embeddings [n, d] to "
    "points [n, 2], or [c] functions",
    "entity_embeddings": "embeddings of what the entities of each chain wrote: [c] arrays "
    "[entities, prompts, d]",
    "losses": "held-out texts under the generating model: [c] objects with nats [n] and tokens [n]",
    "own_losses": "generated texts under the model that wrote them, in the same form",
    "reference_losses": "generated texts under a fixed reference model, in the same form",
    "token_nats": "-ln p of every held-out token: [c] lists of arrays",
}

_CHAINED = (
    "texts",
    "contexts",
    "embeddings",
    "projection",
    "entity_embeddings",
    "losses",
    "own_losses",
    "reference_losses",
    "token_nats",
)


class Unavailable(RuntimeError):
    """Raised by a metric whose backend (an endpoint, a model) cannot be reached: its values become
    nan, the others are computed.
    """


@dataclass(frozen=True)
class Metric:
    """A function from inputs with a leading chain axis to one number per chain.

    name      what configs call it
    function  function(*inputs named in `needs`, **options) -> [chains]
    needs     names of its inputs (see INPUTS)
    unit      of its values; "" for a pure number
    range     (least, largest) value; None where there is no bound
    per_text  the same for every text: (*inputs, **options) -> [chains] arrays [n]; None where texts
    have no value of their own
    """

    name: str
    function: Callable
    needs: tuple[str, ...]
    unit: str = ""
    range: tuple[float | None, float | None] = (None, None)
    per_text: Callable | None = None

    @property
    def doc(self) -> str:
        """The function's docstring: formula, range, source, and the value of collapsed output."""
        return inspect.getdoc(self.function) or ""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that a name can set, with their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[len(self.needs) :]
        return {p.name: p.default for p in parameters}


def _by_chain(
    function: Callable, least: Callable[[dict], int] = lambda options: 0, otherwise: float = np.nan
) -> Callable:
    """`function` of points [c, n, d], for chains of unequal sizes too; `otherwise` for a chain with
    fewer than least(options) points.
    """

    def evaluate(points, *others, **options):
        defaults = {
            p.name: p.default
            for p in inspect.signature(function).parameters.values()
            if p.default is not p.empty
        }
        need = least(defaults | options)
        points = [np.asarray(chain) for chain in points]
        if any(
            isinstance(other, list) for other in others
        ):  # a reference for each chain, of any size
            each = [
                [other[c] if isinstance(other, list) else other for other in others]
                for c in range(len(points))
            ]
            return np.concatenate(
                [
                    np.zeros(0),
                    *(
                        evaluate([chain], *own, **options)
                        for chain, own in zip(points, each, strict=True)
                    ),
                ]
            )
        if len({chain.shape for chain in points}) == 1 and len(points[0]) >= need:
            return np.asarray(function(np.stack(points), *others, **options))
        return np.array(
            [
                function(chain, *others, **options) if len(chain) >= need else otherwise
                for chain in points
            ],
            np.float64,
        )

    evaluate.__doc__ = function.__doc__
    evaluate.__signature__ = inspect.signature(function)
    return evaluate


_more_than_k = {"least": lambda options: options["k"] + 1}
_at_least_two = {"least": lambda options: 2}
_T, _E, _P = ("texts",), ("embeddings",), ("projection",)
_TR, _ER = ("texts", "reference_texts"), ("embeddings", "reference_embeddings")

_METRICS = (
    Metric("self_bleu", bleu.mean_self_bleu, _T, "", (0, 1), bleu.self_bleu),
    Metric("lexical_diversity", bleu.lexical_diversity, _T, "", (0, 1)),
    Metric("distinct_n", lexical.distinct_n, _T, "", (0, 1)),
    Metric("distinct_n_size_matched", lexical.distinct_n_size_matched, _T, "", (0, 1)),
    Metric(
        "distinct_n_by_context", lexical.distinct_n_by_context, ("texts", "contexts"), "", (0, None)
    ),
    Metric("type_token_ratio", lexical.type_token_ratio, _T, "", (0, 1), lexical.type_token_ratios),
    Metric("ngram_ttr", lexical.ngram_ttr, _T, "", (0, 1)),
    Metric("word_entropy", lexical.word_entropy, _T, "nats", (0, None)),
    Metric("vocabulary_size", lexical.vocabulary_size, _T, "words", (0, None)),
    Metric("text_length", lexical.text_length, _T, "characters", (0, None), lexical.text_lengths),
    Metric("zipf_slope", lexical.zipf_slope, _T, "", (None, 0)),
    Metric("repetition", lexical.repetition, _T, "", (0, 1), lexical.repetitions),
    Metric("memorised_ngrams", lexical.memorised_ngrams, _TR, "", (0, 1)),
    Metric("positivity", sentiment.positivity, _T, "", (-1, 1), sentiment.positivities),
    Metric("length_kl", distances.length_kl, _TR, "nats", (0, None)),
    Metric("cosine_diversity", _by_chain(semantic.cosine_diversity), _E, "", (0, 2)),
    Metric(
        "knn_cosine_diversity",
        _by_chain(semantic.knn_cosine_diversity, **_more_than_k),
        _E,
        "",
        (0, 2),
    ),
    Metric("kl_entropy", _by_chain(semantic.kl_entropy, **_more_than_k), _P, "nats", (None, None)),
    Metric("gaussian_aic", _by_chain(semantic.gaussian_aic), _P, "", (None, None)),
    Metric("negentropy", _by_chain(semantic.negentropy, **_more_than_k), _P, "nats", (None, None)),
    Metric(
        "frechet_distance",
        _by_chain(distances.frechet_distance, **_at_least_two),
        _ER,
        "",
        (0, None),
    ),
    Metric("mmd2", _by_chain(distances.mmd2, **_at_least_two), _ER, "", (None, None)),
    Metric(
        "energy_distance", _by_chain(distances.energy_distance, **_at_least_two), _ER, "", (0, None)
    ),
    Metric(
        "sliced_wasserstein",
        _by_chain(distances.sliced_wasserstein, **_at_least_two),
        _ER,
        "",
        (0, None),
    ),
    Metric(
        "output_similarity", distances.mean_output_similarity, ("entity_embeddings",), "", (-1, 1)
    ),
    Metric("held_out_loss", losses.held_out_loss, ("losses",), "nats/token", (0, None)),
    Metric(
        "held_out_perplexity",
        losses.perplexity,
        ("losses",),
        "",
        (1, None),
        losses.text_perplexities,
    ),
    Metric(
        "own_perplexity",
        losses.perplexity,
        ("own_losses",),
        "",
        (1, None),
        losses.text_perplexities,
    ),
    Metric(
        "reference_perplexity",
        losses.perplexity,
        ("reference_losses",),
        "",
        (1, None),
        losses.text_perplexities,
    ),
    Metric(
        "mean_text_perplexity",
        losses.mean_text_perplexity,
        ("reference_losses",),
        "",
        (1, None),
        losses.text_perplexities,
    ),
    Metric("tail_mass", losses.tail_mass, ("token_nats",), "", (0, 1)),
    Metric("class_share", classifiers.class_share, _T, "", (0, 1), classifiers.class_memberships),
    Metric(
        "class_probability",
        classifiers.class_probability,
        _T,
        "",
        (0, 1),
        classifiers.class_probabilities,
    ),
    Metric("toxicity", classifiers.toxicity, _T, "", (0, 1), classifiers.toxicities),
    Metric(
        "text_quality_index", quality.text_quality_index, _T, "", (0, 3), quality.text_qualities
    ),
    Metric("judge_quality", judges.judge_quality, _T, "", (0, 100), judges.judge_qualities),
    Metric(
        "judge_political_lean",
        judges.judge_political_lean,
        _T,
        "",
        (0, 100),
        judges.judge_political_leans,
    ),
    Metric("judge_not_political", judges.judge_not_political, _T, "", (0, 1)),
    Metric("judge_english", judges.judge_english, _T, "", (0, 1), judges.judge_englishes),
    Metric("judge_unparsable", judges.judge_unparsable, _T, "", (0, 1)),
)
REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _METRICS}


def available() -> dict[str, str]:
    """Every metric's name with the first sentence of its docstring."""
    return {
        name: " ".join(metric.doc.split("\n\n")[0].split()) for name, metric in REGISTRY.items()
    }


def validate(names: Sequence[str]) -> list[tuple[Metric, dict[str, Any]]]:
    """The metric and the options behind each name. ValueError, in one sentence, for a name or an
    option that does not exist.
    """
    if isinstance(names, str):
        raise ValueError(f"metrics is the string {names!r}, a list of names is needed.")
    found = [_parse(name) for name in names]
    twice = {str(name) for name in names if list(names).count(name) > 1}
    if twice:
        raise ValueError(f"metrics names {sorted(twice)[0]!r} twice, each name once is needed.")
    return found


def needs(names: Sequence[str]) -> set[str]:
    """The inputs (see INPUTS) that these metrics read, so that a caller embeds or scores texts only
    if asked to.

    A metric of the projection reads embeddings too.
    """
    inputs = {need for metric, _ in validate(names) for need in metric.needs}
    return inputs | ({"embeddings"} if "projection" in inputs else set())


def check(names: Sequence[str]) -> None:
    """Refuses what evaluation would refuse: options out of range, a model that is missing or has no
    such class, an address that is none.

    Metrics whose names set options, or that ask a model, are evaluated on nothing. Models that are
    named get loaded, and stay so; no endpoint is asked. ValueError, in one sentence.
    """
    points = np.arange(12.0, dtype=np.float32).reshape(1, 4, 3) ** 2
    pair = ([1.0], [1])
    nothing = {
        "texts": [[]], "reference_texts": [], "contexts": [[]], "embeddings": points, "reference_embeddings": points[0], "projection": lambda x: x[:, :2],
        "entity_embeddings": [points], "losses": [pair], "own_losses": [pair], "reference_losses": [pair], "token_nats": [[np.ones(1)]],
    }  # fmt: skip
    found = dict(zip(names, validate(names), strict=True))
    evaluate(
        [name for name, (metric, options) in found.items() if options or "model" in metric.options],
        **nothing,
    )


def _parse(name: str) -> tuple[Metric, dict[str, Any]]:
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", name) if isinstance(name, str) else None
    if not match or match[1] not in REGISTRY:
        wanted = match[1] if match else str(name)
        near = difflib.get_close_matches(wanted, REGISTRY, 1, 0.0)[0]
        raise ValueError(
            f"metrics holds {wanted!r}, which is no metric; the nearest name is {near!r}."
        )
    metric = REGISTRY[match[1]]
    try:
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        well_formed = not call.args and None not in options
    except (SyntaxError, ValueError):
        well_formed = False
    if not well_formed:
        raise ValueError(
            f"metrics holds {name!r}, options are needed in the form {match[1]}(name=value)."
        )
    unknown = [option for option in options if option not in metric.options]
    if unknown:
        allowed = ", ".join(metric.options) or "no option"
        raise ValueError(
            f"metrics holds {name!r}, but {match[1]} has no option {unknown[0]!r}; it takes "
            f"{allowed}."
        )
    return metric, options


def evaluate(
    names: Sequence[str], *, texts=None, embeddings=None, losses=None, **inputs
) -> dict[str, np.ndarray]:
    """Values of every metric for every chain: {name: [chains] float64}, in the order of `names`.

    texts         [c] lists of strings
    embeddings    [c, n, d] array, [c] arrays [n_c, d], or a function from a list of strings to [n, d], called once for all texts
    losses        [c] objects with nats [n] and tokens [n]
    inputs        whatever else the metrics need, by name: see INPUTS
    Names are those of `available()`, with options in brackets if wanted. Texts are tokenised once
    for all metrics. Output that has
    collapsed (no text, one text, all alike, all empty) gives the value that the metric's docstring
    states, nan where it is undefined.
    A metric that raises `Unavailable` gets nan for every chain and a warning. ValueError, in one
      sentence, for an unknown name or option,
    a missing input, or inputs whose chains do not match.
    """
    metrics = validate(names)
    given = _inputs(names, metrics, dict(inputs, texts=texts, embeddings=embeddings, losses=losses))
    chains = next(iter(_chain_counts(given).values()), 0)
    values = {}
    for name, (metric, options) in zip(names, metrics, strict=True):
        try:
            values[name] = np.asarray(
                metric.function(*(given[need] for need in metric.needs), **options), np.float64
            )
        except Unavailable as error:
            logging.getLogger(__name__).warning("metric %s is missing: %s", name, error)
            values[name] = np.full(chains, np.nan)
    return values


def evaluate_texts(
    names: Sequence[str], *, texts=None, embeddings=None, losses=None, **inputs
) -> dict[str, list[np.ndarray]]:
    """As `evaluate`, but the value of every text: {name: [chains] arrays [n]}. ValueError for a
    metric that single texts do not have.
    """
    metrics = validate(names)
    for name, (metric, _) in zip(names, metrics, strict=True):
        if metric.per_text is None:
            having = ", ".join(m.name for m in REGISTRY.values() if m.per_text)
            raise ValueError(
                f"metrics holds {name!r}, which single texts do not have; those that have it are "
                f"{having}."
            )
    given = _inputs(names, metrics, dict(inputs, texts=texts, embeddings=embeddings, losses=losses))
    return {
        n: m.per_text(*(given[need] for need in m.needs), **options)
        for n, (m, options) in zip(names, metrics, strict=True)
    }


def _inputs(names, metrics, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs in the form that metric functions take: a corpus, lists of arrays; each computed
    once, and only if needed.
    """
    wanted = [need for metric, _ in metrics for need in metric.needs]
    if (
        "reference_embeddings" in wanted
        and inputs.get("reference_embeddings") is None
        and callable(inputs["embeddings"])
    ):
        if inputs.get("reference_texts") is not None:
            inputs["reference_embeddings"] = _embed_references(
                inputs["embeddings"], inputs["reference_texts"]
            )
    for name, (metric, _) in zip(names, metrics, strict=True):
        missing = [n for n in metric.needs if n != "projection" and inputs.get(n) is None]
        missing += [
            n
            for n in ("projection", "embeddings")
            if "projection" in metric.needs and inputs.get(n) is None
        ]
        if missing:
            raise ValueError(
                f"metric {name!r} needs {missing[0]} "
                f"({INPUTS.get(missing[0], 'an input of its own')}), which was not given."
            )
    given = {key: value for key, value in inputs.items() if value is not None and key in wanted}
    if "texts" in given or callable(inputs["embeddings"]):
        if inputs["texts"] is None:
            raise ValueError("embeddings is a function, so texts are needed to embed.")
        texts = list(inputs["texts"])
        if any(isinstance(chain, str) for chain in texts):
            raise ValueError("texts holds strings, one list of strings for each chain is needed.")
        corpus = Corpus.of(texts) if texts else Corpus(())
        given |= {"texts": corpus} if "texts" in given else {}
    if {"embeddings", "projection"} & set(wanted):
        points = inputs["embeddings"]
        if callable(points):
            flat = (
                np.asarray(points(corpus.texts)) if corpus.texts else np.zeros((0, 1), np.float32)
            )
            if len(flat) != len(corpus.texts):
                raise ValueError(
                    f"embeddings returned {len(flat)} rows for {len(corpus.texts)} texts, one "
                    "row each is needed."
                )
            points = np.split(flat, np.cumsum(corpus.sizes)[:-1])
        points = [np.asarray(chain) for chain in points]
        given["embeddings"] = points
        if "projection" in wanted:
            # One chain at a time: where a point lands depends on the set that it is projected with.
            maps = inputs["projection"]
            maps = list(maps) if isinstance(maps, list | tuple) else [maps] * len(points)
            if len(maps) != len(points):
                raise ValueError(
                    f"the inputs have different numbers of chains: projection {len(maps)}, "
                    f"embeddings {len(points)}."
                )
            given["projection"] = [
                np.asarray(to(chain)) if len(chain) else np.zeros((0, 2))
                for to, chain in zip(maps, points, strict=True)
            ]
    if isinstance(given.get("reference_embeddings"), list | tuple):
        given["reference_embeddings"] = [
            np.asarray(chain) for chain in given["reference_embeddings"]
        ]
    lengths = _chain_counts(given)
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "the inputs have different numbers of chains: "
            f"{', '.join(f'{k} {v}' for k, v in lengths.items())}."
        )
    return given


def _embed_references(embed: Callable, references) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one list of texts, or of one list for each chain; lists that several chains
    share are embedded once.
    """
    if Corpus.of(references).single:
        return np.asarray(embed(list(references)))
    known = {id(texts): texts for texts in references}
    embedded = {key: np.asarray(embed(list(texts))) for key, texts in known.items()}
    return [embedded[id(texts)] for texts in references]


def _chain_counts(given: dict[str, Any]) -> dict[str, int]:
    counted = {
        key: value
        for key, value in given.items()
        if key in _CHAINED or (key == "reference_embeddings" and isinstance(value, list))
    }
    return {
        key: len(value.chains if isinstance(value, Corpus) else value)
        for key, value in counted.items()
    }
