"""The checks for a GPU: order, resuming, time, rows of the document; the commands themselves run in
the slow test, with a toy model.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_checks.py"


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)


def test_a_check_that_does_not_exist_is_refused():
    done = run("--only=T9")
    assert (
        done.returncode == 2
        and done.stderr.startswith("--only=T9: must be of env, probes, T1,")
        and len(done.stderr.splitlines()) == 1
    )


def test_the_list_is_in_order_of_value():
    names = [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert names[:4] == ["env", "probes", "T1", "D1"] and "project" in names


def result(name, ok=True, **found):
    return (
        json.dumps(
            dict(
                name=name,
                ok=ok,
                seconds=1.0,
                date="2026-11-28",
                found=found,
                **({} if ok else {"why": "broke"}),
            )
        )
        + "\n"
    )


def row(**more):
    return dict(
        value=1234.5, unit="tokens/s", limit_share=0.5, peak_bytes=2e9, compile_s=30.0, **more
    )


def test_results_are_kept_and_written(tmp_path):
    document = tmp_path / "BENCHMARKS.md"
    document.write_text(
        "before\n<!-- gpu: start -->\nold\n<!-- gpu: end -->\nafter\n", encoding="utf8"
    )
    kept = (
        result("T1", device="NVIDIA H100", rows=[row()])
        + result("D1", ok=False)
        + result("D1", device="NVIDIA H100", rows=[row(occupancy=0.86)])
    )
    (tmp_path / "results.jsonl").write_text(kept, encoding="utf8")
    assert run(f"--out={tmp_path}", f"--write={document}").returncode == 0
    text = document.read_text(encoding="utf8")
    assert (
        text.startswith("before\n")
        and text.endswith("after\n")
        and "old" not in text
        and "Measured on NVIDIA H100." in text
    )
    assert (
        "1,234 tokens/s, 0.50 of the limit, occupancy 0.86, 2.0 GB, compiled in 30 s (goal met)"
        in text
    )
    done = run(f"--out={tmp_path}", "--only=T1,D1", "--minutes=0")
    assert done.returncode == 0 and done.stdout.count("has a result") == 2


def test_without_time_nothing_begins(tmp_path):
    done = run(f"--out={tmp_path}", "--only=T1", "--minutes=0.05")
    assert (
        done.returncode == 1
        and "not run: 3 s are left" in done.stdout
        and not (tmp_path / "results.jsonl").exists()
    )


def test_a_document_without_a_place_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("nothing", encoding="utf8")
    done = run(f"--out={tmp_path}", f"--write={tmp_path / 'a.md'}")
    assert done.returncode == 2 and "has no place for the rows" in done.stderr


def test_half_a_result_is_none(tmp_path):
    """A call that was killed while it wrote: what it wrote before counts, and what comes later
    stands on a line of its own.
    """
    (tmp_path / "results.jsonl").write_text(
        result("T1", rows=[row()]) + '{"name": "D1", "ok": tr', encoding="utf8"
    )
    done = run(f"--out={tmp_path}", "--only=T1,D1", "--minutes=0")
    assert (
        done.returncode == 1
        and "T1          has a result" in done.stdout
        and "D1          not run" in done.stdout
        and not done.stderr
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minutes=nan"], "--minutes=nan: must be a number of minutes"),
        (["--minutes=-1"], "--minutes=-1: must be a number of minutes"),
        (["--out=FILE/x"], "cannot be written to"),
        (["--out=FILE"], "cannot be written to"),
        (["--out=NEW", "--write=FILE"], "has no results to write"),
        (
            ["--out=TOY", "--write=FILE"],
            "the results of T1 are those of --tiny, which measures nothing",
        ),
        (["--out=TOY", "--only=T1"], "has results of T1 with --tiny; choose another folder"),
        (["--out=REAL", "--tiny"], "has results of T1 without --tiny; choose another folder"),
        (["--out=REAL", "--write=NEW/a.md"], "a.md: cannot be used (No such file or directory)"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(flags, said, tmp_path):
    document = "before\n<!-- gpu: start -->\nold\n<!-- gpu: end -->\n"
    (tmp_path / "FILE").write_text(document, encoding="utf8")
    for name, tiny in (("TOY", True), ("REAL", False)):
        (tmp_path / name).mkdir()
        kept = json.loads(result("T1", rows=[row()])) | {"tiny": tiny}
        (tmp_path / name / "results.jsonl").write_text(json.dumps(kept) + "\n", encoding="utf8")
    places = {flag: flag.partition("=") for flag in flags}
    done = run(
        *(
            f"{a}{b}{tmp_path / c}" if c[:1].isupper() and a != "--only" else flag
            for flag, (a, b, c) in places.items()
        )
    )
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "FILE").read_text(encoding="utf8") == document


def test_an_interrupted_check_leaves_no_process(tmp_path):
    command = [sys.executable, SCRIPT, f"--out={tmp_path}", "--tiny", "--only=T1"]
    # A process that a shell started in the background ignores Ctrl-C, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        children, deadline = (
            Path(f"/proc/{process.pid}/task/{process.pid}/children"),
            time.monotonic() + 60,
        )
        while not children.read_text().split() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        (child,) = children.read_text().split()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1 and process.stderr.read().startswith(
            "interrupted; the same command goes on"
        )
    # A killed process is there for a moment still.
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "flag", ["--chains=16,x", pytest.param("--longest=512", marks=pytest.mark.slow)]
)
def test_occupancy_refuses_bad_numbers(flag):
    done = subprocess.run(
        [sys.executable, SCRIPT.with_name("bench_occupancy.py"), flag],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"{flag}: must be")
        and len(done.stderr.splitlines()) == 1
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_check_runs_with_a_toy_model(tmp_path):
    """On a CPU: all but the probes, which find no GPU, and what needs packages that we lack."""
    done = run(f"--out={tmp_path}", "--tiny", "--minutes=25")
    rows = {
        r["name"]: r
        for r in map(
            json.loads, (tmp_path / "results.jsonl").read_text(encoding="utf8").splitlines()
        )
    }
    assert all(r["ok"] for r in rows.values()), done.stdout
    assert {"T1", "D1", "D2", "D3", "T4", "quickstart", "project"} <= set(rows)
