"""Rows of a benchmark: a call timed in turn with the code that its result is held to."""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def timed(
    calls: Sequence[Callable[[], Any]],
    now: Callable[[], float],
    repeats: Sequence[int],
    enough: Sequence[float],
) -> tuple[list[list[float]], list[Any]]:
    """Seconds of each of repeats[i] runs of calls[i] after a warm-up, in turn, and the last
    results; a call whose warm-up takes enough[i] seconds is not run again.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    results: list[Any] = [None for _ in calls]
    for number in range(max(repeats) + 1):
        for i, call in enumerate(calls):
            if number > repeats[i] or (seconds[i] and seconds[i][0] >= enough[i]):
                continue
            start = now()
            results[i] = call()
            seconds[i].append(now() - start)
    return [s[1:] or s for s in seconds], results


def row(
    args: argparse.Namespace,
    name: str,
    call: Callable[[], Any],
    repeats: int,
    peer: Callable[[], Any] | None = None,
    peer_name: str = "",
    tolerance: float | None = None,
    scale: float = 1.0,
    same: Callable[[Any], Any] = lambda ours: ours,
    enough: float = 2.0,
) -> float:
    """Times `call` and, if given and asked for, `peer` (whose seconds are multiplied by `scale`),
    in turn, compares their results, prints a line.
    """
    peer = peer if args.peer else None
    both = [call, peer] if peer else [call]
    (seconds, *times), (ours, *theirs) = timed(both, args.now, (repeats, 3), (float("inf"), enough))
    entry: dict[str, Any] = {
        "name": name,
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "repeats": repeats,
    }
    line = f"{name:<58}{entry['seconds']:>10.4f} s"
    if peer:
        entry |= {
            "peer": peer_name,
            "peer_seconds": statistics.median(times[0]) * scale,
            "peer_repeats": len(times[0]),
            "peer_scaled_by": scale,
        }
        entry["ratio"] = entry["peer_seconds"] / entry["seconds"]
        line += f"{entry['peer_seconds']:>12.3f} s {entry['ratio']:>10.1f}x  {peer_name}"
        if tolerance is not None:
            entry["difference"] = float(
                np.abs(np.asarray(same(ours), float) - np.asarray(theirs[0], float)).max()
            )
            if not entry["difference"] <= tolerance:  # NaN too
                sys.exit(
                    f"{name}: differs from {peer_name} by {entry['difference']:.3g}, more than "
                    f"{tolerance:g}"
                )
            line += f", equal to {entry['difference']:.0e}"
    args.rows.append(entry)
    print(line, flush=True)
    return entry["seconds"]
