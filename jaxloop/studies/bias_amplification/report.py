"""figures/, tables/ and report.html of a bias-amplification study, from the files of its run
directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures, report, scores
from jaxloop.runtime import tables as files
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.bias_amplification import tables as bias_tables
from jaxloop.studies.bias_amplification.measure import articles_path, neurons_path
from jaxloop.studies.common import report as chain_report
from jaxloop.studies.common import run as running

if TYPE_CHECKING:
    from jaxloop.studies.bias_amplification.run import Prepared, Settings

# Share of articles labelled Right in %, then text quality index, by generation (arXiv 2410.15234,
# from the released scores of every article).
PAPER = {
    "greedy": (
        (54.4, 51.6, 55.9, 58.5, 63.6, 63.7, 67.5, 60.9, 61.7, 62.9, 59.2),
        (2.322, 2.321, 2.272, 2.160, 2.030, 1.946, 1.944, 1.949, 1.954, 1.635, 1.665),
    ),
    "overfit": (
        (48.2, 43.9, 47.0, 51.4, 51.6, 53.6, 56.9, 57.6, 57.6, 59.9, 61.8),
        (2.261, 2.178, 2.034, 1.928, 1.846, 1.806, 1.743, 1.664, 1.582, 1.537, 1.556),
    ),
    "preserve": (
        (54.4, 49.6, 46.0, 45.7, 45.8, 45.0, 43.5, 43.1, 42.6, 43.9, 42.9),
        (2.322, 2.309, 2.269, 2.231, 2.228, 2.229, 2.230, 2.247, 2.258, 2.261, 2.261),
    ),
    "accumulate": (
        (54.4, 49.1, 46.2, 45.3, 44.1, 43.0, 42.9, 42.6, 41.8, 41.7, 42.8),
        (2.322, 2.306, 2.279, 2.272, 2.276, 2.258, 2.248, 2.255, 2.240, 2.238, 2.237),
    ),
}
FILES = """
articles = pd.concat({str(p): pd.read_parquet(p) for p in sorted(pathlib.Path("articles").rglob("*.parquet"))})  # values of every article
amplification = pd.read_csv("tables/amplification.csv")  # and the other tables of this page"""
MEASURES = {
    "quality": ("Text quality of articles", "3 clean to 0 noise, mean over an article's sentences"),
    "quality_released": (
        "Text quality, released reading",
        "class value times the detector's confidence, cut at full stops",
    ),
    "perplexity_base": ("Perplexity under the base model", "of articles, before any fine-tuning"),
    "perplexity_own": ("Perplexity under the model that wrote", "of articles"),
}


def write(
    root: Path,
    settings: "Settings",
    prepared: "Prepared",
    ready,
    base: dict,
    real: dict,
    result,
    facts: Sequence[tuple[str, str]],
) -> Path:
    """Writes figures/*.png, tables/*.csv and report.html into a run directory and returns the
    page's path.

    base, real: means of what the base model writes, and of the real articles; facts: (name, value)
    lines about the run.
    """
    from jaxloop.runtime.environment import versions
    from jaxloop.runtime.workdir import stored_form
    from jaxloop.studies.bias_amplification.run import chains_line

    target = f"share({settings.classifier.target})"
    metrics = _in_order(
        chain_report.read_metrics(root),
        [target, *(f"share({label})" for label in prepared.articles.labels)],
    )
    chains = [(c.id, dict(c.factors)["setup"], c.seed) for c in prepared.chains]
    articles = bias_tables.read_articles(root, chains, settings.chain.generations)
    keys = ["chain", "generation"]
    lost = set(metrics[keys].itertuples(index=False, name=None)) - set(
        articles[keys].itertuples(index=False, name=None)
    )
    if lost:
        LOGGER.warning(
            "the articles' values of %d generations, such as %s, are gone; tables leave them out",
            len(lost),
            articles_path(*min(lost)),
        )
    ledger = pd.read_parquet(root / "ledger.parquet")
    change = bias_tables.changes(articles, settings.classifier.target)
    found = {
        "changes": change,
        "amplification": bias_tables.amplification(change),
        "transitions": bias_tables.transitions(articles, prepared.articles.labels),
        "distributions": bias_tables.distributions(articles, list(MEASURES)),
        "real_shares": bias_tables.real_shares(
            ledger, {c: s for c, s, _ in chains}, len(prepared.articles.chosen)
        ),
    }
    bias_tables.write(root / "tables", **found)
    drawings = _distribution_drawings(found["distributions"])
    figures.write(scores.by_generation(metrics), root / "figures", real)
    running.save_drawings(root / "figures", {f"distribution_{name}": d for d, name in drawings})
    sections = [_bias_section(settings, found, base, real), _section_of_data(found["real_shares"])]
    if drawings:
        note = "Median, quartiles (box) and 5 to 95 % (line) over all articles of all replicates."
        sections.append(report.Section("Distributions", note, [d for d, _ in drawings]))
    sections += [
        s
        for s in (_classifier_section(ready), _neuron_section(root, settings, metrics, chains))
        if s is not None
    ]
    return running.write_page(
        root,
        metrics,
        title=settings.title,
        subtitle=running.dated(chains_line(settings)),
        samples=chain_report.side_by_side(root, metrics),
        failed=result.failed,
        facts=facts,
        config=stored_form(settings.model_dump(mode="json")),
        versions=versions(),
        references=real,
        sections=sections,
        headline=target,
        files=report.FILES + FILES,
    )


