"""Reads `paper_values.csv`: numbers of arXiv 2504.03814, to compare a run's own with.

item          table_1, table_2, table_3, table_4, figure_<n>, counts of significant cells, pilot
dataset       as the paper calls it ("All" for the fit over all); metric: "diversity" or "quality";
              ratio: "1/8"; level: property, split
value         empty where only the sign is known, and where the paper has only a sentence about a
              figure, which is then in `note`
significant   "yes" or "no" for cells of Table 1
certain       "no" where the text of the paper does not say to which column a value belongs

The digits of Figure 10 (and of the length splits, which the paper does not show) come from the
released code.
"""

import functools
import importlib.resources
import io

import pandas as pd


@functools.cache
def _table() -> pd.DataFrame:
    text = (
        importlib.resources.files(__package__)
        .joinpath("paper_values.csv")
        .read_text(encoding="utf-8")
    )
    return pd.read_csv(
        io.StringIO(text),
        keep_default_na=False,
        na_values={"value": [""]},
        dtype={"ratio": str, "level": str},
    )


def values(item: str, **where: str) -> pd.DataFrame:
    """Return the rows of one item that are certain and have a value.

    where: {column: value} that the rows must have, such as metric="quality".
    """
    rows = _table()
    rows = rows[(rows["item"] == item) & (rows["certain"] == "yes") & rows["value"].notna()]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows.reset_index(drop=True)


def note(item: str) -> str:
    """Return what the paper's text says of a figure that has no numbers; "" if nothing."""
    rows = _table()
    notes = rows[(rows["item"] == item) & rows["value"].isna() & (rows["dataset"] == "")]["note"]
    return str(notes.iloc[0]) if len(notes) else ""
