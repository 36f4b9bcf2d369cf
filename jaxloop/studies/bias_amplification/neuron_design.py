"""Which model versions a neuron study can compare: runs of generations without a gap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_whole
from jaxloop.studies.bias_amplification.neuron_exchange import Rows

# Differences that a slope and a constant need.
MIN_DIFFERENCES = 3


class Design(NamedTuple):
    """The rows of the regressions of V versions.

    Attributes:
        order: [V] sorts versions by setup, seed and generation.
        versions: setup, seed and generation of each, in that order.
        series: [V] number of the uninterrupted series that a version belongs to, in that order.
        steps: positions, in that order, at which a difference to the row before exists.
    """

    order: np.ndarray
    versions: Rows
    series: np.ndarray
    steps: np.ndarray


def usable(setups: Sequence[str], generations: Sequence[int], *, lags: int = 1) -> np.ndarray:
    """Return which versions a study can use where some chains have stopped: [V] bool.

    They are those of setups with enough generations in a row for `lags`; none where less than
    `neuron_study` needs is left.
    """
    kept = ~np.isin(np.asarray(setups, str), list(_short_setups(setups, generations, lags)))
    versions = sorted(
        zip(
            np.asarray(setups, str)[kept].tolist(),
            np.asarray(generations)[kept].tolist(),
            strict=True,
        )
    )
    differences = sum(
        setup == next_setup and next_generation - generation == 1
        for (setup, generation), (next_setup, next_generation) in zip(
            versions, versions[1:], strict=False
        )
    )
    return kept & (differences >= MIN_DIFFERENCES)


def check_design(
    setups: ArrayLike, generations: ArrayLike, *, seeds: ArrayLike | None = None, lags: int = 1
) -> Design:
    """Return the rows that V versions give.

    A setup is one chain a seed (None: one chain); a missing generation ends a series, so that no
    difference jumps over it.

    Raises:
        ValueError: setups, seeds and generations are not one per version, a version is given twice,
            a chain has too few generations in a row for `lags`, or fewer than 3 differences are
            left in all.
    """
    setup_V, generation_V = np.asarray(setups, str), np.asarray(generations)
    seed_V = np.zeros(setup_V.shape, np.int64) if seeds is None else np.asarray(seeds)
    _check_versions(setup_V, seed_V, generation_V, lags)
    chain_V = setup_V if seeds is None else chain_names(setup_V, seed_V)
    # Setups stay in the order in which they came, and so do the seeds of each.
    setup_rank, seed_rank = _first_seen(setup_V), _first_seen(seed_V)
    order = np.lexsort((generation_V, seed_rank, setup_rank))
    same_chain = chain_V[order][1:] == chain_V[order][:-1]
    step = np.diff(generation_V[order])
    repeated = same_chain & (step == 0)
    if repeated.any():
        at = order[1:][repeated][0]
        raise ValueError(
            f"versions: generation {generation_V[at]} of setup {str(chain_V[at])!r} stands twice; "
            "every version is needed once"
        )
    _check_lengths(chain_V, generation_V, lags)
    adjacent = same_chain & (step == 1)
    series = np.concatenate([[0], np.cumsum(~adjacent)])
    steps = np.flatnonzero(adjacent) + 1
    if len(steps) < MIN_DIFFERENCES:
        raise ValueError(
            f"versions: {len(steps)} differences in all; a slope and a constant need at least "
            f"{MIN_DIFFERENCES}"
        )
    return Design(order, Rows(setup_V[order], seed_V[order], generation_V[order]), series, steps)


def chain_names(
    setups: Sequence[str] | np.ndarray, seeds: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return a name for the chain of each version: [V] of strings."""
    return np.array([f"{setup}, seed {seed}" for setup, seed in zip(setups, seeds, strict=True)])


def _first_seen(values_V: np.ndarray) -> np.ndarray:
    """The number of each value in the order in which they first appear."""
    number = {value: n for n, value in enumerate(dict.fromkeys(values_V.tolist()))}
    return np.array([number[value] for value in values_V.tolist()], np.int64)


def _check_versions(
    setup_V: np.ndarray, seed_V: np.ndarray, generation_V: np.ndarray, lags: int
) -> None:
    if setup_V.ndim != 1 or setup_V.shape != generation_V.shape:
        raise ValueError(
            f"setups and generations have shapes {setup_V.shape} and {generation_V.shape}; one of "
            "each per version is needed"
        )
    if seed_V.shape != setup_V.shape:
        raise ValueError(
            f"seeds have shape {seed_V.shape}; one for each of the {len(setup_V)} versions is "
            "needed"
        )
    if generation_V.dtype.kind not in "iu":
        raise ValueError(f"generations are of type {generation_V.dtype}; integers are needed")
    check_whole("lags", lags, 0)


def _check_lengths(setup_V: np.ndarray, generation_V: np.ndarray, lags: int) -> None:
    for name, rows in _short_setups(setup_V, generation_V, lags).items():
        raise ValueError(
            f"lags={lags}: setup {name!r} has {rows} generation{'s' * (rows != 1)} in a row, "
            f"that is {rows - 1} differences; more than lags are needed"
        )


def _short_setups(setups: ArrayLike, generations: ArrayLike, lags: int) -> dict[str, int]:
    """Setups whose longest row of generations gives no more differences than `lags` (at least one
    is needed), and that length.
    """
    setup_V, short = np.asarray(setups, str), {}
    for name in dict.fromkeys(setup_V.tolist()):
        of_setup = np.sort(np.asarray(generations)[setup_V == name])
        gaps = np.flatnonzero(np.diff(of_setup) != 1) + 1
        rows = max(len(run) for run in np.split(of_setup, gaps))
        if rows - 1 <= lags:
            short[name] = rows
    return short
