"""The table of `--timings`: what it adds up, and that nothing is heard without it."""

import threading

import jax
import numpy as np
import pytest

from jaxloop import studies
from jaxloop.runtime import timings
from tests.command import call

TRACE = "/jax/core/compile/jaxpr_trace_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"
READ = "/jax/compilation_cache/cache_retrieval_time_sec"


def rows(table):
    """{name: numbers} of the lines of a table."""
    cells = [line.rsplit(maxsplit=6) for line in table.splitlines() if line]
    return {words[0]: words[1:] for words in cells if len(words) == 7}


def test_programs_are_counted_and_named():
    def quadruple_for_timings(x):
        return x * 4

    with timings.heard() as heard:
        jax.jit(quadruple_for_timings)(np.float32(3))
        jax.jit(quadruple_for_timings)(np.float32(4))
    found = rows(heard.table())["quadruple_for_timings"]
    assert found[:2] == ["1", "0"] and float(found[4]) > 0
    jax.jit(lambda x: quadruple_for_timings(x) + 1)(np.float32(3))
    assert rows(heard.table())["all programs"][0] == "1"


def test_inner_traces_are_not_counted_twice(monkeypatch):
    clock = iter([10.0, 12.0, 13.0])  # when each event ends
    heard = timings.Timings(_began=0.0)
    monkeypatch.setattr(timings.time, "monotonic", lambda: next(clock))
    heard.hear(TRACE, 1.0, fun_name="inner")  # from 9 to 10
    heard.hear(TRACE, 5.0, fun_name="outer")  # from 7 to 12
    heard.hear(COMPILE, 1.0, fun_name="jit(outer)")
    assert heard.programs["inner"].total == 0
    assert (heard.programs["outer"].trace, heard.programs["outer"].compile) == (5.0, 1.0)
    assert "inner" not in rows(heard.table())


def test_what_the_cache_had_is_told_from_what_was_compiled():
    heard = timings.Timings()
    heard.hear(READ, 0.2)
    heard.hear(COMPILE, 0.25, fun_name="jit(f)")
    other = threading.Thread(target=heard.hear, args=(COMPILE, 2.0), kwargs={"fun_name": "jit(f)"})
    heard.hear(READ, 0.1)
    other.start()
    other.join()
    found = heard.programs["f"]
    assert (found.compiled, found.cached) == (1, 1)
    assert (found.compile, found.read) == (2.0, pytest.approx(0.25))


def test_steps_and_the_first_training_program_are_lines_of_their_own():
    with timings.heard() as heard:
        timings.took("fit", 1.5)
        timings.took("fit", 2.0)
        heard.hear(COMPILE, 0.0, fun_name="jit(train_steps)")
    lines = {line.rsplit(maxsplit=1)[0]: line.rsplit(maxsplit=1)[-1] for line in steps(heard)}
    assert lines["fit"] == "3.50" and float(lines["start and imports"]) > 0
    assert float(lines["until training began"]) >= 0 and float(lines["processor"]) > 0


def steps(heard):
    return heard.table().split("\n\n")[1].splitlines()[:-1]


def test_many_programs_are_one_line():
    heard = timings.Timings()
    for i in range(40):
        heard.hear(COMPILE, 1e-9 * i, fun_name=f"jit(f{i})")
    found = rows(heard.table())
    assert "f39" in found and "f3" not in found and found["25 others"][0] == "25"
    assert found["all programs"][:2] == ["40", "0"]


def test_a_run_prints_it_only_when_asked(capsys, tmp_path, monkeypatch):
    def run(*args, **more):
        timings.took("fit", 1.25)
        return 3, None

    monkeypatch.setattr(studies, "run_at", run)
    words = ["--config=histogram", f"--workdir={tmp_path / 'run'}"]
    code, out, _ = call(capsys, *words, "--timings")
    assert code == 3 and "all programs" in out and "1.25" in out
    assert call(capsys, *words)[:2] == (3, "")
    code, out, err = call(capsys, "--config=histogram", "--validate", "--timings")
    assert (code, out) == (2, "") and err.startswith("jaxloop: --timings belongs to a run")
