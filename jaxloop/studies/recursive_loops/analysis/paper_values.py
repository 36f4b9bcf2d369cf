"""The numbers of arXiv 2504.03814 that are known, to lay beside a run's own: `paper_values.csv`.

item          table_1, table_2, table_3, table_4, figure_<n>, counts of significant cells, pilot
dataset       as the paper calls it ("All" for the fit over all); metric: "diversity" or "quality"; ratio: "1/8"; level: property, split
value         empty where only the sign is known, or for a sentence about a figure without digits, which stands in `note`
significant   "yes" or "no" for cells of Table 1; certain: "no" where the text of the paper does not tell which column a value stands in
The digits of Figure 10 (and of the length splits, which the paper does not show) come from the released code.
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
    """Certain rows of one item that have a value, restricted by equality of columns
    (metric="quality", dataset="100M_tweets", ...).
    """
    rows = _table()
    rows = rows[(rows["item"] == item) & (rows["certain"] == "yes") & rows["value"].notna()]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows.reset_index(drop=True)


def reading(item: str) -> str:
    """What the paper's text says of a figure that has no digits; "" where there is nothing."""
    rows = _table()
    found = rows[(rows["item"] == item) & rows["value"].isna() & (rows["dataset"] == "")]["note"]
    return str(found.iloc[0]) if len(found) else ""