def _in_order(metrics: pd.DataFrame, first: Sequence[str]) -> pd.DataFrame:
    place = {name: i for i, name in enumerate(dict.fromkeys(first))}
    return metrics.sort_values(
        "metric",
        key=lambda m: m.map(lambda name: place.get(name, len(place))),
        kind="stable",
        ignore_index=True,
    )


def _percent(value: float, decimals: int = 1) -> str:
    return "–" if value != value else f"{100 * value:.{decimals}f}"


def _bias_section(settings, found, base, real) -> report.Section:
    target, amplified = settings.classifier.target, found["amplification"]
    final = (
        amplified[amplified["generation"] == amplified["generation"].max()]
        if len(amplified)
        else amplified
    )
    rows = []
    for r in final.itertuples():
        interval = (
            f"{_percent(r.low)} to {_percent(r.high)}" if r.low == r.low else "– (one replicate)"
        )
        rows.append(
            [
                r.setup,
                r.replicates,
                _percent(r.first),
                _percent(r.share),
                _percent(r.change),
                interval,
                r.p,
                _percent(r.se_articles),
            ]
        )
    last = f"generation {settings.chain.generations - 1}"
    header = [
        "setup",
        "replicates",
        "generation 0",
        last,
        "change",
        "95 % interval",
        "p",
        "paired error of one chain",
    ]
    note = (
        "Change against generation 0 of the same chain, in percentage points. The interval is "
        "Student's t over replicates; the error of one chain is "
        "over its articles, paired, and says nothing about another run of the setup."
    )
    parts = [report.Table(f"Articles labelled {target}, %", note, header, rows)]
    labels = [name[len("share(") : -1] for name in real]
    before = [("real articles", real), ("base model, not fine-tuned", base)]
    rows = [
        [name, *(_percent(values.get(f"share({label})", np.nan)) for label in labels)]
        for name, values in before
        if values
    ]
    note = "What the classifier makes of the real articles, and of the base model's."
    parts.append(report.Table("Before the first generation, %", note, ["", *labels], rows))
    rows = []
    for setup, mine in found["transitions"].groupby("setup", observed=True, sort=False):
        wide = mine.pivot(index="before", columns="after", values="articles")
        kept = mine[mine["before"] == mine["after"]].set_index("before")["share"]
        rows += [
            [setup, a, *(int(wide.loc[a, b]) for b in labels), _percent(kept[a])] for a in labels
        ]
    note = "Articles by their label in generation 0 and in the last one, replicates together."
    parts.append(
        report.Table(
            "Transitions",
            note,
            ["setup", "generation 0", *(f"then {label}" for label in labels), "kept, %"],
            rows,
        )
    )
    if target in ("Right", "From the Right"):
        parts.append(_paper_table())
    return report.Section(
        "Bias", "Share of articles that the classifier gives each label.", tables=parts
    )


