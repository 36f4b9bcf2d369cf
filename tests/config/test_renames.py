"""Old names of fields: accepted with one warning wherever a field can be named."""

import json
import logging
from typing import ClassVar

import pytest
from pydantic import Field

from jaxloop import config
from jaxloop.config import Count, Factors, Rename, Section
from jaxloop.runtime.workdir import open_workdir


class Inner(Section):
    OLD_NAMES: ClassVar = {"deep": "depth"}
    depth: Count = Field(1, description="")


class Fit(Section):
    OLD_NAMES: ClassVar = {
        "clip": "max_grad_norm",
        "loss_on": Rename("completion_only", {"response": True, "all": False}),
    }
    max_grad_norm: float | None = Field(1.0, description="")
    completion_only: bool = Field(True, description="")
    inner: Inner = Inner()


class OwnFit(Fit):
    """A study's section adds to the old names of the shared one."""

    OLD_NAMES: ClassVar = {"stpes": "steps"}
    steps: Count = Field(1, description="")


class Chain(Section):
    factors: Factors = Field({}, description="")


class Schema(Section):
    OLD_NAMES: ClassVar = {"train": "fit", "sources": "domains"}
    fit: OwnFit = OwnFit()
    chain: Chain = Chain()
    domains: dict[str, Inner] = Field({}, description="")
    stages: tuple[Inner, ...] = Field((), description="")


def make(raw, *assignments):
    pairs = [tuple(a.split("=", 1)) for a in assignments]
    return config.build(Schema, config.override(raw, pairs, Schema))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "jaxloop"]


@pytest.mark.parametrize(
    "raw, assignments, now, typed",
    [
        ({"fit": {"clip": 2.0}}, [], {"fit": {"max_grad_norm": 2.0}}, "fit.clip"),
        ({}, ["fit.clip=none"], {"fit": {"max_grad_norm": None}}, "fit.clip"),
        ({"fit": {"max_grad_norm": 3.0}}, ["fit.clip=2"], {"fit": {"max_grad_norm": 2.0}}, None),
        ({"fit": {"loss_on": "all"}}, [], {"fit": {"completion_only": False}}, "fit.loss_on"),
        ({}, ["fit.loss_on=all"], {"fit": {"completion_only": False}}, "fit.loss_on"),
        ({"fit": {"stpes": 3}}, [], {"fit": {"steps": 3}}, "fit.stpes"),
        ({"fit": {"inner": {"deep": 3}}}, [], {"fit": {"inner": {"depth": 3}}}, "fit.inner.deep"),
        ({"train": {"steps": 3}}, [], {"fit": {"steps": 3}}, "train"),
        ({}, ["train.steps=3"], {"fit": {"steps": 3}}, "train.steps"),
        ({"domains": {"a": {"deep": 2}}}, [], {"domains": {"a": {"depth": 2}}}, "domains.a.deep"),
        ({}, ["sources.a.deep=2"], {"domains": {"a": {"depth": 2}}}, "sources.a.deep"),
        ({"stages": [{"deep": 2}]}, [], {"stages": [{"depth": 2}]}, "stages.0.deep"),
        (
            {"chain": {"factors": {"fit": {"clip": [1.0, 2.0]}}}},
            [],
            {"chain": {"factors": {"fit.max_grad_norm": [1.0, 2.0]}}},
            "chain.factors.fit.clip",
        ),
        (
            {"chain": {"factors": {"fit.loss_on": ["all", "response"]}}},
            [],
            {"chain": {"factors": {"fit.completion_only": [False, True]}}},
            "chain.factors.fit.loss_on",
        ),
        (
            {},
            ["chain.factors.fit.clip=1,2"],
            {"chain": {"factors": {"fit.max_grad_norm": [1, 2]}}},
            "chain.factors.fit.clip",
        ),
        (
            {},
            ["chain.factors.fit.loss_on=(all, 'response')"],
            {"chain": {"factors": {"fit.completion_only": [False, True]}}},
            "chain.factors.fit.loss_on",
        ),
    ],
)
def test_an_old_name_is_accepted_with_one_warning(caplog, raw, assignments, now, typed):
    built = make(raw, *assignments)
    lines = warnings_of(caplog)
    assert len(lines) == 1 and " is now called config." in lines[0]
    if typed:
        assert lines[0].startswith(f"config.{typed} is now called config.")
    caplog.clear()
    assert built == make(now) and warnings_of(caplog) == []


