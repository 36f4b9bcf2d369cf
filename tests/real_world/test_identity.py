"""The files of a model are part of a run: replaced ones are refused, copied and touched ones are
not.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxloop
from jaxloop.lm.io import identity
from jaxloop.runtime import digests
from jaxloop.runtime.workdir import open_workdir
from jaxloop.studies.common import identity as of_study
from tests.real_world.support import config, edit, write


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Files of a model, some larger than what is read each time."""
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model"
    path.mkdir()
    save_file({"a": np.arange(1 << 19, dtype=np.float32)}, path / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (path / name).write_text('{"x": 1}')
    (path / "README.md").write_text("card")
    return path


def replaced(path):
    tensors = load_file(path / "model.safetensors")
    save_file({"a": tensors["a"] + 1}, path / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        config(x=2),
        edit("tokenizer.json", x=2),
        edit("generation_config.json", x=2),
        edit("added_tokens.json", x=3),
    ],
    ids=["weights", "config", "tokenizer", "generation config", "an added file"],
)
def test_what_decides_a_result_changes_the_identity(change, model):
    before = identity.of_directory(model)
    change(model)
    assert identity.of_directory(model) != before


def test_what_decides_nothing_does_not(model, tmp_path):
    before = identity.of_directory(model)
    write("README.md", "another card")(model)
    write("optimizer.pt", "state")(model)
    shutil.copy(model / "model.safetensors", model / "ema.safetensors")
    os.utime(model / "model.safetensors", (1, 1))
    assert identity.of_directory(model) == before
    shutil.copytree(model, tmp_path / "elsewhere")
    assert identity.of_directory(tmp_path / "elsewhere") == before


def test_files_are_read_again_only_where_they_changed(model, monkeypatch):
    before, read = identity.of_directory(model), []
    monkeypatch.setattr(digests, "sha256", lambda file: read.append(file.name) or "0" * 64)
    identity.of_directory(model)
    assert "model.safetensors" not in read
    monkeypatch.undo()
    monkeypatch.setenv("JAXLOOP_CACHE", str(model.parent / "cache"))
    times = os.stat(model / "model.safetensors")
    replaced(model)  # the same size, and the same date:
    os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity.of_directory(model) != before


def test_the_hubs_cache_gives_the_commit(tmp_path):
    assert identity.commit_of(tmp_path / "models--a--b" / "snapshots" / "0123abc") == "0123abc"
    assert identity.commit_of(tmp_path / "model") is None


def open_it(path, **models):
    with open_workdir(path, {"a": 1}, console=False, identity=models) as place:
        return place


def test_a_run_with_other_files_is_refused_in_one_sentence(tmp_path):
    run = tmp_path / "run"
    open_it(run, base="a" * 64)
    assert json.loads((run / "config.json").read_text())["identity"] == {"base": "a" * 64}
    assert open_it(run, base="a" * 64, embedder="b" * 64).resumed
    assert open_it(run, base="a" * 64).config["identity"]["embedder"] == "b" * 64  # it stays known
    before = (run / "config.json").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"was made with other files of embedder \(SHA-256 bbbbbbbbbbbb, now "
        r"cccccccccccc\); restore them",
    ) as caught:
        open_it(run, base="a" * 64, embedder="c" * 64)
    assert "\n" not in str(caught.value) and (run / "config.json").read_bytes() == before


def test_a_run_from_before_identities_were_kept_goes_on(tmp_path):
    open_it(tmp_path / "run")
    assert "identity" not in json.loads((tmp_path / "run" / "config.json").read_text())
    assert open_it(tmp_path / "run", base="a" * 64).resumed
    with pytest.raises(ValueError, match="other files of base"):
        open_it(tmp_path / "run", base="b" * 64)


def test_every_model_that_a_config_names_is_found(model, monkeypatch, tmp_path):
    from jaxloop import config as configs
    from jaxloop.studies.chain import run as chain

    other = shutil.copytree(model, tmp_path / "classifier")
    monkeypatch.setattr(of_study, "_defaults", lambda settings: {})
    raw = dict(
        models=dict(pool=[str(model)]),
        reference=str(other),
        metrics=[f"class_share(model='{other}', label='a')", "self_bleu"],
    )
    found = of_study.of(configs.build(chain.CONFIG, raw))
    one = identity.of_directory(model)
    assert found == {
        f"models.pool {model}": one,
        f"reference {other}": one,
        f"metrics {other}": one,
    }
    assert of_study.bases(found) == {str(model): one}
    served = f"judge_quality(url='http://127.0.0.1:9/v1', model='{other}')"
    behind_an_address = raw | dict(metrics=[served], reference=None)
    assert of_study.of(configs.build(chain.CONFIG, behind_an_address)) == {
        f"models.pool {model}": one
    }
    raw = raw | dict(embedder="nobody/here", metrics=["self_bleu"], reference=None)
    assert list(of_study.of(configs.build(chain.CONFIG, raw), metrics=False)) == [
        f"models.pool {model}"
    ]


def test_a_judge_behind_an_address_is_known_by_its_name(model):
    """What it is called may be a directory here too; its weights are not those that answer."""
    local = f"judge_quality(model='{model}')"
    assert of_study.cache_key_of_metric(local) == (
        f"{local} {model} {identity.of_directory(model)[:16]}"
    )
    served = f"judge_quality(url='http://127.0.0.1:9/v1', model='{model}')"
    assert of_study.cache_key_of_metric(served) == served
    assert of_study.cache_key_of_metric("self_bleu") == "self_bleu"


@pytest.mark.parametrize("place", ["elsewhere", "package"])
def test_the_tokenizer_of_a_shipped_base_is_known_by_its_name(model, tmp_path, monkeypatch, place):
    name = "jaxloop/assets/bases/qwen2"
    package = Path(jaxloop.__file__).parents[1]
    monkeypatch.chdir(tmp_path if place == "elsewhere" else package)
    assert of_study.cache_key_of_tokenizer(name) == name
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, name)  # a model of one's own, of the same path
    assert of_study.cache_key_of_tokenizer(name, "a commit").startswith(f"{name} ")
    at = [of_study.cache_key_of_tokenizer("owner/model", commit) for commit in (None, "1a", "2b")]
    assert at == ["owner/model", "owner/model at 1a", "owner/model at 2b"]
