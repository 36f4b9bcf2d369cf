"""What a run survives: each test is one line of the checklist of faults and what is expected of
each.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import study
from support import HERE, PARTS, contents, log, start, wait_for, warnings

from jaxloop.recursion import finalise
from jaxloop.runtime import atomic_io, checkpoint, tables, weights_io, workdir

# ---- 1: killed at any moment


class Crash(BaseException):
    """Stands for SIGKILL inside this process: nothing handles it."""


def crash_at(path, moment, **options):
    """Runs the study until its `moment`-th change of the disk; True if it was cut short there, with
    nothing of it tidied.
    """

    def at_change(n):
        if n >= moment:
            raise Crash

    undo, _ = study.count_changes(at_change)
    try:
        study.run(path, **options)
        return False
    except Crash:
        return True
    finally:
        undo()


@pytest.mark.parametrize(
    ("beside", "every"),
    [
        (False, 25),
        (True, 50),
        pytest.param(False, 5, marks=pytest.mark.slow),
        pytest.param(True, 10, marks=pytest.mark.slow),
    ],
)
def test_cut_at_any_change_of_the_disk_the_same_command_gives_the_same_files(
    tmp_path, whole, beside, every
):
    """Whether models are measured in turn or beside, the files are the same. What lies on the disk
    just before a change is what a cut there leaves.
    """
    _, expected = whole
    undo, seen = study.count_changes(lambda n: None)
    study.run(tmp_path / "count", beside=beside)
    undo()
    total = seen[0]
    assert total > 100
    # Measured beside, the order of changes is not always the same, and so their number may be a
    # few less.
    last = total - 3 if beside else total
    moments = {
        *range(1, last, every),
        *random.Random(0).sample(range(1, last), 6),
        last,
    }
    path, left = tmp_path / "run", {}

    def keep(n):
        if n in moments:
            left[n] = shutil.copytree(path, tmp_path / f"at-{n}") if path.exists() else None

    undo, _ = study.count_changes(keep)
    study.run(path, beside=beside)
    undo()
    assert left.keys() == moments
    for moment, copy in left.items():
        copy = copy or tmp_path / f"at-{moment}"
        # The last changes only take away what says that a process is at work.
        assert moment > total - 3 or not copy.exists() or contents(copy) != expected
        study.run(copy, beside=beside)
        assert contents(copy) == expected, moment
        shutil.rmtree(copy)


def test_everything_a_manifest_lists_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    synced, renames = set(), []

    def fsync(handle):
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))

    def rename(source, target, original=os.rename):
        renames.append((str(source), set(synced)))
        original(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    path = tmp_path / "run"
    study.run(path, generations=2)
    assert len(renames) == 2
    for number, (source, before) in enumerate(renames):
        listed = checkpoint.read_manifest(path, f"{checkpoint.finished(number)}/manifest.json")[
            "files"
        ]
        assert len(listed) == 4 + 4 + 3
        for name in listed:
            made = path / name.replace(checkpoint.finished(number), checkpoint.unfinished(number))
            assert str(made) in before and str(made.parent) in before
        temporary = re.compile(rf"{re.escape(source)}/\.tmp-\w+-manifest\.json")
        assert any(map(temporary.fullmatch, before)) and source in before
        assert str(path / "checkpoints") in synced


def test_cut_again_and_again_it_still_arrives(tmp_path, whole):
    path, moments = tmp_path / "run", random.Random(1)
    cuts = 0
    while crash_at(path, moments.randint(5, 30)):
        cuts += 1
        assert cuts < 200
    assert cuts > 3 and contents(path) == whole[1]


@pytest.mark.parametrize(
    ("die_at", "beside"),
    [(40, 0), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((50, 1), (9, 0), (77, 0)))],
)
def test_sigkill_at_a_change_of_the_disk(tmp_path, whole, die_at, beside):
    process = start(tmp_path / "run", 4, 0, die_at, beside)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert contents(tmp_path / "run") != whole[1]
    study.run(tmp_path / "run")
    assert contents(tmp_path / "run") == whole[1]


@pytest.mark.slow
def test_sigkill_at_random_moments_three_times(tmp_path, whole):
    path = tmp_path / "run"
    for beside, delay in enumerate(random.Random(2).choices([0.05, 0.3, 0.6, 0.9], k=3)):
        process = start(path, 4, 0.15, 0, beside % 2)
        wait_for(lambda: (path / "run.log").exists() and "generation" in log(path), process)
        time.sleep(delay)
        process.kill()
        process.communicate()
    study.run(path)
    assert contents(path) == whole[1]


# ---- 2: signals


def reports(path):
    """What a run has written of the jobs that are done."""
    return [file for file in atomic_io.files_in(path / "checkpoints") if file.suffix == ".json"]


@pytest.mark.parametrize(
    ("number", "code", "beside"),
    [
        (signal.SIGINT, 130, 0),
        (signal.SIGTERM, 143, 1),
        pytest.param(signal.SIGTERM, 143, 0, marks=pytest.mark.slow),
    ],
)
def test_signals_save_and_say_how_to_go_on(tmp_path, whole, number, code, beside):
    path = tmp_path / "run"
    process = start(path, 4, 0.1, 0, beside)
    wait_for(lambda: (path / "run.log").exists() and "generation 1 of 4: fit" in log(path), process)
    done_before = reports(path)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert f"stopped by {signal.Signals(number).name}" in said and "Traceback" not in said
    command = said.split("to go on: ")[1].strip()
    assert str(HERE / "study.py") in command and str(path) in command
    if beside:
        # The generation before waits for its measurements and is finished; its parts then go.
        assert (path / checkpoint.finished(0) / "manifest.json").is_file()
    else:
        assert len(reports(path)) >= len(done_before)
    if number == signal.SIGINT:  # a process more; the command is the same for the others
        assert subprocess.run(command, shell=True, capture_output=True).returncode == 0
    else:
        study.run(path)
    assert contents(path) == whole[1]


def test_a_second_signal_leaves_at_once_and_loses_nothing(tmp_path, whole):
    path = tmp_path / "run"
    process = start(path, 4, 30)
    wait_for(lambda: (path / "config.json").exists() and (path / "checkpoints").exists(), process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143 and "leaving at once" in said
    study.run(path)
    assert contents(path) == whole[1]


# ---- 3 to 6: what lies on the disk is not what was written


def test_temporary_and_empty_directories_are_named_ignored_and_never_chosen(tmp_path, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    for name in (
        "checkpoints/generation=0009",
        "checkpoints/.tmp-generation=0002",
        "checkpoints/unfinished-generation=0007/parts",
    ):
        (path / name).mkdir(parents=True)
    (path / "checkpoints/.tmp-generation=0002/half").write_bytes(b"x")
    (path / ".tmp-ledger.parquet").write_bytes(b"half")
    study.run(path)
    assert contents(path) == whole[1]
    for name in (
        "generation=0009",
        ".tmp-generation=0002",
        "unfinished-generation=0007",
        ".tmp-ledger.parquet",
    ):
        assert name in log(path)
    assert not warnings(path)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first bit": lambda path: flip(path, 0),
    "a bit": lambda path: flip(path, 8 * (path.stat().st_size // 2) + 3),
}


@pytest.mark.parametrize("how", list(DAMAGE))
@pytest.mark.parametrize("part", list(PARTS))
def test_a_damaged_last_generation_falls_back_with_one_warning(tmp_path, whole, part, how):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    DAMAGE[how](path / PARTS[part])
    study.run(path)
    assert contents(path) == whole[1]
    said = warnings(path)
    assert (
        len(said) == 1
        and PARTS[part].split("/")[-1] in said[0]
        and "generation 3 will be computed again" in said[0]
    )


def test_damage_in_the_middle_costs_everything_after_it(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    DAMAGE["a bit"](path / "texts/chain=ratio-0.25_seed-1/generation=0001.parquet")
    study.run(path)
    assert contents(path) == whole[1]
    (said,) = warnings(path)
    assert "generations 1 to 3 will be computed again, going on after generation 0" in said


def test_every_kind_of_flipped_bit_is_refused_before_use(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    draw = np.random.default_rng(0)
    names = [n for n in whole[1] if n.startswith(("checkpoints/generation=0003", "texts"))]
    for _ in range(60):
        name = names[draw.integers(len(names))]
        content = (path / name).read_bytes()
        flip(path / name, int(draw.integers(8 * len(content) - 8)))
        found = None
        try:
            found = checkpoint.scan(path)
        except checkpoint.CorruptCheckpointError as error:
            assert "generation=0000" in name and name.split("/")[-1] in str(error)
        if found is not None:
            assert found.last < 3 and found.fault and name.split("/")[-1] in found.fault
        (path / name).write_bytes(content)
    assert checkpoint.scan(path).last == 3


@pytest.mark.parametrize("how", list(DAMAGE))
@pytest.mark.parametrize(
    "name", ["ledger.parquet", "metrics.csv", "losses.parquet", "config.json", workdir.MARKER]
)
def test_tables_and_config_are_rebuilt(tmp_path, whole, name, how):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    DAMAGE[how](path / name)
    if name == workdir.MARKER and how == "deleted":
        with pytest.raises(ValueError, match="was not made by jaxloop"):
            study.run(path)
        return
    assert study.run(path).resumed_after == 3
    assert contents(path) == whole[1]


def test_a_damaged_first_generation_is_an_error_and_never_a_new_start(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    DAMAGE["truncated"](path / "checkpoints/generation=0000/ledger.parquet")
    before = contents(path)
    with pytest.raises(
        ValueError,
        match="generation 0 cannot be used .checkpoints/generation=0000/ledger.parquet has",
    ):
        study.run(path)
    assert contents(path) == before
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match="its checkpoint is gone"):
        study.run(path)


def test_damaged_parts_of_an_unfinished_generation_are_made_again(tmp_path, whole):
    path = tmp_path / "run"

    def at_change(n):
        if {".json", ".safetensors"} <= {
            p.suffix for p in (path / checkpoint.unfinished(2)).rglob("*.*")
        }:
            raise Crash

    undo, _ = study.count_changes(at_change)
    with pytest.raises(Crash):
        study.run(path)
    undo()
    parts = sorted((path / checkpoint.unfinished(2)).rglob("*.*"))
    assert any(p.suffix == ".json" for p in parts) and any(
        p.suffix == ".safetensors" for p in parts
    )
    for part in parts[::2]:
        flip(part, 100)
    study.run(path)
    assert contents(path) == whole[1]


# ---- 7 and 8: saving fails


def test_a_disk_that_fills_up_says_what_is_needed_and_keeps_the_generation_before(tmp_path, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    before = {name: digest for name, digest in contents(path).items() if "generation=000" in name}
    small = min(p.stat().st_size for p in path.rglob("texts/*/*.parquet")) - 200
    code = f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({small}, {small}))"
    script = (
        f"{code}\nimport sys; sys.path.insert(0, {str(HERE)!r}); import study; "
        f"sys.exit(study.main({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 28, done.stderr
    assert (
        "disk full: " in done.stderr
        and " needs " in done.stderr
        and " are free in " in done.stderr
        and "Traceback" not in done.stderr
    )
    assert before.items() <= contents(path).items() and checkpoint.scan(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


def test_the_check_before_a_generation_predicts_a_full_disk(tmp_path, monkeypatch, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    before = contents(path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 500, 500)
    )
    with pytest.raises(
        atomic_io.DiskFull, match="disk full: generation 2 needs .* kB, 500 B are free"
    ):
        study.run(path)
    monkeypatch.undo()
    after = contents(path)
    assert {
        k: v for k, v in before.items() if k in after and k not in (workdir.MARKER, "config.json")
    }.items() <= after.items()
    assert checkpoint.scan(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


STAGES = {
    "weights": (weights_io, "save_tree"),
    "a table": (tables, "write_parquet"),
    "a manifest": (checkpoint, "write_manifest"),
    "the rename": (os, "rename"),
    "the directory": (checkpoint, "sync"),
    "the tables of the run": (finalise, "write_atomic"),
    "old weights": (checkpoint, "remove_files"),
}


# Of some stages there are but two calls in the two generations that are left.
CALLS = {"the rename": 2, "old weights": 2}


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *((stage, 1) for stage in STAGES),
        *(pytest.param(stage, CALLS.get(stage, 3), marks=pytest.mark.slow) for stage in STAGES),
    ],
)
def test_an_error_while_saving_is_raised_at_once_and_latest_excludes_it(
    tmp_path, monkeypatch, whole, stage, call
):
    path = tmp_path / "run"
    study.run(path, generations=2)
    module, name = STAGES[stage]
    original, calls = getattr(module, name), [0]

    def broken(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            raise OSError(5, "Input/output error (injected)")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, broken)
    with pytest.raises(OSError, match="injected"):
        study.run(path)
    assert calls[0] >= call
    monkeypatch.undo()
    found = checkpoint.scan(path)
    assert found.last >= 1 and not found.lost
    study.run(path)
    assert contents(path) == whole[1]


def test_a_failed_orbax_save_is_raised_at_once(tmp_path, monkeypatch):
    import jax
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    spread = jax.device_put(
        np.arange(8.0, dtype=np.float32), NamedSharding(mesh, PartitionSpec("x"))
    )

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", broken)
    with pytest.raises(atomic_io.DiskFull, match="a.orbax needs 32 B"):
        weights_io.save_tree(tmp_path, "a", {"w": spread})
