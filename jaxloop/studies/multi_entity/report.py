"""Writes figures/ and report.html of a multi-entity study.

They are made from the files of the run directory and the linear model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs
from jaxloop.studies.multi_entity import effects, figures, linear_theory, measure, prepare
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
    chains = effects.by_chain(losses, similarity, settings.entities)
    final = int(chains["generation"].max()) if len(chains) else 0
    sections = []
    if final:
        sections = [
            _effects(settings, root, chains, final),
            _matrix(settings, metrics, losses, final),
            *_similarity(settings, prepared, root, similarity, final),
            _theory(settings, prepared, root, chains, final),
            _paper(settings, chains, final),
        ]
    named = {
        f"{i}-{j}-{common_report.slug(d.title)}": d
        for i, s in enumerate(sections)
        for j, d in enumerate(s.drawings)
    }
    common_report.save_drawings(root / "figures", named)
    return common_report.write_page(
        root,
        curves(metrics, chains),
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
    """Return metrics.csv with alpha and beta as numbers where they are."""
    table = common_report.read_metrics(root)
    for name in effects.SETTING:
        table[name] = [_number(v) for v in table[name].tolist()]
    return table


def _number(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def curves(metrics: pd.DataFrame, chains: pd.DataFrame) -> pd.DataFrame:
    """Return the tidy table of the curves by generation.

    Metrics: own, cross and public loss, similarity, then those of the texts (mean over entities).
    """
    names = {
        "own": "loss_on_own_tasks",
        "cross": "loss_on_other_tasks",
        "public": "loss_on_public_text",
        "similarity": "output_similarity",
    }
    keys = ["chain", *effects.SETTING, "seed", "generation"]
    parts = [
        chains[keys].assign(metric=name, value=chains[column]).dropna(subset=["value"])
        for column, name in names.items()
    ]
    texts = metrics[~metrics["metric"].str.startswith(("task_loss(", "base_loss("))]
    parts.append(texts.groupby([*keys, "metric"], sort=False)["value"].mean().reset_index())
    table = pd.concat([p for p in parts if len(p)] or parts[:1])
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
    for chain in prepared.chains:
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
    settings: EntitiesConfig, root: Path, chains: pd.DataFrame, final: int
) -> report.Section:
    summary = effects.summary(effects.effects(chains, final))
    write_atomic(
        root / "effects.csv", to_csv({name: summary[name].tolist() for name in summary.columns})
    )
    finite = summary[np.isfinite(summary["mean"])]
    order = list(figures.EFFECTS)
    rows = [
        [
            figures.EFFECTS[r.effect],
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
        caption = "by alpha, one line per beta"
        drawings.append(report.Drawing("Effects of exchange", caption, figure, wide=True))
    return report.Section(
        "Transfer, damage, homogenisation",
        f"At generation {final}, paired within a seed. Transfer: loss on the other entities' "
        "tasks at alpha = 0 minus at alpha, positive where reading "
        "the others helps. Damage: loss on the own task at alpha minus at alpha = 0, positive "
        "where it hurts. Homogenisation of losses: how much less the "
        "models differ in their loss on one task than at alpha = 0; of outputs: output "
        "similarity minus that at alpha = 0, and, since generation 0, "
        "minus that of the same models then. Bars are 95 % t-intervals over seeds.",
        drawings,
        [
            report.Table(
                "All effects",
                "also in effects.csv",
                ["effect", "alpha", "beta", "mean", "95 % interval", "seeds"],
                rows,
            )
        ],
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
    n = settings.measure.probes
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
        note = (
            f"first seed, beta nearest 1/2; the two axes hold {100 * explained.sum():.0f} % of "
            "the variance of all points shown"
        )
        drawings.append(
            report.Drawing(
                "Completions in two dimensions",
                note,
                figures.components(panels, settings.entities),
                wide=True,
            )
        )
    note = (
        f"All entities complete the same {n} prompts of every corpus; cosine of the completions' "
        "sentence embeddings."
    )
    return [report.Section("Output similarity", note, drawings)]


def _theory(
    settings: EntitiesConfig,
    prepared: prepare.Prepared,
    root: Path,
    chains: pd.DataFrame,
    final: int,
) -> report.Section:
    linear = linear_theory.curves(settings, prepared, final + 1)
    surface = linear_theory.surface(settings, prepared)
    rows: list[list[object]] = []
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for name, column, of in (
        ("loss on own tasks / error on own tasks", "own", lambda c: c.own[-1]),
        ("loss on the others' tasks / error there", "cross", lambda c: c.cross[-1]),
        ("output similarity / minus disagreement", "similarity", lambda c: -c.disagreement[-1]),
    ):
        by_generation = effects.settings_by_generation(chains, column)
        means = effects.means(by_generation[by_generation["generation"] == final])
        ours[column] = [means.get(key, np.nan) for key in linear]
        theirs[column] = [of(c) for c in linear.values()]
        tau, p, n = linear_theory.agreement(
            *(
                list(linear_theory.distinct(settings, dict(zip(linear, v, strict=True))).values())
                for v in (ours[column], theirs[column])
            )
        )
        rows.append(
            [
                name,
                f"{tau:+.2f}" if np.isfinite(tau) else "–",
                f"{p:.3f}" if np.isfinite(p) else "–",
                n,
            ]
        )
    columns = {
        "alpha": [k[0] for k in linear],
        "beta": [k[1] for k in linear],
        "spectral_radius": [c.radius for c in linear.values()],
    }
    columns |= {f"linear_{k}": v for k, v in theirs.items()} | {
        f"language_model_{k}": v for k, v in ours.items()
    }
    write_atomic(root / "theory.csv", to_csv(columns))
    drawings = [
        report.Drawing(
            "By generation",
            "left: language models, nats per token; right: linear model, squared error per row",
            figures.beside(chains, linear),
            wide=True,
        )
    ]
    best_line = ""
    if surface is not None:
        drawings.append(
            report.Drawing(
                "Over a fine grid",
                "limits of the linear model; ring: best of the fine grid, cross: best of {0, "
                "1/2, 1}",
                figures.surface(surface),
                wide=True,
            )
        )
        (a, b, best), (ca, cb, coarse) = surface.best, surface.coarse
        best_line = (
            f" On the fine grid the relative efficiency is largest at alpha = {a:.2f}, beta = "
            f"{b:.2f} ({best:.3f}); among 0, 1/2 and 1 at "
            f"alpha = {ca:g}, beta = {cb:g} ({coarse:.3f}): which pair is best is a statement "
            "about the grid."
        )
    radius = [
        [f"alpha = {k[0]}, beta = {k[1]}", c.radius, "no limit" if c.radius >= 1 - 1e-9 else ""]
        for k, c in linear.items()
    ]
    t = settings.theory
    return report.Section(
        "Beside the linear model",
        f"The same alpha, beta, mixing and number of entities, in closed form: d = {t.dim}, "
        f"{t.rank} private and {t.public} public rows, mean over "
        f"{t.designs} random designs. Values have no common unit, so ranks of settings are "
        "compared." + best_line,
        drawings,
        [
            report.Table(
                "Agreement of ranks",
                f"over settings, at generation {final}; alpha = 1 is one setting, beta has no "
                "part in it",
                ["quantity", "Kendall's tau", "p", "settings"],
                rows,
            ),
            report.Table(
                "Spectral radius",
                "of the linear model's transition, mean over designs",
                ["setting", "rho(Q)", ""],
                radius,
            ),
        ],
    )


def _paper(settings: EntitiesConfig, chains: pd.DataFrame, final: int) -> report.Section:
    ours = {column: effects.changes(chains, column, final) for column in ("own", "cross")}
    rows = []
    for name in effects.PAPER:
        for column, own in (("own", True), ("cross", False)):
            paper = effects.paper_changes(name, own)
            means = effects.means(ours[column])
            our_changes = {key: means.get(key, np.nan) for key in paper}
            tau, p, n = linear_theory.agreement(
                *(
                    list(linear_theory.distinct(settings, values).values())
                    for values in (our_changes, paper)
                )
            )
            where = "own tasks" if own else "others' tasks"
            rows.append(
                [
                    f"{name}, {where}",
                    f"{tau:+.2f}" if np.isfinite(tau) else "–",
                    f"{p:.3f}" if np.isfinite(p) else "–",
                    n,
                ]
            )
    table = [
        [corpus, *(f"{a:.2f} → {b:.2f}" for a, b in by.values())]
        for corpus, by in effects.PAPER_SIMILARITY.items()
    ]
    return report.Section(
        "Beside the paper",
        "Change of the loss since generation 0, of this run (bars: 95 % intervals over seeds) "
        "and of the tables of arXiv 2505.21677, whose models, "
        "tasks and number of generations are others unless this run is one of its settings.",
        [
            report.Drawing(
                "Change of loss since generation 0",
                "left: own tasks, right: the others' tasks",
                figures.paper(ours),
                wide=True,
            )
        ],
        [
            report.Table(
                "Agreement of ranks with the paper",
                "over the settings that both have, alpha = 1 as one",
                ["table", "Kendall's tau", "p", "settings"],
                rows,
            ),
            report.Table(
                "The paper's output similarity",
                "Llama 3.2 1B, K = 2, beta = 1/2, t = 0 to 15",
                ["corpus", "alpha = 0", "alpha = 1/2", "alpha = 1"],
                table,
            ),
        ],
    )
