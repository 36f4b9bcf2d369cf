"""How many models are trained in one call, after which a run can stop without losing anything.

All models of one base could be trained in one call, and that is fastest; but a signal is obeyed
between calls, so that the longest call is what a preempted job may lose. A call is a group's fit,
or its generation of texts.
"""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxloop.recursion.run import Run
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER

# In a run directory: the models of a call in each generation, so that a resumed run has the same
# calls and finds what was finished.
FILE = "calls.json"
# Its key of what holds in all generations of several processes.
_SEVERAL = "several"


# How many models a call is for at most, or {base: how many}; None: all of one base.
Members = int | Mapping[str, int] | None


class Call(NamedTuple):
    """What a call took: what tells its models from others, how many they were, and its seconds.

    Models that are equal, and so were made once, count once.
    """

    kind: tuple[object, ...]
    members: int
    seconds: float


def rate(calls: Iterable[Call]) -> float | None:
    """Return the seconds that one model takes in a call; None where no call was made.

    Of calls of one kind the fastest counts, since others have compiled; of the kinds the slowest.
    """
    fastest: dict[tuple[object, ...], float] = {}
    for call in calls:
        seconds = call.seconds / call.members
        fastest[call.kind] = min(seconds, fastest.get(call.kind, seconds))
    return max(fastest.values(), default=None)


def most_members(run: Run, generation: int) -> Members:
    """Return how many models a call of a generation is for, at most, or those of each base.

    None: all of one base.

    That is `settings.members_per_group`, else as many as take `settings.seconds_per_call` by the
    rate that was measured, and in the first generation `settings.first_members`. What was chosen
    is written into the run directory, and holds when the run is resumed. Several processes, which
    would measure differently, keep to what `agree` has written.
    """
    settings, seconds = run.settings, run.settings.sizing_seconds
    if seconds is None:
        return settings.members_per_group
    stored = _stored(run)
    if run.processes > 1:
        return stored.get(_SEVERAL, settings.first_members)
    if str(generation) in stored:
        return stored[str(generation)]
    measured = rate(run.calls)
    members: Members
    if measured is None:
        members = stored.get(str(generation - 1), settings.first_members)
    else:
        members = max(1, int(seconds / measured))
    least = min(members.values(), default=0) if isinstance(members, Mapping) else members
    if least is not None and least >= sum(chain.workflow.entities for chain in run.chains):
        members = None
    if members is not None and members != stored.get(str(generation - 1)):
        LOGGER.info(
            "from generation %d on, one call trains or samples %s", generation, _in_words(members)
        )
    if stored or members is not None:
        _store(run, stored | {str(generation): members})
    return members


def agree(run: Run) -> None:
    """Let the `first_members` of the first of several processes hold for all of them.

    It follows from the machine, and machines may differ. To be called before the others go on.
    """
    settings, stored = run.settings, _stored(run)
    by_time = settings.sizing_seconds is not None
    if run.processes > 1 and by_time and _SEVERAL not in stored:
        first = settings.first_members
        _store(run, stored | {_SEVERAL: dict(first) if isinstance(first, Mapping) else first})


def _stored(run: Run) -> dict[str, Members]:
    path = run.root / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _store(run: Run, sizes: Mapping[str, Members]) -> None:
    write_atomic(run.root / FILE, json.dumps(sizes).encode())


def _in_words(members: int | Mapping[str, int]) -> str:
    if isinstance(members, Mapping):
        parts = (f"{count:,} of {base.split('/')[-1]}" for base, count in members.items())
        return f"{', '.join(parts)} at most"
    return f"{members:,} models at most"
