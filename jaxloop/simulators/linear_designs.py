"""Designs and weights of the linear model with many entities, checked and brought into static
shapes (arXiv 2505.21677).

K entities, d features, T generations after generation 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core import mixing as mixing_matrices
from jaxloop.core.checks import check_positive, check_whole


@dataclass(frozen=True, eq=False)
class Designs:
    """Feature matrices; all results are conditional on them.

    private    one matrix [n_k, d] per entity (n_k may differ)
    public     [n_*, d]; None: no public data
    synthetic  one matrix per entity, the same in every generation; or, per generation t = 1..T, one
    matrix per entity;
               None: every entity is prompted with its own private rows
    """

    private: Sequence[np.ndarray]
    public: np.ndarray | None = None
    synthetic: Sequence | None = None  # of arrays, or of sequences of arrays

    def __post_init__(self) -> None:
        private = tuple(_matrix("private", x) for x in self.private)
        if not private:
            raise ValueError("private: holds no matrix, must hold one [n_k, d] per entity")
        d = private[0].shape[1]
        public = np.zeros((0, d)) if self.public is None else _matrix("public", self.public)
        synthetic = private if self.synthetic is None else self.synthetic
        nested = np.ndim(synthetic[0][0]) == 2 if len(synthetic) and len(synthetic[0]) else False
        groups = tuple(
            tuple(_matrix("synthetic", x) for x in group)
            for group in (synthetic if nested else (synthetic,))
        )
        for name, matrices in (
            ("private", private),
            ("public", (public,)),
            *(("synthetic", group) for group in groups),
        ):
            for x in matrices:
                if x.shape[1] != d:
                    raise ValueError(
                        f"{name}: a design has {x.shape[1]} columns, all must have the {d} of "
                        "the first private one"
                    )
        for group in groups:
            if len(group) != len(private):
                raise ValueError(
                    f"synthetic: {len(group)} matrices for {len(private)} entities, must be one "
                    "per entity"
                )
        if nested and len({tuple(x.shape[0] for x in group) for group in groups}) > 1:
            raise ValueError(
                "synthetic: row counts change with the generation, every entity must keep its own"
            )
        for name, value in (("private", private), ("public", public), ("synthetic", groups)):
            object.__setattr__(self, name, value)

    @property
    def entities(self) -> int:
        return len(self.private)

    @property
    def dim(self) -> int:
        return self.private[0].shape[1]

    @property
    def fixed(self) -> bool:
        """Whether the synthetic designs are the same in every generation."""
        return len(self.synthetic_groups) == 1

    @property
    def synthetic_groups(self) -> Sequence[Sequence[np.ndarray]]:
        """The synthetic designs of every generation 1..T, or one group that holds for all."""
        return self.synthetic or ()

    def mvue_mse(self, sigma2: float) -> float:
        """`sigma2 tr (S_* + sum_k S~_k)^-1`: error of the best unbiased estimate from all real
        data; NaN where they leave theta free.
        """
        rows = np.concatenate([*self.private, self.public])
        values = np.linalg.svd(rows, compute_uv=False)
        full = (
            len(values) == self.dim
            and values[-1] > values[0] * max(rows.shape) * np.finfo(float).eps
        )
        return float(sigma2 * (values**-2).sum()) if full else float("nan")


def low_rank_designs(
    seed: int,
    *,
    entities: int = 4,
    dim: int = 15,
    rank: int = 5,
    public: int = 13,
    scale: float = 1.25,
) -> Designs:
    """Return the setting that reproduces the relative-efficiency figure of arXiv 2505.21677.

    The paper does not state it; it was inferred from the figure: private rank x dim and public rows
    iid N(0, 1), synthetic Gram matrices `scale` times the private ones. Raises ValueError for sizes
    below 1 (`public`: below 0) and a scale that is not positive.
    """
    for name, value, low in (
        ("entities", entities, 1),
        ("dim", dim, 1),
        ("rank", rank, 1),
        ("public", public, 0),
    ):
        check_whole(name, value, low)
    check_positive("scale", scale)
    rng = np.random.default_rng(seed)
    private = tuple(rng.normal(size=(rank, dim)) for _ in range(entities))
    return Designs(
        private, rng.normal(size=(public, dim)), tuple(np.sqrt(scale) * x for x in private)
    )


def _matrix(name, x):
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name}: a design has shape {x.shape}, must be [rows, columns]")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: a design holds values that are not finite")
    return x


class Setting(NamedTuple):
    """Weights of every generation, float64: what the forms in `linear_forms` read.

    a, b, alpha  [T+1, K]: weights of private, public and synthetic sums of squares
    who          [T+1, K, K]: mixing among the entities that have generated by then, rows of sum 1
                 or 0
    null         [T+1, K, d, d]: projector on what the training set of entity k leaves undetermined
    present      [T+1, K] bool
    """

    a: np.ndarray
    b: np.ndarray
    alpha: np.ndarray
    who: np.ndarray
    null: np.ndarray
    present: np.ndarray

    @property
    def one_message(self) -> bool:
        """Whether all entities read the same mixture in every generation, so that the d x d form
        holds.
        """
        reads = (self.alpha > 0)[:, :, None]
        return not (reads & (np.abs(self.who - self.who.max(1, keepdims=True)) > 1e-14)).any()


def setting(
    designs: Designs,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    generations: int,
    mixing: ArrayLike | None = None,
    joins: ArrayLike | None = None,
) -> Setting:
    """Checks everything and expands it over generations and entities.

    alpha, beta: a number, [T+1] per generation, or [T+1, K] or [1, K] per entity too; alpha at t=0
    is not read, it is 0. joins [K]: generation in which an entity fits its first model, reading
    what the others have written by then; those who have not
      joined are left out of the mixing rows, which are scaled back to sum 1 (with nobody to read,
      alpha acts as 0).
    Raises ValueError.
    """
    k, t = designs.entities, check_whole("generations", generations)
    if not designs.fixed and len(designs.synthetic_groups) < t:
        raise ValueError(
            f"generations={t}: synthetic designs are given for {len(designs.synthetic_groups)} "
            "generations only"
        )
    alpha_TK, beta_TK = _weights("alpha", alpha, t, k), _weights("beta", beta, t, k)
    matrix = (
        mixing_matrices.complete(k) if mixing is None else mixing_matrices.check_mixing(mixing, k)
    )
    joins = np.zeros(k, int) if joins is None else np.asarray(joins)
    if joins.shape != (k,) or joins.dtype.kind not in "iu" or joins.min() < 0 or joins.max() > t:
        raise ValueError(
            f"joins={joins.tolist()}: must be {k} integers from 0 to generations={t}, one per "
            "entity"
        )
    steps = np.arange(t + 1)[:, None]
    present, readable = joins <= steps, joins <= steps - 1
    who = matrix * readable[:, None, :]
    sums = who.sum(2)
    who = who / np.where(sums > 0, sums, 1)[:, :, None]
    alpha_TK = np.where(sums > 0, alpha_TK, 0.0)
    a, b = (1 - alpha_TK) * beta_TK * present, (1 - alpha_TK) * (1 - beta_TK) * present
    alpha_TK = alpha_TK * present
    who = who * (alpha_TK > 0)[:, :, None]
    return Setting(a, b, alpha_TK, who, _null_projectors(designs, a, b, alpha_TK, who), present)


def check_unit(name: str, value: np.ndarray) -> None:
    """Raises ValueError where an entry lies outside [0, 1] or is NaN."""
    outside = ~((value >= 0) & (value <= 1))
    if outside.any():
        raise ValueError(f"{name}={value[outside].reshape(-1)[0]}: must lie in [0, 1]")


def _weights(name, value, t, k):
    value = np.asarray(value, np.float64)
    check_unit(name, value)
    if value.ndim == 1 and value.shape == (t + 1,):
        value = value[:, None]
    if (
        value.ndim == 1
        or value.ndim > 2
        or any(n not in (1, full) for n, full in zip(value.shape, (t + 1, k), strict=False))
    ):
        raise ValueError(
            f"{name}: shape is {value.shape}, must be () or ({t + 1},) per generation or "
            f"({t + 1}, {k}) or (1, {k}) per entity"
        )
    return np.broadcast_to(value, (t + 1, k))


def _null_projectors(designs, a, b, alpha, who):
    """Which weights are positive decides the range of G, not how large they are, so it is found
    once per pattern and from the rows themselves: no threshold is applied to a weighted Gram
    matrix.
    """
    t, k = a.shape
    found, out = {}, np.zeros((t, k, designs.dim, designs.dim))
    for i in range(t):
        written = 0 if designs.fixed else max(i - 1, 0)
        for j in range(k):
            readers = tuple(np.flatnonzero(alpha[i, j] * who[i, j] > 0))
            pattern = (j, a[i, j] > 0, b[i, j] > 0, readers, written if readers else 0)
            if pattern not in found:
                parts = [designs.private[j]] * int(a[i, j] > 0) + [designs.public] * int(
                    b[i, j] > 0
                )
                found[pattern] = _null_projector(
                    parts + [designs.synthetic_groups[written][m] for m in readers], designs.dim
                )
            out[i, j] = found[pattern]
    return out


def _null_projector(parts, d):
    parts = [x / np.linalg.norm(x) for x in parts if np.linalg.norm(x) > 0]
    if not parts:
        return np.eye(d)
    rows = np.concatenate(parts)
    _, values, right = np.linalg.svd(rows, full_matrices=True)
    rank = int((values > values[0] * max(rows.shape) * np.finfo(float).eps).sum())
    return right[rank:].T @ right[rank:]
