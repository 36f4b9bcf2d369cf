"""Figures of the regressions of arXiv 2504.03814: coefficients by domain (4), which predictors
inflate each other (7), and Table 1 as a drawing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.figures import panels, printable
from jaxloop.studies.recursive_loops.analysis import paper_values
from jaxloop.studies.recursive_loops.analysis.regression import title

LESS, MORE = "#1f6fb4", "#b3243c"  # less and more detrimental, as in the paper


def _bars(axes, rows: pd.DataFrame, y: np.ndarray, height: float, **style) -> None:
    for at, (_, row) in zip(y, rows.iterrows(), strict=True):
        colour = LESS if row["coefficient"] > 0 else MORE
        axes.barh(
            at,
            row["coefficient"],
            height,
            color=colour,
            alpha=0.7 if row["p"] < 0.05 else 0.3,
            linewidth=0,
        )
        axes.plot([row["low"], row["high"]], [at, at], color=figures.INK, linewidth=1, **style)


def figure_4(coefficients: pd.DataFrame, *, errors: str = "classical") -> Figure:
    """Coefficients with 95 % intervals of the 18 properties, a panel per dependent and domain; the
    domain's own properties shaded.

    coefficients: `regression_tables.Tables.coefficients` of a multi-domain study. Strong colour: p
    < .05. ValueError without such fits.
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
            own = [
                at for at, term in zip(y, terms, strict=True) if term.partition("@")[2] == domain
            ]
            if own:
                one.axhspan(
                    min(own) - 0.5, max(own) + 0.5, color="0.5", alpha=0.14, linewidth=0, zorder=0
                )
            _bars(one, rows, y, 0.7)
            one.axvline(0, color="0.5", linewidth=0.8)
            one.set_xlim(-limit, limit)
            one.set_title(printable(f"{name.capitalize()} · {domain}"), loc="left", fontsize=9)
        axes[0, 0].set_yticks(y, [printable(title(term)) for term in terms])
        figure.supxlabel("change of the relative metric per standard deviation", fontsize=9)
    return figure


def figure_table_1(coefficients: pd.DataFrame) -> Figure:
    """Table 1 as a drawing: for every fit (columns) and dependent (rows) the coefficients with 95 %
    intervals, classical above and, where they exist, overlap-aware below; a hollow diamond is the
    paper's coefficient of a fit of the same name.
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
                one, own = (
                    axes[row, place],
                    table[(table["dependent"] == dependent) & (table["column"] == column)],
                )
                for errors, offset, width in (("classical", 0.14, 1.6), ("overlap", -0.14, 0.9)):
                    held = (
                        own[own["errors"] == errors]
                        .set_index("term")
                        .reindex(terms)
                        .dropna(subset="coefficient")
                    )
                    for term, found in held.iterrows():
                        at = y[terms.index(term)] + offset
                        colour = (
                            "0.6"
                            if not found["p"] < 0.05
                            else LESS
                            if found["coefficient"] > 0
                            else MORE
                        )
                        one.plot(
                            [found["low"], found["high"]], [at, at], color=colour, linewidth=width
                        )
                        one.plot(
                            found["coefficient"],
                            at,
                            "o",
                            color=colour,
                            markersize=4 if width > 1 else 2.5,
                        )
                _paper_diamonds(one, dependent, column, terms, y)
                one.axvline(0, color="0.5", linewidth=0.8)
                one.set_title(
                    printable(f"{dependent.capitalize()} · {column}"), loc="left", fontsize=9
                )
        axes[0, 0].set_yticks(y, [printable(title(term)) for term in terms])
        figure.supxlabel("change of the relative metric per standard deviation", fontsize=9)
    return figure


def _paper_diamonds(axes, dependent: str, column: str, terms: Sequence[str], y: np.ndarray) -> None:
    dataset, _, ratio = column.rpartition(" ") if " " in column else (column, "", "")
    known = paper_values.values(
        "table_1", metric=dependent, dataset=dataset, ratio=ratio
    ).set_index("level")["value"]
    for term, at in zip(terms, y, strict=True):
        if term in known.index:
            axes.plot(known[term], at, "D", color=figures.INK, fillstyle="none", markersize=4)


def figure_7(vif: pd.DataFrame, correlations: pd.DataFrame, *, most: float = 10.0) -> Figure:
    """Variance inflation of every property by dataset (left; darker from 1 to `most` and beyond),
    and |Spearman rho| of every pair (right).
    """
    names = [printable(title(name)) for name in vif.index]
    shown = [printable(title(name)) for name in correlations.columns]
    with figures.style():
        size = 0.6 + 0.34 * max(len(names), len(shown))
        figure, axes = panels(1, 2, panel=(4.8, max(size, 2.4)))
        _heat(
            axes[0, 0],
            np.log(np.clip(vif.to_numpy(float), 1, most)),
            vif.to_numpy(float),
            0,
            np.log(most),
            names,
            list(map(printable, vif.columns)),
        )
        axes[0, 0].set_title("Variance inflation factor", loc="left", fontsize=10)
        _heat(
            axes[0, 1],
            correlations.to_numpy(float),
            correlations.to_numpy(float),
            0,
            1,
            shown,
            shown,
        )
        axes[0, 1].set_title("|Spearman rho|", loc="left", fontsize=10)
    return figure


def _heat(
    axes,
    colours: np.ndarray,
    values: np.ndarray,
    low: float,
    high: float,
    rows: list[str],
    columns: list[str],
) -> None:
    axes.pcolormesh(
        np.ma.masked_invalid(colours),
        vmin=low,
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
        text = (
            ""
            if np.isnan(value)
            else "∞"
            if np.isinf(value)
            else f"{value:.1f}"
            if high > 1
            else f"{value:.2f}".lstrip("0")
        )
        dark = np.isfinite(colours[i, j]) and colours[i, j] > low + 0.6 * (high - low)
        axes.text(
            j + 0.5,
            i + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "0.2",
        )
