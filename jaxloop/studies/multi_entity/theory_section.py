"""The page's sections beside the linear model and beside the paper's tables."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.common import report as common_report
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import effects, figures, linear_theory, prepare, sentences
from jaxloop.studies.multi_entity.config import EntitiesConfig


def linear(
    settings: EntitiesConfig,
    prepared: prepare.Prepared,
    root: Path,
    chains: pd.DataFrame,
    summary: pd.DataFrame,
    final: int,
) -> report.Section:
    """Write theory.csv into the run directory and return the section beside the linear model.

    Args:
        settings: of the study.
        prepared: of the study.
        root: the run directory.
        chains: what `effects.by_chain` returns, without controls.
        summary: what `effects.summary` returns.
        final: the last generation.
    """
    exchanged, controlled = (
        linear_theory.curves(settings, some, final + 1, prepared.mixing)
        for some in (
            plan_chains.exchanges(prepared.chains),
            plan_chains.controls(prepared.chains),
        )
    )
    ours, theirs, pairs = _pairs(chains, exchanged, controlled, summary, final)
    shares = sentences.linear_shares(exchanged, controlled)
    for (effect, against), values in shares.items():
        name = f"{effect}_{common_report.slug(against)}"
        means = _means(summary, effect, against)
        ours[name] = [means.get(key, np.nan) for key in exchanged]
        theirs[name] = [values.get(key, np.nan) for key in exchanged]
    # What is held against alpha = 0 at the same beta depends on beta at alpha = 1 too.
    of_each = f"transfer_{common_report.slug(effects.NO_EXCHANGE)}"
    rows = [
        _ranks(
            settings,
            title,
            dict(zip(exchanged, ours[name], strict=True)),
            dict(zip(exchanged, theirs[name], strict=True)),
            merged=name != of_each,
        )
        for name, title in pairs.items()
    ]
    columns = {
        "alpha": [k[0] for k in exchanged],
        "beta": [k[1] for k in exchanged],
        "spectral_radius": [c.radius for c in exchanged.values()],
        "without_limit": [c.without_limit for c in exchanged.values()],
    }
    columns |= {f"linear_{k}": v for k, v in theirs.items()} | {
        f"language_model_{k}": v for k, v in ours.items()
    }
    write_atomic(root / "theory.csv", to_csv(columns))
    drawings = [
        report.Drawing(
            "By generation",
            "left: language models, nats per token; right: linear model, squared error per row",
            figures.beside(chains, exchanged),
            wide=True,
        )
    ]
    if np.isfinite([v for values in shares.values() for v in values.values()]).any():
        drawings.append(
            report.Drawing(
                "Transfer, measured and predicted",
                "share of the gap between the others' tasks and the own one that exchange closes; "
                "points: language models, dashes: linear model, nothing of it fitted; beta = 0, "
                "without a text of their own, left out",
                figures.shares(summary, shares),
                wide=True,
            )
        )
    said = sentences.of_linear_transfer(exchanged, controlled)
    surface = linear_theory.surface(settings, prepared)
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
        said.append(sentences.of_grids(surface))
    t = settings.theory
    radius = [
        [
            f"alpha = {k[0]}, beta = {k[1]}",
            c.radius,
            f"{c.without_limit} of {t.designs}" if c.without_limit else "",
        ]
        for k, c in exchanged.items()
    ]
    over = sentences.ranks_over(settings, f"over settings, at generation {final}")
    if settings.exchange.initial_beta is not None:
        over += ", but in transfer against alpha = 0 at the same beta"
    return report.Section(
        "Beside the linear model",
        f"The same alpha, beta, mixing and number of entities, in closed form: d = {t.dim}, "
        f"{t.rank} private and {t.public} public rows, mean over {t.designs} random designs. "
        "Values have no common unit, so ranks of settings are compared.",
        drawings,
        [
            report.Table(
                "Agreement of ranks", over, ["quantity", "Kendall's tau", "p", "settings"], rows
            ),
            report.Table(
                "Spectral radius",
                "of the linear model's transition, mean over designs",
                ["setting", "rho(Q)", "designs without a limit"],
                radius,
            ),
        ],
        said,
    )


# What is compared -> its title in the table of ranks.
PAIRS = {
    "own": "loss on own tasks / error on own tasks",
    "cross": "loss on the others' tasks / error there",
    "similarity": "output similarity / minus disagreement",
}


def _pairs(
    chains: pd.DataFrame,
    exchanged: Mapping[tuple, linear_theory.Curves],
    controlled: Mapping[tuple, linear_theory.Curves],
    summary: pd.DataFrame,
    final: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, str]]:
    """(language models', linear model's) values of every setting by name, and the names' titles."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for name in PAIRS:
        by_generation = effects.settings_by_generation(chains, name)
        means = effects.means(by_generation[by_generation["generation"] == final])
        ours[name] = [means.get(key, np.nan) for key in exchanged]
    theirs["own"] = [c.own[-1] for c in exchanged.values()]
    theirs["cross"] = [c.cross[-1] for c in exchanged.values()]
    theirs["similarity"] = [-c.disagreement[-1] for c in exchanged.values()]
    titles = dict(PAIRS)
    for against, values in sentences.linear_transfer(exchanged, controlled).items():
        name = f"transfer_{common_report.slug(against)}"
        means = _means(summary, "transfer", against)
        ours[name] = [means.get(key, np.nan) for key in exchanged]
        theirs[name] = [values.get(key, np.nan) for key in exchanged]
        titles[name] = f"transfer against {against} / the same in errors"
    return ours, theirs, titles


def _means(summary: pd.DataFrame, effect: str, against: str) -> dict[tuple, float]:
    """(alpha, beta) -> mean of an effect."""
    chosen = (summary["effect"] == effect) & (summary["against"] == against)
    return effects.means(summary[chosen])


def _ranks(
    settings: EntitiesConfig,
    title: str,
    ours: Mapping[tuple, float],
    theirs: Mapping[tuple, float],
    *,
    merged: bool = True,
) -> list[object]:
    """A row of a table of ranks: title, Kendall's tau, p, number of settings; merged: whether those
    of alpha = 1 are one where beta has no part in it.
    """
    both = (linear_theory.distinct(settings, v) if merged else v for v in (ours, theirs))
    tau, p, n = linear_theory.agreement(*(list(values.values()) for values in both))
    return [
        title,
        f"{tau:+.2f}" if np.isfinite(tau) else "–",
        f"{p:.3f}" if np.isfinite(p) else "–",
        n,
    ]


def paper(settings: EntitiesConfig, chains: pd.DataFrame, final: int) -> report.Section:
    """Return the section beside the paper's tables; chains: as `linear` takes them."""
    ours = {column: effects.changes(chains, column, final) for column in ("own", "cross")}
    rows = []
    for name in effects.PAPER:
        for column, own in (("own", True), ("cross", False)):
            theirs = effects.paper_changes(name, own)
            means = effects.means(ours[column])
            our_changes = {key: means.get(key, np.nan) for key in theirs}
            where = "own tasks" if own else "others' tasks"
            rows.append(_ranks(settings, f"{name}, {where}", our_changes, theirs))
    table = [
        [corpus, *(f"{a:.2f} → {b:.2f}" for a, b in by.values())]
        for corpus, by in effects.PAPER_SIMILARITY.items()
    ]
    about = sentences.of_papers_setting(settings, final + 1)
    return report.Section(
        "Beside the paper",
        "Change of the loss since generation 0, of this run (bars: 95 % intervals over seeds) "
        f"and of the tables of arXiv 2505.21677. {about}",
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
                sentences.ranks_over(settings, "over the settings that both have"),
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
