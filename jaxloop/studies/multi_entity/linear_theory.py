"""The linear model of arXiv 2505.21677, to compare with the language models.

It has the same alpha, beta, K, mixing and generations. Squared errors and token losses have no
common unit, so only ranks of settings and shapes of curves are compared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np

from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.workflow import Exchange, exchange_weights
from jaxloop.reporting.statistics import kendall
from jaxloop.simulators.linear import closed_form, low_rank_designs, sweep
from jaxloop.simulators.linear_forms import SPECTRAL_LIMIT
from jaxloop.studies.multi_entity import prepare
from jaxloop.studies.multi_entity.config import EntitiesConfig
from jaxloop.studies.multi_entity.effects import unread_pairs


class Curves(NamedTuple):
    """Means over designs of one setting, by generation [T+1].

    Squared error per row on the own task and on the others', disagreement, rho(Q), and of how many
    designs it is 1 or more, so that there is no limit. read, unread: error on the tasks of the
    others that an entity reads, and of those that it does not; None where all are read.
    """

    own: np.ndarray
    cross: np.ndarray
    disagreement: np.ndarray
    radius: float
    without_limit: int
    read: np.ndarray | None = None
    unread: np.ndarray | None = None


class Surface(NamedTuple):
    """Limits on a fine grid, averaged over designs.

    Relative efficiency and rho(Q) [A, B] at alpha [A] and beta [B]; NaN where there is no limit.

    best: (alpha, beta, efficiency) of the fine grid; coarse: the same of {0, 1/2, 1} x {0, 1/2, 1}
    without alpha = 1, where there is none.
    """

    alpha: np.ndarray
    beta: np.ndarray
    efficiency: np.ndarray
    radius: np.ndarray
    best: tuple[float, float, float]
    coarse: tuple[float, float, float]


def designs_of(settings: EntitiesConfig) -> list[tuple]:
    """Return (designs, theta) of every random draw."""
    t = settings.theory
    out = []
    for seed in range(t.designs):
        drawn = low_rank_designs(
            seed,
            entities=len(settings.entities),
            dim=t.dim,
            rank=t.rank,
            public=t.public,
            scale=t.scale,
        )
        theta = np.random.default_rng((seed, 1)).normal(size=t.dim)
        out.append((drawn, theta / np.linalg.norm(theta) * np.sqrt(t.dim)))
    return out


def curves(
    settings: EntitiesConfig,
    chains: Sequence[ChainSpec],
    generations: int,
    mixing: Sequence[Sequence[float]] = (),
) -> Mapping[tuple, Curves]:
    """Return (alpha label, beta label) -> the curves of the linear model over `generations`.

    chains: of the study, one mixing matrix for all of a setting. mixing: the matrix that says which
    tasks `read` and `unread` are means over.
    """
    out = {}
    unread = sorted(unread_pairs(mixing))
    for chain in chains:
        factors = dict(chain.factors)
        key = factors["alpha"], factors["beta"]
        if key in out:
            continue
        # Every chain of this study is one of exchange.
        sets = cast(Exchange, chain.workflow.exchange)
        alpha, real = exchange_weights(sets, len(settings.entities))
        beta = np.where(alpha < 1, real[:, :, 0] / np.where(alpha < 1, 1 - alpha, 1), 0.0)
        along = np.minimum(np.arange(max(generations, 2)), len(alpha) - 1)
        moments = [
            closed_form(
                d,
                theta,
                alpha=alpha[along],
                beta=beta[along],
                generations=len(along) - 1,
                mixing=chain.workflow.mixing,
            )
            for d, theta in designs_of(settings)
        ]
        mean = np.mean([m.mspe for m in moments], axis=0)[:generations] / settings.theory.rank
        k = len(settings.entities)
        own = np.einsum("tkk->tk", mean).mean(1)
        cross = (
            (mean.sum((1, 2)) - k * own) / (k * (k - 1)) if k > 1 else np.full(len(mean), np.nan)
        )
        apart = np.mean([m.disagreement for m in moments], axis=0)[:generations]
        radii = np.array([m.spectral_radius for m in moments])
        without = int((radii >= SPECTRAL_LIMIT).sum())
        apart_by_reading = {}
        if unread:
            far = mean[:, *np.transpose(unread)].sum(1)
            read = (k * (k - 1) * cross - far) / (k * (k - 1) - len(unread))
            apart_by_reading = {"read": read, "unread": far / len(unread)}
        out[key] = Curves(own, cross, apart, float(radii.mean()), without, **apart_by_reading)
    return out


def surface(settings: EntitiesConfig, prepared: prepare.Prepared) -> Surface | None:
    """Return relative efficiency on a fine grid; None if the real data leave theta undetermined."""
    n = settings.theory.grid
    fine = np.linspace(0.001, 0.99, n), np.linspace(0.0, 1.0, n)
    coarse = (0.0, 0.5), (0.0, 0.5, 1.0)
    sweeps = [
        [
            sweep(d, theta, alpha=a, beta=b, mixing=prepared.mixing)
            for d, theta in designs_of(settings)
        ]
        for a, b in (fine, coarse)
    ]
    scores = [np.mean([s.relative_efficiency.mean(2) for s in some], axis=0) for some in sweeps]
    if not np.isfinite(scores[0]).any():
        return None
    best = []
    for (a, b), score in zip((fine, coarse), scores, strict=True):
        i, j = np.unravel_index(np.nan_to_num(score, nan=-np.inf).argmax(), score.shape)
        best.append((float(np.asarray(a)[i]), float(np.asarray(b)[j]), float(score[i, j])))
    radius = np.mean([s.spectral_radius for s in sweeps[0]], axis=0)
    return Surface(*fine, scores[0], radius, *best)


def distinct(settings: EntitiesConfig, values: Mapping[tuple, float]) -> dict[tuple, float]:
    """Return `values` by (alpha, beta) with the settings of alpha = 1 as one, their mean.

    If generation 0 does not depend on beta, these settings do not either, and a rank correlation
    must not count one setting as several.
    """
    if settings.exchange.initial_beta is None:
        return dict(values)
    groups: dict[tuple, list[float]] = {}
    for (alpha, beta), value in values.items():
        groups.setdefault((alpha, None if alpha == 1 else beta), []).append(value)
    return {key: float(np.mean(some)) for key, some in groups.items()}


def agreement(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float, int]:
    """Return `statistics.kendall` of two lists, tau-b and p, and how many pairs both have.

    tau and p are NaN below three pairs. Values that differ by rounding are ties.
    """
    a, b = (
        np.round(x / max(np.nanmax(np.abs(x), initial=0), 1e-300), 9)
        for x in (np.asarray(ours, float), np.asarray(others, float))
    )
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan"), float("nan"), int(both.sum())
    return *kendall(a[both], b[both]), int(both.sum())
