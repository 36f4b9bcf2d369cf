"""What of a neuron study may change places if neurons and outcomes have nothing to do with each
other: whole trajectories of seeds.

Steps of one chain are not exchangeable. They shrink or grow over generations, in neurons and
outcomes alike, and chains of one seed share generation 0; shuffling steps inside a chain takes both
for an association. Seeds differ in nothing but random numbers, so a seed's outcomes in all setups
and generations may be given to another seed, whatever course all of them share.

Dimensions: V versions, n rows of a regression, R outcomes, B arrangements, S seeds, K cells (a
setup in a generation).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# seeds: outcomes of a seed, in all setups together, go to another seed.
# chains: those of each setup apart, for setups that share no model.
# signs: a seed's deviations from the mean over seeds change sign, in all setups together; for
#     seeds whose deviations are symmetric but not of one size.
SCHEMES = ("seeds", "chains", "signs")
# Beyond this number arrangements are counted as so many.
MANY = 10**9


class Rows(NamedTuple):
    """Setup, seed and generation of n rows, [n] each."""

    setup: np.ndarray
    seed: np.ndarray
    generation: np.ndarray


def arrangements(seeds: Sequence[int], scheme: str) -> int:
    """Return how many arrangements a scheme has, at most `MANY`.

    Args:
        seeds: number of seeds of every setup.
        scheme: one of `SCHEMES`. Of signs only half are counted: if all signs change, every test
            stays as it is.
    """
    if scheme == "signs":
        return min(MANY, 2 ** (min(seeds) - 1))
    blocks = seeds if scheme == "chains" else seeds[:1]
    return min(MANY, math.prod(math.factorial(min(count, 13)) for count in blocks))


def needed_seeds(setups: int, scheme: str, alpha: float) -> int:
    """Return the seeds of each of `setups` setups from which on a permutation p can be below
    `alpha`.
    """
    counts = itertools.count(1)
    return next(n for n in counts if arrangements([n] * setups, scheme) * alpha > 1)


def too_few(seeds: Sequence[int], scheme: str, alpha: float) -> str | None:
    """Return why seeds, so many in each setup, cannot give a p below alpha; None if they can."""
    total = arrangements(seeds, scheme)
    if total * alpha > 1:
        return None
    least, few = needed_seeds(len(seeds), scheme, alpha), min(seeds)
    return (
        f"{few} seed{'s' * (few != 1)} give{'s' * (few == 1)} {total} arrangement"
        f"{'s' * (total != 1)} (scheme '{scheme}'), so that no p is below {1 / total:.2g}; a "
        f"permutation test at {alpha:g} needs at least {least} seeds in each setup"
    )


def seeds_per_setup(rows: Rows) -> list[int]:
    """Return the number of seeds of every setup."""
    names = dict.fromkeys(rows.setup.tolist())
    return [len(set(rows.seed[rows.setup == name].tolist())) for name in names]


def balanced(setups: ArrayLike, seeds: ArrayLike, generations: ArrayLike) -> np.ndarray:
    """Return which of V versions to keep so that all seeds have the same ones: [V] bool.

    Seeds that have lost most are left out where that keeps more versions than cutting all others
    to what they have.
    """
    cells = list(
        zip(np.asarray(setups, str).tolist(), np.asarray(generations).tolist(), strict=True)
    )
    seed_V = np.asarray(seeds)
    of_seed: dict[object, set] = {seed: set() for seed in dict.fromkeys(seed_V.tolist())}
    for seed, cell in zip(seed_V.tolist(), cells, strict=True):
        of_seed[seed].add(cell)
    ranked = sorted(of_seed, key=lambda seed: -len(of_seed[seed]))
    best: tuple[int, list, set] = (0, [], set())
    for count in range(1, len(ranked) + 1):
        chosen = ranked[:count]
        common = set.intersection(*(of_seed[seed] for seed in chosen))
        if count * len(common) >= best[0]:
            best = (count * len(common), chosen, common)
    _, chosen, common = best
    return np.array(
        [
            seed in chosen and cell in common
            for seed, cell in zip(seed_V.tolist(), cells, strict=True)
        ],
        bool,
    )


def blocks(rows: Rows, scheme: str) -> list[np.ndarray]:
    """Return the tables [S, K] of row numbers whose lines are exchanged, one table for all setups
    or one a setup.

    Raises:
        ValueError: a seed lacks a row that another seed has.
    """
    if scheme == "chains":
        parts = [np.flatnonzero(rows.setup == name) for name in dict.fromkeys(rows.setup.tolist())]
    else:
        parts = [np.arange(len(rows.seed))]
    return [_table(Rows(*(values[part] for values in rows)), part) for part in parts]


def _table(rows: Rows, numbers: np.ndarray) -> np.ndarray:
    cells = list(zip(rows.setup.tolist(), rows.generation.tolist(), strict=True))
    columns = {cell: k for k, cell in enumerate(dict.fromkeys(cells))}
    lines = {seed: s for s, seed in enumerate(dict.fromkeys(rows.seed.tolist()))}
    table = np.full((len(lines), len(columns)), -1)
    for number, seed, cell in zip(numbers.tolist(), rows.seed.tolist(), cells, strict=True):
        table[lines[seed], columns[cell]] = number
    if (table < 0).any():
        line, column = np.argwhere(table < 0)[0]
        setup, generation = list(columns)[column]
        raise ValueError(
            f"seeds: seed {list(lines)[line]} lacks generation {generation} of setup {setup!r}; "
            "whole trajectories change places only among seeds that have the same versions"
        )
    return table


def centred(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Return values [n, ...] less their mean over the seeds of a setup and generation: what is
    left when everything that depends on time alone is removed.
    """
    table = _table(rows, np.arange(len(values)))
    out = np.empty_like(values)
    out[table] = values[table] - values[table].mean(0, keepdims=True)
    return out


