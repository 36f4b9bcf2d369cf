"""Optional packages that a field of the config names."""

import importlib.util
from collections.abc import Sequence

from jaxloop.runtime import environment

# A value of `config.run.trackers`, which is also the name of the extra -> the package it needs.
TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError where a tracker's package is not installed; names: of `TRACKERS`."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise ValueError(
                f"config.run.trackers has '{name}', which needs {TRACKERS[name]}; "
                f"{environment.how_to_install(name)}"
            )
