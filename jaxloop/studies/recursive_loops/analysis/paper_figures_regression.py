"""Figures 4 and 7 of arXiv 2504.03814, and its Table 1 as a figure.

Figure 4 shows coefficients by domain, figure 7 the variance inflation of the predictors.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.figures import panels, printable
from jaxloop.studies.recursive_loops.analysis import paper_values
from jaxloop.studies.recursive_loops.analysis.regression import title

LESS, MORE = "#1f6fb4", "#b3243c"  # less and more detrimental, as in the paper


def _colour(coefficient: float) -> str:
    return LESS if coefficient > 0 else MORE


def _bars(axes: Axes, rows: pd.DataFrame, y: np.ndarray, height: float) -> None:
    for at, (_, row) in zip(y, rows.iterrows(), strict=True):
        axes.barh(
            at,
            row["coefficient"],
            height,
            color=_colour(row["coefficient"]),
            alpha=0.7 if row["p"] < 0.05 else 0.3,
            linewidth=0,
        )
        axes.plot([row["low"], row["high"]], [at, at], color=figures.INK, linewidth=1)


def figure_4(coefficients: pd.DataFrame, *, errors: str = "classical") -> Figure:
    """Draw coefficients of the 18 properties with 95 % intervals, a panel per dependent and domain.

    The domain's own properties are shaded; strong colour means p < .05. coefficients:
    `regression_tables.Tables.coefficients` of a multi-domain study. Raises ValueError if it has no
    such fits.
    """
    table = coefficients[(coefficients["form"] == "relative") & (coefficients["errors"] == errors)]
    fits = list(dict.fromkeys(table["dependent"]))
    if not fits or "@" not in fits[0]:
        raise ValueError("there is no fit by domain to draw")
    terms = list(dict.fromkeys(table["term"]))
    domains = list(dict.fromkeys(term.partition("@")[2] for term in terms))
    terms = sorted(terms, key=lambda term: domains.index(term.partition("@")[2]))
    limit = max(0.16, 1.05 * float(np.nanmax(np.abs(table[["low", "high"]].to_numpy()))))
    y = -np.arange(len(terms), dtype=float)
    with figures.style():
        figure, axes = panels(1, len(fits), panel=(2.5, 0.9 + 0.24 * len(terms)), sharey=True)
        for one, fit in zip(axes[0], fits, strict=True):
            rows = table[table["dependent"] == fit].set_index("term").loc[terms]
            name, _, domain = fit.partition("@")
            of_domain = [
                at for at, term in zip(y, terms, strict=True) if term.partition("@")[2] == domain
            ]
            if of_domain:
                one.axhspan(
                    min(of_domain) - 0.5,
                    max(of_domain) + 0.5,
                    color="0.5",
                    alpha=0.14,
                    linewidth=0,
                    zorder=0,
                )
            _bars(one, rows, y, 0.7)
            one.axvline(0, color="0.5", linewidth=0.8)
            one.set_xlim(-limit, limit)
            one.set_title(printable(f"{name.capitalize()} · {domain}"), loc="left", fontsize=9)
        axes[0, 0].set_yticks(y, [printable(title(term)) for term in terms])
        figure.supxlabel("change of the relative metric per standard deviation", fontsize=9)
    return figure


def figure_table_1(coefficients: pd.DataFrame) -> Figure:
    """Draw Table 1: coefficients with 95 % intervals, by fit (columns) and dependent (rows).

    The upper interval is classical, the lower one, if there is one, accounts for overlap. A hollow
    diamond is the paper's coefficient of the fit of the same name. Raises ValueError where there is
    no fit.
    """
    table = coefficients[
        (coefficients["form"] == "relative") & coefficients["errors"].isin(["classical", "overlap"])
    ]
    columns, rows, terms = (
        list(dict.fromkeys(table[name])) for name in ("column", "dependent", "term")
    )
    if not columns:
        raise ValueError("there is no fit to draw")
    y = -np.arange(len(terms), dtype=float)
    with figures.style():
        figure, axes = panels(
            len(rows), len(columns), panel=(2.3, 0.8 + 0.34 * len(terms)), sharey=True
        )
        for row, dependent in enumerate(rows):
            for place, column in enumerate(columns):
                one = axes[row, place]
                fit = table[(table["dependent"] == dependent) & (table["column"] == column)]
                classical, overlap = (fit[fit["errors"] == e] for e in ("classical", "overlap"))
                _intervals(one, classical, terms, y + 0.14, linewidth=1.6, markersize=4)
                _intervals(one, overlap, terms, y - 0.14, linewidth=0.9, markersize=2.5)
                _paper_diamonds(one, dependent, column, terms, y)
                one.axvline(0, color="0.5", linewidth=0.8)
                one.set_title(
                    printable(f"{dependent.capitalize()} · {column}"), loc="left", fontsize=9
                )
        axes[0, 0].set_yticks(y, [printable(title(term)) for term in terms])
        figure.supxlabel("change of the relative metric per standard deviation", fontsize=9)
    return figure


def _intervals(
    axes: Axes,
    rows: pd.DataFrame,
    terms: Sequence[str],
    y: np.ndarray,
    *,
    linewidth: float,
    markersize: float,
) -> None:
    """Draw the coefficient and the interval of each term of a fit, at heights `y`."""
    fitted = rows.set_index("term").reindex(list(terms))
    for at, (_, row) in zip(y, fitted.iterrows(), strict=True):
        if np.isnan(row["coefficient"]):
            continue
        colour = _colour(row["coefficient"]) if row["p"] < 0.05 else "0.6"
        axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=linewidth)
        axes.plot(row["coefficient"], at, "o", color=colour, markersize=markersize)


def _paper_diamonds(
    axes: Axes, dependent: str, column: str, terms: Sequence[str], y: np.ndarray
) -> None:
    dataset, _, ratio = column.rpartition(" ") if " " in column else (column, "", "")
    published = paper_values.values(
        "table_1", metric=dependent, dataset=dataset, ratio=ratio
    ).set_index("level")["value"]
    for term, at in zip(terms, y, strict=True):
        if term in published.index:
            axes.plot(published[term], at, "D", color=figures.INK, fillstyle="none", markersize=4)


def figure_7(vif: pd.DataFrame, correlations: pd.DataFrame, *, most: float = 10.0) -> Figure:
    """Draw the variance inflation of every property by dataset, and |Spearman rho| of every pair.

    most: the variance inflation from which on the colour is darkest.
    """
    names = [printable(title(name)) for name in vif.index]
    shown = [printable(title(name)) for name in correlations.columns]
    with figures.style():
        size = 0.6 + 0.34 * max(len(names), len(shown))
        figure, axes = panels(1, 2, panel=(4.8, max(size, 2.4)))
        _heat(
            axes[0, 0],
            vif.to_numpy(float),
            colours=np.log(np.clip(vif.to_numpy(float), 1, most)),
            high=float(np.log(most)),
            rows=names,
            columns=list(map(printable, vif.columns)),
        )
        axes[0, 0].set_title("Variance inflation factor", loc="left", fontsize=10)
        _heat(
            axes[0, 1],
            correlations.to_numpy(float),
            colours=correlations.to_numpy(float),
            high=1.0,
            rows=shown,
            columns=shown,
        )
        axes[0, 1].set_title("|Spearman rho|", loc="left", fontsize=10)
    return figure


def _heat(
    axes: Axes,
    values: np.ndarray,
    *,
    colours: np.ndarray,
    high: float,
    rows: list[str],
    columns: list[str],
) -> None:
    """Draw a matrix of numbers, each on a background from white at 0 to dark at `high`."""
    axes.pcolormesh(
        np.ma.masked_invalid(colours),
        vmin=0,
        vmax=high,
        cmap="Blues",
        edgecolors="white",
        linewidth=0.5,
    )
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=7)
    for (i, j), value in np.ndenumerate(values):
        dark = np.isfinite(colours[i, j]) and colours[i, j] > 0.6 * high
        axes.text(
            j + 0.5,
            i + 0.5,
            _cell_text(value, decimals=1 if high > 1 else 2),
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "0.2",
        )


def _cell_text(value: float, decimals: int) -> str:
    if np.isnan(value):
        return ""
    if np.isinf(value):
        return "∞"
    text = f"{value:.{decimals}f}"
    return text if decimals == 1 else text.lstrip("0")
