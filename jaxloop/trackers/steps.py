"""A tracker of libraries with the interface of wandb, which several others have too."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxloop.reporting.figures import printable
from jaxloop.trackers import Sample

PROJECT = "jaxloop"


class StepTracker:
    """A `Tracker` that logs a generation as one step.

    library: the module, which has a `Table`; run: what its `init` returned.
    """

    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def log(self, generation: int, scalars: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Log the scalars, and a table of texts."""
        values: dict[str, Any] = dict(scalars)
        rows = [[s.chain, printable(text)] for s in samples for text in s.texts]
        if rows:
            values["texts"] = self._library.Table(columns=["chain", "text"], data=rows)
        self._run.log(values, step=generation)

    def close(self) -> None:
        """End the library's run, so that everything is sent."""
        self._run.finish()
