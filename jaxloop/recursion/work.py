"""Units of work of a run, for the progress bar and the time that is left."""

from collections.abc import Sequence
from typing import Any

from jaxloop.recursion.calls import Members
from jaxloop.recursion.chains import ChainSpec, Member, groups
from jaxloop.recursion.parts import process_share
from jaxloop.recursion.run import RunSettings, sample_rows
from jaxloop.recursion.workflow import train_size

KINDS = ("fit", "sample", "measure")


def work_of(
    chains: Sequence[ChainSpec],
    settings: RunSettings[Any, Any],
    first: int,
    measured: bool,
    process: int = 0,
    processes: int = 1,
) -> dict[str, int]:
    """Return the units of work of each kind of step from generation `first` on.

    They are rows to train on ("fit"), rows to generate ("sample") and models to measure
    ("measure").

    Args:
        chains: those that have not stopped.
        settings: as in `driver.run`.
        first: number of a generation.
        measured: whether measuring takes time of its own.
        process, processes: whose share is counted, and how many processes there are.
    """
    work = dict.fromkeys(KINDS, 0)
    for generation in range(first, settings.generations):
        for chain, _ in _members(chains, settings, generation, process, processes):
            work["fit"] += train_size(chain.workflow, generation)
            work["sample"] += sample_rows(chain, settings)
            work["measure"] += measured
    return work


def _members(
    chains: Sequence[ChainSpec],
    settings: RunSettings[Any, Any],
    generation: int,
    process: int,
    processes: int,
) -> list[Member]:
    if processes == 1:
        return [Member(chain, k) for chain in chains for k in range(chain.workflow.entities)]
    # As `calls.most_members` has it for several processes.
    by_time = settings.sizing_seconds is not None
    most: Members = settings.first_members if by_time else settings.members_per_group
    shares = [process_share(g, process, processes) for g in groups(chains, generation, most)]
    return [member for share in shares if share is not None for member in share.members]
