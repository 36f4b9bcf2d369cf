"""Paths as a user wrote them."""

import os
from pathlib import Path


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a user wrote, with ~ for the home directory.

    A name such as ~nobody of a user that does not exist stays as it is, so that it is looked for
    and refused as any other path; `Path.expanduser` fails there.
    """
    return Path(os.path.expanduser(text))
