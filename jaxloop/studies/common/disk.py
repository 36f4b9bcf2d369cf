"""The bytes that a run leaves on the disk."""

import shutil
from pathlib import Path

from jaxloop.config import FitConfig
from jaxloop.lm.model.config import ModelConfig, count_parameters, projection_widths
from jaxloop.runtime.atomic_io import bytes_in, existing_parent, human_size, require_space
from jaxloop.runtime.workdir import is_workdir
from jaxloop.studies.common.models import trains_adapters


def model_bytes(fit: FitConfig, start: str, config: ModelConfig) -> int:
    """Return the bytes of one trained model in float32, or of its adapters where these train."""
    if not trains_adapters(fit, start):
        return 4 * count_parameters(config)
    widths = sum(inputs + outputs for inputs, outputs in projection_widths(config).values())
    return 4 * config.num_layers * fit.lora.rank * widths * 2


def text_bytes(tokens: int) -> int:
    """Return an upper bound on the bytes of a text of so many tokens, with what is kept of it."""
    return 300 + 2 * tokens  # compressed, a token of random words takes about two


def room_line(number: int, workdir: Path | None) -> str:
    """Return a line about the bytes that a run leaves, and what is free.

    workdir: where it will be; None: the current directory is told of. Raises DiskFull where the run
    would not fit the disk of `workdir`.
    """
    if workdir is not None:
        # What a run that is resumed has written is part of what it needs.
        written = bytes_in(workdir) if is_workdir(workdir) else 0
        require_space(workdir, number - written, "this run")
    place = Path.cwd() if workdir is None else workdir
    free = shutil.disk_usage(existing_parent(place)).free
    return f"disk: {human_size(number)} at most; {human_size(free)} are free in {place}"


def disk_row(number: int) -> tuple[str, str]:
    """Return the row of a plan for a number of bytes on the disk."""
    return "disk", f"{number / 1e9:,.2f} GB at most"
