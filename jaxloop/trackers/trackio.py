"""trackio, which keeps its database on this machine: `trackio show --project jaxloop`."""

import os

from jaxloop.trackers import About, Tracker
from jaxloop.trackers.steps import PROJECT, StepTracker


def open_tracker(about: About) -> Tracker:
    """Return a tracker that logs to trackio; a resumed run goes on with its own there."""
    # An optional library.
    import trackio

    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{about.title} {about.id}",
        config=dict(about.config),
        resume="allow",
    )
    return StepTracker(trackio, run)
