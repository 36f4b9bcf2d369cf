"""Studies from Python, as the command line runs them."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxloop
from jaxloop import config
from jaxloop.studies import config_of, load
from jaxloop.studies.chain import prepare as chain_prepare
from tests import drawings
from tests.lm.tiny import first_layer


def test_every_public_name_is_there_and_listed():
    for name in jaxloop.__all__:
        assert getattr(jaxloop, name) is not None and name in dir(jaxloop)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxloop.nothing  # noqa: B018


def test_type_checkers_are_told_of_every_public_name():
    tree = ast.parse(Path(jaxloop.__file__).with_suffix(".pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    told = {(alias.asname, node.module) for node in imports for alias in node.names}
    assert told - {("workflows", "jaxloop.recursion")} == set(jaxloop._PUBLIC.items())
    assert {name for name, _ in told} == {*jaxloop.__all__} - {"__version__"}


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, jaxloop; print([m for m in ('jax', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_config_is_loaded_with_changes():
    changes = {
        "chain.ratios": (0.5,),
        "fit.lora.rank": 4,
        "chain.factors.fit.steps": (1, 2),
        "fit.clip": None,
    }
    settings = jaxloop.load_config("quickstart", changes)
    assert isinstance(settings, config_of("chain"))
    assert settings.chain.ratios == (0.5,) and settings.fit.lora.rank == 4
    assert settings.chain.factors == {"fit.steps": (1, 2)} and settings.fit.max_grad_norm is None
    assert settings.title == config.read_file("quickstart")["title"]
    for wrong, said in (
        ({"chain.sise": 3}, "config.chain.sise: unknown field 'chain.sise'; did you mean"),
        ({"chain.size": 0}, "config.chain.size = 0 is not allowed"),
        ({"fit.clip": 1, "fit.max_grad_norm": 1}, "config.fit.clip and config.fit.max_grad_norm"),
    ):
        with pytest.raises(ValueError, match=said.replace(".", r"\.")):
            jaxloop.load_config("quickstart", wrong)


def test_plans_for_absent_hardware_are_refused_where_there_is_none():
    settings = jaxloop.load_config("theory")
    with pytest.raises(ValueError, match="a study of kind 'theory' has no plan for hardware"):
        jaxloop.plan(settings, "h100")


def test_a_study_is_checked_planned_and_run(tmp_path, monkeypatch):
    settings = jaxloop.load_config("histogram")
    calls = []

    def answer(name):
        return lambda *args, **kwargs: calls.append((name, *args, kwargs)) or name

    study = load("theory")
    for name in ("check", "plan", "run"):
        monkeypatch.setattr(study, name, answer(name))
    for one in ("histogram", settings):
        assert jaxloop.check(one) == "check" and jaxloop.plan(one) == "plan"
    result = jaxloop.run(settings, str(tmp_path / "run"))
    assert (result.workdir, result.exit_code) == (tmp_path / "run", "run")
    assert calls == [
        *[("check", settings, {}), ("plan", settings, None, {})] * 2,
        ("run", settings, tmp_path / "run", {"argv": ()}),
    ]


SMALL = {
    "chain.generations": 2,
    "chain.size": 16,
    "chain.ratios": (1.0,),
    "chain.seeds": (1,),
    "chain.eval_texts": 8,
    "chain.heldout_texts": 8,
    "fit.steps": 2,
    "fit.batch_size": 4,
    "fit.max_length": 48,
    "fit.lora.alpha": 64.0,
    "sample.max_new_tokens": 6,
    "sample.slots": 8,
    "metrics": ("distinct_n(n=1)", "held_out_loss"),
    "run.keep_compiled": False,
}


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """What makes a small run of the quickstart: of the first layer of one of its models."""
    base = tmp_path_factory.mktemp("base") / "gpt2"
    jaxloop.save(first_layer(jaxloop.load("jaxloop/assets/bases/gpt2")), base)
    return SMALL | {"models.pool": (str(base),)}


@pytest.fixture(scope="module")
def finished(changes, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        drawings.leave_out(patch)
        return jaxloop.run("quickstart", tmp_path_factory.mktemp("api") / "run", changes)


def test_a_run_is_read_as_data_frames(finished):
    assert finished.exit_code == 0 and finished.generations == 2
    (chain,) = finished.chains.chain
    assert finished.chains.workflow.tolist() == ["fresh_human"]
    values = finished.metrics[finished.metrics.metric == "held_out_loss"].value
    assert len(values) == 2 and np.isfinite(values).all()
    assert set(finished.ledger.chain) == {chain} and len(finished.table("losses.parquet"))
    texts = finished.texts(chain, 1)
    assert len(texts) == len(finished.prompts(chain, 1)) == 16
    assert finished.report().name == "report.html" and finished.config["study"] == "chain"
    again = jaxloop.open_run(finished.workdir)
    assert again.exit_code is None and again.texts(chain, 1) == texts


def test_tables_are_read_with_the_oldest_pandas_that_is_allowed(finished, monkeypatch):
    """pandas 2.3 refuses to select columns of the type str, which is that of text in pandas 3."""

    def refuses(frame, include=None, exclude=None):
        raise TypeError("string dtypes are not allowed, use 'object' instead")

    monkeypatch.setattr(pd.DataFrame, "select_dtypes", refuses)
    assert set(finished.metrics.study) == {"chain"} == set(finished.ledger.study)


def test_the_adapter_of_a_run_has_the_scale_that_it_was_trained_with(changes, finished):
    """The held-out loss of the run, computed again from its adapter."""
    (chain,) = finished.chains.chain
    adapter = finished.adapter(chain, 1)
    assert adapter.config.alpha == 64.0
    settings = jaxloop.load_config("quickstart", changes)
    prepared = chain_prepare.prepare(settings)
    (source,) = prepared.sources.values()
    model = jaxloop.load(finished.base(chain, 1))
    scores = jaxloop.score(
        model,
        source.heldout,
        prompts=source.heldout_prompts,
        adapter=adapter,
        max_length=settings.fit.max_length,
    )
    loss = float(scores.nll.sum() / scores.tokens.sum())
    rows = finished.metrics.query("metric == 'held_out_loss' and generation == 1")
    assert loss == pytest.approx(rows.value.item(), rel=1e-6)


def test_a_finished_run_is_read_when_its_cell_is_run_twice(changes, finished):
    before = finished.metrics
    again = jaxloop.run("quickstart", finished.workdir, changes)
    assert again.exit_code == 0 and again.metrics.equals(before)


def test_what_a_run_does_not_have_is_said_in_a_sentence(finished, tmp_path):
    (chain,) = finished.chains.chain
    for ask, said in (
        (lambda: finished.table("claims.csv"), r"the run has none; there are ledger.parquet, "),
        (lambda: finished.table("../run/config.json"), r"the run has none"),
        (lambda: finished.texts(chain, 7), r"generation=7: is not finished; the run has 0 to 1"),
        (lambda: finished.adapter("x", 1), r"chain='x': the run has no such chain"),
        (lambda: jaxloop.open_run(tmp_path), r"holds no run"),
        (
            lambda: jaxloop.run("quickstart", finished.workdir),
            r"was made with another config \(",
        ),
        (
            lambda: jaxloop.run(jaxloop.load_config("theory"), "w", {"chain.size": 3}),
            r"changes: are for a config that is named",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
