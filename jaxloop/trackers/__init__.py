"""What a run sends to the trackers that people have: TensorBoard, Weights & Biases, trackio.

All are off unless `config.run.trackers` names them, and none is needed. Each is a `Tracker`: it
takes the scalars and some texts of a generation. What is sent is read from the files of finished
generations, so a run that was resumed, or a tracker that is named later, catches up.
"""

import contextlib
import importlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxloop.recursion import finalise, saved_run
from jaxloop.recursion.progress import State
from jaxloop.recursion.saved_run import ModelId
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER, redact

# Chains of a generation of which texts are sent, and texts of each.
CHAINS, TEXTS = 12, 4
# What was sent already; in the run directory.
SENT = ".jaxloop.trackers.json"


class Sample(NamedTuple):
    """Some texts of a chain in a generation."""

    chain: str
    texts: Sequence[str]


class Tracker(Protocol):
    """Where scalars and texts go."""

    def log(self, generation: int, scalars: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Take a generation: {"METRIC/CHAIN": value} and texts. Generations come in order."""

    def close(self) -> None:
        """Write what is still held, and end."""


class About(NamedTuple):
    """The run that a tracker is opened for.

    Attributes:
        root: the run directory.
        id: a word that stays the same when the run is resumed.
        title: its heading.
        config: its stored config, without secrets.
    """

    root: Path
    id: str
    title: str
    config: Mapping[str, Any]


@contextlib.contextmanager
def opened(
    names: Sequence[str], root: Path, title: str, config: Mapping[str, Any]
) -> Iterator[Callable[[State], None] | None]:
    """Context that gives a function which sends what is not sent yet; None without trackers.

    Args:
        names: of modules here, as `config.run.trackers` has them.
        root: the run directory.
        title: of the run.
        config: its stored config.

    Raises:
        ValueError: a tracker cannot be opened.
    """
    if not names:
        yield None
        return
    sent = _read_sent(root)
    with contextlib.ExitStack() as stack:
        trackers: dict[str, Tracker] = {}
        for name in names:
            about = About(root, sent["id"], title, config)
            trackers[name] = _open(name, about)
            stack.callback(_close, name, trackers[name])
            if name == "tensorboard":
                sent[name] = 0  # its files are written anew

        def send(state: State) -> None:
            failures = []
            _write_sent(root, sent)
            for name, tracker in trackers.items():
                try:
                    for generation in range(sent.get(name, 0), state.finished):
                        tracker.log(
                            generation, _scalars(root, generation), _samples(root, generation)
                        )
                        sent[name] = generation + 1
                        # At once: a process that is killed sends no generation twice.
                        _write_sent(root, sent)
                except Exception as error:  # the others get theirs all the same
                    failures.append(error)
            if failures:
                raise failures[0]

        yield send


def _open(name: str, about: About) -> Tracker:
    try:
        tracker: Tracker = importlib.import_module(f"jaxloop.trackers.{name}").open_tracker(about)
    except Exception as error:  # each library has errors of its own
        reason = " ".join(redact(str(error)).split()) or type(error).__name__
        raise ValueError(f"config.run.trackers: '{name}' cannot be used ({reason})") from error
    return tracker


def _close(name: str, tracker: Tracker) -> None:
    """End a tracker; one that fails, as without a network, neither ends a run nor hides its end."""
    try:
        tracker.close()
    except Exception as error:  # each library has errors of its own
        LOGGER.warning("the tracker '%s' did not end well (%s)", name, redact(str(error)))


def _read_sent(root: Path) -> dict[str, Any]:
    try:
        sent = json.loads((root / SENT).read_bytes())
    except (OSError, ValueError):
        sent = None
    return sent if isinstance(sent, dict) and "id" in sent else {"id": uuid.uuid4().hex[:12]}


def _write_sent(root: Path, sent: Mapping[str, Any]) -> None:
    write_atomic(root / SENT, json.dumps(sent).encode(), durable=False)


def _scalars(root: Path, generation: int) -> dict[str, float]:
    """{"METRIC/CHAIN": value} of a finished generation, entities apart."""
    columns = finalise.read_metrics(root, generation)
    several = {chain for chain, entity in _pairs(columns) if entity}
    scalars = {}
    for (chain, entity), metric, value in zip(
        _pairs(columns), columns["metric"], columns["value"], strict=True
    ):
        place = f"{chain}/entity-{entity}" if chain in several else chain
        if value is not None:
            scalars[f"{metric}/{place}"] = float(value)
    return scalars


def _pairs(columns: Mapping[str, Sequence[Any]]) -> list[tuple[str, int]]:
    return [
        (str(chain), int(entity))
        for chain, entity in zip(columns["chain"], columns["entity"], strict=True)
    ]


def _samples(root: Path, generation: int) -> list[Sample]:
    samples = []
    for chain in list(saved_run.read_chains(root))[:CHAINS]:
        with contextlib.suppress(ValueError):  # the chain stopped before
            texts = saved_run.read_texts(root, ModelId(chain, generation))["text"]
            samples.append(Sample(chain, texts[:TEXTS]))
    return samples
