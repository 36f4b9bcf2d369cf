"""The work of the simulators in plain NumPy and SciPy, which `bench_simulators.py` times beside."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats

Designs = Any  # jaxloop.simulators.linear_designs.Designs that has all groups of data
Source = float | np.ndarray


def weighted_rows(
    designs: Designs,
    alpha: float,
    beta: float,
    labels: Sequence[np.ndarray],
    written: Sequence[np.ndarray] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and labels of every entity's least-squares problem in a generation, scaled by the root
    of their weight; written: None at t = 0.
    """
    own, k = 0.0 if written is None else alpha, designs.entities
    for i in range(k):
        parts = [
            (designs.private[i], labels[i], (1 - own) * beta),
            (designs.public, labels[k], (1 - own) * (1 - beta)),
        ]
        parts += (
            []
            if written is None
            else [(x, y, own / k) for x, y in zip(designs.synthetic[0], written, strict=True)]
        )
        yield (
            np.concatenate([np.sqrt(w) * x for x, _, w in parts]),
            np.concatenate([np.sqrt(w) * y for _, y, w in parts]),
        )


def linear_loop(
    designs: Designs,
    theta: np.ndarray,
    alpha: float,
    beta: float,
    generations: int,
    replicates: int,
    seed: int = 0,
) -> np.ndarray:
    """One replicate after another: draw labels, stack weighted rows, np.linalg.lstsq."""
    rng = np.random.default_rng(seed)
    out = np.empty((replicates, generations + 1, designs.entities, designs.dim))

    def noisy(x, w):
        return x @ w + rng.standard_normal(len(x))

    for r in range(replicates):
        labels = [noisy(x, theta) for x in (*designs.private, designs.public)]
        for t in range(generations + 1):
            written = (
                [noisy(x, w) for x, w in zip(designs.synthetic[0], out[r, t - 1], strict=True)]
                if t
                else None
            )
            for i, (rows, y) in enumerate(weighted_rows(designs, alpha, beta, labels, written)):
                out[r, t, i] = np.linalg.lstsq(rows, y, rcond=1e-10)[0]
    return out


def linear_vectorised(
    designs: Designs,
    theta: np.ndarray,
    alpha: float,
    beta: float,
    generations: int,
    replicates: int,
    seed: int = 0,
) -> np.ndarray:
    """All replicates at once: designs are fixed, so each fit is a pseudo-inverse, taken once, times
    labels [R, rows].
    """
    rng, k = np.random.default_rng(seed), designs.entities
    rows = [*designs.private, designs.public]
    labels = [x @ theta + rng.standard_normal((replicates, len(x))) for x in rows]
    maps = []
    for written in (None, [np.zeros(len(x)) for x in designs.synthetic[0]]):
        zeros = [np.zeros(len(x)) for x in rows]
        maps.append(
            [
                np.linalg.pinv(x, rcond=1e-10)
                for x, _ in weighted_rows(designs, alpha, beta, zeros, written)
            ]
        )
    own = np.sqrt((1 - alpha) * beta), np.sqrt((1 - alpha) * (1 - beta)), np.sqrt(alpha / k)
    out = np.empty((replicates, generations + 1, k, designs.dim))
    for i in range(k):
        out[:, 0, i] = (
            np.concatenate([np.sqrt(beta) * labels[i], np.sqrt(1 - beta) * labels[k]], 1)
            @ maps[0][i].T
        )
    real = []
    for i in range(k):
        n = len(rows[i]) + len(rows[k])
        real.append(
            np.concatenate([own[0] * labels[i], own[1] * labels[k]], 1) @ maps[1][i][:, :n].T
        )
    read = np.concatenate(
        [own[2] * maps[1][i][:, len(rows[i]) + len(rows[k]) :].T for i in range(k)], 1
    )
    for t in range(1, generations + 1):
        written = [
            out[:, t - 1, j] @ x.T + rng.standard_normal((replicates, len(x)))
            for j, x in enumerate(designs.synthetic[0])
        ]
        out[:, t] = (np.concatenate(written, 1) @ read).reshape(replicates, k, -1)
        for i in range(k):
            out[:, t, i] += real[i]
    return out


