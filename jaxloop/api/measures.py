"""Metrics of texts, as a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from jaxloop.api.models import check_texts
from jaxloop.metrics import registry
from jaxloop.metrics.embed import embed


def evaluate(
    texts: Sequence[str] | Mapping[str, Sequence[str]],
    metrics: Sequence[str | Callable[[list[str]], float]],
    *,
    reference: Sequence[str] | None = None,
    losses: Any = None,
    embedder: str | None = None,
) -> pd.DataFrame:
    """Compute metrics of one list of texts, or of several that are compared.

    Examples:
        >>> import jaxloop
        >>> table = jaxloop.evaluate(
        ...     {"a": ["one two two", "one"], "b": ["three four", "five"]}, ["distinct_n(n=1)"]
        ... )
        >>> table["distinct_n(n=1)"].tolist()
        [0.5, 1.0]

    Args:
        texts: a list of texts, or {name: list of texts}.
        metrics: names of metrics, options in brackets; `jaxloop.metrics.registry.available()` says
            which there are. A function of a list of texts is a metric of your own; its column has
            its name.
        reference: texts to compare with, for metrics that need them.
        losses: {name: what `score` returned}, or one of them, for metrics that need losses of
            held-out texts.
        embedder: sentence encoder for semantic metrics; none: MiniLM.

    Returns:
        One row per list of texts (by its name; "texts" where it has none), one column per metric.

    Raises:
        ValueError: texts that are not strings, an unknown metric or option, two metrics of one
            name, or a metric that needs something that was not given.
    """
    named = dict(texts) if isinstance(texts, Mapping) else {"texts": texts}
    lists = {name: check_texts(values, f"texts[{name!r}]") for name, values in named.items()}
    if not lists:
        raise ValueError("texts: is empty; at least one list of texts is needed")
    inputs: dict[str, Any] = {"texts": list(lists.values())}
    if reference is not None:
        inputs["reference_texts"] = check_texts(reference, "reference")
    if losses is not None:
        by_name = losses if isinstance(losses, Mapping) else {"texts": losses}
        missing = [name for name in lists if name not in by_name]
        if missing:
            raise ValueError(f"losses: there are none of {missing[0]!r}")
        inputs["losses"] = [by_name[name] for name in lists]
        inputs["token_nll"] = [by_name[name].token_nll for name in lists]
    if isinstance(metrics, str):
        raise ValueError(f"metrics={metrics!r}: is one string; a list of names is needed")
    columns = [_name_of(metric) for metric in metrics]
    if repeated := [column for column in columns if columns.count(column) > 1]:
        raise ValueError(
            f"metrics: two are called {repeated[0]!r}; each needs a name of its own, such as that "
            "of a function that is defined with def"
        )
    names = [metric for metric in metrics if not callable(metric)]
    if registry.needs(names) & {"embeddings", "reference_embeddings"}:
        inputs["embeddings"] = lambda values: embed(values, model=embedder)
    values: dict[str, Any] = dict(registry.evaluate(names, **inputs))
    for metric in metrics:
        if callable(metric):
            values[_name_of(metric)] = [float(metric(of_list)) for of_list in lists.values()]
    return pd.DataFrame(values, index=pd.Index(list(lists), name="texts"))[columns]


def _name_of(metric: str | Callable[[list[str]], float]) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", repr(metric))
