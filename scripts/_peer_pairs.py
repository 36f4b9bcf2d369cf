"""What the benchmarks beside a peer say of a job that both sides did in turn."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _load import MOST_LOAD


def row_of(
    about: Mapping[str, Any], peer: str, settings: Mapping[str, str], pairs: Sequence[Mapping]
) -> dict[str, Any]:
    """Return a row: what it is about, what each side took, and the ratios' medians.

    A wall clock beside other work says nothing, so that ratio is None there.

    Args:
        about: size, job and threads.
        peer: the other side's name.
        settings: {side: its best setting}.
        pairs: {side: `Timed`} of each repeat.
    """
    load = max(timed.load for pair in pairs for timed in pair.values())

    def ratio(clock: str) -> float:
        return statistics.median(
            getattr(pair[peer], clock) / getattr(pair["jaxloop"], clock) for pair in pairs
        )

    row: dict[str, Any] = {**about, "load": load}
    for name, setting in settings.items():
        spent = statistics.median(pair[name].cpu for pair in pairs)
        row[name] = {
            "setting": setting,
            "tokens": pairs[0][name].tokens,
            "us_per_token": 1e6 * spent / pairs[0][name].tokens,
            "wall_s": statistics.median(pair[name].wall for pair in pairs),
        }
    row["ratio_cpu"] = ratio("cpu")
    row["ratio_wall"] = ratio("wall") if load <= MOST_LOAD else None
    return row


def line_of(row: Mapping[str, Any], sides: Sequence[str]) -> str:
    """Return a row in words.

    sides: what is said of each side.
    """
    wall = "refused" if row["ratio_wall"] is None else f"{row['ratio_wall']:.2f}x"
    return (
        f"{row['size']} {row['job']}, {row['threads']} thread(s): {'; '.join(sides)}; processor "
        f"time {row['ratio_cpu']:.2f}x, wall clock {wall} (other load {row['load']:.2f} a core)"
    )
