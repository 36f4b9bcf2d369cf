"""Finds metrics by the names in a config's `metrics = [...]`, and evaluates them on chains.

Every module in `GROUPS` lists its metrics in a tuple `METRICS`; `base.py` says how to add one.
"""

import ast
import difflib
import functools
import inspect
import re
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic

from jaxloop.config.annotations import allowed
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
from jaxloop.metrics.base import Metric, Unavailable
from jaxloop.metrics.endpoint import Unreachable
from jaxloop.metrics.inputs import chain_counts, prepare_inputs
from jaxloop.runtime.log import LOGGER

GROUPS = (bleu, lexical, sentiment, distances, semantic, losses, classifiers, quality, judges)
REGISTRY: dict[str, Metric] = {metric.name: metric for group in GROUPS for metric in group.METRICS}


class Request(NamedTuple):
    """A metric and the options that its name in a config sets."""

    metric: Metric
    options: dict[str, Any]


def available() -> dict[str, str]:
    """Return every metric's name with the first paragraph of its docstring."""
    return {
        name: " ".join(metric.doc.split("\n\n")[0].split()) for name, metric in REGISTRY.items()
    }


def validate(names: Sequence[str]) -> list[Request]:
    """Return the metric and the options behind each name.

    Raises:
        ValueError: a name or an option does not exist, or a name is given twice.
    """
    if isinstance(names, str):
        raise ValueError(f"metrics is the string {names!r}, a list of names is needed.")
    requests = [_parse(name) for name in names]
    repeated = {str(name) for name in names if list(names).count(name) > 1}
    if repeated:
        raise ValueError(f"metrics names {min(repeated)!r} twice, each name once is needed.")
    return requests


def needs(names: Sequence[str]) -> set[str]:
    """Return the inputs (see `base.INPUTS`) that these metrics read.

    So a caller can embed or score texts only if a metric needs it. A metric that reads the
    projection reads embeddings too.
    """
    inputs = {need for request in validate(names) for need in request.metric.needs}
    return inputs | ({"embeddings"} if "projection" in inputs else set())


def asks_endpoint(name: str) -> bool:
    """Return whether a metric asks a judge at an address, which may be down."""
    return validate([name])[0].options.get("url") is not None


def with_unparsable(names: Sequence[str]) -> list[str]:
    """Return the names, and for every judge among them the metric that counts unusable replies.

    That is `judge_unparsable` with the options that say which judge it is; it costs no question.
    """
    wanted = list(names)
    for request in validate(names):
        prompt = judges.PROMPT_OF.get(request.metric.name)
        if prompt is None:
            continue
        known = REGISTRY["judge_unparsable"].options
        options = {"prompt": prompt} | {k: v for k, v in request.options.items() if k in known}
        counted = ", ".join(f"{option}={value!r}" for option, value in options.items())
        wanted.append(f"judge_unparsable({counted})")
    return list(dict.fromkeys(wanted))


def ask_judges(names: Sequence[str]) -> list[str]:
    """Ask every judge at an address among the metrics once; return what is wrong, a line each.

    A line names the judge and says why it does not answer; no line: all of them answer.
    """
    lines = {}
    for request in validate(names):
        if request.options.get("url") is not None:
            known = judges.Judge._fields
            judge = judges.Judge(**{k: v for k, v in request.options.items() if k in known})
            if judge not in lines:
                try:
                    judges.ask_once(judge)
                    lines[judge] = ""
                except Unreachable as error:
                    lines[judge] = f"the judge {str(error).rstrip('.')}"
    return [line for line in lines.values() if line]


def check(names: Sequence[str]) -> None:
    """Raise now the errors that evaluation would raise later.

    Metrics whose names set options, or that use a model, are evaluated on empty inputs. This loads
    the models that they name, which stay loaded; no endpoint is asked.

    Raises:
        ValueError: an option is out of range, a model is missing or has no such class, or an
            endpoint's address is malformed.
    """
    points = np.arange(12.0, dtype=np.float32).reshape(1, 4, 3) ** 2
    losses_of_a_text = ([1.0], [1])
    nothing = {
        "texts": [[]],
        "reference_texts": [],
        "contexts": [[]],
        "embeddings": points,
        "reference_embeddings": points[0],
        "projection": _first_two_dimensions,
        "entity_embeddings": [points],
        "losses": [losses_of_a_text],
        "own_losses": [losses_of_a_text],
        "reference_losses": [losses_of_a_text],
        "token_nll": [[np.ones(1)]],
    }
    doubtful = []
    for name, request in zip(names, validate(names), strict=True):
        if request.options or "model" in request.metric.options:
            doubtful.append(name)
    evaluate(doubtful, **nothing)


def _first_two_dimensions(points: np.ndarray) -> np.ndarray:
    return points[:, :2]


