"""A fresh clone of the repository in an empty folder, without a network, a cache or anything beside
it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Configs that take no scale, and their variants; all others are run at the scale `tiny`, without
# which they need models or data of a hub.
PLAIN = (
    "quickstart",
    "quickstart:preserve",
    "quickstart:window",
    "quickstart:external",
    "pretrain",
    "pretrain:longer",
    "pretrain:shapes",
    "histogram",
    "histogram:vector",
    "linear_dynamics",
    "theory",
    "theory:gaussian",
    "theory:gmm",
    "theory:tophat",
    "theory:ngram",
    "wmle",
    "bench",
    "bench:decode",
    "bench:chains",
    "toy",
)
# Configs that need a file that is not in the box.
NEED_FILES = ("judge_validation",)
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


def names() -> list[str]:
    """What can be run without a hub: every config, with the scale where it has one."""
    plain = {name.split(":")[0] for name in PLAIN}
    tiny = [
        f"{path.stem}:tiny"
        for path in sorted((ROOT / "configs").glob("*.py"))
        if path.stem not in plain and path.stem not in NEED_FILES
    ]
    return [*PLAIN, *tiny]


def clone(folder: pathlib.Path) -> pathlib.Path:
    """The files that git tracks, as they are now, below `folder`; without git, all but what tools
    leave behind.
    """
    place = folder / "empty" / "jaxloop"
    if (ROOT / ".git").exists():
        found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, found.stdout.decode().split("\0")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    else:
        shutil.copytree(
            ROOT,
            place,
            ignore=shutil.ignore_patterns(".venv", "runs", "__pycache__", ".*_cache", "*.egg-info"),
        )
    return place


def python(
    place: pathlib.Path, *words, timeout: float, **variables: str
) -> subprocess.CompletedProcess:
    """`python words…` in a clone, with a home and caches of its own and no way out; `variables` are
    added to its environment.
    """
    home = place.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAXLOOP_", "XDG_", "HF_"))
    }
    nowhere = {
        name: NOWHERE
        for name in (
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        )
    }
    own = {
        "HOME": str(home),
        "JAXLOOP_CACHE": str(home / "cache"),
        "PYTHONPATH": str(place),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command,
        cwd=place,
        env=kept | nowhere | own | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
