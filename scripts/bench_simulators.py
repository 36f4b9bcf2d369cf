"""How fast the simulators are, and with --peer how fast plain NumPy and SciPy are at the same work.

    python scripts/bench_simulators.py [--peer] [--repeats=5] [--clock=cpu] [--devices=2]

Prints a table and, as its last line, one JSON object. Both sides run in turn, after a warm-up each;
a ratio is the median over the repeats. Loops over replicates or settings are timed on a few of them
and scaled up. On a machine that other work shares, --clock=cpu compares the processor time of both
sides, which waiting for a core does not lengthen (and which does not count what a second core
saves). Before anything is timed, the results of both sides are compared.
"""

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial

import _root  # noqa: F401
import jax
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats

from jaxloop.core.map_chains import chain_mesh
from jaxloop.simulators import beta, linear

# the threads of NumPy's products spin for a while after a call, on cores that the next one needs
REST = 0.05
PRECISIONS = ("float32", "float64")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


# ---- the peers


def weighted_rows(designs, alpha, beta, labels, written):
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


def linear_loop(designs, theta, alpha, beta, generations, replicates, seed=0):
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


def linear_vectorised(designs, theta, alpha, beta, generations, replicates, seed=0):
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


def beta_loop(n, replicates, generations, seed=0):
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


def beta_vectorised(n, replicates, generations, seed=0):
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

    def draw(a, b):
        x = rng.beta(a, b, (replicates, n))
        return x, np.log(x), np.log1p(-x)

    weigh = fit(*draw(3.0, 2.0), np.ones((replicates, n)))
    source = 2.0, 2.0
    for t in range(generations + 1):
        x, log_x, log_rest = draw(*source)
        log_w = (weigh[:, :1] - 1) * log_x + (weigh[:, 1:] - 1) * log_rest
        weigh = out[:, t] = fit(x, log_x, log_rest, np.exp(log_w - log_w.max(1, keepdims=True)))
        source = weigh[:, :1], weigh[:, 1:]
    return out


def sweep_loop(designs, theta, pairs):
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


