"""Moments of the linear dynamics from the singular values of the weighted rows themselves.

The forms in `linear_forms` invert Gram matrices, twice over in a covariance, and lose eps cond(G)^2
of their digits: where a direction is seen only through a weight of 1e-8, all of them. Here every
fit is the map of its labels that the singular value decomposition of its rows, scaled by the root
of their weights, gives: its condition number is the root of G's, and every variance is a sum of
squares, so that none can come out negative. Float64 NumPy.

N real rows (of all private sets and the public one), M synthetic rows of a generation. A design
with more rows than columns stands as its triangle R: a fit reads the labels through R'(Q'y) only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from jaxloop.simulators.linear_designs import Designs, Setting

# Above this condition number of a G the forms of Gram matrices have lost more than 2e-10.
GRAM_CONDITION = 1e3
# Above this one of the weighted rows (its square: of G), 2e-6 of a fit would be rounding.
ROW_CONDITION = 1e10


class Fits(NamedTuple):
    """One generation's fits as maps of labels: theta_t = real y + written (write theta_{t-1} + w).

    real [Kd, N], written [Kd, M], write [M, Kd].
    """

    real: np.ndarray
    written: np.ndarray
    write: np.ndarray

    @property
    def q(self) -> np.ndarray:
        """[Kd, Kd], the paper's Q_t."""
        return self.written @ self.write


def triangle(x: np.ndarray) -> np.ndarray:
    """Return R of x = QR where x has more rows than columns, else x."""
    return np.asarray(np.linalg.qr(x, mode="r")) if x.shape[0] > x.shape[1] else x


def _public(designs: Designs) -> np.ndarray:
    """The public rows [n, d], none of them where there is no public set."""
    return np.zeros((0, designs.dim)) if designs.public is None else designs.public


class _Rows(NamedTuple):
    """The rows that one entity fits in one generation, scaled.

    scaled [n, d], root [n] of the weights, real [..] and written [..]: which of the N and M rows
    these are, real ones first.
    """

    scaled: np.ndarray
    root: np.ndarray
    real: np.ndarray
    written: np.ndarray


