"""What a run survives: each test is one line of the checklist of faults and what is expected of each."""

import dataclasses
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "recursion")]
import study  # noqa: E402
import unigram as u  # noqa: E402

from jaxloop.recursion import driver  # noqa: E402
from jaxloop.recursion.sources import Dataset  # noqa: E402
from jaxloop.runtime import checkpoint, files, tables, trees, workdir  # noqa: E402
from jaxloop.runtime.log import LOGGER  # noqa: E402
from jaxloop.runtime.workdir import open_workdir  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def hasty():
    """A killed process loses nothing that it wrote, only a power cut does: no test but the one that looks at it waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


FREE = (workdir.LOG, workdir.LOCK, workdir.HOLDER)


def contents(path):
    """{file: SHA-256} of everything a run leaves except its log and lock."""
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in FREE
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its directory and its contents. Tests copy it and never write to it."""
    path = tmp_path_factory.mktemp("whole") / "run"
    study.run(path)
    return path, contents(path)


def start(path, *arguments, **options):
    command = [sys.executable, str(HERE / "study.py"), str(path), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def log(path):
    return (path / "run.log").read_text()


def warnings(path):
    return [line for line in log(path).splitlines() if " WARNING " in line]


# ---- 1: killed at any moment ------------------------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for SIGKILL inside this process: nothing handles it."""


def crash_at(path, moment):
    """Runs the study until its `moment`-th change of the disk; True if it was cut short there, with nothing of it tidied."""

    def at_change(n):
        if n >= moment:
            raise Crash

    undo, _ = study.count_changes(at_change)
    try:
        study.run(path)
        return False
    except Crash:
        return True
    finally:
        undo()


def test_cut_at_any_change_of_the_disk_the_same_command_gives_the_same_files(tmp_path, whole):
    _, expected = whole
    undo, seen = study.count_changes(lambda n: None)
    study.run(tmp_path / "count")
    undo()
    total = seen[0]
    assert total > 100
    moments = sorted({*range(1, total, 7), *random.Random(0).sample(range(1, total + 1), 12), total})
    for moment in moments:
        path = tmp_path / f"at-{moment}"
        assert crash_at(path, moment)
        study.run(path)
        assert contents(path) == expected, moment
        shutil.rmtree(path)


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
        listed = checkpoint.read_manifest(path, f"{checkpoint.finished(number)}/manifest.json")["files"]
        assert len(listed) == 4 + 4 + 3
        for name in listed:
            made = path / name.replace(checkpoint.finished(number), checkpoint.unfinished(number))
            assert str(made) in before and str(made.parent) in before
        assert f"{source}/.tmp-manifest.json" in before and source in before
        assert str(path / "checkpoints") in synced


def test_cut_again_and_again_it_still_arrives(tmp_path, whole):
    path, moments = tmp_path / "run", random.Random(1)
    cuts = 0
    while crash_at(path, moments.randint(5, 30)):
        cuts += 1
        assert cuts < 200
    assert cuts > 3 and contents(path) == whole[1]


@pytest.mark.parametrize("die_at", [9, 40, 77])
def test_sigkill_at_a_change_of_the_disk(tmp_path, whole, die_at):
    process = start(tmp_path / "run", 4, 0, die_at)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert contents(tmp_path / "run") != whole[1]
    study.run(tmp_path / "run")
    assert contents(tmp_path / "run") == whole[1]


def test_sigkill_at_random_moments_three_times(tmp_path, whole):
    path = tmp_path / "run"
    for delay in random.Random(2).choices([0.05, 0.3, 0.6, 0.9], k=3):
        process = start(path, 4, 0.15)
        wait_for(lambda: (path / "run.log").exists() and "generation" in log(path), process)
        time.sleep(delay)
        process.kill()
        process.communicate()
    study.run(path)
    assert contents(path) == whole[1]


def wait_for(condition, process, seconds=280):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- 2: signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_say_how_to_go_on(tmp_path, whole, number, code):
    path = tmp_path / "run"
    process = start(path, 4, 0.1)
    wait_for(lambda: (path / "run.log").exists() and "generation 1 of 4: fit" in log(path), process)
    done_before = len(list((path / "checkpoints").rglob("*.json")))
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert f"stopped by {signal.Signals(number).name}" in said and "Traceback" not in said
    command = said.split("to go on: ")[1].strip()
    assert str(HERE / "study.py") in command and str(path) in command
    assert len(list((path / "checkpoints").rglob("*.json"))) >= done_before
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 0
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


# ---- 3 to 6: what lies on the disk is not what was written ------------------------------------------------------------


def test_temporary_and_empty_directories_are_named_ignored_and_never_chosen(tmp_path, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    for name in ("checkpoints/generation=0009", "checkpoints/.tmp-generation=0002", "checkpoints/unfinished-generation=0007/parts"):
        (path / name).mkdir(parents=True)
    (path / "checkpoints/.tmp-generation=0002/half").write_bytes(b"x")
    (path / ".tmp-ledger.parquet").write_bytes(b"half")
    study.run(path)
    assert contents(path) == whole[1]
    for name in ("generation=0009", ".tmp-generation=0002", "unfinished-generation=0007", ".tmp-ledger.parquet"):
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
LAST = "checkpoints/generation=0003"
PARTS = {
    "weights": f"{LAST}/adapters/chain=ratio-1_seed-0.safetensors",
    "ledger": f"{LAST}/ledger.parquet",
    "metrics": f"{LAST}/metrics.parquet",
    "losses": f"{LAST}/losses.parquet",
    "manifest": f"{LAST}/manifest.json",
    "texts": "texts/chain=ratio-0.25_seed-1/generation=0003.parquet",
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
    assert len(said) == 1 and PARTS[part].split("/")[-1] in said[0] and "generation 3 will be computed again" in said[0]


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
            found = checkpoint.find(path)
        except checkpoint.Damaged as error:
            assert "generation=0000" in name and name.split("/")[-1] in str(error)
        if found is not None:
            assert found.last < 3 and found.fault and name.split("/")[-1] in found.fault
        (path / name).write_bytes(content)
    assert checkpoint.find(path).last == 3


@pytest.mark.parametrize("how", list(DAMAGE))
@pytest.mark.parametrize("name", ["ledger.parquet", "metrics.csv", "losses.parquet", "config.json", workdir.MARKER])
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
    with pytest.raises(ValueError, match="generation 0 cannot be used .checkpoints/generation=0000/ledger.parquet has"):
        study.run(path)
    assert contents(path) == before
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match="its checkpoint is gone"):
        study.run(path)


def test_damaged_parts_of_an_unfinished_generation_are_made_again(tmp_path, whole):
    path = tmp_path / "run"
    process = start(path, 4, 3.0)  # long enough a step for the kill to come before its generation ends, on a loaded machine too
    wait_for(lambda: (path / "run.log").exists() and "generation 2 of 4: sample" in log(path), process)
    process.kill()
    process.communicate()
    parts = sorted((path / checkpoint.unfinished(2)).rglob("*.*"))
    assert any(p.suffix == ".json" for p in parts) and any(p.suffix == ".safetensors" for p in parts)
    for part in parts[::2]:
        flip(part, 100)
    study.run(path)
    assert contents(path) == whole[1]


# ---- 7 and 8: saving fails --------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_says_what_is_needed_and_keeps_the_generation_before(tmp_path, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    before = {name: digest for name, digest in contents(path).items() if "generation=000" in name}
    small = min(p.stat().st_size for p in path.rglob("texts/*/*.parquet")) - 200
    code = f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({small}, {small}))"
    script = f"{code}\nimport sys; sys.path.insert(0, {str(HERE)!r}); import study; sys.exit(study.main({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 28, done.stderr
    assert "disk full: " in done.stderr and " needs " in done.stderr and " are free in " in done.stderr and "Traceback" not in done.stderr
    assert before.items() <= contents(path).items() and checkpoint.find(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


def test_the_check_before_a_generation_predicts_a_full_disk(tmp_path, monkeypatch, whole):
    path = tmp_path / "run"
    study.run(path, generations=2)
    before = contents(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 500, 500))
    with pytest.raises(files.DiskFull, match="disk full: generation 2 needs .* kB, 500 B are free"):
        study.run(path)
    monkeypatch.undo()
    after = contents(path)
    assert {k: v for k, v in before.items() if k in after and k not in (workdir.MARKER, "config.json")}.items() <= after.items()
    assert checkpoint.find(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


STAGES = {
    "weights": (trees, "save_tree"),
    "a table": (tables, "write_parquet"),
    "a manifest": (checkpoint, "seal"),
    "the rename": (os, "rename"),
    "the directory": (checkpoint, "sync"),
    "the tables of the run": (driver, "write_atomic"),
    "old weights": (checkpoint, "forget"),
}


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("call", [1, 3])
def test_an_error_while_saving_is_raised_at_once_and_latest_excludes_it(tmp_path, monkeypatch, whole, stage, call):
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
    try:
        study.run(path)
    except OSError as error:
        assert "injected" in str(error)
    else:
        assert calls[0] < call
    monkeypatch.undo()
    found = checkpoint.find(path)
    assert found.last >= 1 and not found.lost
    study.run(path)
    assert contents(path) == whole[1]


def test_a_failed_orbax_save_is_raised_at_once(tmp_path, monkeypatch):
    import jax
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    spread = jax.device_put(np.arange(8.0, dtype=np.float32), NamedSharding(mesh, PartitionSpec("x")))

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", broken)
    with pytest.raises(files.DiskFull, match="a.orbax needs 32 B"):
        trees.save_tree(tmp_path, "a", {"w": spread})


# ---- 9 to 12: another run, another version, another process, another place --------------------------------------------


CHANGES = {
    "learning rate": (lambda c, d, s: (c, d, dataclasses.replace(s, fit=u.FitSettings(smoothing=0.5))), "fit.smoothing 0.01 -> 0.5"),
    "decoder": (lambda c, d, s: (c, d, dataclasses.replace(s, sample=u.SampleSettings(words=9))), "sample.words 6 -> 9"),
    "seed": (lambda c, d, s: ([dataclasses.replace(x, seed=x.seed + 5) for x in c], d, s), '"seed": 0'),
    "data": (lambda c, d, s: (c, {"posts": u.human(seed=1)}, s), "data.posts"),
    "chains": (lambda c, d, s: (c[:2], d, s), "-> absent"),
    "evaluate": (lambda c, d, s: (c, d, dataclasses.replace(s, evaluate=9)), "evaluate 8 -> 9"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_another_study_is_refused_with_the_difference_and_changes_nothing(tmp_path, whole, name):
    change, shown = CHANGES[name]
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    chains, data, settings = change(*u.study(4, bases=("large", "small")))
    family = u.Unigram()
    with open_workdir(path, {"chain": {"generations": 4}, "seed": 0}, console=False) as w, pytest.raises(ValueError) as error:
        driver.run(family, chains, data, settings, w.path, measure=u.measure)
    assert shown in str(error.value) and "holds another study" in str(error.value) and "\n" not in str(error.value)
    assert contents(path) == whole[1] and not family.loads


def test_fields_that_change_no_result_may_differ(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    chains, data, settings = u.study(4, bases=("large", "small"))
    settings = dataclasses.replace(settings, fit=u.FitSettings(smoothing=0.5), free=("fit.smoothing",))
    with open_workdir(path, {"chain": {"generations": 4}, "seed": 0}, console=False) as w:
        assert driver.run(u.Unigram(), chains, data, settings, w.path).resumed_after == 3


def test_another_version_between_generations_is_warned_of_and_recorded(tmp_path, monkeypatch):
    path = tmp_path / "run"
    study.run(path, generations=2)
    now = checkpoint.environment()
    monkeypatch.setattr(checkpoint, "environment", lambda: now | {"jax": "99.0"})
    study.run(path)
    (said,) = warnings(path)
    assert f"jax {now['jax']} -> 99.0" in said
    table = pd.read_parquet(path / "ledger.parquet")
    seen = table.groupby("generation").environment.agg(lambda rows: {json.loads(row)["jax"] for row in rows})
    assert seen.tolist() == [{now["jax"]}] * 2 + [{"99.0"}] * 2


def test_the_second_process_names_the_holder_and_a_dead_one_is_replaced(tmp_path, whole):
    path = tmp_path / "run"
    first = start(path, 4, 0.5)
    wait_for(lambda: (path / workdir.HOLDER).exists(), first)
    second = start(path)
    _, said = second.communicate(timeout=240)
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on {socket.gethostname()} since" in said and len(said.strip().splitlines()) == 1
    first.kill()
    first.communicate()
    study.run(path)
    assert contents(path) == whole[1]
    assert any(f"process {first.pid}" in line and "taken over" in line for line in warnings(path))


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_run_directory_that_was_moved_or_copied_goes_on(tmp_path, whole, how):
    study.run(tmp_path / "old", generations=2)
    how(tmp_path / "old", tmp_path / "new place")
    assert study.run(tmp_path / "new place").resumed_after == 1
    assert contents(tmp_path / "new place") == whole[1]


# ---- 13 to 15: what models and data can do ----------------------------------------------------------------------------


class Broken(u.Unigram):
    """Weights that are infinite although every loss was finite, for one chain."""

    def fit(self, model, tasks, settings):
        results = super().fit(model, tasks, settings)
        for i in range(len(tasks)):
            if i == 1 and len(self.fits) == 1:
                results[i] = dataclasses.replace(results[i], weights={"counts": np.full(40, np.inf, np.float32)}, finite=False)
        return results


def test_a_chain_that_is_not_finite_is_named_and_the_others_go_on(tmp_path, whole):
    chains, data, settings = u.study(4, bases=("large", "small"))
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        result = driver.run(Broken(), chains, data, settings, w.path, measure=u.measure, progress=False)
    assert result.generations == 4 and len(result.failed) == 1
    for chain in chains:
        name = f"texts/chain={chain.id}/generation=0003.parquet"
        if chain.id in result.failed:
            assert result.failed[chain.id] == {"generation": 0, "reason": "the training loss of entity 0 is not finite (the weights are not finite)"}
            assert chain.id in log(tmp_path / "run") and not (tmp_path / "run" / name).exists()
        else:
            assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_collapsed_output_gives_a_whole_run(tmp_path):
    chains, data, settings = u.study(4)
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        result = driver.run(u.Unigram(collapsed=True), chains, data, settings, w.path, measure=u.measure, progress=False)
    assert result.generations == 4 and not result.failed
    written = pd.read_parquet(tmp_path / f"run/texts/chain={chains[2].id}/generation=0003.parquet")
    assert written.text.tolist() == [""] * 24
    numbers = pd.read_csv(tmp_path / "run/metrics.csv")
    assert (numbers.value == 0).all() and len(numbers) == 4 * 4 * 2


HOSTILE = ("\ud800 w01", "\x00", "a\rb", "NA", "null", "", "=1+1", "<script>alert(1)</script>", "\x1a w02", "x" * 1_000_000, "é😀\u2028", '","')


class Hostile(u.Unigram):
    """Writes what nobody wants to read back."""

    def sample(self, model, tasks, settings):
        results = super().sample(model, tasks, settings)
        return [dataclasses.replace(r, texts=[HOSTILE[i % len(HOSTILE)] for i in range(len(r.texts))]) for r in results]


def test_hostile_text_reaches_the_next_generation_as_it_was(tmp_path):
    chains, _, settings = u.study(3, ratios=(0.5,), seeds=(0,))
    family = Hostile()
    data = {"posts": Dataset(tuple(f"{text}#{i}" for i in range(6) for text in HOSTILE), "\ud800 prompt\r")}
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        driver.run(family, chains, data, settings, w.path, measure=u.measure, progress=False)
        back = tables.read_parquet(w.path / f"texts/chain={chains[0].id}/generation=0001.parquet")
    assert back["text"] == list(HOSTILE) and set(back["prompt"]) == {"\ud800 prompt\r"}
    seen = [text for text in family.fits[1][1][0].texts if "#" not in text]
    assert sorted(seen) == sorted(HOSTILE)
    assert len(pd.read_csv(tmp_path / "run/metrics.csv")) == 6


# ---- 19 and 20: secrets, links, pickles, repetition -------------------------------------------------------------------


def test_no_key_is_found_anywhere_in_a_run_directory(tmp_path, monkeypatch):
    planted = {"OPENAI_API_KEY": "sk-planted0123456789abcdef", "HF_TOKEN": "hf_plantedABCDEFGHIJKLMNOP"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    chains, data, settings = u.study(2)
    config = {"judge": {"api_key": planted["OPENAI_API_KEY"], "url": f"https://user:{planted['HF_TOKEN']}@host"}}

    def leaky(model, number, outcomes):
        LOGGER.error("judge answered 401 for %s", planted["OPENAI_API_KEY"])
        return u.measure(model, number, outcomes)

    with open_workdir(tmp_path / "run", config, console=False) as w:
        driver.run(u.Unigram(), chains, data, settings, w.path, measure=leaky, progress=False)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert not any(value.encode() in path.read_bytes() for value in planted.values()), path


def test_links_are_not_followed_out_of_a_run_directory(tmp_path, whole):
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "run"
    study.run(path, generations=2)
    shutil.move(path / "texts", outside / "texts")
    (path / "texts").symlink_to(outside / "texts", target_is_directory=True)
    before = contents(outside)
    with pytest.raises(ValueError, match="symbolic link"):
        study.run(path)
    assert contents(outside) == before


def test_a_pickle_in_place_of_weights_is_never_loaded(tmp_path, whole):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    (path / PARTS["weights"]).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        trees.load_tree(path / LAST, "adapters/chain=ratio-1_seed-0")
    study.run(path)
    assert contents(path) == whole[1] and not (tmp_path / "exploded").exists()


def test_the_same_study_twice_gives_the_same_bytes(tmp_path, whole):
    process = start(tmp_path / "run")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert contents(tmp_path / "run") == whole[1]


def cluster(path, *arguments, count=2):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    variables = {"JAXLOOP_COORDINATOR": address, "JAXLOOP_PROCESSES": str(count)}
    return [start(path, *arguments, env=os.environ | variables | {"JAXLOOP_PROCESS": str(i)}) for i in range(count)]


def test_two_processes_of_a_cluster_share_the_chains_and_leave_the_same_files(tmp_path, whole):
    path = tmp_path / "run"
    said = [process.communicate(timeout=240)[1] for process in cluster(path)]
    assert contents(path) == whole[1], said


def test_a_cluster_that_was_killed_is_resumed_by_one_process(tmp_path, whole):
    path = tmp_path / "run"
    both = cluster(path, 4, 0.3)
    wait_for(lambda: (path / "run.log").exists() and "generation 2 of 4: fit" in log(path), both[0])
    for process in both:
        process.kill()
    for process in both:
        process.communicate()
    assert any(".0of2" in p.name for p in path.rglob("*.json")) and checkpoint.find(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


def test_limits_are_put_back():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.getrlimit(resource.RLIMIT_FSIZE)[1]
