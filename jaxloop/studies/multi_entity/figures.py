"""Figures of a multi-entity study.

Colour is beta, line style alpha; bands and bars are 95 % t-intervals over seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxloop.reporting import figures
from jaxloop.reporting.figures import MUTED, printable
from jaxloop.studies.multi_entity import effects as entities_effects
from jaxloop.studies.multi_entity.linear_theory import Surface

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
EFFECTS = {
    "transfer": "Transfer",
    "damage": "Damage",
    "alike_losses": "Homogenisation of losses",
    "alike_outputs": "Homogenisation of outputs",
    "alike_since": "Outputs since generation 0",
}
# Of tables; those of `EFFECTS` stand in one figure.
TITLES = {
    **EFFECTS,
    "transfer_share": "Transfer, share of the gap",
    "transfer_read": "Transfer, tasks of whom they read",
    "transfer_share_read": "Share of the gap, tasks of whom they read",
    "transfer_unread": "Transfer, the other tasks",
    "transfer_share_unread": "Share of the gap, the other tasks",
    "transfer_nearer": "Transfer, of whom they read minus others",
}


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _styles(table: pd.DataFrame) -> dict[tuple, tuple[str, object]]:
    """(alpha, beta) -> colour by beta, dashes by alpha."""
    pairs = list(dict.fromkeys(zip(table["alpha"], table["beta"], strict=True)))
    alphas, betas = (list(dict.fromkeys(p[i] for p in pairs)) for i in (0, 1))
    colours = figures.palette(len(betas))
    return {
        (a, b): (colours[betas.index(b)][0], _DASHES[alphas.index(a) % len(_DASHES)])
        for a, b in pairs
    }


def _name(alpha: float | str, beta: float | str) -> str:
    if isinstance(alpha, float) and isinstance(beta, float):
        return f"α {alpha:g}, β {beta:g}"
    return f"α {alpha}, β {beta}"


def _places(values: Sequence) -> dict:
    """Where the values of alpha stand on an axis.

    At their number, or one after another where one of them is a list.
    """
    numbers = {v: _number(v) for v in dict.fromkeys(values)}
    if all(np.isfinite(list(numbers.values()))):
        return numbers
    return {v: float(i) for i, v in enumerate(numbers)}


def _by_alpha(axes: Axes, table: pd.DataFrame, *, lines: bool = True) -> None:
    """mean, low, high of a table by alpha, one line per beta; lines: join its points."""
    places, betas = _places(table["alpha"].tolist()), list(dict.fromkeys(table["beta"]))
    for i, (beta, (colour, _)) in enumerate(zip(betas, figures.palette(len(betas)), strict=True)):
        rows = table[table["beta"] == beta]
        x = np.array([places[a] for a in rows["alpha"]]) + (i - (len(betas) - 1) / 2) * 0.02
        mean, low, high = (rows[c].to_numpy(float) for c in ("mean", "low", "high"))
        order = np.argsort(x)
        bars = np.nan_to_num(np.stack([mean - low, high - mean])[:, order])
        label = f"β {beta:g}" if isinstance(beta, float) else f"β {beta}"
        axes.errorbar(
            x[order],
            mean[order],
            yerr=bars,
            color=colour,
            marker="o",
            markersize=4,
            linestyle="-" if lines else "none",
            linewidth=1.5,
            capsize=3,
            label=printable(label),
        )
    axes.set_xticks(
        list(places.values()), [f"{a:g}" if isinstance(a, float) else "" for a in places]
    )
    axes.set_xlabel("alpha")


def _legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        inches = 0.6 + 0.07 * max(map(len, labels))  # of the widest entry, at this font size
        fit = max(1, int(figure.get_figwidth() / inches))
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(columns, fit, len(labels)),
            frameon=False,
            fontsize=8,
        )


def effects(summary: pd.DataFrame) -> Figure:
    """Draw the effects by alpha, one line per beta, a row for each of what they are compared
    with.
    """
    found = summary[summary["mean"].notna()]
    with figures.style():
        rows = {
            against: [name for name in EFFECTS if name in set(part["effect"])]
            for against, part in found.groupby(found["against"].astype(str), sort=False)
        }
        # The change since generation 0 has a place beside the first of the others.
        since = rows.pop(entities_effects.START, [])
        cells = [[(name, against) for name in names] for against, names in rows.items()] or [[]]
        cells[0] += [(name, entities_effects.START) for name in since]
        wide = max(1, *map(len, cells))
        figure, axes = figures.panels(len(cells), wide, panel=(2.7, 2.8))
        for line, row in zip(axes, cells, strict=True):
            for one, (name, against) in zip(line, row, strict=False):
                one.axhline(0, color=MUTED, linewidth=0.8)
                chosen = (found["effect"] == name) & (found["against"] == against)
                _by_alpha(one, found[chosen])
                title = EFFECTS[name]
                if against != entities_effects.START:
                    title += f"\nagainst {against}"
                one.set_title(title, loc="left", fontsize=10)
            for one in line[len(row) :]:
                one.set_axis_off()
        _legend(figure, axes[0, 0])
        return figure


def shares(
    summary: pd.DataFrame, predicted: Mapping[tuple[str, str], Mapping[tuple, float]]
) -> Figure:
    """Draw shares of the gap by alpha, one line per beta: measured, and dashed as predicted.

    A row for each of what they are compared with; summary: what `effects.summary` returns;
    predicted: what `sentences.linear_shares` returns. Without private text (beta = 0) models
    have no task of their own, and a gap is an accident: those shares are left out.
    """
    summary = summary[summary["beta"] != 0]
    names = list(dict.fromkeys(effect for effect, _ in predicted))
    readings = list(dict.fromkeys(against for _, against in predicted))
    drawn = {
        at: summary[
            (summary["effect"] == at[0]) & (summary["against"] == at[1]) & summary["mean"].notna()
        ]
        for at in predicted
    }
    readings = [against for against in readings if len(drawn[names[0], against])] or readings[:1]
    with figures.style():
        figure, axes = figures.panels(len(readings), len(names), panel=(3.4, 2.8), sharey=True)
        for line, against in zip(axes, readings, strict=True):
            for one, name in zip(line, names, strict=True):
                one.axhline(0, color=MUTED, linewidth=0.8)
                table = drawn[name, against]
                if len(table):
                    _by_alpha(one, table, lines=False)
                    _predicted(one, table, predicted[name, against])
                one.set_title(f"{TITLES[name]}\nagainst {against}", loc="left", fontsize=9)
        _legend(figure, axes[0, 0])
        return figure


def _predicted(axes: Axes, table: pd.DataFrame, values: Mapping[tuple, float]) -> None:
    places, betas = _places(table["alpha"].tolist()), list(dict.fromkeys(table["beta"]))
    for beta, (colour, _) in zip(betas, figures.palette(len(betas)), strict=True):
        line = sorted(
            (places[a], value) for (a, b), value in values.items() if b == beta and a in places
        )
        marker = "_" if len(line) == 1 else None
        axes.plot(
            *zip(*line, strict=True),
            color=colour,
            linestyle=_DASHES[1],
            linewidth=1.3,
            marker=marker,
            markersize=16,
        )


def matrix(losses: pd.DataFrame, entities: Sequence[str], tasks: Sequence[str]) -> Figure:
    """Draw the loss of every model (row) on every task (column), a line per setting."""
    with figures.style():
        figure, axes = figures.panels(
            len(entities), len(tasks), panel=(2.9, 2.2), sharex=True, sharey="col"
        )
        styles = _styles(losses)
        mean = dict(iter(losses.groupby(["model", "task", "alpha", "beta"], sort=False)))
        for i, model in enumerate(entities):
            for j, task in enumerate(tasks):
                one = axes[i, j]
                for (alpha, beta), (colour, dash) in styles.items():
                    line = mean[model, task, alpha, beta].groupby("generation")["value"].mean()
                    one.plot(
                        line.index,
                        line,
                        color=colour,
                        linestyle=dash,
                        linewidth=1.4,
                        label=printable(_name(alpha, beta)),
                    )
                one.set_title(
                    printable(f"{model} on {task}"),
                    loc="left",
                    fontsize=9,
                    fontweight="bold" if model == task else "normal",
                )
                one.xaxis.set_major_locator(MaxNLocator(integer=True))
        for one in axes[-1]:
            one.set_xlabel("generation")
        _legend(figure, axes[0, 0], 9)
        return figure


def similarity(table: pd.DataFrame) -> Figure:
    """Draw the output similarity of every corpus by generation, a line per setting."""
    with figures.style():
        sets = list(dict.fromkeys(table["set"]))
        figure, axes = figures.panels(1, len(sets), panel=(3.0, 2.7), sharey=True)
        for one, name in zip(axes[0], sets, strict=True):
            _lines(
                one, entities_effects.settings_by_generation(table[table["set"] == name], "value")
            )
            one.set_title(printable(name), loc="left", fontsize=10)
        _legend(figure, axes[0, 0], 9)
        return figure


def _lines(axes: Axes, summary: pd.DataFrame) -> None:
    for (alpha, beta), (colour, dash) in _styles(summary).items():
        rows = summary[(summary["alpha"] == alpha) & (summary["beta"] == beta)].sort_values(
            "generation"
        )
        x, mean, low, high = (
            rows[c].to_numpy(float) for c in ("generation", "mean", "low", "high")
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(
            x,
            mean,
            color=colour,
            linestyle=dash,
            linewidth=1.5,
            label=printable(_name(alpha, beta)),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("generation")


def components(panels: Sequence[tuple], entities: Sequence[str]) -> Figure:
    """Draw completions in two dimensions.

    Generations below each other, alphas side by side, a colour per entity.
    """
    with figures.style():
        alphas, generations = (list(dict.fromkeys(p[i] for p in panels)) for i in (0, 1))
        figure, axes = figures.panels(
            len(generations), len(alphas), panel=(2.9, 2.6), sharex=True, sharey=True
        )
        for alpha, generation, points in panels:
            one = axes[generations.index(generation), alphas.index(alpha)]
            for name, (colour, _), some in zip(
                entities, figures.palette(len(entities)), points, strict=True
            ):
                one.plot(
                    some[:, 0],
                    some[:, 1],
                    "o",
                    color=colour,
                    markersize=3,
                    alpha=0.7,
                    label=printable(name),
                )
            text = f"α {alpha:g}" if isinstance(alpha, float) else f"α {alpha}"
            one.set_title(f"{printable(text)}, generation {generation}", loc="left", fontsize=9)
        _legend(figure, axes[0, 0])
        return figure


def beside(chains: pd.DataFrame, linear: Mapping) -> Figure:
    """Draw the language models on the left and the linear model on the right.

    Rows: own tasks, the others' tasks, similarity against disagreement.
    """
    with figures.style():
        rows = [
            ("own", "Loss on own tasks", "own", "Error on own tasks"),
            ("cross", "Loss on the others' tasks", "cross", "Error on the others' tasks"),
            ("similarity", "Output similarity", "disagreement", "Disagreement"),
        ]
        rows = [row for row in rows if chains[row[0]].notna().any()]
        figure, axes = figures.panels(max(1, len(rows)), 2, panel=(4.2, 2.4))
        styles = _styles(pd.DataFrame(list(linear), columns=["alpha", "beta"]))
        for (column, title, of, other), (left, right) in zip(rows, axes, strict=False):
            _lines(left, entities_effects.settings_by_generation(chains, column))
            left.set_title(title, loc="left", fontsize=10)
            values = {key: getattr(curve, of) for key, curve in linear.items()}
            # Consensus is a disagreement of zero up to rounding, which no logarithm shows.
            least = 1e-9 * max(v.max() for v in values.values())
            for key, value in values.items():
                right.plot(
                    range(len(value)),
                    np.where(value > least, value, np.nan),
                    color=styles[key][0],
                    linestyle=styles[key][1],
                    linewidth=1.5,
                )
            right.set_yscale("log")
            right.yaxis.set_major_formatter("{x:g}")
            right.yaxis.set_minor_formatter("")
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
            right.set_xlabel("generation")
            right.set_title(f"{other}, linear", loc="left", fontsize=10)
        _legend(figure, axes[0, 0], 5)
        return figure


def surface(limits: Surface) -> Figure:
    """Draw relative efficiency and spectral radius of the linear model over alpha and beta."""
    with figures.style():
        figure, axes = figures.panels(1, 2, panel=(4.2, 3.2))
        for one, (title, values) in zip(
            axes[0],
            (("Relative efficiency", limits.efficiency), ("rho(Q)", limits.radius)),
            strict=True,
        ):
            lines = one.contour(
                limits.alpha,
                limits.beta,
                np.ma.masked_invalid(values).T,
                levels=9,
                colors=[c for c, _ in figures.palette(6)],
                linewidths=1.3,
            )
            one.clabel(lines, fontsize=7)
            one.plot(
                *limits.best[:2],
                "o",
                fillstyle="none",
                markersize=10,
                color=figures.INK,
                clip_on=False,
            )
            one.plot(*limits.coarse[:2], "x", markersize=8, color=figures.INK, clip_on=False)
            one.set_title(title, loc="left", fontsize=10)
            one.set_xlabel("alpha")
            one.set_ylabel("beta")
        return figure


def paper(ours: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the change of loss since generation 0 by setting: this run and the paper's tables."""
    with figures.style():
        figure, axes = figures.panels(1, 2, panel=(4.4, 3.2))
        colours = [colour for colour, _ in figures.palette(4)]
        for one, (column, own, title) in zip(
            axes[0],
            (("own", True, "Own tasks"), ("cross", False, "The others' tasks")),
            strict=True,
        ):
            keys = list(
                dict.fromkeys(
                    [
                        *entities_effects.GRID,
                        *zip(ours[column]["alpha"], ours[column]["beta"], strict=True),
                    ]
                )
            )
            x = np.arange(len(keys))
            for i, (colour, marker, name) in enumerate(
                zip(colours[1:], "s^v", entities_effects.PAPER, strict=True)
            ):
                values = entities_effects.paper_changes(name, own)
                one.plot(
                    x + 0.08 * (i + 1),
                    [values.get(k, np.nan) for k in keys],
                    marker,
                    color=colour,
                    markersize=5,
                    label=name,
                )
            means = {(r.alpha, r.beta): (r.mean, r.low, r.high) for r in ours[column].itertuples()}
            mean, low, high = np.array([means.get(k, (np.nan,) * 3) for k in keys]).T
            bars = np.nan_to_num(np.stack([mean - low, high - mean]))
            one.errorbar(
                x - 0.1,
                mean,
                yerr=bars,
                fmt="o",
                color=colours[0],
                markersize=5,
                capsize=3,
                label="this run",
            )
            one.axhline(0, color=MUTED, linewidth=0.8)
            one.set_xticks(
                x, [printable(_name(a, b)) for a, b in keys], rotation=60, ha="right", fontsize=7
            )
            one.set_title(title, loc="left", fontsize=10)
        _legend(figure, axes[0, 0])
        return figure
