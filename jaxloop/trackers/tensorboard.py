"""TensorBoard: event files in the folder tensorboard/ of the run directory.

`tensorboard --logdir runs` shows them. They are written anew when a run is resumed, from the files
of its finished generations, so that no value is in them twice.
"""

from collections.abc import Mapping, Sequence

from jaxloop.reporting.figures import printable
from jaxloop.runtime.workdir import delete
from jaxloop.trackers import About, Sample, Tracker

FOLDER = "tensorboard"


class _EventFiles:
    """A `Tracker`."""

    def __init__(self, about: About) -> None:
        # An optional library.
        from tensorboardX import SummaryWriter

        delete(about.root, FOLDER)
        self._writer = SummaryWriter(logdir=str(about.root / FOLDER))

    def log(self, generation: int, scalars: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Write a generation and flush it."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, generation)
        for sample in samples:
            # Indented text is shown as it is, whatever it would mean in Markdown.
            blocks = ("\n".join(f"    {line}" for line in _lines(text)) for text in sample.texts)
            self._writer.add_text(f"texts/{sample.chain}", "\n\n---\n\n".join(blocks), generation)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _lines(text: str) -> list[str]:
    return printable(text).splitlines() or [""]


def open_tracker(about: About) -> Tracker:
    """Return a tracker that writes event files."""
    return _EventFiles(about)
