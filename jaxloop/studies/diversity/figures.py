"""The figures of a diversity study, from its tables alone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.report import Drawing

LOSS = "test_loss_answer"
# Of every figure of `_band`.
BARS = "Mean and standard error over seeds."


def _axes(size: tuple[float, float] = (4.2, 2.7)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def _band(
    axes: Axes, table: pd.DataFrame, x: str, y: str, colour: str, name: str, marker: str = "o"
) -> None:
    """Mean of y over replicates at every x, with a bar of one standard error."""
    summary = table.groupby(x)[y].agg(["mean", "sem"]).sort_index()
    axes.errorbar(
        summary.index,
        summary["mean"],
        yerr=summary["sem"].fillna(0),
        color=colour,
        linewidth=1.6,
        marker=marker,
        markersize=3.6,
        elinewidth=1,
        label=name,
    )


def _colours(names: Sequence) -> dict:
    # The ramp has six colours and the study seven levels.
    if len(names) == 7:
        colours = [*(light for light, _ in figures.palette(6)), figures.INK]
    else:
        colours = [light for light, _ in figures.palette(len(names))]
    return dict(zip(names, colours, strict=True))


def settings_of(rows: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Part models of generated data by columns that a drawing does not show, each part with the
    models of real data alone of its size.

    So a line is a mean over seeds alone. Returns (label, rows) pairs; the label is "" where there
    is one part.
    """
    rows = rows.assign(records=rows["real"] + rows["generated"])
    real = rows[rows["generated"] == 0]
    parts = list(rows[rows["generated"] > 0].groupby(list(names), sort=True)) or [((), rows)]
    if len(parts) == 1:
        return [("", rows)]
    found = []
    for values, part in parts:
        beside = real
        for name, value in zip(names, values, strict=True):
            beside = beside[beside[name] == value] if name in ("real", "records") else beside
        label = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
        found.append((label, pd.concat([beside, part])))
    return found