def evaluate(
    names: Sequence[str], *, unavailable: MutableMapping[str, str] | None = None, **inputs: Any
) -> dict[str, np.ndarray]:
    """Return the values of every metric for every chain, in the order of `names`.

    Texts are tokenised once for all metrics. For collapsed output (no text, one text, all texts
    alike or empty) a metric has the value that its docstring states, nan if it is undefined. A
    metric that raises `Unavailable` is nan for every chain, and a warning is logged.

    Args:
        names: names of `available()`, with options in brackets if wanted.
        unavailable: gets {name: why} of the metrics that raised `Unavailable`.
        inputs: what the metrics need, by name: see `base.INPUTS`. `texts` are [c] lists of strings;
            `embeddings` may be a function from a list of strings to [n, d], which is called once
            for all texts.

    Returns:
        {name: [chains] float64}.

    Raises:
        ValueError: an unknown name or option, a missing input, or inputs whose chains do not match.
    """
    requests = dict(zip(names, validate(names), strict=True))
    prepared = prepare_inputs({name: metric for name, (metric, _) in requests.items()}, inputs)
    chains = next(iter(chain_counts(prepared).values()), 0)
    values = {}
    for name, (metric, options) in requests.items():
        arguments = [prepared[need] for need in metric.needs]
        try:
            values[name] = np.asarray(metric.function(*arguments, **options), np.float64)
        except Unavailable as error:
            LOGGER.warning("metric %s is missing: %s", name, error)
            if unavailable is not None:
                unavailable[name] = str(error)
            values[name] = np.full(chains, np.nan)
    return values


def evaluate_texts(names: Sequence[str], **inputs: Any) -> dict[str, list[np.ndarray]]:
    """Return the values of metrics for every single text: {name: [chains] arrays [n]}.

    Arguments as of `evaluate`.

    Raises:
        ValueError: as `evaluate`; or a metric has no value for single texts.
        Unavailable: a judge does not answer.
    """
    requests = dict(zip(names, validate(names), strict=True))
    for name, (metric, _) in requests.items():
        if metric.per_text is None:
            of_texts = ", ".join(m.name for m in REGISTRY.values() if m.per_text)
            raise ValueError(
                f"metrics holds {name!r}, which single texts do not have; those that have it are "
                f"{of_texts}."
            )
    prepared = prepare_inputs({name: metric for name, (metric, _) in requests.items()}, inputs)
    values = {}
    for name, (metric, options) in requests.items():
        assert metric.per_text is not None
        values[name] = metric.per_text(*(prepared[need] for need in metric.needs), **options)
    return values


def _parse(name: str) -> Request:
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", name) if isinstance(name, str) else None
    if not match or match[1] not in REGISTRY:
        wanted = match[1] if match else str(name)
        near = difflib.get_close_matches(wanted, REGISTRY, 1, 0.0)[0]
        raise ValueError(
            f"metrics holds {wanted!r}, which is no metric; the nearest name is {near!r}."
        )
    metric = REGISTRY[match[1]]
    options = _literal_options(match[2] or "")
    if options is None:
        raise ValueError(
            f"metrics holds {name!r}, options are needed in the form {match[1]}(name=value)."
        )
    options = _current_options(metric, options)
    unknown = [option for option in options if option not in metric.options]
    if unknown:
        known = ", ".join(metric.options) or "no option"
        raise ValueError(
            f"metrics holds {name!r}, but {match[1]} has no option {unknown[0]!r}; it takes "
            f"{known}."
        )
    for option, value in options.items():
        _check_option(name, match[1], option, value)
    return Request(metric, options)


def _check_option(name: str, metric: str, option: str, value: Any) -> None:
    """Refuse a value that is not of the type with which the metric's function declares it."""
    annotation = inspect.signature(REGISTRY[metric].function).parameters[option].annotation
    if annotation is inspect.Parameter.empty:
        return
    try:
        _adapter(annotation).validate_python(value, strict=True)
    except pydantic.ValidationError:
        raise ValueError(
            f"metrics holds {name!r}, but {option} is {value!r}; it must be {allowed(annotation)}."
        ) from None


@functools.cache
def _adapter(annotation: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(annotation)


def _literal_options(arguments: str) -> dict[str, Any] | None:
    """Keyword arguments of literals, as written in a call; None for anything else."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        return None
    named = {name: value for name, value in options.items() if name is not None}
    return named if len(named) == len(options) else None


def _current_options(metric: Metric, options: dict[str, Any]) -> dict[str, Any]:
    """Options under their current names."""
    current = {}
    for option, value in options.items():
        name = metric.old_options.get(option, option)
        if name != option:
            if name in options:
                raise ValueError(
                    f"metrics: {option} and {name} are the old and the current name of one option "
                    f"of {metric.name}: give {name} alone."
                )
            _warn_of_old_option(metric.name, option, name)
        current[name] = value
    return current


@functools.cache
def _warn_of_old_option(metric: str, old: str, current: str) -> None:
    """Cached, so that each old name is warned of once, however often it is evaluated."""
    LOGGER.warning(
        "metric %s: the option %s is now called %s; the next release refuses the old name",
        metric,
        old,
        current,
    )
