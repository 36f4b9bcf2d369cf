"""When expectations were written down, by the history of their file."""

import datetime
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from jaxloop.runtime.environment import git_output

# What verdicts follow from. Words, figures and tables of a page may change after a run.
DECIDE = ("claim", "confidence", "runs")


def written_down(expect: Path, began: str, what: str) -> str:
    """Return a sentence that says whether the claims of a file were committed before a run began.

    The claims count, with everything else that a verdict follows from. A later commit that changes
    other words of the file is named too.

    Args:
        expect: the file of expectations.
        began: when the run began, ISO format; "" where that is unknown.
        what: began, such as "the run".
    """
    folder = expect.parent.resolve()
    try:
        changed = git_output(folder, "status", "--porcelain", "--", expect.name)
        commits = git_output(folder, "log", "--format=%cI %h", "--", expect.name).splitlines()
        if not commits or not began:
            return "Whether they were written down before the run is not known."
        when, commit = commits[0].split()
        if changed:
            return f"They were changed after commit {commit} and not committed again."
        claimed_when, claimed = _last_change(folder, expect.name, commits)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    last = f"Last changed in commit {commit} of {when[:16]}, {_order(when, began)} {what} began."
    if claimed == commit or _order(when, began) == _order(claimed_when, began):
        return last
    return (
        f"Claims last changed in commit {claimed} of {claimed_when[:16]}, before {what} began; "
        f"after it only other words, figures or tables of the page, in commit {commit} of "
        f"{when[:16]}."
    )


def _last_change(folder: Path, name: str, commits: list[str]) -> tuple[str, str]:
    """Time and name of the commit since which a file decides what it decides now.

    commits: of the file, newest first.
    """
    now = _decisive(folder, name, commits[0])
    same = commits[0]
    for one in commits[1:]:
        if _decisive(folder, name, one) != now:
            break
        same = one
    when, commit = same.split()
    return when, commit


def _decisive(folder: Path, name: str, commit: str) -> dict[str, Any] | None:
    """What verdicts follow from in a file as it was committed, None where it cannot be read."""
    text = git_output(folder, "show", f"{commit.split()[1]}:./{name}")
    try:
        stored = tomllib.loads(text)
    except ValueError:
        return None
    return {field: stored.get(field) for field in DECIDE}


def _order(when: str, began: str) -> str:
    moment, start = (datetime.datetime.fromisoformat(text) for text in (when, began))
    return "before" if moment <= start else "AFTER"
