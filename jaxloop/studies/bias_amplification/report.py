"""Writes figures/, tables/ and report.html of a bias-amplification study.

They are made from the files of the run directory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting import figures, report, scores
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.bias_amplification import direction_section, neuron_section, tables
from jaxloop.studies.bias_amplification.article_figures import MEASURES, distribution_drawings
from jaxloop.studies.bias_amplification.chains import chains_line, setup_of
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.paper_values import RIGHT_AND_QUALITY
from jaxloop.studies.bias_amplification.paths import articles_path
from jaxloop.studies.bias_amplification.prepare import Prepared
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs

FILES = (
    "\narticles = pd.concat({str(p): pd.read_parquet(p) for p in "
    'sorted(pathlib.Path("articles").rglob("*.parquet"))})  # values of every article'
    '\namplification = pd.read_csv("tables/amplification.csv")  '
    "# and the other tables of this page"
)
# Labels of the paper's target.
PAPER_TARGETS = ("Right", "From the Right")


class StudyTables(NamedTuple):
    """The tables of the study, see module `tables`."""

    changes: pd.DataFrame
    amplification: pd.DataFrame
    transitions: pd.DataFrame
    distributions: pd.DataFrame
    real_shares: pd.DataFrame


def write(
    root: Path,
    config: BiasConfig,
    prepared: Prepared,
    *,
    page: PageInputs,
    classifier_fits: Sequence[Mapping[str, Any]],
    base: Mapping[str, float],
    real: Mapping[str, float],
    failed: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write figures/*.png, tables/*.csv and report.html into a run directory and return the page's
    path.

    Args:
        root: the run directory.
        config: of the study.
        prepared: of the study.
        page: what the page shows of the run.
        classifier_fits: reports of the classifiers that were fitted in the run.
        base: means of what the base generates.
        real: label shares of the real articles.
        failed: chains that stopped, {id: {generation, reason}}.
    """
    target = f"share({config.classifier.target})"
    labels = prepared.articles.labels
    metrics = _in_order(
        common_report.read_metrics(root), [target, *(f"share({label})" for label in labels)]
    )
    study = _study_tables(root, config, prepared, metrics)
    tables.write(
        root / "tables",
        **study._asdict(),
        classifiers=tables.classifiers(classifier_fits),
        references=tables.references(real, base),
    )
    figures.write(scores.by_generation(metrics), root / "figures", real)
    drawings = distribution_drawings(study.distributions)
    common_report.save_drawings(
        root / "figures", {f"distribution_{name}": d for name, d in drawings.items()}
    )
    sections = [
        _bias_section(config, study, base, real),
        real_articles_section(study.real_shares),
        _distribution_section(list(drawings.values())),
        direction_section.section(config, metrics),
        classifier_section(classifier_fits),
        neuron_section.section(root, config, metrics, prepared.chains),
    ]
    return common_report.write_page(
        root,
        metrics,
        title=config.title,
        subtitle=common_report.dated(chains_line(config)),
        samples=common_report.first_and_last_texts(root, metrics),
        failed=failed,
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        references=real,
        sections=[section for section in sections if section is not None],
        headline=target,
        files=report.FILES + FILES,
    )


def _study_tables(
    root: Path, config: BiasConfig, prepared: Prepared, metrics: pd.DataFrame
) -> StudyTables:
    chains = [(chain.id, setup_of(chain), chain.seed) for chain in prepared.chains]
    articles = tables.read_articles(root, chains, config.chain.generations)
    _warn_of_lost_articles(metrics, articles)
    changes = tables.changes(articles, config.classifier.target)
    return StudyTables(
        changes=changes,
        amplification=tables.amplification(changes),
        transitions=tables.transitions(articles, prepared.articles.labels),
        distributions=tables.distributions(articles, list(MEASURES)),
        real_shares=tables.real_shares(
            pd.read_parquet(root / "ledger.parquet"),
            {chain: setup for chain, setup, _ in chains},
            len(prepared.articles.chosen),
        ),
    )


def _warn_of_lost_articles(metrics: pd.DataFrame, articles: pd.DataFrame) -> None:
    measured, present = (
        {(str(chain), int(g)) for chain, g in zip(t["chain"], t["generation"], strict=True)}
        for t in (metrics, articles)
    )
    lost = measured - present
    if lost:
        LOGGER.warning(
            "the articles' values of %d generations, such as %s, are gone; tables leave them out",
            len(lost),
            articles_path(*min(lost)),
        )


