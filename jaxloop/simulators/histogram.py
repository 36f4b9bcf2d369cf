"""The U-shape toy (arXiv 2504.03814, C.3): a biased histogram that is refitted on a mixture
of its own output and human numbers.

Human numbers are uniform on 0..N ("overlap") or on the odd ones of them ("non-overlap"). A
generation's model is the histogram of its N training points, plus `smoothing` per number, times a
bias vector that favours even numbers. Without smoothing the even numbers of the non-overlap case
have probability 0 for ever, so that the bias does nothing: the text's literal reading cannot give
the U-shape. With smoothing 1e-3 and bias 100 the relative entropy has one, between a ratio of
synthetic items of 0 and 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_not_negative, check_whole
from jaxloop.recursion.workflow import Workflow, fresh_human, window
from jaxloop.simulators import family as families
from jaxloop.simulators.discrete import discrete_family

# One factor on even numbers, or one per number.
Bias = float | tuple[float, ...]
RATIOS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


def histogram_family(
    size: int = 100, *, bias: ArrayLike = 100.0, smoothing: float = 1e-3, overlap: bool = False
) -> families.ArrayFamily:
    """Numbers 0..size. bias: strength on even numbers, or a vector [size + 1]. Metrics as
    `discrete_family`.

    Raises ValueError for size below 1, a bias that is not positive or of another length, and
    negative smoothing.
    """
    probabilities, smoothing, vector = vectors(size, bias, smoothing, overlap)
    return discrete_family(probabilities, smoothing=smoothing, bias=vector)


def vectors(
    size: int, bias: ArrayLike = 100.0, smoothing: float = 1e-3, overlap: bool = False
) -> tuple[np.ndarray, float, np.ndarray]:
    """(probabilities of human numbers [size + 1], smoothing, bias [size + 1]), checked.

    Raises ValueError as `histogram_family`.
    """
    check_whole("size", size)
    numbers = np.arange(size + 1)
    even = numbers % 2 == 0
    vector = np.where(even, bias, 1.0) if np.ndim(bias) == 0 else np.asarray(bias, float)
    if vector.shape != numbers.shape or not ((vector > 0) & np.isfinite(vector)).all():
        raise ValueError(
            f"bias={np.asarray(bias).tolist()}: must be a positive number or {size + 1} positive "
            "numbers"
        )
    check_not_negative("smoothing", smoothing)
    human = np.where(even & (not overlap), 0.0, 1.0)
    return human / human.sum(), float(smoothing), vector


def toy_workflow(size: int, ratio: float, *, accumulate: bool) -> Workflow:
    """int(ratio size) items of the model and fresh human ones; with accumulation, `size` of all
    those since generation 1 (the chains' pool), without, only the newest.
    """
    if accumulate:
        return fresh_human(size, ratio)
    return window(size, 1, ratio=ratio, real="never")


class Column(NamedTuple):
    """One column of the paper's figure: bias and smoothing as `histogram_family` has them, and
    whether human numbers overlap with the favoured ones.
    """

    bias: Bias = 100.0
    smoothing: float = 1e-3
    overlap: bool = False


def simulate(
    *,
    size: int = 100,
    ratios: Sequence[float] = RATIOS,
    bias: Bias = 100.0,
    smoothing: float = 1e-3,
    overlap: bool = False,
    accumulate: bool = False,
    generations: int = 19,
    replicates: int = 50,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Metrics {name: [ratios, R, T+1]} of the toy: R = 50 chains per ratio, generations 0..19 (20
    steps) in the paper.

    `relative_entropy` is the entropy of the model over that of generation 0. Raises ValueError as
    `histogram_family`, for ratios outside [0, 1], and where there is none.
    """
    columns = simulate_columns(
        [Column(bias, smoothing, overlap)],
        size=size,
        ratios=ratios,
        accumulate=accumulate,
        generations=generations,
        replicates=replicates,
        seed=seed,
        mesh=mesh,
    )
    return {name: x[0] for name, x in columns.items()}


def simulate_columns(
    columns: Sequence[Column],
    *,
    size: int = 100,
    ratios: Sequence[float] = RATIOS,
    accumulate: bool = False,
    generations: int = 19,
    replicates: int = 50,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """As `simulate`, for several columns in one program per ratio: {name: [columns, ratios, R,
    T+1]}.
    """
    for name, values in (("columns", columns), ("ratios", ratios)):
        if not len(values):
            raise ValueError(f"{name}: is empty; at least one is needed")
    models = [vectors(size, *column) for column in columns]
    setting = {
        name: np.stack([np.asarray(m[i]) for m in models])
        for i, name in enumerate(("probabilities", "smoothing", "bias"))
    }
    runs = [
        families.run(
            _of_setting,
            toy_workflow(size, r, accumulate=accumulate),
            generations=generations,
            replicates=replicates,
            seed=seed + i,
            settings=setting,
            mesh=mesh,
        )
        for i, r in enumerate(ratios)
    ]
    out = {name: np.stack([r[name] for r in runs], 1) for name in runs[0]}
    out["relative_entropy"] = out["entropy"] / out["entropy"][..., :1]
    return out


def _of_setting(setting: Mapping[str, jax.Array]) -> families.ArrayFamily:
    return discrete_family(
        setting["probabilities"], smoothing=setting["smoothing"], bias=setting["bias"]
    )
