"""Everything that a GPU is needed to know, in one command of at most ten minutes: most valuable
first, each result kept as it comes.

    # on the machine with the card; the same command again goes on
    python scripts/gpu_checks.py --out=gpu_checks
    # the rows of BENCHMARKS.md, from the results; no card is needed
    python scripts/gpu_checks.py --out=gpu_checks --write
    # the same path with a toy model, on any device
    python scripts/gpu_checks.py --out=trial --tiny
    python scripts/gpu_checks.py --list

Each check is one command of its own, so that a failure or a lack of time costs that check alone.
Compiled programs stay in OUT/cache: a second call compiles nothing twice, on this machine or, with
the folder carried along, on the next. What the machine must have: scripts/gpu_checks.md. Exit
codes: 0 all ran, 1 a check failed or time ran out, 2 bad input or something missing.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from _root import ROOT

NEEDED = (
    "jax flax optax orbax numpy scipy pandas pyarrow sklearn statsmodels safetensors tokenizers "
    "transformers datasets absl ml_collections pydantic"
).split()
PEERS = ("torch", "peft")
START, END = "<!-- gpu: start -->", "<!-- gpu: end -->"
PROBES = (
    "import json; from jaxloop.lm.generation import row_kernels; "
    "from jaxloop.lm.model import gate; from jaxloop.lm.target import cudnn_works; "
    "print(json.dumps(dict(cudnn=cudnn_works(64), gate=gate.works(), "
    "rows=row_kernels.works('bfloat16', 64, 2), products=row_kernels.products_work('bfloat16'))))"
)


class Check(NamedTuple):
    """One command. seconds: what it takes with compiling, on an H100; it is not begun with less
    left. read: its JSON line as (figure, whether the goal is met, or None where there is none).
    peer: it needs torch and peft.
    """

    name: str
    what: str
    goal: str
    command: tuple[str, ...]
    seconds: int
    read: Callable[[dict], tuple[str, bool | None]]
    peer: bool = False


def checks(tiny: bool) -> tuple[Check, ...]:
    """All checks, in the order in which they run."""
    size = ("--size=tiny", "--dtype=float32") if tiny else ("--size=llama-1b", "--dtype=bfloat16")
    train, decode = ("scripts/bench_train.py", *size), ("scripts/bench_decode.py", *size)
    large = ("--batch_size=2", "--length=32") if tiny else ("--batch_size=8", "--length=512")
    many = (
        ("--slots=32", "--slots_per_adapter=4", "--chains=8", "--texts=256")
        if tiny
        else ("--slots=1024", "--slots_per_adapter=16", "--chains=64", "--texts=32768")
    )
    small = (
        ("--slots=8", "--chains=1", "--texts=64")
        if tiny
        else ("--slots=64", "--chains=1", "--texts=1024")
    )
    sixteen = ("--chains=4", "--together=2") if tiny else ("--chains=16", "--together=8")
    window, few, one_batch = "--window=32", "--repeats=2", f"--batch_size={8 if tiny else 128}"
    project = ("scripts/project_study.py", "--train=OUT/T1.out", "--decode=OUT/D1.out")
    quickstart = (
        "-m",
        "jaxloop.main",
        "--config=configs/quickstart.py",
        "--workdir=OUT/quickstart",
        "--config.chain.generations=2",
        *(() if tiny else ("--config.run.platform=gpu",)),
    )
    t1, d1, peer = (*train, *sixteen, *large), (*decode, *many, window), "--peer"
    t4 = (*train, "--chains=1,32", "--batch_size=2", "--length=256")
    alone = (*decode, *many[:2], "--chains=1", many[3], window)
    return (
        Check("env", "the device that JAX sees", "", ("-m", "jaxloop.main", "--env"), 30, _device),
        Check(
            "probes",
            "kernels that compile here and agree with XLA",
            "all",
            ("-c", PROBES),
            60,
            _probes,
        ),
        Check(
            "T1",
            "training, 16 chains x 8 x 512, of the product limit",
            ">= 0.45",
            (*t1, few),
            100,
            _share(0.45),
        ),
        Check(
            "D1",
            "decoding, 1,024 slots, 64 chains, of the byte limit",
            ">= 0.35",
            (*d1, few),
            100,
            _share(0.35),
        ),
        Check(
            "quickstart",
            "the first README command, two generations",
            "ends well",
            quickstart,
            90,
            lambda found: ("", None),
        ),
        Check(
            "T2",
            "training, 1 chain x 128 x 512",
            "T1 >= 0.90 of it",
            (*train, "--chains=1", one_batch, large[1], few),
            60,
            _rate,
        ),
        Check(
            "D1-peer",
            "D1 against transformers.generate, a chain at a time",
            ">= 10x",
            (*d1, peer, "--repeats=1"),
            120,
            _peer(10),
            True,
        ),
        Check(
            "T1-peer",
            "T1 against torch + peft, a chain at a time",
            ">= 2x",
            (*t1, peer, few),
            120,
            _peer(2),
            True,
        ),
        Check(
            "D2",
            "decoding, 64 slots, of the byte limit",
            ">= 0.45",
            (*decode, *small, few),
            60,
            _share(0.45),
        ),
        Check(
            "D3", "decoding, one chain in 1,024 slots", "D1 >= 0.80 of it", (*alone, few), 60, _rate
        ),
        Check(
            "D1-library",
            "D1 with the products of gate and up by the library",
            "at most D1",
            (*d1, "--products=false", few),
            100,
            _rate,
        ),
        Check(
            "D1-blocks",
            "D1 without kernels of ours",
            "",
            (*d1, "--engine=blocks", "--repeats=1"),
            240,
            _rate,
        ),
        Check(
            "T4",
            "training, 32 small chains against one",
            ">= 3x per chain",
            (*t4, few),
            90,
            _per_chain,
        ),
        Check(
            "project", "the regression study at its own scale", "<= 100 hours", project, 20, _hours
        ),
    )


def _device(found):
    named = re.search(r"devices\s+(\d+ x [^)]*\))", found.get("tail", ""))
    return named[1] if named else "", None


def _probes(found):
    works = {name: found.get(name) for name in ("cudnn", "gate", "rows", "products")}
    return ", ".join(f"{name} {'yes' if value else 'no'}" for name, value in works.items()), all(
        works.values()
    )


def _share(goal):
    def read(found):
        row = found["rows"][-1]
        occupancy = f", occupancy {row['occupancy']:.2f}" if "occupancy" in row else ""
        memory = f", {row['peak_bytes'] / 1e9:.1f} GB, compiled in {row['compile_s']:.0f} s"
        return (
            f"{row['value']:,.0f} {row['unit']}, {row['limit_share']:.2f} of the "
            f"limit{occupancy}{memory}",
            row["limit_share"] >= goal,
        )

    return read


def _rate(found):
    row = found["rows"][-1]
    return f"{row['value']:,.0f} {row['unit']}", None


def _peer(goal):
    def read(found):
        row = found["rows"][-1]
        return f"{row['peer_ratio']:.2f}x {row['peer']}", row["peer_ratio"] >= goal

    return read


def _per_chain(found):
    one, many = found["rows"][0], found["rows"][-1]
    ratio = many["value"] / one["value"]
    return f"{ratio:.2f}x", ratio >= 3


def _hours(found):
    return f"{found['value']:,.0f} {found['unit']}", found["value"] <= 100


def missing(peer: bool) -> list[str]:
    """Packages that this machine lacks."""
    return [
        name
        for name in (*NEEDED, *(PEERS if peer else ()))
        if importlib.util.find_spec(name) is None
    ]


def results(out: Path) -> dict[str, dict]:
    """What earlier calls found, by name; the newest of each counts. A line that an interrupted call
    left half written does not.
    """
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf8", errors="replace").splitlines() if path.exists() else []
    return {
        row["name"]: row
        for row in map(_object, lines)
        if row is not None and {"name", "ok", "found", "date"} <= set(row)
    }


def _object(line: str) -> dict | None:
    """The JSON object of a line; None for any other line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def run(check: Check, out: Path, limit: float, tiny: bool) -> dict:
    """Run one check for at most `limit` seconds; its result is in OUT/results.jsonl, and what it
    printed in OUT/NAME.out, when this returns.
    """
    command = [sys.executable, *(word.replace("OUT", str(out)) for word in check.command)]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(out / "cache"),
        **os.environ,
        "PYTHONPATH": str(ROOT),
    }
    start, text = time.time(), out / f"{check.name}.out"
    with text.open("w", encoding="utf8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = text.read_text(encoding="utf8", errors="replace").splitlines()
    found = next(filter(None, map(_object, reversed(lines))), {"tail": " ".join(lines[-6:])[-400:]})
    row = dict(
        name=check.name,
        ok=code == 0,
        tiny=tiny,
        seconds=round(time.time() - start, 1),
        date=str(datetime.date.today()),
        found=found,
    )
    if code:
        row["why"] = "out of time" if code == -signal.SIGKILL else " ".join(lines[-3:])[-400:]
    kept = out / "results.jsonl"
    before = kept.read_bytes() if kept.exists() else b""
    with kept.open("a", encoding="utf8") as file:
        file.write("\n" * (before[-1:] not in (b"", b"\n")) + json.dumps(row) + "\n")
    return row


def line(check: Check, row: dict) -> str:
    """A result in one line."""
    if not row["ok"]:
        return f"failed: {row.get('why', '')}"
    try:
        figure, met = check.read(row["found"])
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        return f"its output cannot be read ({error})"
    verdict = "" if met is None else " (goal met)" if met else " (goal missed)"
    return f"{figure or 'ran'}{verdict}"


def table(rows: dict[str, dict], plan: Sequence[Check]) -> str:
    """The rows of BENCHMARKS.md."""
    card = next(
        (row["found"]["device"] for row in rows.values() if "device" in row["found"]),
        "a device that no result names",
    )
    out = [
        f"Measured on {card}.",
        "",
        "| check | what | goal | measured | command | date |",
        "|---|---|---|---|---|---|",
    ]
    for check in plan:
        row = rows.get(check.name)
        if row is not None:
            command = (
                "`python " + " ".join(check.command) + "`"
                if check.command[0] != "-c"
                else "in `scripts/gpu_checks.py`"
            )
            out.append(
                f"| {check.name} | {check.what} | {check.goal} | {line(check, row)} | {command} "
                f"| {row['date']} |"
            )
    return "\n".join(out)


def place(path: Path) -> str:
    """A document that has both marks. Raises ValueError where it has not, OSError where it cannot
    be read.
    """
    whole = path.read_text(encoding="utf8")
    if START not in whole or END not in whole:
        raise ValueError(
            f"{path}: has no place for the rows; the lines {START} and {END} are expected"
        )
    return whole


def write(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a document. Raises ValueError where it has none,
    OSError where it cannot be written.
    """
    whole = place(path)
    head, _, rest = whole.partition(START)
    path.write_text(f"{head}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf8")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", default="gpu_checks", help="folder of results, outputs and compiled programs"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="time in all; a check that needs more than is left is not begun",
    )
    parser.add_argument("--only", help="names of checks, with commas")
    parser.add_argument("--again", action="store_true", help="run checks that have a result too")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy model: tries the path, measures nothing"
    )
    parser.add_argument(
        "--write",
        nargs="?",
        const=str(ROOT / "BENCHMARKS.md"),
        help="write the rows of the results into this document, and run nothing",
    )
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(argv)


def _write_table(document: Path, out: Path, plan: Sequence[Check]) -> None:
    """Raises ValueError or OSError where results or document cannot be used."""
    place(document)
    done = results(out)
    if not done:
        raise ValueError(f"--out={out}: has no results to write; run the checks first")
    if toys := [name for name, row in done.items() if row.get("tiny")]:
        raise ValueError(
            f"--out={out}: the results of {', '.join(toys)} are those of --tiny, which "
            "measures nothing"
        )
    write(document, table(done, plan))


def _earlier_results(asked: argparse.Namespace, out: Path) -> dict:
    """The results in `out`, which is made. Raises ValueError where they are no use here."""
    if lacking := missing(peer=False):
        raise ValueError(
            f"{', '.join(lacking)}: not installed here; scripts/gpu_checks.md says which wheels "
            "to bring"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".probe").write_text("")
        (out / ".probe").unlink()
        done = results(out)
    except OSError as error:
        raise ValueError(f"--out={asked.out}: cannot be written to ({error.strerror})") from None
    if other := [name for name, row in done.items() if row.get("tiny", False) != asked.tiny]:
        raise ValueError(
            f"--out={asked.out}: has results of {other[0]} {'without' if asked.tiny else 'with'} "
            "--tiny; choose another folder"
        )
    return {} if asked.again else done


def _run_check(check: Check, done: dict, out: Path, left: float, tiny: bool) -> bool:
    """Runs one check in the `left` seconds, prints its line; whether it has a good result."""
    if done.get(check.name, {}).get("ok"):
        print(f"{check.name:<12}has a result: {line(check, done[check.name])}", flush=True)
        return True
    lacking = missing(check.peer)
    if lacking or left < check.seconds * (0 if tiny else 0.6) or left < 5:
        reason = (
            f"{', '.join(lacking)} not installed" if lacking else f"{max(left, 0):.0f} s are left"
        )
        print(f"{check.name:<12}not run: {reason}", flush=True)
        return False
    row = run(check, out, min(left, 2.5 * check.seconds), tiny)
    print(f"{check.name:<12}{row['seconds']:>6.0f} s  {line(check, row)}", flush=True)
    return row["ok"]


def main(argv: Sequence[str]) -> int:
    asked = arguments(argv)
    plan, out = checks(asked.tiny), Path(asked.out).absolute()
    end = time.time() + 60 * asked.minutes
    names = [check.name for check in plan]
    chosen = asked.only.split(",") if asked.only else names
    try:
        if not 0 <= asked.minutes < 1e6:
            raise ValueError(f"--minutes={asked.minutes:g}: must be a number of minutes, 0 or more")
        if unknown := [name for name in chosen if name not in names]:
            raise ValueError(f"--only={unknown[0]}: must be of {', '.join(names)}")
        if asked.list:
            lines = (f"{check.name:<12}{check.seconds:>5} s  {check.what}" for check in plan)
            print("\n".join(lines))
            return 0
        if asked.write:
            _write_table(Path(asked.write), out, plan)
            return 0
        done = _earlier_results(asked, out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: cannot be used ({error.strerror})", file=sys.stderr)
        return 2
    wanted = [check for check in plan if check.name in chosen]
    passed = [_run_check(check, done, out, end - time.time(), asked.tiny) for check in wanted]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one was", file=sys.stderr)
        sys.exit(1)
