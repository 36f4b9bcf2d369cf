"""Microbenchmarks of training and decoding, compared with the machine's limit and with torch.

They give steps/s, useful tokens/s and texts/s. Every number is a median after a warm-up; the last
line printed is a JSON object. A peer (the same work in torch) runs on the same device with the same
weights, alternating with jaxloop. Absolute times depend on the machine; ratios are results.
"""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxloop.runtime.environment import how_to_install
from jaxloop.runtime.roofline import Limits, measure_limits
from jaxloop.studies.bench.config import CONFIG, BenchConfig
from jaxloop.studies.bench.decode import time_decode
from jaxloop.studies.bench.setup import Measurement
from jaxloop.studies.bench.train import time_train

__all__ = ["CONFIG", "check", "measure", "plan", "run"]

TIMED: dict[str, tuple[Callable[[BenchConfig, int], Measurement], ...]] = {
    "train": (time_train,),
    "decode": (time_decode,),
    "chains": (time_train, time_decode),
}
# Columns of the best row that stand for the whole.
SUMMARY = ("value", "unit", "limit_share", "peer_ratio", "compile_s", "peak_bytes")


def measure(config: BenchConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time everything that a config asks for, and return the results.

    say: called with each line of a table and, at the end, with the results as a JSON object.
    """
    dtype = jnp.dtype(config.dtype)
    device = jax.devices()[0]
    limits = first = measure_limits(dtype)
    say(f"{device.device_kind} ({device.platform}), {config.dtype}: {_limits_line(limits)}")
    say(
        f"{'what':<8}{'chains':>7}{'value':>12}  "
        f"{'unit':<16}{'of limit':>9}{'compile':>9}{'peak':>10}  peer"
    )
    rows = []
    for time_it in TIMED[config.what]:
        for chains in config.chains:
            with _profile(config):
                row, work = time_it(config, chains)
            # Other work on the machine may have slowed the first measurement.
            limits = limits.or_better(measure_limits(dtype))
            row["limit_share"] = work.share(limits)
            rows.append(row)
            say(_row_line(row))
    if limits != first:
        say(f"measured again after each row: {_limits_line(limits)}")
    best = max(
        (row for row in rows if row["what"] == rows[0]["what"]), key=lambda row: row["value"]
    )
    summary = {name: best.get(name) for name in SUMMARY} | {
        "device": device.device_kind,
        "what": config.what,
        "size": config.size,
        "dtype": config.dtype,
        "limits": {"flops": limits.flops, "bandwidth": limits.bandwidth},
        "rows": rows,
    }
    say(json.dumps(summary))
    return summary


def _limits_line(limits: Limits) -> str:
    return (
        f"{limits.flops / 1e9:,.0f} GFLOP/s in a large product, {limits.bandwidth / 1e9:,.1f} "
        "GB/s in a large copy"
    )


def _row_line(row: dict[str, Any]) -> str:
    peer = f"{row['peer_ratio']:.2f}x {row['peer']}" if "peer_ratio" in row else ""
    if "occupancy" in row:
        more = f"  occupancy {row['occupancy']:.2f}, {row['ms_per_step']:.2f} ms/step"
    else:
        more = f"  {row['steps_per_s']:.2f} steps/s"
    return (
        f"{row['what']:<8}{row['chains']:>7}{row['value']:>12,.0f}  "
        f"{row['unit']:<16}{row['limit_share']:>8.1%}{row['compile_s']:>8.1f}s"
        f"{row['peak_bytes'] / 2**20:>7,.0f} MB  {peer}{more}"
    )


def _profile(config: BenchConfig) -> contextlib.AbstractContextManager[Any]:
    """A trace into `config.profile`, where it is given."""
    if config.profile is None:
        return contextlib.nullcontext()
    return jax.profiler.trace(config.profile)


def check(config: BenchConfig, workdir: Path | None = None) -> list[str]:
    """Return a line that says what would be timed. Raises ValueError where the peers that are asked
    for are not installed.
    """
    if config.peer:
        missing = [
            name
            for name in ("torch", "transformers", "peft")
            if importlib.util.find_spec(name) is None
        ]
        if missing:
            raise ValueError(
                f"config.peer = true: {', '.join(missing)} to compare with: not installed; "
                f"{how_to_install('peers')}"
            )
    return [
        f"benchmark {config.what} of a {config.size} model, chains "
        f"{', '.join(map(str, config.chains))}"
    ]


def plan(config: BenchConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return what would be timed."""
    return [("benchmark", check(config)[0]), ("repeats", str(config.repeats))]


def run(config: BenchConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Measure, print, and write bench.json in `workdir`."""
    check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    summary = measure(config)
    (workdir / "bench.json").write_text(json.dumps(summary, indent=2), encoding="utf8")
    return 0
