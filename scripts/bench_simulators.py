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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import _root  # noqa: F401
import jax
import numpy as np
from _flags import whole
from _simulator_peers import (
    beta_loop,
    beta_vectorised,
    linear_loop,
    linear_vectorised,
    sweep_loop,
    sweep_reduced,
)
from jax.sharding import Mesh

from jaxloop.core.map_chains import chain_mesh
from jaxloop.simulators import beta, linear

# the threads of NumPy's products spin for a while after a call, on cores that the next one needs
REST = 0.05
PRECISIONS = ("float32", "float64")
Calls = dict[str, tuple[Callable[[], Any], float]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(args: argparse.Namespace, calls: Calls) -> dict[str, list[float]]:
    """Seconds [repeats] of every call of {name: (call, scale)}, in turn, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for _ in range(args.repeats):
        for name, (call, scale) in calls.items():
            time.sleep(REST)
            start = CLOCKS[args.clock]()
            call()
            times[name].append((CLOCKS[args.clock]() - start) * scale)
    return times


def report(
    rows: list[dict[str, Any]],
    name: str,
    times: Mapping[str, Sequence[float]],
    unit: str,
    goals: Mapping[str, float],
) -> None:
    """Prints and keeps a line per peer: the median time of both, the median ratio and the goal."""
    ours = statistics.median(times["jaxloop"])
    entry: dict[str, Any] = {"name": name, "seconds": ours, "unit": unit, "peers": {}}
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


def same_moments(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """Ends the program where the means of two samples [R, ...] differ by more than `tolerance`
    standard errors anywhere.
    """
    se = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    worst = np.abs((ours.mean(0) - theirs.mean(0)) / se).max()
    if not worst < tolerance:
        sys.exit(f"{name}: means differ by {worst:.1f} standard errors")


def linear_rows(args: argparse.Namespace, mesh: Mesh | None) -> None:
    """Replicates of the linear simulator."""
    designs, theta = linear.low_rank_designs(0), np.random.default_rng(1).normal(size=15)
    setting: dict[str, Any] = dict(alpha=0.4, beta=0.7, generations=20)
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
    calls: Calls = {"jaxloop": (ours["float32"], 1.0), "jaxloop in float64": (ours["float64"], 1.0)}
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


def beta_rows(args: argparse.Namespace, mesh: Mesh | None) -> None:
    """Replicates of the WMLE simulator."""
    setting: dict[str, Any] = dict(n=10_000, generations=10)
    ours = partial(beta.simulate, replicates=args.beta_replicates, seed=0, mesh=mesh, **setting)
    calls: Calls = {"jaxloop": (ours, 1.0)}
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


def sweep_rows(args: argparse.Namespace, mesh: Mesh | None) -> None:
    """Settings of the closed form."""
    designs, theta = linear.low_rank_designs(0), np.random.default_rng(1).normal(size=15)
    grid = np.linspace(0.005, 0.985, 100)
    ours = partial(linear.sweep, designs, theta, alpha=grid, beta=grid, mesh=mesh)
    calls: Calls = {"jaxloop": (ours, 1.0)}
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
    parser.add_argument("--repeats", type=whole(1), default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument(
        "--devices",
        type=whole(1),
        default=os.cpu_count(),
        help="XLA CPU devices that share the chains",
    )
    parser.add_argument(
        "--only", choices=("linear", "beta", "sweep"), help="one of the three alone"
    )
    parser.add_argument("--replicates", type=whole(1), default=20_000, help="linear: replicates")
    parser.add_argument(
        "--few", type=whole(1), default=20, help="linear: replicates of the loop, scaled up"
    )
    parser.add_argument("--beta-replicates", type=whole(1), default=64, help="WMLE: replicates")
    parser.add_argument(
        "--settings", type=whole(1), default=50, help="sweep: settings of the loop, scaled up"
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
