"""The settings of a run, and what stays the same in it from generation to generation."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict

import numpy as np

from jaxloop.core.checks import check_whole
from jaxloop.recursion import ledger
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import (
    Family,
    FitT,
    GenerateT,
    ModelOutput,
    ModelT,
    SettingsT,
    replace_fields,
)
from jaxloop.recursion.progress import Report
from jaxloop.recursion.sources import Dataset, probe_rows
from jaxloop.runtime import checkpoint
from jaxloop.runtime.signals import Stop
from jaxloop.runtime.workdir import MARKER

# {(chain id, entity): {metric: value}}
Values = Mapping[tuple[str, int], Mapping[str, float]]
# The metrics that are wanted of a chain in a generation.
NamesOf = Callable[[ChainSpec, int], Sequence[str]]
# What selection needs of texts: (name, texts [n]) -> [n] or [n, D]. See `selection.FEATURE_OF`.
Features = Callable[[str, Sequence[str]], np.ndarray]
# Submits work to a thread.
Submit = Callable[[Callable[[], None]], Future]


class Measure(Protocol):
    """Computes the metrics of models of one base in one generation, as a study defines it."""

    def __call__(
        self, model: Any, generation: int, outputs: Sequence[ModelOutput], /
    ) -> Values: ...


class Failure(TypedDict):
    """Why a chain stopped, and in which generation."""

    generation: int
    reason: str


@dataclass(frozen=True)
class RunSettings(Generic[FitT, GenerateT]):
    """What all chains of a study share.

    generations        G, generation 0 included
    fit, sample        the family's settings for fitting and for generating
    evaluate           least number of texts that each model generates, so that `measure` has enough
    keep               number of newest generations whose weights stay on disk (at least 1; None:
                       all); the last good weights of a chain that failed stay too
    study              name of the study in tables
    models_in_memory   most base models that are in memory at once
    members_per_group  models of one base and settings that are fitted before their weights are
                       saved; None: see `seconds_per_call`
    seconds_per_call   where members_per_group is None, as many as take so long by the measured
                       rate; None: all
    first_members      models of a call as long as no rate is measured, or {base: models of a call};
                       None: all
    overlap_eval       measure models while the next ones are trained (in one process only, and not
                       with bases that are sharded over devices)
    resumable_fields   fields of `fit` and `sample`, as "fit.x" and "sample.x", that may differ when
                       a run is resumed
    notice             seconds from SIGTERM to the kill; None: `cluster.NOTICE_SECONDS` with several
                       processes or in an object store, else no limit
    identity           {name of a base model: hash of its files}, for the ledger and the check when
                       a run is resumed
    """

    generations: int
    fit: FitT
    sample: GenerateT
    evaluate: int = 250
    keep: int | None = 2
    study: str = "chain"
    models_in_memory: int = 4
    members_per_group: int | None = None
    seconds_per_call: float | None = None
    first_members: int | Mapping[str, int] | None = field(default=None, hash=False)
    overlap_eval: bool = False
    resumable_fields: tuple[str, ...] = ()
    notice: float | None = None
    identity: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        lowest = {"generations": 1, "evaluate": 0, "models_in_memory": 1}
        lowest |= {"keep": 1, "members_per_group": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is None and name in ("keep", "members_per_group"):
                continue
            # A plain number, also of one of NumPy, as settings are stored with a run.
            object.__setattr__(self, name, check_whole(name, value, low))
        firsts = self.first_members
        for count in firsts.values() if isinstance(firsts, Mapping) else (firsts,):
            if count is not None:
                check_whole("first_members", count)

    @property
    def sizing_seconds(self) -> float | None:
        """`seconds_per_call` where it decides how many models a call is for, else None."""
        return self.seconds_per_call if self.members_per_group is None else None


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same from generation to generation.

    root           the run directory
    fingerprints   fingerprint of each data set, by name
    environment    versions and hardware, for manifests and the ledger
    load           returns the base model of a name; the last few stay in memory
    report         tells the progress bar that a step is done
    stop           says whether a signal has come
    first          the generation that this run makes first
    process, processes   number of this process in the cluster, and how many there are
    in_background  submits work to a thread; None: models are measured in turn
    names          the metrics that `measure` gives; None: not known
    calls          what calls took, for the size of later ones; it grows
    """

    family: Family[Any, Any, Any]
    chains: tuple[ChainSpec, ...]
    data: Mapping[str, Dataset]
    settings: RunSettings[Any, Any]
    root: Path
    fingerprints: Mapping[str, str]
    environment: Mapping[str, str]
    load: Callable[[str], Any]
    report: Report
    stop: Stop
    measure: Measure | None = None
    names: NamesOf | None = None
    features: Features | None = None
    first: int = 0
    process: int = 0
    processes: int = 1
    in_background: Submit | None = None
    calls: list[Any] = field(default_factory=list)


