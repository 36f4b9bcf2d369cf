"""How fast the neuron tests are, and with --peer how fast statsmodels is, one regression after
another.

    python scripts/bench_neurons.py --peer

Simulates a study of as many regressions and rows as the paper's (2 tables of 12 x 768 neurons, 2
outcomes: 36,864 regressions of 60 rows), with ten seeds a setup so that 999 of their arrangements
can be drawn, prints a table and, as its last line, one JSON object. Ours and the
peer run in turn; the peer runs `--peer-rows` of the regressions, evenly spaced, whose time is
scaled up, and the results must agree to 1e-8. --peer-full runs them all. --clock=cpu compares
processor time, which waiting for a core on a shared machine does not lengthen.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import _root  # noqa: F401
import jax
import numpy as np
from _flags import whole

from jaxloop.studies.bias_amplification.neuron_regression import newey_west
from jaxloop.studies.bias_amplification.neuron_study import neuron_study

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TOLERANCE = 1e-8
T = TypeVar("T")


def simulate(
    args: argparse.Namespace,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str], list[int], list[int]]:
    """Random walks: tables [V, L, D], outcomes [V], setups, generations and seeds [V]."""
    rng = np.random.default_rng(0)

    def walk(*shape: int) -> np.ndarray:
        return (
            rng.standard_normal((args.setups * args.seeds, args.generations, *shape))
            .cumsum(1)
            .reshape(-1, *shape)
        )

    tables = {
        "weight": 1e-3 * walk(args.layers, args.width) + 1,
        "activation": walk(args.layers, args.width),
    }
    outcomes = {"bias": 50 + 3 * walk(), "quality": 2 + 0.06 * walk()}
    return (
        tables,
        outcomes,
        [f"setup {i}" for i in range(args.setups) for _ in range(args.seeds * args.generations)],
        list(range(args.generations)) * (args.setups * args.seeds),
        [i for i in range(args.seeds) for _ in range(args.generations)] * args.setups,
    )


def differences(values: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """Rows of the regressions, [n, ...]."""
    chains = args.setups * args.seeds
    steps = np.diff(values.reshape(chains, args.generations, -1), axis=1)
    return steps.reshape(chains * (args.generations - 1), -1)


def clocked(call: Callable[[], T], now: Callable[[], float]) -> tuple[float, T]:
    """Seconds of a call, and its result."""
    start = now()
    result = call()
    return now() - start, result


def peer(
    x: np.ndarray,
    y: np.ndarray,
    series: np.ndarray,
    lags: int,
    chosen: Sequence[tuple[int, int]],
) -> np.ndarray:
    """[n, 4] slope, standard error, t and p of the chosen (outcome, neuron) pairs."""
    import statsmodels.api as sm

    out = []
    for r, j in chosen:
        fit = sm.OLS(y[:, r], sm.add_constant(x[:, j])).fit(
            cov_type="hac-panel",
            cov_kwds=dict(groups=series, maxlags=lags, use_correction=False, df_correction=False),
        )
        out.append((fit.params[1], fit.bse[1], fit.tvalues[1], fit.pvalues[1]))
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", action="store_true", help="also time statsmodels, and check that it agrees"
    )
    parser.add_argument(
        "--peer-rows",
        type=whole(1),
        default=600,
        help="regressions of statsmodels that are timed in every repeat",
    )
    parser.add_argument("--peer-full", action="store_true", help="time all of them, once")
    parser.add_argument("--setups", type=whole(1), default=2)
    parser.add_argument("--seeds", type=whole(1), default=10)
    parser.add_argument("--generations", type=whole(2), default=4)
    parser.add_argument("--layers", type=whole(1), default=12)
    parser.add_argument("--width", type=whole(1), default=768)
    parser.add_argument("--lags", type=whole(0), default=1)
    parser.add_argument(
        "--permutations", type=whole(0), default=999, help="of the whole study, which is timed once"
    )
    parser.add_argument("--repeats", type=whole(1), default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    now = CLOCKS[args.clock]
    rows: list[dict[str, Any]] = []
    tables, outcomes, setups, generations, seeds = simulate(args)
    y = np.concatenate([differences(v, args) for v in outcomes.values()], 1)
    x = np.concatenate([differences(v, args) for v in tables.values()], 1)
    series = np.repeat(np.arange(args.setups * args.seeds), args.generations - 1)
    tests = x.shape[1] * y.shape[1]
    what = f"{tests:,} regressions of {len(x)} rows"
    print(
        f"{what}, {args.lags} lag; {jax.default_backend()}, {os.cpu_count()} cores, {args.clock} "
        "time"
    )
    first, fit = clocked(lambda: newey_west(x, y, series, lags=args.lags), now)
    chosen = [
        divmod(int(k), x.shape[1])
        for k in np.unique(
            np.linspace(0, tests - 1, tests if args.peer_full else min(tests, args.peer_rows))
        )
    ]
    ours, theirs = [], []
    for repeat in range(args.repeats):
        ours.append(clocked(lambda: newey_west(x, y, series, lags=args.lags), now)[0])
        if args.peer and (repeat == 0 or not args.peer_full):
            seconds, values = clocked(lambda: peer(x, y, series, args.lags, chosen), now)
            theirs.append(seconds * tests / len(chosen))
    entry: dict[str, Any] = {
        "name": what,
        "seconds": statistics.median(ours),
        "least": min(ours),
        "most": max(ours),
        "first": first,
        "repeats": args.repeats,
    }
    line = f"{what:<44}{entry['seconds']:>9.3f} s   first call, compilation included {first:.2f} s"
    if args.peer:
        mine = np.array(
            [[getattr(fit, name)[r, j] for name in ("slope", "se", "t", "p")] for r, j in chosen]
        )
        worst = float(np.max(np.abs(mine / values - 1)))
        entry |= {
            "peer": "statsmodels",
            "peer_seconds": statistics.median(theirs),
            "peer_rows": len(chosen),
            "peer_scaled_by": tests / len(chosen),
        }
        entry |= {
            "ratio": entry["peer_seconds"] / entry["seconds"],
            "ratio_first": entry["peer_seconds"] / first,
            "difference": worst,
        }
        line += (
            f"\n{'statsmodels, one after another':<44}{entry['peer_seconds']:>9.3f} s   "
            f"{entry['ratio']:.0f}x ({entry['ratio_first']:.0f}x of the first call)"
        )
        line += f", equal to {worst:.0e}"
        if not worst <= TOLERANCE:  # NaN too
            sys.exit(f"{what}: differs from statsmodels by {worst:.3g}, more than {TOLERANCE:g}")
    rows.append(entry)
    print(line, flush=True)
    for modes in (["differences"], ["differences", "deviations", "levels"]):
        seconds, study = clocked(
            functools.partial(
                neuron_study,
                tables,
                outcomes,
                setups,
                generations,
                seeds=seeds,
                lags=args.lags,
                modes=modes,
                permutations=args.permutations,
            ),
            now,
        )
        name = f"study, {', '.join(modes)}, {args.permutations} permutations"
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "regressions": tests * len(modes) * (1 + args.permutations),
            }
        )
        print(
            f"{name:<58}{seconds:>9.3f} s   {rows[-1]['regressions'] / seconds:,.0f} regressions/s",
            flush=True,
        )
    for row in study.counts[study.counts["rule"] == "p<alpha"].itertuples():
        print(
            f"    {row.mode}, {row.relation}: {row.observed:,} of {row.tests:,} below 0.05, "
            f"exchanged {row.null_mean:,.0f}, nominal {row.nominal:,.0f}"
        )
    facts = {
        "clock": args.clock,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "versions": {p: version(p) for p in ("jax", "numpy", "statsmodels")},
    }
    print(json.dumps({"benchmark": "neurons", **facts, "rows": rows}))


if __name__ == "__main__":
    main()