def _sections(parts: list[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([0, *(len(x) for x in parts)])
    return [np.arange(i, j) for i, j in zip(ends[:-1], ends[1:], strict=True)]


def _rows(designs: Designs, w: Setting, t: int, k: int) -> _Rows:
    real = [*(triangle(x) for x in designs.private), triangle(_public(designs))]
    group = _synthetic(designs, t)
    at, at_written = _sections(real), _sections(group)
    chosen = [(i, x) for i, x in ((k, w.a[t, k]), (designs.entities, w.b[t, k])) if x > 0]
    shares = w.alpha[t, k] * w.who[t, k]
    heard: list[int] = np.flatnonzero(shares > 0).tolist()
    parts = [real[i] for i, _ in chosen] + [group[j] for j in heard]
    weights = [x for _, x in chosen] + [shares[j] for j in heard]
    none = np.zeros(0, int)
    root = np.concatenate(
        [none, *(np.full(len(x), np.sqrt(v)) for x, v in zip(parts, weights, strict=True))]
    )
    return _Rows(
        np.concatenate([np.zeros((0, designs.dim)), *parts]) * root[:, None],
        root,
        np.concatenate([none, *(at[i] for i, _ in chosen)]),
        np.concatenate([none, *(at_written[j] for j in heard)]),
    )


def _synthetic(designs: Designs, t: int) -> list[np.ndarray]:
    group = designs.synthetic_groups[0 if designs.fixed else max(t - 1, 0)]
    return [triangle(x) for x in group]


def _rank(w: Setting, t: int, k: int) -> int:
    """Directions that the rows determine, whatever their weights."""
    return w.null.shape[2] - round(float(np.trace(w.null[t, k])))


def _changes(designs: Designs, w: Setting) -> Iterator[tuple[int, bool]]:
    """Every generation, and whether its fits differ from those of the one before."""
    for t in range(len(w.a)):
        same = t > 1 and designs.fixed
        same = same and all((x[t] == x[t - 1]).all() for x in (w.a, w.b, w.alpha, w.who))
        yield t, not same


def condition(designs: Designs, w: Setting) -> float:
    """Return the largest condition number of a weighted matrix of rows; its square is that of G."""
    worst = 1.0
    for t, changed in _changes(designs, w):
        for k in range(designs.entities) if changed else ():
            rank = _rank(w, t, k)
            if rank:
                values = np.linalg.svd(_rows(designs, w, t, k).scaled, compute_uv=False)
                low = values[rank - 1]
                worst = max(worst, float(values[0] / low) if low > 0 else np.inf)
    return worst


def conditions(
    designs: Designs, alpha: np.ndarray, beta: np.ndarray, who: np.ndarray
) -> np.ndarray:
    """Return [P], the largest condition number of a G at each pair of alpha [P] and beta [P], on
    the directions that its entity's rows determine; inf where rounding hides it.

    who: [K, K] mixing matrix. The designs are those of generation 1.
    """
    private = np.stack([x.T @ x for x in designs.private])
    public = _public(designs).T @ _public(designs)
    heard = np.einsum("kj,jxy->kxy", who, np.stack([x.T @ x for x in designs.synthetic_groups[0]]))
    worst = np.ones(len(alpha))
    for k in range(designs.entities):
        weights = np.stack([(1 - alpha) * beta, (1 - alpha) * (1 - beta), alpha], 1)
        g = np.einsum("pi,ixy->pxy", weights, np.stack([private[k], public, heard[k]]))
        values = np.linalg.eigvalsh(g)
        # Directions that no row sees have the value 0, but for rounding.
        ranks = _ranks(weights > 0, (private[k], public, heard[k]))
        low = values[np.arange(len(alpha)), designs.dim - np.maximum(ranks, 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(low > 0, values[:, -1] / low, np.inf)
        worst = np.maximum(worst, np.where(ranks > 0, ratio, 1.0))
    return worst


def _ranks(positive: np.ndarray, grams: tuple[np.ndarray, ...]) -> np.ndarray:
    """[P] ranks of the sums of the Gram matrices that are chosen by positive [P, 3]."""
    ranks = np.zeros(len(positive), int)
    for pattern in np.unique(positive, axis=0):
        chosen = [x / np.trace(x) for x, on in zip(grams, pattern, strict=True) if on and x.any()]
        rank = np.linalg.matrix_rank(sum(chosen), hermitian=True) if chosen else 0
        ranks[(positive == pattern).all(1)] = rank
    return ranks


def check_condition(found: float) -> None:
    """Raises ValueError where fits are beyond float64."""
    if found > ROW_CONDITION:
        raise ValueError(
            f"alpha, beta: a fit has a condition number of {found**2:.1e}, above "
            f"{ROW_CONDITION**2:.0e} its moments are rounding; a positive weight must be larger"
        )


def fits_of(designs: Designs, w: Setting, t: int) -> Fits:
    """Return the fits of generation t."""
    k, d = designs.entities, designs.dim
    group = _synthetic(designs, t)
    total = len(real_rows(designs))
    real, written = np.zeros((k, d, total)), np.zeros((k, d, sum(map(len, group))))
    for i in range(k):
        rows, rank = _rows(designs, w, t, i), _rank(w, t, i)
        if not rank:
            continue
        left, values, right = np.linalg.svd(rows.scaled, full_matrices=False)
        fit = (right[:rank].T / values[:rank]) @ left[:, :rank].T * rows.root
        real[i][:, rows.real] = fit[:, : len(rows.real)]
        written[i][:, rows.written] = fit[:, len(rows.real) :]
    return Fits(
        real.reshape(k * d, -1), written.reshape(k * d, -1), scipy.linalg.block_diag(*group)
    )


def real_rows(designs: Designs) -> np.ndarray:
    """Return [N, d], the real rows in the order of `Fits.real`."""
    return np.concatenate([triangle(x) for x in (*designs.private, _public(designs))])


def moments(
    designs: Designs, w: Setting, theta: np.ndarray, sigma2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [T+1, K, d] and cov [T+1, Kd, Kd] of theta_hat, as
    `linear_forms.block_moments`.
    """
    k, d = designs.entities, designs.dim
    expected = real_rows(designs) @ theta
    means, covs = [], []
    fits = fits_of(designs, w, 0)
    real, spread = np.zeros_like(fits.real), np.zeros((k * d, k * d))
    for t, changed in _changes(designs, w):
        if changed:
            fits = fits_of(designs, w, t)
            q, fresh = fits.q, sigma2 * fits.written @ fits.written.T
        real = fits.real + q @ real
        spread = q @ spread @ q.T + fresh
        means.append(real @ expected)
        covs.append(sigma2 * real @ real.T + spread)
    cov = np.stack(covs)
    return np.stack(means).reshape(-1, k, d), (cov + cov.swapaxes(1, 2)) / 2


def limit(
    designs: Designs, w: Setting, theta: np.ndarray, sigma2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [K, d] and cov [Kd, Kd] in the limit of the last generation's weights, where
    rho(Q) < 1: squares of Q are summed until nothing changes (Smith's doubling).
    """
    k, d = designs.entities, designs.dim
    fits = fits_of(designs, w, len(w.a) - 1)
    power, real = fits.q, fits.real
    spread = sigma2 * fits.written @ fits.written.T
    while np.linalg.norm(power) > 1e-18:
        real = real + power @ real
        spread = spread + power @ spread @ power.T
        power = power @ power
    cov = sigma2 * real @ real.T + spread
    return (real @ (real_rows(designs) @ theta)).reshape(k, d), (cov + cov.T) / 2


def absorbed(designs: Designs, w: Setting) -> str | None:
    """Return why entities that only read each other keep an error for ever, or None.

    Followed are the readers of the last generation: where the real rows of all whom an entity
    hears of, itself included, leave a direction free that its synthetic rows show, nothing pulls
    what is believed of it back to the truth.
    """
    heard = (w.alpha[-1][:, None] * w.who[-1]) > 0
    reach = heard | np.eye(designs.entities, dtype=bool)
    for _ in range(designs.entities):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    group = designs.synthetic_groups[-1]
    for k, known in enumerate(reach):
        members = np.flatnonzero(known).tolist()
        real = [designs.private[j] for j in members if w.a[-1, j] > 0]
        real += [_public(designs)] * bool((w.b[-1, members] > 0).any())
        written = [group[j] for j in np.flatnonzero(heard[members].any(0)).tolist()]
        if written and _span([*real, *written]) > _span(real):
            names = ", ".join(str(j + 1) for j in members if j != k)
            only = f"entities {names} and itself" if names else "itself"
            return f"entity {k + 1} reads only {only}, whose real rows leave a direction free"
    return None


def _span(parts: list[np.ndarray]) -> int:
    scaled = [x / np.linalg.norm(x) for x in parts if x.any()]
    return int(np.linalg.matrix_rank(np.concatenate(scaled))) if scaled else 0
