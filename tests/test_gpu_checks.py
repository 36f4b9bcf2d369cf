"""The checks for a GPU: order, resuming, time, rows of the document; the commands themselves run in the slow test, with a toy model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_checks.py"


def run(*flags):
    return subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)


def test_a_check_that_does_not_exist_is_refused():
    done = run("--only=T9")
    assert done.returncode == 2 and done.stderr.startswith("--only=T9: must be of env, probes, T1,") and len(done.stderr.splitlines()) == 1


def test_the_list_is_in_order_of_value():
    names = [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert names[:4] == ["env", "probes", "T1", "D1"] and "project" in names


def result(name, ok=True, **found):
    return json.dumps(dict(name=name, ok=ok, seconds=1.0, date="2026-11-28", found=found, **({} if ok else {"why": "broke"}))) + "\n"


def row(**more):
    return dict(value=1234.5, unit="tokens/s", limit_share=0.5, peak_bytes=2e9, compile_s=30.0, **more)


def test_results_are_kept_and_written(tmp_path):
    document = tmp_path / "BENCHMARKS.md"
    document.write_text("before\n<!-- gpu: start -->\nold\n<!-- gpu: end -->\nafter\n", encoding="utf8")
    kept = result("T1", device="NVIDIA H100", rows=[row()]) + result("D1", ok=False) + result("D1", device="NVIDIA H100", rows=[row(occupancy=0.86)])
    (tmp_path / "results.jsonl").write_text(kept, encoding="utf8")
    assert run(f"--out={tmp_path}", f"--write={document}").returncode == 0
    text = document.read_text(encoding="utf8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "Measured on NVIDIA H100." in text
    assert "1,234 tokens/s, 0.50 of the limit, occupancy 0.86, 2.0 GB, compiled in 30 s (goal met)" in text
    done = run(f"--out={tmp_path}", "--only=T1,D1", "--minutes=0")
    assert done.returncode == 0 and done.stdout.count("has a result") == 2


def test_without_time_nothing_begins(tmp_path):
    done = run(f"--out={tmp_path}", "--only=T1", "--minutes=0.05")
    assert done.returncode == 1 and "not run: 3 s are left" in done.stdout and not (tmp_path / "results.jsonl").exists()


def test_a_document_without_a_place_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("nothing", encoding="utf8")
    done = run(f"--out={tmp_path}", f"--write={tmp_path / 'a.md'}")
    assert done.returncode == 2 and "has no place for the rows" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_check_runs_with_a_toy_model(tmp_path):
    """On a CPU: all but the probes, which find no GPU, and what needs packages that are not here."""
    done = run(f"--out={tmp_path}", "--tiny", "--minutes=25")
    rows = {r["name"]: r for r in map(json.loads, (tmp_path / "results.jsonl").read_text(encoding="utf8").splitlines())}
    assert all(r["ok"] for r in rows.values()), done.stdout
    assert {"T1", "D1", "D2", "D3", "T4", "quickstart", "project"} <= set(rows)