def _paper_table() -> report.Table:
    rows = [
        [
            g,
            *(
                v
                for setup in PAPER
                for v in (f"{PAPER[setup][0][g]:.1f}", f"{PAPER[setup][1][g]:.3f}")
            ),
        ]
        for g in range(11)
    ]
    header = [
        "generation",
        *(name for setup in PAPER for name in (f"{setup}: Right, %", "quality")),
    ]
    note = (
        "arXiv 2410.15234, one chain per setup, from the released scores; beam and nucleus were "
        "not released."
    )
    return report.Table("The paper's values", note, header, rows)


def _section_of_data(shares: pd.DataFrame) -> report.Section:
    rows = []
    for setup, mine in shares.groupby("setup", sort=False):
        late = mine[mine["generation"] > 0]
        if len(late) and late["real"].sum():
            last = late.iloc[-1]
            rows.append(
                [
                    setup,
                    int(last["generation"]),
                    int(last["real"]),
                    int(last["trained"]),
                    _percent(last["of_real"]),
                    _percent(last["of_mix"]),
                ]
            )
    note = (
        "A share of real articles has two definitions: of all real ones, and of the training set. "
        "Setups not listed see none after generation 0."
    )
    header = [
        "setup",
        "generation",
        "real articles",
        "training set",
        "of all real, %",
        "of the training set, %",
    ]
    return report.Section(
        "Real articles in training",
        note,
        tables=[report.Table("Last generation", "", header, rows)] if rows else [],
    )


def _distribution_drawings(table: pd.DataFrame) -> list[tuple[report.Drawing, str]]:
    found = []
    for name, (title, note) in MEASURES.items():
        mine = table[(table["measure"] == name) & table["q50"].notna()]
        if len(mine):
            found.append((report.Drawing(title, note, _boxes(mine), wide=True), name))
    return found


def _boxes(table: pd.DataFrame) -> Figure:
    """One panel per setup: quantiles by generation, on one scale; logarithmic where the values span
    more than two powers of ten.
    """
    setups = list(dict.fromkeys(table["setup"]))
    low, high = table["q05"].min(), table["q95"].max()
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(1.9 * len(setups) + 0.6, 2.6), layout="constrained")
        panels = figure.subplots(1, len(setups), sharey=True, squeeze=False)[0]
        for axes, setup, (colour, _) in zip(
            panels, setups, figures.palette(len(setups)), strict=True
        ):
            mine = table[table["setup"] == setup]
            x = mine["generation"].to_numpy(float)
            axes.vlines(x, mine["q05"], mine["q95"], color=colour, linewidth=1)
            axes.bar(
                x,
                mine["q75"] - mine["q25"],
                bottom=mine["q25"],
                width=0.55,
                color=colour,
                alpha=0.35,
                linewidth=0,
            )
            axes.plot(
                x,
                mine["q50"],
                color=colour,
                linewidth=0,
                marker="_",
                markersize=9,
                markeredgewidth=1.8,
            )
            axes.set_title(figures.printable(setup), loc="left", fontsize=10)
            axes.set_xlabel("generation")
            axes.tick_params(length=0)
            if low > 0 and high / low > 100:
                axes.set_yscale("log")
        return figure


def _classifier_section(ready) -> report.Section | None:
    if not ready.fits:
        return None
    rows = [
        [
            f["encoder"],
            f["train"],
            f["validation"],
            f["test"]["macro_f1"],
            f["test"]["accuracy"],
            f["majority"]["macro_f1"],
        ]
        for f in ready.fits
    ]
    counts = ", ".join(f"{n} {label}" for label, n in sorted(ready.fits[0]["counts"].items()))
    note = (
        f"Fitted on articles that no chain sees ({counts}): 70/15/15 %, stratified. The first "
        "one, best by validation macro-F1, is used."
    )
    header = [
        "encoder",
        "trained",
        "validation macro-F1",
        "test macro-F1",
        "test accuracy",
        "macro-F1 of guessing the largest class",
    ]
    best = ready.fits[0]["test"]
    labels = list(best["by_class"])
    by_class = best["by_class"]
    confusion = [
        [label, *row, by_class[label]["precision"], by_class[label]["recall"]]
        for label, row in zip(labels, best["confusion"], strict=True)
    ]
    tables = [
        report.Table("Encoders", "", header, rows),
        report.Table(
            "Confusion of the first one on test texts",
            "Rows are true labels.",
            ["", *labels, "precision", "recall"],
            confusion,
        ),
    ]
    return report.Section("Classifier", note, tables=tables)


