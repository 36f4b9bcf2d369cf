"""What a run directory holds, read back: its config, metrics, texts and ledger.

Nothing here changes a run directory, and none needs to be whole: a run may still be going on.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxloop.runtime.tables import read_parquet, unescape
from jaxloop.runtime.workdir import CONFIG, check_format, is_workdir

# Order of metrics in a report; a metric that is not listed comes after these.
ORDER = (
    "cosine_diversity",
    "lexical_diversity",
    "self_bleu",
    "distinct_n(n=1)",
    "distinct_n(n=2)",
    "distinct_n",
    "held_out_loss",
    "text_length",
)


class StoredRun(NamedTuple):
    """A run directory as it was read.

    Attributes:
        root: its path.
        config: config.json, its fields under their current names.
        metrics: what `read_metrics` returns.
    """

    root: Path
    config: Mapping[str, Any]
    metrics: pd.DataFrame


def check_run(root: Path) -> None:
    """Raise ValueError unless `root` is a run directory of a format that is read here."""
    if not root.exists():
        raise ValueError(f"run {root}: does not exist")
    if not is_workdir(root):
        raise ValueError(f"run {root}: is not a run directory of jaxloop")
    check_format(root)


def read_run(
    root: str | Path, current: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> StoredRun:
    """Read config and metrics of a run directory.

    Args:
        root: the run directory.
        current: gives a stored config the current names of its fields (see `config.stored_names`).

    Raises:
        ValueError: it is no run directory, was made in another format, has no whole config.json,
            or has no metrics yet.
    """
    root = Path(root).expanduser()
    check_run(root)
    config = read_config(root, current)
    if not (root / "metrics.csv").exists():
        raise ValueError(f"run {root}: has no metrics.csv; no generation of it is finished yet")
    return StoredRun(root, config, read_metrics(root))


def read_config(
    root: Path, current: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> Mapping[str, Any]:
    """Read config.json of a run directory; arguments and errors as in `read_run`."""
    try:
        stored = json.loads((root / CONFIG).read_bytes())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"run {root}: its {CONFIG} is missing or damaged; restore the file")
    return current(stored)


def read_metrics(root: Path) -> pd.DataFrame:
    """Read metrics.csv of a run directory, its rows sorted by metric (see `ORDER`).

    Text columns keep their text ("NA" is not a missing value); `value` is numeric.
    """
    table = pd.read_csv(
        root / "metrics.csv", keep_default_na=False, na_values={"value": ["", "nan"]}
    )
    for name in table.columns:
        if table[name].dtype == object or isinstance(table[name].dtype, pd.StringDtype):
            table[name] = [unescape(v) if isinstance(v, str) else v for v in table[name]]
    place = {metric: i for i, metric in enumerate(ORDER)}
    return table.sort_values(
        "metric",
        key=lambda m: m.map(lambda name: place.get(name, len(place))),
        kind="stable",
        ignore_index=True,
    )


def read_texts(root: Path, chain: str, generation: int) -> list[str]:
    """Read the texts that a chain wrote in one generation, in the order of their rows.

    An empty list where the file is absent.
    """
    path = root / f"texts/chain={chain}/generation={generation:04d}.parquet"
    return list(read_parquet(path, ["text"])["text"]) if path.exists() else []


def read_ledger(root: Path) -> pd.DataFrame:
    """Read ledger.parquet of a run directory.

    Raises:
        ValueError: it is absent or damaged.
    """
    path = root / "ledger.parquet"
    if not path.exists():
        raise ValueError(f"run {root}: has no ledger.parquet; no generation of it is finished yet")
    return pd.DataFrame(read_parquet(path))


# Seconds that each kind of step has taken, and how far the run is; see `write_progress`.
PROGRESS = ".jaxloop.progress.json"


def read_spent(root: Path) -> dict[str, float]:
    """Return the seconds that each kind of step of a run has taken, {} where that is not known."""
    try:
        spent = json.loads((root / PROGRESS).read_bytes())["spent"]
        return {str(kind): float(seconds) for kind, seconds in spent.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