def _in_order(metrics: pd.DataFrame, first: Sequence[str]) -> pd.DataFrame:
    """The rows with metrics `first` in front."""
    place = {name: i for i, name in enumerate(dict.fromkeys(first))}
    return metrics.sort_values(
        "metric",
        key=lambda m: m.map(lambda name: place.get(name, len(place))),
        kind="stable",
        ignore_index=True,
    )


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _bias_section(
    config: BiasConfig,
    study: StudyTables,
    base: Mapping[str, float],
    real: Mapping[str, float],
) -> report.Section:
    labels = [name.removeprefix("share(").removesuffix(")") for name in real]
    parts = [
        _amplification_table(config, study.amplification),
        _before_table(labels, base, real),
        _transitions_table(labels, study.transitions),
    ]
    if config.classifier.target in PAPER_TARGETS:
        parts.append(_paper_table())
    note = "Share of articles that the classifier gives each label."
    said = amplification_sentences(config.classifier.target, study.amplification)
    return report.Section("Bias", note, tables=parts, paragraphs=said)


def amplification_sentences(target: str, table: pd.DataFrame) -> list[str]:
    """Return which setups move the share of the target label by more than their interval.

    table: what `tables.amplification` returns.
    """
    if not len(table):
        return []
    last = int(table["generation"].max())
    final = table[(table["generation"] == last) & table["low"].notna()]
    missing = sorted(set(table["setup"]) - set(table[table["generation"] == last]["setup"]))
    alone = table[(table["generation"] == last) & table["low"].isna()]["setup"]
    said = []
    if len(alone):
        said.append(
            f"No interval over replicates where one chain reached generation {last}: "
            f"{', '.join(alone)}."
        )
    for words, rows in (
        ("rises", final[final["low"] > 0]),
        ("falls", final[final["high"] < 0]),
        (
            "is not shown to move (its interval holds 0)",
            final[(final["low"] <= 0) & (final["high"] >= 0)],
        ),
    ):
        if len(rows):
            listed = ", ".join(
                f"{setup} ({100 * change:+.1f})"
                for setup, change in zip(rows["setup"], rows["change"], strict=True)
            )
            said.append(
                f"From generation 0 to {last} the share labelled {target} {words} in {listed}; "
                "changes are in percentage points."
            )
    if missing:
        said.append(f"No chain of {', '.join(missing)} reached generation {last}.")
    return said


def _amplification_table(config: BiasConfig, table: pd.DataFrame) -> report.Table:
    last = int(table["generation"].max()) if len(table) else 0
    final = table[table["generation"] == last]
    rows = []
    for _, row in final.iterrows():
        interval = "– (one replicate)"
        if not np.isnan(row["low"]):
            interval = f"{_percent(row['low'])} to {_percent(row['high'])}"
        rows.append(
            [
                row["setup"],
                int(row["replicates"]),
                _percent(row["first"]),
                _percent(row["share"]),
                _percent(row["change"]),
                interval,
                row["p"],
                _percent(row["se_articles"]),
            ]
        )
    header = [
        "setup",
        "replicates",
        "generation 0",
        f"generation {last}",
        "change",
        "95 % interval",
        "p",
        "paired error of one chain",
    ]
    note = (
        "Change against generation 0 of the same chain, in percentage points. The interval is "
        "Student's t over replicates, and neither it nor p is adjusted for the number of setups; "
        "the error of one chain is over its articles, paired, and says nothing about another run "
        "of the setup."
    )
    return report.Table(f"Articles labelled {config.classifier.target}, %", note, header, rows)


def _before_table(
    labels: Sequence[str], base: Mapping[str, float], real: Mapping[str, float]
) -> report.Table:
    sources = {"real articles": real, "base model, not fine-tuned": base}
    rows = [
        [name, *(_percent(values.get(f"share({label})", np.nan)) for label in labels)]
        for name, values in sources.items()
        if values
    ]
    note = "What the classifier makes of the real articles, and of the base model's."
    return report.Table("Before the first generation, %", note, ["", *labels], rows)


