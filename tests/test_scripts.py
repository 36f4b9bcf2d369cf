"""Every script is imported and says its flags; those that no other test runs are run at their
smallest size, in this process.
"""

import argparse
import importlib
import json
import os
import re
import runpy
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import _peer_rows
import _train_peer
import bench_classifiers
import bench_cleaning
import bench_documents
import bench_load
import bench_measuring
import bench_plain_quickstart
import bench_quickstart
import bench_reading
import bench_store
import check_versions
import compare_results
import gpu_checks
import numpy as np
import pandas as pd
import pytest

from jaxloop import config
from jaxloop.recursion import progress
from jaxloop.studies import config_of

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
COMMANDS = sorted(SCRIPTS.glob("[a-z]*.py"))
# These run in the environments of peers, and import what is theirs; torch takes long.
OF_PEERS = {
    "_worker_openvino": "openvino_genai",
    "_worker_transformers": "torch",
    "_worker_transformers_continuous": "torch",
}
PARTS = sorted({path.stem for path in SCRIPTS.glob("_*.py")} - set(OF_PEERS))


def run(monkeypatch, capsys, path, *flags):
    """(exit code, what was printed) of a script that this process runs as its program."""
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    code = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    said = capsys.readouterr()
    return code, said.out + (said.err if code else "")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_scripts_can_be_imported(name):
    importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PEERS)
def test_a_worker_of_a_peer_can_be_imported(name):
    pytest.importorskip(OF_PEERS[name], reason="the environment of that peer has it")
    importlib.import_module(name)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_script_says_its_flags(monkeypatch, capsys, path):
    code, said = run(monkeypatch, capsys, path, "--help")
    assert code == 0, said
    assert path.name in said and "--" in said


@pytest.mark.parametrize(
    "script, flag, says",
    [
        ("bench_measuring", "--repeats=0", "'0' is not allowed: a whole number of at least 1"),
        ("bench_measuring", "--generations=0,x", "whole numbers of at least 0, as in 0,3"),
        ("bench_neurons", "--generations=1", "'1' is not allowed: a whole number of at least 2"),
        ("bench_load", "--gigabytes=nan", "'nan' is not allowed: a number above 0"),
        ("bench_load", "--gigabytes=inf", "'inf' is not allowed: a number above 0"),
        ("bench_measuring", "--tolerance=-1", "'-1' is not allowed: a number of at least 0"),
    ],
)
def test_a_number_that_measures_nothing_is_refused(monkeypatch, capsys, script, flag, says):
    code, said = run(monkeypatch, capsys, SCRIPTS / f"{script}.py", flag)
    assert code == 2 and f"error: argument {flag.split('=')[0]}: " in said and says in said


def test_every_number_among_the_flags_has_a_least_value():
    """`_flags` refuses in one line; three scripts look at their numbers themselves."""
    unbounded = re.compile(r"\btype=(int|float)\b")
    found = {path.stem for path in SCRIPTS.glob("*.py") if unbounded.search(path.read_text())}
    assert found == {"bench_occupancy", "check_accelerators", "gpu_checks"}


@pytest.mark.parametrize("jobs", ["2", "0:1", "1:2:3", "a:1", ""])
def test_settings_of_a_peer_are_pairs_of_numbers(capsys, jobs):
    with pytest.raises(SystemExit):
        _train_peer.read_flags(["--peer=torch", f"--ours={jobs}"])
    assert "whole numbers of at least 1, as in 2:1,1:2" in capsys.readouterr().err


def words_of_studies():
    """(script, words after `python -m jaxloop.main`) of every study that a script runs."""
    for name in compare_results.STUDIES:
        yield f"compare_results, {name}", compare_results.words_of(name)
    quickstart = "--config=configs/quickstart.py"
    yield "check_versions", [quickstart, *check_versions.STUDY]
    yield "bench_store", bench_store.fields_of("configs/quickstart.py", 3, 4)
    for tiny in (False, True):
        for check in gpu_checks.checks(tiny):
            program, *words = check.command
            if program == "-m" and "--env" not in words:
                yield f"gpu_checks, {check.name}", words[1:]
            elif program.startswith("scripts/bench_"):
                what = Path(program).stem.removeprefix("bench_")
                fields = (word.removeprefix("--") for word in words)
                fields = (field if "=" in field else f"{field}=true" for field in fields)
                yield (
                    f"gpu_checks, {check.name}",
                    [f"--config=configs/bench.py:{what}", *(f"--config.{f}" for f in fields)],
                )


def test_the_fields_that_scripts_set_are_there():
    """As the command line reads them, under the names of today."""
    for script, words in words_of_studies():
        given = dict(word.removeprefix("--config").split("=", 1) for word in words)
        raw = config.read_file(given.pop(""))
        schema = config_of(raw["study"])
        given = [(name.removeprefix("."), v) for name, v in given.items() if name[0] == "."]
        try:
            config.build(schema, config.override(raw, given, schema))
        except (ValueError, Warning) as error:
            pytest.fail(f"{script}: {error}")


def test_the_hours_of_the_regression_study_from_the_roofline_and_from_rates(
    monkeypatch, capsys, tmp_path
):
    """At the assumed share of the limit, whatever the rate; twice the rates, half the hours."""
    script = SCRIPTS / "project_study.py"
    code, said = run(monkeypatch, capsys, script)
    assumed = json.loads(said.splitlines()[-1])
    assert code == 0 and assumed["train_share"] == assumed["decode_share"] == 0.4
    hours = []
    for rate in (1e4, 2e4):
        rates = tmp_path / "rates.out"
        rates.write_text(f"what it printed\n{json.dumps({'value': rate})}\n")
        code, said = run(monkeypatch, capsys, script, f"--train={rates}", f"--decode={rates}")
        hours.append(json.loads(said.splitlines()[-1])["value"])
    assert code == 0 and hours[0] == pytest.approx(2 * hours[1])


