"""How well the judge of quality agrees with people: table 2 of arXiv 2504.03814.

It trains nothing: `config.quality` scores the stories of a file of the OpenMEVA form, and
tables/table_2.csv has its correlations with people's scores beside those of the paper. Answers are
kept in the run directory, so that a run that broke off asks for the rest.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jaxloop.metrics import judge_validation, registry
from jaxloop.metrics.judge_validation import HumanScores, Validation
from jaxloop.reporting.report import Section, Table
from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common import run as common
from jaxloop.studies.recursive_loops import sources
from jaxloop.studies.recursive_loops.analysis import paper_values
from jaxloop.studies.recursive_loops.config import LoopsConfig

# An upper bound on the bytes that the answer to one text takes.
_ANSWER_BYTES = 1024


class Prepared(NamedTuple):
    """The stories and people's scores."""

    human: HumanScores


def prepare(config: LoopsConfig) -> Prepared:
    """Read the stories. Raises ValueError where they, or the judge, are not as they must be."""
    settings = config.validation
    registry.check([config.quality])
    try:
        return Prepared(judge_validation.read_openmeva(str(settings.source), settings.generators))
    except ValueError as error:
        raise ValueError(f"config.validation.source: {error}") from None


def lines(config: LoopsConfig) -> list[str]:
    """Return lines that describe the experiment.

    Raises ValueError where it cannot be run, or its judge does not answer.
    """
    line = texts_line(prepare(config))
    if silent := registry.ask_judges([config.quality]):
        raise ValueError(f"config.quality: {silent[0]}")
    return [line]


def plan_rows(config: LoopsConfig) -> list[tuple[str, str]]:
    """Return the rows of `--plan`."""
    return [("texts to judge", texts_line(prepare(config)))]


def texts_line(prepared: Prepared) -> str:
    """Return a line that says how many texts are judged."""
    stories = len(set(prepared.human.story.tolist()))
    return f"{len(prepared.human.texts):,} texts of {stories:,} stories with people's scores"


def disk_bytes(config: LoopsConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that a run leaves on the disk."""
    return 2**20 + _ANSWER_BYTES * len(prepared.human.texts)


def execute(context: common.RunContext[LoopsConfig, Prepared]) -> common.Outcome:
    """Ask the judge and write table 2."""
    config = context.config
    if not context.is_first_process:
        return common.Outcome()
    scorer = sources.insisting(
        sources.score(config.quality, context.root), "the validation of the judge"
    )
    found = judge_validation.validate_judge(
        scorer,
        str(config.validation.source),
        generators=config.validation.generators,
        draws=config.validation.draws,
    )
    table = table_2(config.quality, found)
    (context.root / "tables").mkdir(exist_ok=True)
    write_atomic(
        context.root / "tables" / "table_2.csv",
        tables.to_csv({str(name): list(table[name]) for name in table}),
        durable=False,
    )
    return common.Outcome(
        write_report=functools.partial(_write_report, context, table),
        run_info=[("texts", texts_line(context.prepared)), ("judge", config.quality)],
        resumed=context.resumed,
    )


def table_2(judge: str, found: Validation) -> pd.DataFrame:
    """Return table 2: a row for the judge of this run, and one for each of the paper's.

    Columns: judge, n (texts with a score), unparsable (without), pearson, pearson_low,
    pearson_high, spearman, spearman_low, spearman_high (95 % of a bootstrap over stories); those
    that the paper does not give are nan.
    """
    own = {
        "judge": judge,
        "n": found.n,
        "unparsable": found.unparsable,
        "pearson": found.pearson,
        "pearson_low": found.pearson_interval[0],
        "pearson_high": found.pearson_interval[1],
        "spearman": found.spearman,
        "spearman_low": found.spearman_interval[0],
        "spearman_high": found.spearman_interval[1],
    }
    published = paper_values.values("table_2")
    rows = [own]
    for name, group in published.groupby("level", sort=False):
        values = dict(zip(group["metric"], group["value"], strict=True))
        who = "the paper's: Llama-3.3-70B-Instruct" if name == "paper" else str(name)
        rows.append({"judge": who, **values})
    return pd.DataFrame(rows, columns=list(own))


def _write_report(
    context: common.RunContext[LoopsConfig, Prepared],
    table: pd.DataFrame,
    page: common.PageInputs,
) -> Path:
    cells = [
        ["–" if pd.isna(value) else value for value in row]
        for row in table.itertuples(index=False, name=None)
    ]
    note = (
        "Correlation of the judge's scores with the mean of people's, with 95 % of a bootstrap "
        "over stories; texts to which the reply is no score are left out and counted."
    )
    section = Section("Table 2", tables=[Table("", note, list(table.columns), cells)])
    return common_report.write_page(
        context.root,
        pd.DataFrame({name: [] for name in ("chain", "generation", "metric", "value")}),
        title=context.config.title,
        subtitle=common_report.dated(texts_line(context.prepared)),
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        sections=[section],
    )
