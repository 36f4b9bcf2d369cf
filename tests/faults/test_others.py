"""What a run survives, continued: another study, version, process or place; hostile output;
clusters.
"""

import dataclasses
import json
import os
import resource
import shutil
import socket

import numpy as np
import pandas as pd
import pytest
import study
import unigram as u
from support import LAST, PARTS, contents, log, start, wait_for, warnings

from jaxloop.recursion import driver
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime import checkpoint, tables, weights_io, workdir
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.workdir import open_workdir

# ---- 9 to 12: another run, another version, another process, another place


CHANGES = {
    "learning rate": (
        lambda c, d, s: (c, d, dataclasses.replace(s, fit=u.FitSettings(smoothing=0.5))),
        "fit.smoothing 0.01 -> 0.5",
    ),
    "decoder": (
        lambda c, d, s: (c, d, dataclasses.replace(s, sample=u.SampleSettings(words=9))),
        "sample.words 6 -> 9",
    ),
    "seed": (
        lambda c, d, s: ([dataclasses.replace(x, seed=x.seed + 5) for x in c], d, s),
        '"seed": 0',
    ),
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
    with (
        open_workdir(path, {"chain": {"generations": 4}, "seed": 0}, console=False) as w,
        pytest.raises(ValueError) as error,
    ):
        driver.run(family, chains, data, settings, w.path, measure=u.measure)
    assert (
        shown in str(error.value)
        and "holds another study" in str(error.value)
        and "\n" not in str(error.value)
    )
    assert contents(path) == whole[1] and not family.loads


def test_fields_that_change_no_result_may_differ(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    chains, data, settings = u.study(4, bases=("large", "small"))
    settings = dataclasses.replace(
        settings, fit=u.FitSettings(smoothing=0.5), resumable_fields=("fit.smoothing",)
    )
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
    seen = table.groupby("generation").environment.agg(
        lambda rows: {json.loads(row)["jax"] for row in rows}
    )
    assert seen.tolist() == [{now["jax"]}] * 2 + [{"99.0"}] * 2


def test_the_second_process_names_the_holder_and_a_dead_one_is_replaced(tmp_path, whole):
    path = tmp_path / "run"
    first = start(path, 4, 30)  # it is killed below
    wait_for(lambda: (path / workdir.HOLDER).exists(), first)
    second = start(path)
    _, said = second.communicate(timeout=240)
    assert second.returncode == 2
    assert (
        f"is in use by process {first.pid} on {socket.gethostname()} since" in said
        and len(said.strip().splitlines()) == 1
    )
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


# ---- 13 to 15: what models and data can do


class Broken(u.Unigram):
    """Weights that are infinite although every loss was finite, for one chain."""

    def fit(self, model, tasks, settings):
        results = super().fit(model, tasks, settings)
        for i in range(len(tasks)):
            if i == 1 and len(self.fits) == 1:
                results[i] = results[i]._replace(
                    weights={"counts": np.full(40, np.inf, np.float32)}, finite=False
                )
        return results


def test_a_chain_that_is_not_finite_is_named_and_the_others_go_on(tmp_path, whole):
    chains, data, settings = u.study(4, bases=("large", "small"))
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        result = driver.run(
            Broken(), chains, data, settings, w.path, measure=u.measure, progress=False
        )
    assert result.generations == 4 and len(result.failed) == 1
    for chain in chains:
        name = f"texts/chain={chain.id}/generation=0003.parquet"
        if chain.id in result.failed:
            assert result.failed[chain.id] == {
                "generation": 0,
                "reason": "the training loss of entity 0 is not finite (the weights are not "
                "finite)",
            }
            assert chain.id in log(tmp_path / "run") and not (tmp_path / "run" / name).exists()
        else:
            assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_collapsed_output_gives_a_whole_run(tmp_path):
    chains, data, settings = u.study(4)
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        result = driver.run(
            u.Unigram(collapsed=True),
            chains,
            data,
            settings,
            w.path,
            measure=u.measure,
            progress=False,
        )
    assert result.generations == 4 and not result.failed
    written = pd.read_parquet(tmp_path / f"run/texts/chain={chains[2].id}/generation=0003.parquet")
    assert written.text.tolist() == [""] * 24
    numbers = pd.read_csv(tmp_path / "run/metrics.csv")
    assert (numbers.value == 0).all() and len(numbers) == 4 * 4 * 2


HOSTILE = (
    "\ud800 w01",
    "\x00",
    "a\rb",
    "NA",
    "null",
    "",
    "=1+1",
    "<script>alert(1)</script>",
    "\x1a w02",
    "x" * 1_000_000,
    "é😀\u2028",
    '","',
)


class Hostile(u.Unigram):
    """Writes what nobody wants to read back."""

    def generate(self, model, tasks, settings):
        results = super().generate(model, tasks, settings)
        return [
            r._replace(texts=[HOSTILE[i % len(HOSTILE)] for i in range(len(r.texts))])
            for r in results
        ]


def test_hostile_text_reaches_the_next_generation_as_it_was(tmp_path):
    chains, _, settings = u.study(3, ratios=(0.5,), seeds=(0,))
    family = Hostile()
    data = {
        "posts": Dataset(
            tuple(f"{text}#{i}" for i in range(6) for text in HOSTILE), "\ud800 prompt\r"
        )
    }
    with open_workdir(tmp_path / "run", {}, console=False) as w:
        driver.run(family, chains, data, settings, w.path, measure=u.measure, progress=False)
        back = tables.read_parquet(w.path / f"texts/chain={chains[0].id}/generation=0001.parquet")
    assert back["text"] == list(HOSTILE) and set(back["prompt"]) == {"\ud800 prompt\r"}
    seen = [text for text in family.fits[1][1][0].texts if "#" not in text]
    assert sorted(seen) == sorted(HOSTILE)
    assert len(pd.read_csv(tmp_path / "run/metrics.csv")) == 6


# ---- 19 and 20: secrets, links, pickles, repetition


def test_no_key_is_found_anywhere_in_a_run_directory(tmp_path, monkeypatch):
    planted = {
        "OPENAI_API_KEY": "sk-planted0123456789abcdef",
        "HF_TOKEN": "hf_plantedABCDEFGHIJKLMNOP",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    chains, data, settings = u.study(2)
    config = {
        "judge": {
            "api_key": planted["OPENAI_API_KEY"],
            "url": f"https://user:{planted['HF_TOKEN']}@host",
        }
    }

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
        weights_io.load_tree(path / LAST, "adapters/chain=ratio-1_seed-0")
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
    return [
        start(path, *arguments, env=os.environ | variables | {"JAXLOOP_PROCESS": str(i)})
        for i in range(count)
    ]


def test_two_processes_of_a_cluster_share_the_chains_and_leave_the_same_files(tmp_path, whole):
    path = tmp_path / "run"
    said = [process.communicate(timeout=240)[1] for process in cluster(path)]
    assert contents(path) == whole[1], said


@pytest.mark.slow
def test_a_cluster_that_was_killed_is_resumed_by_one_process(tmp_path, whole):
    path = tmp_path / "run"
    both = cluster(path, 4, 0.3)
    wait_for(lambda: (path / "run.log").exists() and "generation 2 of 4: fit" in log(path), both[0])
    for process in both:
        process.kill()
    for process in both:
        process.communicate()
    assert any(".0of2" in p.name for p in path.rglob("*.json")) and checkpoint.scan(path).last == 1
    study.run(path)
    assert contents(path) == whole[1]


def test_limits_are_put_back():
    assert (
        resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    )