def test_what_reading_is_timed_beside_reads_the_same(tmp_path):
    """`measure` ends where a reader of ours or of pandas gives other texts."""
    for kind in ("csv", "jsonl"):
        path = tmp_path / f"posts.{kind}"
        bench_reading.write(path, rows=40, words=12)
        rows = bench_reading.measure(path, 1, bench_reading.CLOCKS["cpu"])
        assert [row["reader"] for row in rows] == list(bench_reading.MAKES)


def test_the_program_that_reads_documents_and_the_files_that_it_reads(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(bench_documents, "CHARACTERS", 200)
    for kind in bench_documents.KINDS:
        small = bench_documents.write(tmp_path / "small" / kind, kind, 2, 1)
        path = bench_documents.write(tmp_path / "whole" / kind, kind, 4, 2)
        monkeypatch.setattr(sys, "argv", ["-c", kind, str(small), str(path)])
        try:
            exec(bench_documents.READ, {})
        finally:
            tracemalloc.stop()
        found = json.loads(capsys.readouterr().out)
        assert 0 < found["held"] <= found["peak"]


def test_the_program_that_cleans_tweets(monkeypatch, capsys, tmp_path):
    path = tmp_path / "tweets.parquet"
    bench_cleaning.write(path, 60)
    monkeypatch.chdir(bench_cleaning.ROOT)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["-c", str(path)])
    exec(bench_cleaning.CHILD, {})
    run = json.loads(capsys.readouterr().out)
    assert 0 < run["kept"] < 60
    found = bench_cleaning._found(60, "main", dict.fromkeys(("all", "a tenth", "before"), run))
    assert found["same_texts"] and found["speed_up"] == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured on Linux")
def test_a_model_that_is_made_is_loaded_and_read(monkeypatch, tmp_path):
    sizes = dict(VOCAB=300, WIDTH=16, MLP=32, HEADS=2, KV=1, SHARD=20_000)
    for name, value in sizes.items():
        monkeypatch.setattr(bench_load, name, value)
    bench_load.make(tmp_path, 5e-5)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    load, read = (bench_load.child(what, tmp_path, "bfloat16") for what in ("load", "read"))
    # A file is the length of its header, in eight bytes, the header, and the weights.
    headers = [8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files]
    assert load["stays"] == read["stays"] - sum(headers)


def test_what_measuring_again_changed(tmp_path):
    """The largest relative difference of a metric or of a column; other names or labels end it."""
    sides = tmp_path / "before", tmp_path / "after"
    for side, bias, score in zip(sides, (1.0, 1.0), (2.0, 2.5)):
        (side / "articles" / "chain=0").mkdir(parents=True)
        (side / "values.json").write_text(json.dumps({"0/1": {"bias": bias}}))
        table = pd.DataFrame({"score": [score, 1.0], "label": ["a", "b"]})
        table.to_parquet(side / "articles" / "chain=0" / "generation=0001.parquet")
    worst, where = bench_measuring.difference(*sides, ())
    assert worst == pytest.approx(0.25) and where.startswith("score of articles")
    assert bench_measuring.difference(*sides, ("score",))[0] == 0
    (sides[1] / "values.json").write_text(json.dumps({"0/1": {"bias": float("nan")}}))
    assert bench_measuring.difference(*sides, ())[0] == np.inf
    (sides[1] / "values.json").write_text(json.dumps({"0/2": {"bias": 1.0}}))
    with pytest.raises(SystemExit, match="values.json: the names differ"):
        bench_measuring.difference(*sides, ())


def test_which_texts_a_classifier_is_fitted_to(tmp_path):
    path = tmp_path / "posts.jsonl"
    rows = [{"text": f"text {i}", "party": "ab"[i % 2], "task": "xy"[i // 4]} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    what, frame = bench_classifiers.read(f"{path}:party:3:task=y", "text", 0)
    assert what == "posts.jsonl, party, y" and list(frame) == ["text", "label"]
    assert len(frame) == 3 and set(frame["text"]) <= {f"text {i}" for i in range(4, 8)}


def test_the_line_of_a_log_that_says_what_steps_took(caplog):
    clock = progress.Clock({"fit": 1.0, "sample": 1.0, "measure": 1.0})
    with caplog.at_level("INFO"), progress.progress(clock, 1) as report:
        for seconds, kind in enumerate(clock.left, 1):
            report(kind, 1.0, float(seconds), kind)
    line = next(m for m in caplog.messages if "in all: " in m)
    assert bench_quickstart.STEP.findall(line) == [
        ("fit", "1.0"),
        ("sample", "2.0"),
        ("measure", "3.0"),
    ]


def test_how_diversity_changed():
    rows = pd.DataFrame(
        [(1.0, seed, g, 0.8 / (1 + g + seed)) for seed in (0, 1) for g in (0, 1, 2)],
        columns=["ratio", "seed", "generation", "cosine_diversity"],
    )
    kept = bench_plain_quickstart.change(rows)
    assert kept == {"1": pytest.approx((1 / 3 + 1 / 4) / (1 + 1 / 2))}


@pytest.mark.parametrize("found", [0.5, float("nan")])
def test_a_benchmark_ends_where_its_peer_found_something_else(found):
    """NaN is no agreement."""
    args = argparse.Namespace(peer=True, now=time.process_time, rows=[])
    with pytest.raises(SystemExit, match="differs from theirs"):
        _peer_rows.row(args, "a sum", lambda: 1.0, 1, lambda: found, "theirs", 1e-6)
