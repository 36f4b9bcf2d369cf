"""The page of a comparison: configs, curves, differences and costs of runs side by side."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxloop.compare import differences as diff
from jaxloop.compare.reading import ComparedRun, cost_text
from jaxloop.reporting import figures, report, scores
from jaxloop.runtime import environment

# A run has a colour; a line of it has a dash, or a dash with marks where there are more lines.
DASHES = (("solid", "-"), ("dashed", "--"), ("dotted", ":"), ("dashes and dots", "-."))
MARKS = (("", ""), (", circles", "o"), (", squares", "s"), (", triangles", "^"), (", stars", "*"))
# Curves of one figure that can still be told apart.
MOST_LINES = len(DASHES) * len(MARKS)
# Characters of a value that are shown.
LONGEST = 48
READ = 'import pandas as pd\ncomparison = pd.read_csv("{name}")  # {columns}'


def render(
    runs: Sequence[ComparedRun],
    changes: pd.DataFrame,
    *,
    csv: str,
    written: str,
) -> str:
    """Return the page as text.

    Args:
        runs: the first is the baseline.
        changes: what `differences.of_values` returns.
        csv: name of the CSV file beside the page.
        written: words about when it was written.
    """
    names = [run.name for run in runs]
    return report.render(
        pd.DataFrame(columns=["chain", "generation", "metric", "value"]),
        title=f"{' and '.join(names) if len(names) == 2 else f'{len(names)} runs'} side by side",
        subtitle=written,
        sections=[
            _configs(runs),
            _curves(runs),
            *(_differences(runs[0], run, changes) for run in runs[1:]),
            _costs(runs),
        ],
        run_info=[
            (f"{run.name}: {name}", value) for run in runs for name, value in run.facts if value
        ],
        config={run.name: run.config for run in runs},
        versions=environment.versions(),
        files=READ.format(name=csv, columns=", ".join(diff.COLUMNS)),
    )


def _configs(runs: Sequence[ComparedRun]) -> report.Section:
    changes = diff.of_configs(runs)
    rows, alone = [], dict.fromkeys((run.name for run in runs), 0)
    for name, values in changes.items():
        there = [run.name for run, value in zip(runs, values, strict=True) if value != diff.ABSENT]
        if len(there) == 1:
            alone[there[0]] += 1
        else:
            rows.append([name, *(v if len(v) <= LONGEST else f"{v[:LONGEST]}…" for v in values)])
    paragraphs = [
        f"{count} fields are only in the config of {name}, which is at the end of the page."
        for name, count in alone.items()
        if count
    ]
    if not changes:
        paragraphs = ["All fields are the same."]
    table = report.Table("", "", ["field", *(run.name for run in runs)], rows)
    return report.Section(
        "What differs in the configs",
        "Fields that are not listed are the same in all runs; defaults are filled in.",
        tables=[table] if rows else [],
        paragraphs=paragraphs,
    )


# ---- curves


def _curves(runs: Sequence[ComparedRun]) -> report.Section:
    factors = diff.line_factors(runs)
    tables = [diff.with_lines(run, factors) for run in runs]
    lines = list(dict.fromkeys(line for table in tables for line in table["line"]))
    shown = sorted(lines, key=_order)[:MOST_LINES]
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.values["metric"]))
    colours = [light for light, _ in figures.palette(len(runs))]
    drawings = []
    for metric in metrics:
        of_metric = [table[table["metric"] == metric] for table in tables]
        title, note = figures.title(metric)
        drawings.append(report.Drawing(title, note, _figure(of_metric, shown, colours)))
    paragraphs = []
    if len(shown) > 1:
        words = (f"{_look(i)[0]}: {diff.label(line)}" for i, line in enumerate(shown))
        text = "; ".join(words)
        paragraphs.append(f"{text[0].upper()}{text[1:]}.")
    if len(lines) > len(shown):
        paragraphs.append(f"{len(lines) - len(shown)} more lines are in the table files alone.")
    return report.Section(
        "By generation",
        "Mean over seeds; the band is one standard error.",
        drawings=drawings,
        paragraphs=paragraphs,
        key=[(run.name, colour) for run, colour in zip(runs, colours, strict=True)],
    )


def _order(line: diff.Line) -> tuple:
    """Sorts numbers as numbers; lines that lack a factor come first."""
    return tuple(
        (name, isinstance(value, str), value if isinstance(value, int | float) else 0, str(value))
        for name, value in line
    )


def _look(i: int) -> tuple[str, str, str]:
    """(words, dash, mark) of a line."""
    (word, dash), (more, mark) = DASHES[i % len(DASHES)], MARKS[i // len(DASHES)]
    return word + more, dash, mark


def _figure(
    tables: Sequence[pd.DataFrame], lines: Sequence[diff.Line], colours: Sequence[str]
) -> Figure:
    """One panel: a metric by generation, a colour per run, a dash per line."""
    with figures.style():
        figure, ((axes,),) = figures.panels(1, 1, panel=(4.2, 2.7))
        for table, colour in zip(tables, colours, strict=True):
            for i, line in enumerate(lines):
                means = scores.mean_se(diff.of_line(table, line), ["generation"])
                at = means["generation"].to_numpy(float)
                mean, error = means["mean"].to_numpy(float), means["se"].to_numpy(float)
                axes.fill_between(
                    at, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0
                )
                _, dash, mark = _look(i)
                axes.plot(at, mean, dash, color=colour, marker=mark, markersize=3.6, linewidth=1.8)
        figures.whole_ticks(axes, pd.concat([table["generation"] for table in tables]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("generation")
        return figure


# ---- tables


def _differences(baseline: ComparedRun, run: ComparedRun, changes: pd.DataFrame) -> report.Section:
    of_run = changes[(changes["run"] == run.name) & (changes["what"] != "generation")]
    last = min(baseline.last, run.last)
    tables = [
        _table(of_run[of_run["what"] == what], title, note, baseline.name, run.name)
        for what, title, note in (
            ("late", "Late values", "mean over the last generations that both have measured"),
            ("relative", "Relative scores", "late value / generation 0 of the same chain"),
        )
    ]
    paragraphs = []
    if not len(of_run):
        paragraphs.append(
            "No line of one agrees with a line of the other in the factors that both have, or no "
            "generation after 0 was measured in both."
        )
    if baseline.last != run.last:
        paragraphs.append(
            f"{baseline.name} was measured to generation {baseline.last}, {run.name} to "
            f"{run.last}: compared up to {last}."
        )
    return report.Section(
        f"{run.name} minus {baseline.name}",
        f"{diff.LEVEL:.0%} intervals: Student's of the differences of pairs of one seed where two "
        "seeds or more agree, else Welch's. They are not adjusted for their number.",
        tables=[table for table in tables if table.rows],
        paragraphs=paragraphs,
    )


def _table(changes: pd.DataFrame, title: str, note: str, baseline: str, run: str) -> report.Table:
    rows = []
    for row in changes.to_dict("records"):
        rows.append(
            [
                figures.title(row["metric"])[0],
                row["line"],
                row["generations"],
                float(row["value_of_baseline"]),
                float(row["value_of_run"]),
                float(row["difference"]),
                float(row["low"]),
                float(row["high"]),
                _beyond(row["low"], row["high"]),
                _seeds(row["n_of_baseline"], row["n_of_run"], row["paired"]),
            ]
        )
    header = ["metric", "line", "generations", baseline, run, "difference", "from", "to"]
    return report.Table(title, note, [*header, "beyond 0", "seeds"], rows)


def _seeds(baseline: int, run: int, paired: bool) -> str:
    """How many seeds are behind a difference."""
    if paired:
        return f"{run} pair{'s' * (run != 1)}"
    return f"{baseline} and {run}, unpaired"


def _beyond(low: float, high: float) -> str:
    """Whether an interval leaves out 0."""
    if low != low:
        return "–"
    return "yes" if low > 0 or high < 0 else "no"


def _costs(runs: Sequence[ComparedRun]) -> report.Section:
    kinds = dict.fromkeys(what for run in runs for what in run.costs)
    rows = []
    for what in kinds:
        values = (run.costs.get(what) for run in runs)
        rows.append([what, *("–" if v is None else cost_text(what, v) for v in values)])
    note = "Seconds are those of the steps themselves, on the hardware that is named below."
    table = report.Table("", "", ["cost", *(run.name for run in runs)], rows)
    return report.Section("Costs", note, tables=[table])
