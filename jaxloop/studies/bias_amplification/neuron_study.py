"""Which neurons move with a model's bias, and which would if nothing were there (arXiv 2410.15234,
section 5.4 and appendix K).

A neuron is one number per layer and coordinate of a model version: a weight or a mean activation
(module `neurons` reads both). Every neuron is regressed on by every outcome (share of a label, text
quality) over all versions of all setups. The paper differences both sides; its released script does
not, and then unrelated neurons that merely drift pass by the thousand. Beside the nominal counts
therefore stand those of a null in which the outcomes of whole seeds change places (module
`neuron_exchange`).

Dimensions: V versions, L layers, D coordinates, J = L D neurons, n rows of a regression, R
outcomes, B arrangements.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxloop.core.checks import check_whole
from jaxloop.studies.bias_amplification import neuron_exchange as exchange
from jaxloop.studies.bias_amplification import neuron_regression as regression
from jaxloop.studies.bias_amplification.neuron_design import Design, check_design
from jaxloop.studies.bias_amplification.neuron_exchange import Rows
from jaxloop.studies.bias_amplification.neuron_null import TestGrid, gather_null
from jaxloop.studies.bias_amplification.neuron_tables import Tables, make_tables

MODES = ("differences", "deviations", "levels")


class NeuronStudy(NamedTuple):
    """Tables (see `neuron_study`) and the settings that made them."""

    tests: pd.DataFrame
    counts: pd.DataFrame
    overlap: pd.DataFrame
    layers: pd.DataFrame
    settings: dict[str, Any]


class _Options(NamedTuple):
    lags: int
    alpha: float
    modes: Sequence[str]
    permutations: int
    scheme: str
    lags_cross: bool
    seed: int


def neuron_study(
    neurons: Mapping[str, np.ndarray],
    outcomes: Mapping[str, np.ndarray],
    setups: Sequence[str],
    generations: Sequence[int],
    *,
    seeds: Sequence[int] | None = None,
    lags: int = 1,
    alpha: float = 0.05,
    modes: Sequence[str] | None = None,
    permutations: int = 999,
    scheme: str = "seeds",
    lags_cross: bool = False,
    seed: int = 0,
) -> NeuronStudy:
    """Test every neuron against every outcome, correct, count, and hold the counts against chance.

    With m tests in one mode, all relations together (4 x 9,216 in the paper), the tables are

        tests    mode, relation, neurons, outcome, layer, unit, r, slope, se, t, p, flat,
                 bonferroni (p < alpha / m), bh (Benjamini-Hochberg at alpha within a relation),
                 p_permutation (two-sided, of the neuron), p_familywise (of the largest |t| among
                 the m; Westfall and Young 1993)
        counts   mode, relation, rule, tests, flat, observed, nominal (expected if p were uniform),
                 null_mean, null_high (95th percentile), p (share of arrangements with as many),
                 p_together (the same of the sum of log(1 + t^2) over the neurons of the relation).
                 Rules "permutation" and "familywise" count p_permutation and p_familywise < alpha
        overlap  mode, rule, first, second, size_first, size_second, neurons, observed, expected
                 and p_more, p_fewer (hypergeometric: neurons drawn independently), null_mean and
                 null_p, null_p_fewer (share of arrangements, outcomes of a version kept together,
                 that overlap at least, at most as much)
        layers   mode, relation, rule, layer (from 1), significant, positive (slope above 0)

    A neuron without variance has p = 1 and is counted as flat; so is every test of an outcome that
    is constant. It still counts in m. Where there are too few seeds for a p below alpha, everything
    of the null is NaN, and `settings["no_verdict"]` says how many are needed.

    Args:
        neurons: name -> [V, L, D] or [V, J], such as {"weight": ..., "activation": ...}.
        outcomes: name -> [V].
        setups: [V] setup of each version.
        generations: [V] its generation.
        seeds: [V] its seed; one of a setup and seed is a chain. None: every setup is one chain.
        lags: of the Newey-West errors (released code: 1).
        alpha: level of the tests.
        modes: "differences" (equation 3 of the paper), "deviations" (differences less their mean
            over the seeds of a setup and generation, so that no course in time is left; their
            nominal p take no notice of the means taken), "levels" (the released script). None: all
            that the seeds allow.
        permutations: arrangements of the outcomes, at most; 0: none.
        scheme: what changes places, one of `neuron_exchange.SCHEMES`.
        lags_cross: whether lag products are taken across setups too, as the released script does.
        seed: of the arrangements.

    Raises:
        ValueError: as `check_design` does; shapes that do not agree, values that are not finite,
            alpha outside (0, 1), an unknown mode or scheme, a negative number of permutations;
            seeds that do not have the same versions, or scheme "chains" for setups that share a
            model.
    """
    design = check_design(setups, generations, seeds=seeds, lags=lags)
    counts = exchange.seeds_per_setup(design.versions)
    if modes is None:
        modes = [mode for mode in MODES if mode != "deviations" or min(counts) > 1]
    options = _Options(lags, alpha, modes, permutations, scheme, lags_cross, seed)
    versions = len(design.order)
    kinds = {name: _neurons(name, values, versions) for name, values in neurons.items()}
    if not kinds or not outcomes:
        raise ValueError(
            f"neurons and outcomes: {len(kinds)} and {len(outcomes)} are given, at least one of "
            "each is needed"
        )
    columns = [_outcome(name, values, versions) for name, values in outcomes.items()]
    outcomes_VR = np.stack(columns, 1)[design.order]
    _check_options(options, counts)
    neurons_VJ = np.concatenate(
        [values[design.order].reshape(versions, -1) for values in kinds.values()], 1
    )
    no_verdict = (
        exchange.too_few(counts, scheme, alpha) if permutations else "no null was asked for"
    )
    if no_verdict is None and scheme == "chains":
        _check_apart(neurons_VJ, outcomes_VR, design.versions)
    if no_verdict is not None:
        options = options._replace(permutations=0)
    grid = _grid(kinds, list(outcomes), alpha)
    tables = [_of_mode(mode, neurons_VJ, outcomes_VR, design, grid, options) for mode in modes]
    total = exchange.arrangements(counts, scheme)
    settings = options._asdict() | {
        "permutations": min(options.permutations, total - 1),
        "modes": list(modes),
        "no_verdict": no_verdict or "",
        "versions": versions,
        "setups": len(counts),
        "seeds": min(counts),
        "arrangements": total,
        "differences": len(design.steps),
        "neurons": {kind: int(np.prod(shape)) for kind, shape in grid.shapes.items()},
        "backend": jax.default_backend(),
    }
    return NeuronStudy(
        tests=pd.concat([table.tests for table in tables], ignore_index=True),
        counts=pd.concat([table.counts for table in tables], ignore_index=True),
        overlap=pd.concat([table.overlap for table in tables], ignore_index=True),
        layers=pd.concat([table.layers for table in tables], ignore_index=True),
        settings=settings,
    )


def _check_options(options: _Options, seeds: Sequence[int]) -> None:
    unknown = [mode for mode in options.modes if mode not in MODES]
    if unknown or not options.modes:
        raise ValueError(f"modes={list(options.modes)}: allowed are {', '.join(MODES)}")
    if "deviations" in options.modes and min(seeds) < 2:
        raise ValueError(
            f"modes={list(options.modes)}: deviations from the mean over seeds need at least two "
            "seeds in every setup"
        )
    if not 0 < options.alpha < 1:
        raise ValueError(f"alpha={options.alpha}: must be between 0 and 1")
    check_whole("permutations", options.permutations, 0)
    if options.scheme not in exchange.SCHEMES:
        raise ValueError(f"scheme={options.scheme!r}: allowed are {', '.join(exchange.SCHEMES)}")


def _check_apart(neurons_VJ: np.ndarray, outcomes_VR: np.ndarray, versions: Rows) -> None:
    """Raise ValueError where two setups of a seed share a version, and so are not independent."""
    values = np.concatenate([outcomes_VR, neurons_VJ], 1)
    seen: dict[tuple[object, bytes], str] = {}
    for setup, seed, row in zip(
        versions.setup.tolist(), versions.seed.tolist(), values, strict=True
    ):
        other = seen.setdefault((seed, row.tobytes()), setup)
        if other != setup:
            raise ValueError(
                f"scheme='chains': setups {other!r} and {setup!r} share a model of seed {seed}, so "
                "that they do not change places apart; take 'seeds'"
            )


def _neurons(name: str, values: np.ndarray, versions: int) -> np.ndarray:
    """[V, L, D] of a kind of neurons, checked."""
    x = np.asarray(values, np.float64)
    if x.ndim not in (2, 3) or len(x) != versions or 0 in x.shape:
        raise ValueError(
            f"neurons {name!r} have shape {x.shape}; [{versions}, layers, coordinates] or "
            f"[{versions}, neurons] is needed"
        )
    broken = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    if len(broken):
        raise ValueError(
            f"neurons {name!r}: version {broken[0]} holds values that are not finite; leave out "
            "versions of chains that failed"
        )
    return x if x.ndim == 3 else x[:, None]


def _outcome(name: str, values: np.ndarray, versions: int) -> np.ndarray:
    """[V] of an outcome, checked."""
    y = np.asarray(values, np.float64)
    if y.shape != (versions,):
        raise ValueError(
            f"outcome {name!r} has shape {y.shape}; one value for each of the {versions} "
            "versions is needed"
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"outcome {name!r}: version {int(np.flatnonzero(~np.isfinite(y))[0])} is not finite; "
            "leave out versions of chains that failed"
        )
    return y


def _grid(kinds: Mapping[str, np.ndarray], outcomes: list[str], alpha: float) -> TestGrid:
    columns, start = {}, 0
    for kind, values in kinds.items():
        stop = start + int(np.prod(values.shape[1:]))
        columns[kind] = slice(start, stop)
        start = stop
    return TestGrid(
        relations=[(kind, outcome) for kind in kinds for outcome in outcomes],
        columns=columns,
        shapes={kind: (values.shape[1], values.shape[2]) for kind, values in kinds.items()},
        outcomes=outcomes,
        alpha=alpha,
    )


def _of_mode(
    mode: str,
    neurons_VJ: np.ndarray,
    outcomes_VR: np.ndarray,
    design: Design,
    grid: TestGrid,
    options: _Options,
) -> Tables:
    """The tests of one mode."""
    x_nJ, y_nR, series, rows = neurons_VJ, outcomes_VR, design.series, design.versions
    if mode != "levels":
        x_nJ = np.diff(neurons_VJ, axis=0)[design.steps - 1]
        y_nR = np.diff(outcomes_VR, axis=0)[design.steps - 1]
        series = design.series[design.steps]
        rows = Rows(*(values[design.steps] for values in rows))
    if mode == "deviations":
        x_nJ, y_nR = exchange.centred(x_nJ, rows), exchange.centred(y_nR, rows)
    if options.lags_cross:
        series = np.zeros_like(series)
    fit = regression.newey_west(
        x_nJ,
        y_nR,
        series,
        lags=options.lags,
        size_J=np.abs(neurons_VJ).max(0),
        size_R=np.abs(outcomes_VR).max(0),
    )
    if not options.permutations:
        return make_tables(grid, mode, fit, None)
    drawn = exchange.draw(
        y_nR,
        exchange.blocks(rows, options.scheme),
        options.scheme,
        permutations=options.permutations,
        seed=options.seed,
    )
    pieces = regression.null_statistics(x_nJ, drawn, series, lags=options.lags, flat=fit.flat)
    return make_tables(grid, mode, fit, gather_null(grid, fit.t, pieces))
