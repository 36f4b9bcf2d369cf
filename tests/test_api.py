"""Studies from Python, as the command line runs them."""

import subprocess
import sys

import pytest

import jaxloop
from jaxloop import config
from jaxloop.studies import config_of, load


def test_every_public_name_is_there_and_listed():
    for name in jaxloop.__all__:
        assert getattr(jaxloop, name) is not None and name in dir(jaxloop)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxloop.nothing  # noqa: B018


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
    assert jaxloop.check(settings) == "check" and jaxloop.plan(settings) == "plan"
    assert jaxloop.run(settings, str(tmp_path / "run")) == "run"
    assert calls == [
        ("check", settings, {}),
        ("plan", settings, None, {}),
        ("run", settings, tmp_path / "run", {}),
    ]