def beta_loop(n: int, replicates: int, generations: int, seed: int = 0) -> np.ndarray:
    """The released program's way: scipy.optimize.minimize (L-BFGS-B) of the weighted log-density,
    one replicate after another.
    """
    rng = np.random.default_rng(seed)
    out = np.empty((replicates, generations + 1, 2))

    def fit(x, w, start):
        def objective(p):
            return -(w * scipy.stats.beta.logpdf(x, *p)).sum()

        return scipy.optimize.minimize(
            objective, start, bounds=[(1e-6, None)] * 2, method="L-BFGS-B"
        ).x

    for r in range(replicates):
        weigh = start = fit(rng.beta(3, 2, n), np.ones(n), (1.0, 1.0))
        start, source = (2.0, 2.0), (2.0, 2.0)
        for t in range(generations + 1):
            x = rng.beta(*source, n)
            out[r, t] = source = weigh = start = fit(x, scipy.stats.beta.pdf(x, *weigh), start)
    return out


def beta_vectorised(n: int, replicates: int, generations: int, seed: int = 0) -> np.ndarray:
    """NumPy's Beta draws [R, n] and Newton on the statistics of all replicates at once."""
    rng = np.random.default_rng(seed)
    out = np.empty((replicates, generations + 1, 2))

    def fit(x, log_x, log_rest, weight):
        stats = [
            (log_x * weight).sum(1) / weight.sum(1),
            (log_rest * weight).sum(1) / weight.sum(1),
        ]
        mean = (x * weight).sum(1) / weight.sum(1)
        var = (x * x * weight).sum(1) / weight.sum(1) - mean**2
        common = mean * (1 - mean) / var - 1
        theta = np.stack([mean * common, (1 - mean) * common], 1)
        for _ in range(50):
            total = theta.sum(1)
            value = (
                scipy.special.digamma(theta)
                - scipy.special.digamma(total)[:, None]
                - np.stack(stats, 1)
            )
            slope, shared = scipy.special.polygamma(1, theta), scipy.special.polygamma(1, total)
            determinant = slope[:, 0] * slope[:, 1] - shared * slope.sum(1)
            move = np.stack(
                [
                    (slope[:, 1] - shared) * value[:, 0] + shared * value[:, 1],
                    shared * value[:, 0] + (slope[:, 0] - shared) * value[:, 1],
                ],
                1,
            )
            new = np.maximum(theta - move / determinant[:, None], theta / 10)
            done = (np.abs(new - theta) <= 1e-9 * theta).all()
            theta = new
            if done:
                break
        return theta

    def draw(a: Source, b: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = rng.beta(a, b, (replicates, n))
        return x, np.log(x), np.log1p(-x)

    weigh = fit(*draw(3.0, 2.0), np.ones((replicates, n)))
    source: tuple[Source, Source] = (2.0, 2.0)
    for t in range(generations + 1):
        x, log_x, log_rest = draw(*source)
        log_w = (weigh[:, :1] - 1) * log_x + (weigh[:, 1:] - 1) * log_rest
        weigh = out[:, t] = fit(x, log_x, log_rest, np.exp(log_w - log_w.max(1, keepdims=True)))
        source = weigh[:, :1], weigh[:, 1:]
    return out


def sweep_loop(designs: Designs, theta: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The limits of arXiv 2505.21677, setting by setting: mse [n, K].

    By G, P, Q of K d rows, eigenvalues, (I - Q)^-1 P, and a discrete Lyapunov equation.
    """
    k, d = designs.entities, designs.dim

    def gram(group):
        return [x.T @ x for x in group]

    private, public, synthetic = (
        gram(designs.private),
        designs.public.T @ designs.public,
        gram(designs.synthetic[0]),
    )
    wide = scipy.linalg.block_diag(*private, public)
    mixed, wide_synthetic = sum(synthetic) / k, scipy.linalg.block_diag(*synthetic)
    pinv_z = scipy.linalg.block_diag(
        *(np.linalg.pinv(s, hermitian=True) for s in (*private, public))
    )
    pinv_synthetic = scipy.linalg.block_diag(
        *(np.linalg.pinv(s, hermitian=True) for s in synthetic)
    )
    mean_z = np.concatenate(
        [np.linalg.pinv(x) @ x @ theta for x in (*designs.private, designs.public)]
    )
    out = []
    for alpha, share in pairs:
        own = (1 - alpha) * share, (1 - alpha) * (1 - share)
        inverse = scipy.linalg.block_diag(
            *(np.linalg.inv(own[0] * s + own[1] * public + alpha * mixed) for s in private)
        )
        p = inverse @ np.hstack(
            [own[0] * wide[: k * d, : k * d], own[1] * np.kron(np.ones((k, 1)), public)]
        )
        q = alpha * inverse @ np.kron(np.ones((k, k)) / k, np.eye(d)) @ wide_synthetic
        if np.abs(np.linalg.eigvals(q)).max() >= 1 - 1e-10:
            out.append(np.full(k, np.nan))
            continue
        m = np.linalg.solve(np.eye(k * d) - q, p)
        c = scipy.linalg.solve_discrete_lyapunov(q, q @ pinv_synthetic @ q.T)
        cov = (m @ pinv_z @ m.T + c).reshape(k, d, k, d)
        bias = (m @ mean_z).reshape(k, d) - theta
        out.append(np.einsum("kxkx->k", cov) + (bias**2).sum(1))
    return np.array(out)


def sweep_reduced(designs: Designs, theta: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The same limits from d x d matrices, setting by setting: what a careful NumPy program would
    do.
    """
    k, d = designs.entities, designs.dim

    def gram(group):
        return np.stack([x.T @ x for x in group])

    private, public, synthetic = (
        gram(designs.private),
        designs.public.T @ designs.public,
        gram(designs.synthetic[0]),
    )
    mixed, out = synthetic.mean(0), []
    for alpha, share in pairs:
        own = (1 - alpha) * share, (1 - alpha) * (1 - share)
        inverse = np.linalg.inv(own[0] * private + own[1] * public + alpha * mixed)
        reads = alpha / k * synthetic @ inverse
        r = reads.sum(0)
        if np.abs(np.linalg.eigvals(r)).max() >= 1 - 1e-10:
            out.append(np.full(k, np.nan))
            continue
        # The message is resolvent (sum_j reads_j r_j + noise), r_j the statistics of the real data
        # of entity j.
        resolvent = np.linalg.inv(np.eye(d) - r)
        heard = resolvent @ reads
        spread = (
            sum(own[0] ** 2 * h @ s @ h.T for h, s in zip(heard, private, strict=True))
            + own[1] ** 2 * heard.sum(0) @ public @ heard.sum(0).T
        )
        spread = spread + scipy.linalg.solve_discrete_lyapunov(r, alpha**2 / k * mixed)
        cross = own[0] ** 2 * private @ heard.swapaxes(1, 2) + own[1] ** 2 * public @ heard.sum(0).T
        inner = own[0] ** 2 * private + own[1] ** 2 * public + cross + cross.swapaxes(1, 2) + spread
        real = (own[0] * private + own[1] * public) @ theta
        mean = np.einsum("kxy,ky->kx", inverse, real + np.einsum("kxy,ky->x", heard, real))
        out.append(
            np.einsum("kxy,kyz,kzx->k", inverse, inner, inverse) + ((mean - theta) ** 2).sum(1)
        )
    return np.array(out)