@pytest.mark.parametrize(
    "raw, assignments, said",
    [
        (
            {"fit": {"clip": 1, "max_grad_norm": 1}},
            [],
            "config.fit.clip and config.fit.max_grad_norm are the old and the current name of one "
            "field: give config.fit.max_grad_norm alone",
        ),
        (
            {},
            ["fit.max_grad_norm=1", "fit.clip=1"],
            "config.fit.max_grad_norm and config.fit.clip are the old and the current name of one "
            "field: give config.fit.max_grad_norm alone",
        ),
        ({"chain": {"factors": {"fit": {"clip": [1], "max_grad_norm": [2]}}}}, [], None),
        ({"train": {}, "fit": {}}, [], "config.train and config.fit are the old"),
        (
            {"fit": {"loss_on": "prompt"}},
            [],
            "config.fit.loss_on = 'prompt' is not allowed: one of response, all; the field is now "
            "config.fit.completion_only",
        ),
        ({}, ["fit.loss_on=prompt"], "config.fit.loss_on = 'prompt' is not allowed: one of"),
        ({}, ["fit.clip=x"], "config.fit.max_grad_norm = 'x' is not allowed: a number or none"),
    ],
)
def test_refusals_are_one_sentence(raw, assignments, said):
    with pytest.raises(ValueError) as caught:
        make(raw, *assignments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(said or "config.chain.factors.fit.clip and config.chain.factors.fit.max")


def test_current_names_leave_the_config_that_they_are_given():
    raw = {"fit": {"clip": 1.0}, "identity": {"a": "b"}, "chain": 5}
    changed = config.current_names(Schema, raw, quiet=True)
    assert changed == {"fit": {"max_grad_norm": 1.0}, "identity": {"a": "b"}, "chain": 5}
    assert raw == {"fit": {"clip": 1.0}, "identity": {"a": "b"}, "chain": 5}


def test_a_stored_config_with_old_names_goes_on_without_a_word(tmp_path, caplog):
    now = make({"fit": {"max_grad_norm": 2.0, "completion_only": False}}).model_dump(mode="json")
    old = json.loads(json.dumps(now))
    old["fit"]["clip"] = old["fit"].pop("max_grad_norm")
    old["fit"]["loss_on"] = "response" if old["fit"].pop("completion_only") else "all"
    with open_workdir(tmp_path, old, console=False):
        pass
    with caplog.at_level(logging.INFO, logger="jaxloop"):
        with open_workdir(tmp_path, now, update=config.stored_names(Schema), console=False) as work:
            assert work.resumed and work.config == now
    assert (tmp_path / "run.log").read_text() == ""
    assert json.loads((tmp_path / "config.json").read_text()) == now
    other = json.loads(json.dumps(now))
    other["fit"]["max_grad_norm"] = 3.0
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"\(fit.max_grad_norm 2.0 -> 3.0\)"):
        with open_workdir(tmp_path, other, update=config.stored_names(Schema), console=False):
            pass


def test_an_old_value_none_and_a_field_that_is_fixed():
    from typing import Literal

    class Schema(Section):
        OLD_NAMES: ClassVar = {"loss_on": Rename("only", {"response": True, None: None})}
        only: bool | None = Field(True, description="")
        fixed: Literal[False] = Field(False, description="")

    for text, value in (("none", None), ("response", True)):
        built = config.build(Schema, config.override({}, [("loss_on", text)], Schema))
        assert built.only is value
    with pytest.raises(ValueError, match="one of response, none; the field"):
        config.override({}, [("loss_on", "all")], Schema)
    assert config.build(Schema, config.override({}, [("fixed", "false")], Schema)).fixed is False
    with pytest.raises(ValueError, match="config.fixed = True is not allowed: one of false"):
        config.build(Schema, config.override({}, [("fixed", "true")], Schema))
