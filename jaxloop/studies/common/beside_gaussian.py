"""The loss of semantic diversity beside that of a Gaussian which is refitted on as many texts.

The mean cosine distance of two texts is the total variance of their embeddings, which have length
one. A Gaussian fitted to n of its own texts loses 1/n of its variance; the formula (module
jaxloop.simulators.gaussian_mixed) has no free number. What the models lose beyond it, or keep, is
not an effect of the number of texts alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.report import Drawing, Section
from jaxloop.reporting.scores import LAST, share
from jaxloop.reporting.statistics import t_interval
from jaxloop.simulators.gaussian_mixed import mixed_chain
from jaxloop.studies.common import report as common_report

TITLE = "Beside a Gaussian"
METRIC = "cosine_diversity"
LATE = "late"  # in the column generation: the mean of the last generations


def section(root: Path, values: pd.DataFrame, ledger: pd.DataFrame | None, last: int) -> Section:
    """Write tables/beside_gaussian.csv and figures/beside_gaussian.png into a run directory; return
    the section of its page, which says why where nothing can be compared.

    The other arguments are those of `table`.
    """
    try:
        found = table(values, ledger, last)
    except ValueError as error:
        return Section(TITLE, paragraphs=[f"Not compared: {error}."])
    note = (
        "Mean change of semantic diversity since generation 0 with a 95 % t interval, and that of "
        "the variance of a Gaussian which is refitted on as many texts, as many of them its own. "
        "The formula has no free number: what the models lose beyond it is not an effect of the "
        "number of texts alone."
    )
    drawing = Drawing("Diversity and the formula", note, draw(found), wide=True)
    common_report.save_table(root / "tables", "beside_gaussian", found)
    common_report.save_drawings(root / "figures", {"beside_gaussian": drawing})
    said = sentences(found)
    lost = values["chain"].nunique() - int(found.loc[found["generation"] == LATE, "n"].sum())
    if lost:
        said.append(f"Chains without a value in every generation are left out: {lost}.")
    return Section(TITLE, paragraphs=said, drawings=[drawing])


def table(values: pd.DataFrame, ledger: pd.DataFrame | None, last: int = LAST) -> pd.DataFrame:
    """Return the change of semantic diversity since generation 0, measured and by the formula.

    Args:
        values: of `METRIC`: columns chain, ratio, generation, value.
        ledger: what the chains trained on: columns chain, generation, source, from_generation,
            count.
        last: how many last generations are averaged.

    Returns:
        Columns ratio, generation (its number, or `LATE`), n (chains), measured (mean of value /
        generation 0 - 1), low, high (its 95 % t interval; nan for one chain), formula, and inside
        (whether the formula lies in the interval; None without one).

    Raises:
        ValueError: something that is needed is missing, or the number of texts changes.
    """
    if values.empty:
        raise ValueError(f"the run has no metric {METRIC}, which the formula is about")
    if ledger is None:
        raise ValueError("ledger.parquet is missing, which counts the texts")
    rows = []
    for ratio in sorted(values["ratio"].unique().tolist()):
        rows += _of_ratio(values[values["ratio"] == ratio], ledger, ratio, last)
    names = ["ratio", "generation", "n", "measured", "low", "high", "formula"]
    found = pd.DataFrame(rows, columns=names)
    inside = (found["low"] <= found["formula"]) & (found["formula"] <= found["high"])
    return found.assign(inside=inside.astype(object).where(found["low"].notna(), None))


def _of_ratio(values: pd.DataFrame, ledger: pd.DataFrame, ratio: float, last: int) -> list[tuple]:
    """The rows of one ratio."""
    by_chain = values.pivot_table(index="chain", columns="generation", values="value")
    by_chain = by_chain.dropna()
    if by_chain.empty:
        raise ValueError(f"no chain at r = {share(ratio)} has a value in every generation")
    measured_at = by_chain.columns.to_numpy(int)
    final = int(measured_at.max())
    if measured_at[0] != 0 or final == 0:
        raise ValueError("generation 0 and a later one must be measured")
    texts = _texts(ledger, set(by_chain.index), final)
    chain = mixed_chain(final + 1, **texts._asdict())
    # The mean distance of texts is unbiased for the variance of what a model writes, as W is.
    formula = (chain.variance / chain.variance[0] - 1)[measured_at]
    changes = (by_chain.div(by_chain[0], axis=0) - 1).to_numpy()
    late = measured_at > max(final - last, 0)
    names: list[int | str] = [*measured_at[1:].tolist(), LATE]
    measured = [*changes[:, 1:].T, changes[:, late].mean(1)]
    predicted = [*formula[1:], formula[late].mean()]
    rows = []
    for name, sample, value in zip(names, measured, predicted, strict=True):
        interval = t_interval(sample, 0.0)
        rows.append(
            (ratio, name, len(sample), sample.mean(), interval.low, interval.high, float(value))
        )
    return rows


class _Texts(NamedTuple):
    """What chains trained on, by the ledger: arguments of `mixed_chain`."""

    n: int
    synthetic: int
    first: int
    pooled: bool


def _texts(ledger: pd.DataFrame, chains: set[str], final: int) -> _Texts:
    ledger = ledger[ledger["chain"].isin(chains) & (ledger["generation"] <= final)]
    made = ledger[ledger["source"] == "synthetic"]
    # Generation 1 trains on what is new in it, whether or not later ones draw from a pool.
    first, second = ledger[ledger["generation"] == 0], made[made["generation"] == 1]
    return _Texts(
        n=_one_count(ledger[ledger["generation"] > 0], len(chains) * final, "later generations"),
        synthetic=_one_count(second, len(chains), "generation 1") if len(second) else 0,
        first=_one_count(first, len(chains), "generation 0"),
        pooled=bool((made["from_generation"] != made["generation"] - 1).any()),
    )


def _one_count(rows: pd.DataFrame, groups: int, what: str) -> int:
    counts = rows.groupby(["chain", "generation"])["count"].sum()
    if counts.nunique() != 1 or len(counts) != groups:
        raise ValueError(f"the number of texts of {what} differs between chains or generations")
    return int(counts.iloc[0])


def sentences(found: pd.DataFrame) -> list[str]:
    """Return what the table says of the late values."""
    late = found[(found["generation"] == LATE) & (found["n"] > 1)].astype({"inside": bool})
    if late.empty:
        return []
    inside = int(late["inside"].sum())
    said = [
        "Semantic diversity beside a Gaussian that is refitted on as many texts, late change since "
        f"generation 0: the formula lies in the 95 % interval of {inside} of {len(late)} ratios."
    ]
    for _, row in late[~late["inside"]].iterrows():
        word = "more" if row["measured"] < row["formula"] else "less"
        said.append(
            f"At r = {share(row['ratio'])} the models lose {word}: {row['measured']:+.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}], formula {row['formula']:+.3f}."
        )
    return said


def draw(found: pd.DataFrame) -> Figure:
    """Draw measured changes with their intervals, and the formula, in a panel for every ratio.

    found: what `table` returns.
    """
    by_generation = found[found["generation"] != LATE]
    ratios: Sequence[float] = sorted(found["ratio"].unique())
    colour = figures.palette(6)[5][0]
    with figures.style():
        figure, axes = figures.panels(1, len(ratios), panel=(2.6, 2.4), sharey=True)
        for one, ratio in zip(axes[0], ratios, strict=True):
            rows = by_generation[by_generation["ratio"] == ratio]
            at = rows["generation"].to_numpy(int)
            low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
            if np.isfinite(low).all():
                one.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            measured = rows["measured"].to_numpy(float)
            one.plot(at, measured, color=colour, marker="o", markersize=3, label="measured")
            formula = rows["formula"].to_numpy(float)
            one.plot(at, formula, color=figures.INK, linestyle=(0, (3, 2)), label="formula")
            one.set_title(f"r = {share(ratio)}", loc="left", fontsize=10)
            one.set_xlabel("generation")
        axes[0, 0].set_ylabel("change of semantic diversity")
        axes[0, -1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