def _named(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _legend(axes: Axes, many: bool) -> None:
    if many:
        axes.legend(frameon=False, fontsize=7, labelcolor=figures.INK)


def _styled(make: Callable) -> Callable:
    def inside(*arguments, **options):
        with figures.style():
            return make(*arguments, **options)

    inside.__doc__ = make.__doc__
    return inside


@_styled
def levels(rows: pd.DataFrame, sources: pd.DataFrame, task: str) -> Figure:
    """Draw figures 2 and 3.

    Bars: Distinct-5 over its maximum. Lines, on a second axis: test loss by level, one per base.
    """
    figure, axes = _axes()
    rows = rows.assign(place=pd.to_numeric(rows["level"].str.removeprefix("D"), errors="coerce"))
    drawn = rows.dropna(subset="place")
    values = sources.set_index("set")["distinct"]
    places = sorted(int(p) for p in drawn["place"].unique())
    measured = [p for p in places if f"{task}-D{p}" in values.index]
    height = np.array([values[f"{task}-D{p}"] for p in measured])
    axes.bar(measured, height / height.max(), color=figures.GRID, width=0.7)
    axes.set_ylabel("Distinct-5 / maximum")
    axes.set_xticks(places, [f"D{p}" for p in places])
    right = axes.twinx()
    right.tick_params(length=0)
    right.grid(False)
    right.set_ylabel("test loss")
    bases = list(dict.fromkeys(rows["base"]))
    for base, colour in _colours(bases).items():
        base_rows = rows[rows["base"] == base]
        _band(right, base_rows.dropna(subset="place"), "place", LOSS, colour, base)
        real = base_rows[base_rows["level"] == "real"][LOSS]
        if len(real):
            right.axhline(real.mean(), color=colour, linewidth=1, linestyle=(0, (1, 2)))
    _legend(right, len(bases) > 1)
    return figure


@_styled
def by_ratio(
    rows: pd.DataFrame,
    tasks: Sequence[str],
    names: Mapping[str, str],
    value: str = LOSS,
    label: str = "test loss",
    size: str = "records",
) -> list[Drawing]:
    """Draw figures 4 to 7: a value by mixing ratio, one line per level.

    Returns one drawing per task, base and size. size: the column that has the size, which stays
    the same over ratios: "records" of the whole set, or the "real" ones.
    """
    drawings = []
    for task in tasks:
        task_rows = rows[rows["task"] == task] if len(rows) else rows
        for base in dict.fromkeys(task_rows["base"]) if len(task_rows) else ():
            for setting, group in settings_of(task_rows[task_rows["base"] == base], [size]):
                what = _named(names[task], base, setting)
                drawings.append(
                    Drawing(
                        f"{what}: {label.split(',')[0]}",
                        f"One line per level; rho = 0 is real data alone. {BARS}",
                        _ratio_lines(group, value, label),
                    )
                )
    return drawings


def _ratio_lines(group: pd.DataFrame, value: str, label: str) -> Figure:
    level_names = [level for level in sorted(set(group["level"])) if level.startswith("D")]
    figure, axes = _axes()
    for level, colour in _colours(level_names).items():
        # Real data alone are where every level begins.
        line = group[group["level"].isin([level, "real"])]
        _band(axes, line, "rho", value, colour, level)
    axes.set_xlabel("mixing ratio rho")
    axes.set_ylabel(label)
    _legend(axes, len(level_names) > 1)
    return figure


@_styled
def scatter(rows: pd.DataFrame, tasks: Sequence[str], names: Mapping[str, str]) -> list[Drawing]:
    """Draw figure 6 of appendix D.2: test loss against the diversity of the mixture, by base."""
    drawings = []
    for task in tasks:
        task_rows = rows[rows["task"] == task] if len(rows) else rows
        if len(task_rows) < 3:
            continue
        figure, axes = _axes()
        bases = list(dict.fromkeys(task_rows["base"]))
        notes = []
        for base, colour in _colours(bases).items():
            group = task_rows[task_rows["base"] == base]
            axes.scatter(
                group["distinct"], group[LOSS], s=12, color=colour, label=base, linewidths=0
            )
            if group["distinct"].nunique() > 2:
                notes.append(
                    f"{base} {group[['distinct', LOSS]].corr(method='spearman').iloc[0, 1]:+.2f}"
                )
        axes.set_xlabel("Distinct-5 of the mixture")
        axes.set_ylabel("test loss")
        _legend(axes, len(bases) > 1)
        drawings.append(
            Drawing(
                f"{names[task]}: loss against diversity",
                f"One dot per model. Rank correlation: {', '.join(notes)}.",
                figure,
            )
        )
    return drawings


@_styled
def by_size(rows: pd.DataFrame, tasks: Sequence[str], names: Mapping[str, str]) -> list[Drawing]:
    """Draw figures 8 and 9: test loss by size of the set, one line per level.

    Returns one drawing per task, base and mixing ratio.
    """
    drawings = []
    for task in tasks:
        task_rows = rows[rows["task"] == task] if len(rows) else rows
        for base in dict.fromkeys(task_rows["base"]) if len(task_rows) else ():
            # Whole numbers of records make slightly different ratios of one.
            of_base = task_rows[task_rows["base"] == base]
            of_base = of_base.assign(rho=of_base["rho"].round(2))
            for setting, group in settings_of(of_base, ["rho"]):
                level_names = sorted(set(group["level"]))
                figure, axes = _axes()
                for level, colour in _colours(level_names).items():
                    _band(axes, group[group["level"] == level], "records", LOSS, colour, level)
                axes.set_xlabel("records")
                axes.set_ylabel("test loss")
                _legend(axes, len(level_names) > 1)
                drawings.append(Drawing(_named(names[task], base, setting), BARS, figure))
    return drawings


@_styled
def by_base(rows: pd.DataFrame, tasks: Sequence[str], names: Mapping[str, str]) -> list[Drawing]:
    """Draw appendix D.1: test loss by level, one line per base.

    Where every base was also trained on real data, that loss is subtracted. Returns one drawing
    per task, size and mixing ratio.
    """
    drawings = []
    for task in tasks:
        task_rows = rows[rows["task"] == task] if len(rows) else rows
        if len(task_rows):
            drawings += [
                Drawing(_named(names[task], setting), BARS, _base_lines(group))
                for setting, group in settings_of(task_rows, ["records", "rho"])
            ]
    return drawings


def _base_lines(rows: pd.DataFrame) -> Figure:
    figure, axes = _axes()
    places = set()
    less = all((rows[rows["base"] == base]["level"] == "real").any() for base in set(rows["base"]))
    for base, colour in _colours(list(dict.fromkeys(rows["base"]))).items():
        group = rows[rows["base"] == base]
        zero = group[group["level"] == "real"][LOSS].mean() if less else 0.0
        line = group[group["level"].str.startswith("D")]
        line = line.assign(
            place=line["level"].str.removeprefix("D").astype(int), less=line[LOSS] - zero
        )
        places |= set(line["place"])
        _band(axes, line, "place", "less", colour, base)
    axes.set_xticks(sorted(places), [f"D{p}" for p in sorted(places)])
    axes.set_ylabel("test loss − real data's" if less else "test loss")
    _legend(axes, True)
    return figure


@_styled
def crossed(rows: pd.DataFrame, tasks: Sequence[str], names: Mapping[str, str]) -> list[Drawing]:
    """Draw the test loss of crossed sets by share of near-duplicates.

    One line per share of records from elsewhere.
    """
    drawings = []
    for task in tasks:
        task_rows = rows[rows["task"] == task] if len(rows) else rows
        if not len(task_rows):
            continue
        figure, axes = _axes()
        shifts = sorted(set(task_rows["shift"]))
        for shift, colour in _colours(shifts).items():
            _band(
                axes,
                task_rows[task_rows["shift"] == shift],
                "duplicates",
                LOSS,
                colour,
                f"{100 * shift:g} % from elsewhere",
            )
        axes.set_xlabel("share of near-duplicates")
        axes.set_ylabel("test loss")
        _legend(axes, True)
        drawings.append(Drawing(names[task], BARS, figure))
    return drawings


@_styled
def lengths(tables: Mapping[str, pd.DataFrame], count: Callable) -> Figure:
    """Draw histograms of answer lengths in tokens: real data filled, the levels as lines."""
    figure, axes = _axes()
    tokens = {name: np.array(count(list(table["text"]))) for name, table in tables.items()}
    edges = np.linspace(0, max(np.percentile(np.concatenate(list(tokens.values())), 99), 1), 21)
    share = {
        name: np.histogram(np.minimum(t, edges[-1]), edges)[0] / len(t)
        for name, t in tokens.items()
    }
    axes.stairs(share["real"], edges, fill=True, color=figures.GRID)
    others = [name for name in tokens if name != "real"]
    for name, colour in _colours(others).items():
        axes.stairs(share[name], edges, color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("tokens of the answer")
    axes.set_ylabel("share of records")
    _legend(axes, True)
    return figure


@_styled
def clouds(flat: Mapping[str, np.ndarray]) -> Figure:
    """Draw embeddings on a plane, real data in grey."""
    figure, axes = _axes((4.2, 3.4))
    others = [name for name in flat if not name.endswith("-real")]
    for name in flat:
        if name.endswith("-real"):
            x, y = flat[name].T
            axes.scatter(x, y, s=9, color=figures.MUTED, alpha=0.5, linewidths=0, label="real")
    for name, colour in _colours(others).items():
        x, y = flat[name].T
        level = name.split("-")[1]
        axes.scatter(x, y, s=9, color=colour, alpha=0.6, linewidths=0, label=level)
    axes.set_xticks([])
    axes.set_yticks([])
    _legend(axes, True)
    return figure