def _transitions_table(labels: Sequence[str], table: pd.DataFrame) -> report.Table:
    rows = []
    for setup, of_setup in table.groupby("setup", observed=True, sort=False):
        counts = of_setup.pivot(index="before", columns="after", values="articles")
        unchanged = of_setup[of_setup["before"] == of_setup["after"]].set_index("before")["share"]
        for label in labels:
            numbers = [int(counts[after][label]) for after in labels]
            rows.append([setup, label, *numbers, _percent(unchanged[label])])
    note = "Articles by their label in generation 0 and in the last one, replicates together."
    header = ["setup", "generation 0", *(f"then {label}" for label in labels), "kept, %"]
    return report.Table("Transitions", note, header, rows)


def _paper_table() -> report.Table:
    header = ["generation"]
    for setup in RIGHT_AND_QUALITY:
        header += [f"{setup}: Right, %", "quality"]
    rows = []
    for generation in range(11):
        row: list[object] = [generation]
        for right, quality in RIGHT_AND_QUALITY.values():
            row += [f"{right[generation]:.1f}", f"{quality[generation]:.3f}"]
        rows.append(row)
    note = (
        "arXiv 2410.15234, one chain per setup, from the released scores; beam and nucleus were "
        "not released."
    )
    return report.Table("The paper's values", note, header, rows)


def real_articles_section(shares: pd.DataFrame) -> report.Section:
    """Return the section on real articles in training; shares: of `tables.real_shares`."""
    rows = []
    for setup, of_setup in shares.groupby("setup", sort=False):
        later = of_setup[of_setup["generation"] > 0]
        if len(later) and later["real"].sum():
            last = later.iloc[-1]
            counts = [int(last[name]) for name in ("generation", "real", "trained")]
            rows.append([setup, *counts, _percent(last["of_real"]), _percent(last["of_mix"])])
    note = (
        "A share of real articles has two definitions: of all real ones, and of the training set."
    )
    listed = {row[0] for row in rows}
    without = [str(setup) for setup in dict.fromkeys(shares["setup"]) if setup not in listed]
    if without:
        note += f" No real article after generation 0: {', '.join(without)}."
    header = [
        "setup",
        "generation",
        "real articles",
        "training set",
        "of all real, %",
        "of the training set, %",
    ]
    last_generation = [report.Table("Last generation", "", header, rows)] if rows else []
    return report.Section("Real articles in training", note, tables=last_generation)


def _distribution_section(drawings: Sequence[report.Drawing]) -> report.Section | None:
    if not drawings:
        return None
    note = "Median, quartiles (box) and 5 to 95 % (line) over all articles of all replicates."
    return report.Section("Distributions", note, drawings)


def classifier_section(fits: Sequence[Mapping[str, Any]]) -> report.Section | None:
    """Return the section on the classifiers, the one that is used first; None without fits."""
    if not fits:
        return None
    rows = [
        [
            fit["encoder"],
            fit["train"],
            fit["validation"],
            fit["test"]["macro_f1"],
            fit["test"]["accuracy"],
            fit["majority"]["macro_f1"],
        ]
        for fit in fits
    ]
    header = [
        "encoder",
        "trained",
        "validation macro-F1",
        "test macro-F1",
        "test accuracy",
        "macro-F1 of guessing the largest class",
    ]
    counts = ", ".join(f"{n} {label}" for label, n in sorted(fits[0]["counts"].items()))
    training, validation, test = fits[0]["split"]
    note = (
        f"Fitted on articles that no chain sees ({counts}): {training} to train, {validation} for "
        f"validation, {test} to test, stratified. "
    )
    if len(fits) > 1:
        best = max(fits, key=lambda fit: fit["validation"])
        which = "best" if best is fits[0] else f"not the best, which is {best['encoder']},"
        note += f"The first one, {which} by validation macro-F1, is used. "
    found, guessed = fits[0]["test"]["macro_f1"], fits[0]["majority"]["macro_f1"]
    side = "above" if found > guessed else "not above"
    note += (
        f"Its test macro-F1 of {found:.2f} is {side} that of guessing the largest class, "
        f"{guessed:.2f}."
    )
    encoders = report.Table("Encoders", "", header, rows)
    return report.Section("Classifier", note, tables=[encoders, _confusion_table(fits[0]["test"])])


def _confusion_table(test: Mapping[str, Any]) -> report.Table:
    by_class = test["by_class"]
    rows = [
        [label, *counts, by_class[label]["precision"], by_class[label]["recall"]]
        for label, counts in zip(by_class, test["confusion"], strict=True)
    ]
    return report.Table(
        "Confusion of the first one on test texts",
        "Rows are true labels.",
        ["", *by_class, "precision", "recall"],
        rows,
    )