def make_run(
    family: Family[ModelT, FitT, GenerateT],
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    settings: RunSettings[FitT, GenerateT],
    root: Path,
    *,
    report: Report,
    stop: Stop,
    **options: Any,
) -> Run:
    """Return a `Run` with the fingerprints, environment and held models that follow from the rest.

    options: the fields of `Run` that have a default.
    """
    return Run(
        family=family,
        chains=tuple(chains),
        data=data,
        settings=settings,
        root=root,
        fingerprints={
            name: dataset.fingerprint or ledger.fingerprint(dataset.texts, dataset.prompts)
            for name, dataset in data.items()
        },
        environment=checkpoint.environment(),
        load=_held_models(family, settings.models_in_memory),
        report=report,
        stop=stop,
        **options,
    )


def sample_rows(chain: ChainSpec, settings: RunSettings[Any, Any]) -> int:
    """Return the number of texts that each model generates.

    It is the larger of what the next generation trains on (or chooses from) and what is measured,
    plus the probes. Models that share a pool are measured together, each with its part.
    """
    flow = chain.workflow
    measured = -(-settings.evaluate // flow.entities) if flow.shared else settings.evaluate
    trained_on = flow.selection.candidates if flow.selection else flow.synthetic
    return max(trained_on, measured) + probe_rows(chain)


def effective(
    settings: SettingsT, changes: Sequence[tuple[str, object]], scratch: bool = False
) -> SettingsT:
    """Return a family's settings with the values that a chain replaces.

    With `scratch` (the chain starts from random weights) the field `mode`, if there is one, becomes
    "scratch".
    """
    values: dict[str, Any] = dict(changes)
    if scratch and hasattr(settings, "mode"):
        values["mode"] = "scratch"
    return replace_fields(settings, values)


def check_workdir(root: Path) -> None:
    """Raises ValueError where a directory was not opened by `open_workdir`."""
    if not (root / MARKER).is_file():
        raise ValueError(f"workdir={root}: is not an open run directory")


def _held_models(family: Family[ModelT, Any, Any], limit: int) -> Callable[[str], ModelT]:
    """`family.load` that holds the last `limit` models used.

    The oldest goes before the next is loaded, so that no more than `limit` are ever in memory.
    """
    held: OrderedDict[str, ModelT] = OrderedDict()

    def load(base: str) -> ModelT:
        if base not in held:
            while len(held) >= limit:
                held.popitem(last=False)
            held[base] = family.load(base)
        held.move_to_end(base)
        return held[base]

    return load


@contextmanager
def background_thread() -> Iterator[Submit]:
    """Context with a function `submit(work)`, which runs `work` in a background thread.

    `submit` blocks while two pieces of work wait.
    """
    queue: list[Future] = []
    with ThreadPoolExecutor(1) as thread:

        def submit(work: Callable[[], None]) -> Future:
            while len(queue) > 2:
                wait([queue.pop(0)])
            queue.append(thread.submit(work))
            return queue[-1]

        yield submit