def _neuron_section(root: Path, settings, metrics: pd.DataFrame, chains) -> report.Section | None:
    """Neurons against bias and quality; None where they were not measured or too few versions are
    left.
    """
    if not settings.neurons.measure:
        return None
    from jaxloop.studies.bias_amplification import neuron_figures, neuron_study

    names = {
        "bias": (f"share({settings.classifier.target})", 100.0),
        "quality": ("text_quality_index", 1.0),
    }
    table = metrics.pivot_table(index=["chain", "generation"], columns="metric", values="value")
    names = {k: v for k, v in names.items() if v[0] in table}
    known = table[[name for name, _ in names.values()]].notna().all(axis=1)
    versions = [v for v in known.index[known.to_numpy()] if (root / neurons_path(*v)).exists()]
    setups, generations = [c for c, _ in versions], [g for _, g in versions]
    kept = (
        neuron_study.usable(setups, generations, lags=settings.neurons.lags)
        if versions
        else np.zeros(0, bool)
    )
    if not kept.any():
        LOGGER.warning("too few versions are left to test neurons")
        return None
    versions = [v for v, keep in zip(versions, kept, strict=True) if keep]
    read = [files.read_parquet(root / neurons_path(c, g)) for c, g in versions]
    depth = int(read[0]["layer"].max()) + 1
    kinds = {
        k: np.stack([np.asarray(t[k]).reshape(depth, -1) for t in read])
        for k in ("weight", "activation")
    }
    outcomes = {
        k: scale * table[name].reindex(versions).to_numpy() for k, (name, scale) in names.items()
    }
    study = neuron_study.neuron_study(
        kinds, outcomes, [c for c, _ in versions], [g for _, g in versions],
        lags=settings.neurons.lags, alpha=settings.neurons.alpha, permutations=settings.neurons.permutations,
    )  # fmt: skip
    neuron_study.write(study, root / "tables")
    neuron_figures.write(study, root / "figures")
    drawn = [
        report.Drawing(name.replace("_", " ").capitalize(), "", figure, wide=True)
        for name, figure in neuron_figures.figures(study).items()
    ]
    shown = [
        "relation",
        "mode",
        "rule",
        "tests",
        "observed",
        "nominal",
        "null_mean",
        "null_high",
        "p",
    ]
    counts = [list(row) for row in study.counts[shown].itertuples(index=False, name=None)]
    header = [
        "relation",
        "of",
        "rule",
        "neurons",
        "pass",
        "nominally",
        "shuffled, mean",
        "shuffled, 95th percentile",
        "p of the count",
    ]
    parts = [
        report.Table(
            "Counts",
            "Neurons that pass, against the nominal expectation and outcomes shuffled inside "
            "chains.",
            header,
            counts,
        )
    ]
    both = study.overlap[study.overlap["rule"] == "p<alpha"]
    shown = [
        "first",
        "second",
        "mode",
        "size_first",
        "size_second",
        "observed",
        "expected",
        "null_mean",
        "p_more",
        "p_fewer",
    ]
    header = [
        "first set",
        "second set",
        "of",
        "in the first",
        "in the second",
        "in both",
        "if independent",
        "shuffled, mean",
        "p of as many",
        "p of as few",
    ]
    said = (
        f"Neurons at p < {settings.neurons.alpha:g} in both sets, against sets drawn "
        "independently (hypergeometric) and shuffled outcomes."
    )
    parts.append(
        report.Table(
            "Neurons in two sets",
            said,
            header,
            [list(row) for row in both[shown].itertuples(index=False, name=None)],
        )
    )
    note = (
        f"Weights ({settings.neurons.tensor}) and mean activations of every layer's residual "
        "coordinates, related to bias and quality over all versions."
    )
    return report.Section(
        "Neurons", note, drawn, parts, neuron_study.sentences(study, modes=("differences",))
    )