def sweep_reduced(designs, theta, pairs):
    """The same limits from d x d matrices, setting by setting: what
    a careful NumPy program would do.
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


# ---- timing


def interleaved(args, calls):
    """Seconds [repeats] of every call of {name: (call, scale)}, in turn, after one warm-up each."""
    times = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for _ in range(args.repeats):
        for name, (call, scale) in calls.items():
            time.sleep(REST)
            start = CLOCKS[args.clock]()
            call()
            times[name].append((CLOCKS[args.clock]() - start) * scale)
    return times


def report(rows, name, times, unit, goals):
    """Prints and keeps a line per peer: the median time of both, the median ratio and the goal."""
    ours = statistics.median(times["jaxloop"])
    entry = {"name": name, "seconds": ours, "unit": unit, "peers": {}}
    print(f"{name:<62}{ours:>9.3f} s")
    for peer, goal in goals.items():
        if peer in times:
            ratio = statistics.median(
                b / a for a, b in zip(times["jaxloop"], times[peer], strict=True)
            )
            entry["peers"][peer] = {
                "seconds": statistics.median(times[peer]),
                "ratio": ratio,
                "goal": goal,
            }
            aim = f"   (to reach: {goal:g}x)" if goal else ""
            print(f"    {peer:<58}{statistics.median(times[peer]):>9.3f} s{ratio:>9.1f}x{aim}")
    rows.append(entry)
    sys.stdout.flush()


def same_moments(name, ours, theirs, tolerance):
    """Ends the program where the means of two samples [R, ...] differ by more than `tolerance`
    standard errors anywhere.
    """
    se = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    worst = np.abs((ours.mean(0) - theirs.mean(0)) / se).max()
    if not worst < tolerance:
        sys.exit(f"{name}: means differ by {worst:.1f} standard errors")


def linear_rows(args, mesh):
    designs, theta = linear.low_rank_designs(0), np.random.default_rng(1).normal(size=15)
    setting = dict(alpha=0.4, beta=0.7, generations=20)
    share = None if jax.default_backend() == "cpu" else mesh
    ours = {
        dtype: partial(
            linear.simulate,
            designs,
            theta,
            replicates=args.replicates,
            seed=0,
            mesh=share,
            dtype=dtype,
            **setting,
        )
        for dtype in PRECISIONS
    }
    calls = {"jaxloop": (ours["float32"], 1.0), "jaxloop in float64": (ours["float64"], 1.0)}
    if args.peer:
        shorter = setting | {"generations": 3}
        few = linear.simulate(designs, theta, replicates=2000, seed=0, dtype="float32", **shorter)
        for peer, count in ((linear_loop, 500), (linear_vectorised, 2000)):
            same_moments(peer.__name__, few, peer(designs, theta, replicates=count, **shorter), 5)
        calls["NumPy, loop over replicates, lstsq"] = (
            partial(linear_loop, designs, theta, replicates=args.few, **setting),
            args.replicates / args.few,
        )
        calls["NumPy, vectorised over replicates"] = (
            partial(linear_vectorised, designs, theta, replicates=args.replicates, **setting),
            1.0,
        )
    goals = {
        "NumPy, loop over replicates, lstsq": 200,
        "NumPy, vectorised over replicates": 3,
        "jaxloop in float64": 0,
    }
    report(
        args.rows,
        f"linear, K=4, d=15, 20 generations, {args.replicates:,} replicates, float32",
        interleaved(args, calls),
        "replicates",
        goals,
    )


def beta_rows(args, mesh):
    setting = dict(n=10_000, generations=10)
    ours = partial(beta.simulate, replicates=args.beta_replicates, seed=0, mesh=mesh, **setting)
    calls = {"jaxloop": (ours, 1.0)}
    if args.peer:
        few = beta.simulate(n=500, replicates=64, generations=2, seed=0)
        for peer, count in ((beta_loop, 8), (beta_vectorised, 64)):
            same_moments(peer.__name__, few, peer(n=500, replicates=count, generations=2), 6)
        calls["SciPy, loop over replicates, L-BFGS"] = (
            partial(beta_loop, replicates=1, **setting),
            float(args.beta_replicates),
        )
        calls["NumPy draws and Newton, vectorised"] = (
            partial(beta_vectorised, replicates=args.beta_replicates, **setting),
            1.0,
        )
    goals = {"SciPy, loop over replicates, L-BFGS": 15, "NumPy draws and Newton, vectorised": 1}
    report(
        args.rows,
        f"WMLE, N=10,000, 11 fits, {args.beta_replicates} replicates",
        interleaved(args, calls),
        "replicates",
        goals,
    )


def sweep_rows(args, mesh):
    designs, theta = linear.low_rank_designs(0), np.random.default_rng(1).normal(size=15)
    grid = np.linspace(0.005, 0.985, 100)
    ours = partial(linear.sweep, designs, theta, alpha=grid, beta=grid, mesh=mesh)
    calls = {"jaxloop": (ours, 1.0)}
    if args.peer:
        place = np.random.default_rng(2).integers(0, 100, (args.settings, 2))
        pairs, found = grid[place], ours().mse[place[:, 0], place[:, 1]]
        for peer in (sweep_loop, sweep_reduced):
            np.testing.assert_allclose(found, peer(designs, theta, pairs), rtol=1e-7)
        calls["NumPy, loop over settings"] = (
            partial(sweep_loop, designs, theta, pairs),
            10_000 / args.settings,
        )
        calls["NumPy, loop over settings, d x d form"] = (
            partial(sweep_reduced, designs, theta, pairs),
            10_000 / args.settings,
        )
    goals = {"NumPy, loop over settings": 20, "NumPy, loop over settings, d x d form": 0}
    report(
        args.rows,
        "closed form, K=4, d=15, 10,000 settings",
        interleaved(args, calls),
        "settings",
        goals,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", action="store_true", help="time NumPy and SciPy in turn with ours"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument(
        "--devices", type=int, default=os.cpu_count(), help="XLA CPU devices that share the chains"
    )
    parser.add_argument(
        "--only", choices=("linear", "beta", "sweep"), help="one of the three alone"
    )
    parser.add_argument("--replicates", type=int, default=20_000, help="linear: replicates")
    parser.add_argument(
        "--few", type=int, default=20, help="linear: replicates of the loop, scaled up"
    )
    parser.add_argument("--beta-replicates", type=int, default=64, help="WMLE: replicates")
    parser.add_argument(
        "--settings", type=int, default=50, help="sweep: settings of the loop, scaled up"
    )
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    mesh = chain_mesh() if len(jax.devices()) > 1 else None
    args.rows = []
    for name, run in (("linear", linear_rows), ("beta", beta_rows), ("sweep", sweep_rows)):
        if args.only in (None, name):
            run(args, mesh)
    about = {
        "clock": args.clock,
        "devices": len(jax.devices()),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps(about | {"rows": args.rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
