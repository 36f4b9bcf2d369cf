"""Reading a run directory, finished or not."""

import json
import os
import shutil

import numpy as np
import pytest

from jaxloop.recursion import saved_run
from jaxloop.recursion.saved_run import ModelId
from jaxloop.runtime import weights_io
from jaxloop.runtime.workdir import MARKER
from tests.recursion import unigram as u
from tests.recursion.test_driver import go, texts


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    chains, data, settings = u.study(4)
    path = tmp_path_factory.mktemp("saved") / "run"
    go(path, chains, data, settings)
    return path, chains


def test_a_run_is_read_as_it_was_written(finished):
    path, chains = finished
    assert saved_run.finished_generations(path) == [0, 1, 2, 3]
    assert list(saved_run.read_chains(path)) == [chain.id for chain in chains]
    assert saved_run.read_config(path)["generations"] == 4
    for chain in chains[:2]:
        model = ModelId(chain.id, 3)
        assert saved_run.read_texts(path, model)["text"] == texts(path, chain, 3).text.tolist()
        row = saved_run.read_ledger_row(path, model)
        assert (row["chain"], row["generation"], row["base"]) == (chain.id, 3, row["base"])
        weights = saved_run.read_weights(path, model)
        assert np.isfinite(weights["counts"]).all()


def test_what_is_not_there_is_refused_in_a_sentence(finished, tmp_path):
    path, chains = finished
    first = chains[0].id
    for model, said in (
        (ModelId("wibble", 0), r"chain='wibble': the run has no such chain; there are"),
        (ModelId(first[:-1], 0), r"did you mean 'ratio-"),
        (ModelId(first, 4), r"generation=4: is not finished; the run has 0 to 3"),
        (ModelId(first, -1), r"generation=-1: is not finished"),
        (ModelId(first, 1, 1), r"entity=1: the chain's entities are 0 to 0"),
    ):
        for read in (saved_run.read_texts, saved_run.read_ledger_row, saved_run.read_weights):
            with pytest.raises(ValueError, match=said):
                read(path, model)
    with pytest.raises(ValueError, match=r"generation=0: the weights of chain .* those of 2, 3"):
        saved_run.read_weights(path, ModelId(first, 0))
    for folder, said in ((tmp_path / "no", "no such directory"), (tmp_path, "holds no run")):
        with pytest.raises(ValueError, match=said):
            saved_run.read_config(folder)


def test_a_run_without_a_finished_generation_and_one_of_a_later_version(tmp_path):
    (tmp_path / MARKER).write_text('{"format": 1}')
    (tmp_path / "config.json").write_text("{}")
    assert saved_run.finished_generations(tmp_path) == []
    with pytest.raises(ValueError, match="no generation of chains is finished"):
        saved_run.read_chains(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="format 2, of a later version .* format 1"):
        saved_run.read_config(tmp_path)


@pytest.mark.parametrize("function", ["listdir", "load_tree"])
def test_weights_that_a_run_deletes_while_they_are_read_are_not_kept(
    finished, tmp_path, monkeypatch, function
):
    """As a run that goes on does when its next generation is finished."""
    path, chains = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    adapters = path / "checkpoints/generation=0002/adapters"

    def deletes_before(work):
        def deleting(*places):
            if "/".join(map(str, places)).startswith(str(adapters)):
                shutil.rmtree(adapters, ignore_errors=True)
            return work(*places)

        return deleting

    for module, name in ((os, "listdir"), (os, "scandir"), (weights_io, "load_tree")):
        if (name == "load_tree") == (function == "load_tree"):
            monkeypatch.setattr(module, name, deletes_before(getattr(module, name)))
    with pytest.raises(ValueError, match=r"generation=2: the weights of chain .* those of 3 were"):
        saved_run.read_weights(path, ModelId(chains[0].id, 2))
