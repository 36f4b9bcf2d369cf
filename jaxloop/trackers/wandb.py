"""Weights & Biases. Its own variables hold (WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY, …)."""

import os

from jaxloop.trackers import About, Tracker
from jaxloop.trackers.steps import PROJECT, StepTracker


def open_tracker(about: About) -> Tracker:
    """Return a tracker that logs to Weights & Biases; a resumed run goes on with its own there."""
    # An optional library.
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=about.title,
        id=about.id,
        resume="allow",
        config=dict(about.config),
        dir=str(about.root),
        settings=wandb.Settings(console="off"),
    )
    return StepTracker(wandb, run)
