"""Pretraining heeds what its config says of the data and of the machine, or refuses it."""

import jax
import pandas as pd
import pytest

from jaxloop import config
from jaxloop.studies.pretrain import prepare
from jaxloop.studies.pretrain.config import PretrainConfig


def settings(*assignments):
    pairs = [assignment.split("=", 1) for assignment in assignments]
    return config.build(PretrainConfig, config.override({}, pairs, PretrainConfig))


def test_texts_of_the_named_domains_alone_are_read(tmp_path):
    rows = [(f"text {i} of {kind}", kind) for kind in ("a", "b", "c") for i in range(30)]
    pd.DataFrame(rows, columns=["text", "kind"]).to_json(
        tmp_path / "rows.jsonl", orient="records", lines=True
    )
    words = (f"data.source={tmp_path / 'rows.jsonl'}", "data.domain_column=kind")
    frame, _ = prepare.read(settings(*words, "data.domains=a,c", "data.held_out=0.2"))
    assert frame["text"].tolist() == [text for text, kind in rows if kind != "b"]
    assert set(frame["domain"]) == {"a", "c"}


def test_the_limit_and_the_domains_hold_for_the_texts_of_the_box():
    for source, library in (("docs:scipy", "scipy"), ("docs", "jax")):
        words = (f"data.source={source}", f"data.domains={library}", "data.limit=40")
        frame, _ = prepare.read(settings(*words, "data.held_out=0.5"))
        assert len(frame) == 40 and set(frame["domain"]) == {library} and "module" in frame
    with pytest.raises(ValueError, match="numpy"):
        prepare.read(settings("data.source=docs:scipy", "data.domains=numpy"))


def test_repeated_texts_are_dropped_unless_they_are_to_be_kept(tmp_path):
    texts = [f"text {i}" for i in range(30)]
    pd.DataFrame({"text": [*texts, *texts[:9], "text  3"]}).to_json(
        tmp_path / "rows.jsonl", orient="records", lines=True
    )
    words = (f"data.source={tmp_path / 'rows.jsonl'}", "data.held_out=0.2")
    assert prepare.read(settings(*words))[0]["text"].tolist() == texts
    assert len(prepare.read(settings(*words, "data.duplicates=keep"))[0]) == 40


@pytest.mark.parametrize("field", ["min_tokens=3", "max_tokens=900", "prompt_column=title"])
def test_what_is_not_read_of_the_data_is_refused(field):
    with pytest.raises(ValueError, match=f"config.data.{field.split('=')[0]} = .* changes nothing"):
        settings(f"data.{field}")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="asks for a GPU that is absent")
def test_a_platform_that_is_absent_is_refused():
    with pytest.raises(ValueError, match="platform=gpu: this machine has none that JAX can use"):
        prepare.prepare(settings("run.platform=gpu"))