def draw(
    y_nR: np.ndarray, tables: Sequence[np.ndarray], scheme: str, *, permutations: int, seed: int
) -> np.ndarray:
    """Return outcomes [B, n, R] of B arrangements; outcomes of a row stay together.

    Where there are no more than `permutations` beside the one that was observed, they are all of
    them, each once; otherwise `permutations` random ones.
    """
    counts = [len(table) for table in tables]
    complete = arrangements(counts, scheme) - 1 <= permutations
    rng = np.random.default_rng(seed)
    if scheme == "signs":
        signs_BS = (
            _all_signs(counts[0]) if complete else _random_signs(rng, permutations, counts[0])
        )
        return _signed(y_nR, tables[0], signs_BS)
    orders = _all_orders(counts) if complete else _random_orders(rng, permutations, counts)
    out = np.empty((len(orders[0]), *y_nR.shape))
    for table, order_BS in zip(tables, orders, strict=True):
        out[:, table] = y_nR[table[order_BS]]
    return out


def _all_orders(counts: Sequence[int]) -> list[np.ndarray]:
    """All orders [B, S] of the lines of each table, without the one that was observed."""
    every = list(itertools.product(*(itertools.permutations(range(count)) for count in counts)))[1:]
    return [
        np.array([orders[t] for orders in every], np.int64).reshape(len(every), count)
        for t, count in enumerate(counts)
    ]


def _random_orders(
    rng: np.random.Generator, permutations: int, counts: Sequence[int]
) -> list[np.ndarray]:
    """Random orders [B, S] of the lines of each table, never the one that was observed."""
    orders = [np.tile(np.arange(count), (permutations, 1)) for count in counts]
    observed = np.ones(permutations, bool)
    while observed.any():
        for order_BS in orders:
            order_BS[observed] = rng.permuted(order_BS[observed], axis=1)
        as_it_was = [(order_BS == np.arange(order_BS.shape[1])).all(1) for order_BS in orders]
        observed = np.asarray(np.stack(as_it_was).all(0))
    return orders


def _all_signs(seeds: int) -> np.ndarray:
    """All signs of the seeds but the first, without those that change nothing: [B, S]."""
    others = list(itertools.product((1.0, -1.0), repeat=seeds - 1))[1:]
    return np.array([(1.0, *signs) for signs in others]).reshape(len(others), seeds)


def _random_signs(rng: np.random.Generator, permutations: int, seeds: int) -> np.ndarray:
    """Random signs [B, S] of the seeds, that of the first kept, never all as they were observed."""
    signs_BS = np.ones((permutations, seeds))
    observed = np.ones(permutations, bool)
    while observed.any():
        signs_BS[observed, 1:] = rng.choice([-1.0, 1.0], (observed.sum(), seeds - 1))
        observed = np.asarray((signs_BS > 0).all(1))
    return signs_BS


def _signed(y_nR: np.ndarray, table: np.ndarray, signs_BS: np.ndarray) -> np.ndarray:
    """Deviations with their signs changed are centred again, as those that were observed are."""
    mean = y_nR[table].mean(0, keepdims=True)
    deviations = signs_BS[:, :, None, None] * (y_nR[table] - mean)[None]
    deviations -= deviations.mean(1, keepdims=True)
    out = np.empty((len(signs_BS), *y_nR.shape))
    out[:, table] = mean[None] + deviations
    return out
