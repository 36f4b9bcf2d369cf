"""The tables of a run directory as reports read them, and what a run that goes on says of itself.

`recursion.saved_run` reads the rest of it.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.recursion.sources import texts_path
from jaxloop.runtime.tables import read_parquet, unescape

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


def read_metrics(root: Path) -> pd.DataFrame:
    """Read metrics.csv of a run directory, its rows sorted by metric (see `ORDER`).

    Text columns keep their text ("NA" is not a missing value); `value` is numeric.
    """
    table = pd.read_csv(
        root / "metrics.csv", keep_default_na=False, na_values={"value": ["", "nan"]}
    )
    for name in text_columns(table):
        table[name] = [unescape(v) if isinstance(v, str) else v for v in table[name]]
    place = {metric: i for i, metric in enumerate(ORDER)}
    return table.sort_values(
        "metric",
        key=lambda m: m.map(lambda name: place.get(name, len(place))),
        kind="stable",
        ignore_index=True,
    )


def text_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that may hold text: of objects or, in pandas 3, of its type of text."""
    return [name for name in table.columns if _may_hold_text(table[name].dtype)]


def _may_hold_text(kind: object) -> bool:
    return kind == np.dtype(object) or isinstance(kind, pd.StringDtype)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file of a run directory; cells that are empty, or `nan`, are missing values.

    All other text is text: "NA" and "None" too. Lone surrogates stay escaped (`runtime.tables`).
    """
    return pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])


def read_texts(root: Path, chain: str, generation: int) -> list[str]:
    """Read the texts that a chain wrote in one generation, in the order of their rows.

    An empty list where the file is absent.
    """
    path = root / texts_path(chain, generation)
    return list(read_parquet(path, ["text"])["text"]) if path.exists() else []


# Seconds that each kind of step has taken, and how far the run is; see `write_progress`.
PROGRESS = ".jaxloop.progress.json"


def read_spent(root: Path) -> dict[str, float]:
    """Return the seconds that each kind of step of a run has taken, {} where that is not known."""
    try:
        spent = json.loads((root / PROGRESS).read_bytes())["spent"]
        return {str(kind): float(seconds) for kind, seconds in spent.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
