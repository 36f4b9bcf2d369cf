"""Writes figures/ and report.html of a multi-entity study.

They are made from the files of the run directory and the linear model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.reporting import report, scores
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import (
    effects,
    figures,
    measure,
    prepare,
    sentences,
    theory_section,
)
from jaxloop.studies.multi_entity.config import EntitiesConfig

TEXTS = 6


def write(
    settings: EntitiesConfig,
    prepared: prepare.Prepared,
    root: Path,
    *,
    page: PageInputs,
    failed: Mapping[str, Mapping],
) -> Path:
    """Write effects.csv, theory.csv, figures/*.png and report.html into a run directory and return
    the page's path.
    """
    metrics = read_metrics(root)
    losses = effects.losses(metrics, settings.entities, list(prepared.tests))
    similarity = effects.similarities(root, metrics)
    chains = effects.by_chain(losses, similarity, settings.entities, prepared.mixing)
    final = int(chains["generation"].max()) if len(chains) else 0
    sections = []
    if final:
        summary = effects.summary(effects.effects(chains, final))
        exchanged = effects.of_exchange(chains)
        sections = [
            _effects(settings, root, summary, final),
            _matrix(settings, metrics, effects.of_exchange(losses), final),
            *_similarity(settings, prepared, root, effects.of_exchange(similarity), final),
            theory_section.linear(settings, prepared, root, exchanged, summary, final),
            theory_section.paper(settings, exchanged, final),
        ]
    named = {
        f"{i}-{j}-{common_report.slug(d.title)}": d
        for i, s in enumerate(sections)
        for j, d in enumerate(s.drawings)
    }
    common_report.save_drawings(root / "figures", named)
    return common_report.write_page(
        root,
        curves(metrics, chains, plan_chains.mixing_label(settings)),
        title=settings.title,
        subtitle=common_report.dated(prepare.line(settings, prepared)),
        samples=samples(settings, prepared, root, final),
        failed=failed,
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        sections=sections,
        headline="loss_on_other_tasks",
    )


def read_metrics(root: Path) -> pd.DataFrame:
    """Return metrics.csv with alpha and beta as numbers where they are, and a column `control`."""
    table = common_report.read_metrics(root)
    for name in effects.SETTING:
        table[name] = [_number(v) for v in table[name].tolist()]
    control = table["mixing"] == plan_chains.CONTROL if "mixing" in table else False
    return table.assign(control=control)


def _number(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def curves(metrics: pd.DataFrame, chains: pd.DataFrame, mixing: str) -> pd.DataFrame:
    """Return the tidy table of the curves by generation; mixing: of the chains but the controls.

    Metrics: own, cross and public loss, similarity, then those of the texts (mean over entities).
    """
    names = {
        "own": "loss_on_own_tasks",
        "cross": "loss_on_other_tasks",
        "public": "loss_on_public_text",
        "similarity": "output_similarity",
    }
    keys = effects.KEYS
    parts = [
        chains[keys].assign(metric=name, value=chains[column]).dropna(subset=["value"])
        for column, name in names.items()
    ]
    texts = metrics[~metrics["metric"].str.startswith(("task_loss(", "base_loss("))]
    parts.append(scores.complete_means(texts, [*keys, "metric"]).reset_index())
    table = pd.concat([p for p in parts if len(p)] or parts[:1])
    whom = [plan_chains.CONTROL if control else mixing for control in table["control"]]
    table = table.drop(columns="control").assign(mixing=whom)
    # Lines are told apart by their names; numbers and texts do not sort together.
    return table.assign(**{n: [_shown(v) for v in table[n]] for n in effects.SETTING})


def _shown(weight: object) -> str:
    return f"{weight:g}" if isinstance(weight, float) else str(weight)


def samples(
    settings: EntitiesConfig, prepared: prepare.Prepared, root: Path, final: int
) -> list[report.Samples]:
    """Return completions of the first probes by the first seed's chain of every setting.

    All entities, in generation 0 and in the last one.
    """
    out = []
    for chain in plan_chains.exchanges(prepared.chains):
        factors = dict(chain.factors)
        if chain.seed != prepared.chains[0].seed or not chain.probes:
            continue
        first = measure.completions(root, chain, 0)
        last = measure.completions(root, chain, final)
        if first is None or last is None or final == 0:
            continue
        out.append(
            report.Samples(
                f"alpha = {factors['alpha']}, beta = {factors['beta']}",
                chain.id,
                0,
                _first_texts(settings, first),
                final,
                _first_texts(settings, last),
            )
        )
    return out


def _first_texts(settings: EntitiesConfig, completions: measure.Completions) -> list[str]:
    """The entities' completions of the first probe of every corpus, at most TEXTS of them."""
    lines = [
        f"{entity}: {texts[0]}"
        for by_entity in completions.by_set.values()
        for entity, texts in zip(settings.entities, by_entity, strict=True)
    ]
    return lines[:TEXTS]


# ---- sections


def _effects(
    settings: EntitiesConfig, root: Path, summary: pd.DataFrame, final: int
) -> report.Section:
    columns = {str(name): summary[name].tolist() for name in summary.columns}
    # One name for each row of a setting: without a suffix it is the paper's reading.
    columns["effect"] = [
        f"{effect}_own_text" if against == effects.OWN_TEXT else effect
        for effect, against in zip(summary["effect"], summary["against"], strict=True)
    ]
    write_atomic(root / "effects.csv", to_csv(columns))
    finite = summary[np.isfinite(summary["mean"])]
    order = list(figures.TITLES)
    rows = [
        [
            figures.TITLES[r.effect],
            r.against,
            _shown(r.alpha),
            _shown(r.beta),
            f"{r.mean:+.3f}",
            f"{r.low:+.3f} to {r.high:+.3f}" if np.isfinite(r.low) else "–",
            r.n,
        ]
        for r in finite.sort_values(
            "effect", key=lambda names: names.map(order.index), kind="stable"
        ).itertuples()
    ]
    drawings = []
    if len(rows):
        figure = figures.effects(summary)
        caption = "by alpha, one line per beta; a row for each of what they are differences to"
        drawings.append(report.Drawing("Effects of exchange", caption, figure, wide=True))
    header = ["effect", "against", "alpha", "beta", "mean", "95 % interval", "seeds"]
    return report.Section(
        "Transfer, damage, homogenisation",
        sentences.readings(settings, final),
        drawings,
        [report.Table("All effects", "also in effects.csv", header, rows)],
        sentences.of_effects(summary),
    )


def _matrix(
    settings: EntitiesConfig, metrics: pd.DataFrame, losses: pd.DataFrame, final: int
) -> report.Section:
    tasks = list(dict.fromkeys(losses["task"]))
    ends = (
        losses[losses["generation"] == final]
        .groupby(["model", "task", "alpha", "beta"], sort=False)["value"]
        .mean()
    )
    starts = (
        losses[losses["generation"] == 0].groupby(["model", "task"], sort=False)["value"].mean()
    )
    bases = (
        metrics[metrics["metric"].str.startswith("base_loss(")]
        .groupby("metric", sort=False)["value"]
        .mean()
    )
    settings_ = list(dict.fromkeys(zip(losses["alpha"], losses["beta"], strict=True)))
    rows = []
    for model in settings.entities:
        for task in tasks:
            cells = [
                float(ends.get((model, task, alpha, beta), np.nan)) for alpha, beta in settings_
            ]
            base = float(bases.get(measure.base_loss(task), np.nan))
            rows.append(
                [f"{model} on {task}", base, float(starts.get((model, task), np.nan)), *cells]
            )
    header = [
        "model on task",
        "base",
        "generation 0",
        *(
            f"α {a:g}, β {b:g}" if isinstance(a, float) and isinstance(b, float) else f"{a}, {b}"
            for a, b in settings_
        ),
    ]
    return report.Section(
        "Every model on every task",
        "Token-mean test loss in nats. Rows are models by their private corpus, columns the test "
        "sets; colour is beta, line style alpha. Mean over seeds.",
        [
            report.Drawing(
                "Loss by generation",
                "",
                figures.matrix(losses, settings.entities, tasks),
                wide=True,
            )
        ],
        [report.Table(f"Loss at generation {final}", "base: before any training", header, rows)],
    )


def _similarity(
    settings: EntitiesConfig,
    prepared: prepare.Prepared,
    root: Path,
    similarity: pd.DataFrame,
    final: int,
) -> list[report.Section]:
    if not len(similarity):
        return []
    drawings = [
        report.Drawing(
            "Output similarity",
            "mean cosine over prompts and pairs of entities, 95 % intervals",
            figures.similarity(similarity),
            wide=True,
        )
    ]
    projection = measure.principal_components(settings, prepared, root, final)
    if projection is not None:
        panels, explained = projection
        shown = measure.pictured(prepared)
        betas = dict.fromkeys(str(dict(chain.factors)["beta"]) for chain in shown)
        note = (
            f"seed {shown[0].seed}, beta = {', '.join(betas)}; the two axes hold "
            f"{100 * explained.sum():.0f} % of the variance of all points shown"
        )
        drawings.append(
            report.Drawing(
                "Completions in two dimensions",
                note,
                figures.components(panels, settings.entities),
                wide=True,
            )
        )
    counts = ", ".join(f"{count} of {name}" for name, count in prepared.chains[0].probes)
    note = (
        f"All entities complete the same prompts ({counts}); cosine of the completions' sentence "
        "embeddings."
    )
    return [report.Section("Output similarity", note, drawings)]
