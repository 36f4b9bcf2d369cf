"""Calls of the other papers' studies: short by default, and of any size with the same texts."""

import pandas as pd
import pytest

from jaxloop.studies.bias_amplification import run as bias
from jaxloop.studies.common import calls
from jaxloop.studies.diversity import cost
from jaxloop.studies.diversity import run as diversity
from jaxloop.studies.multi_entity import run as entities
from tests.studies.bias_amplification import test_bias
from tests.studies.diversity import diversity_place, test_diversity
from tests.studies.multi_entity import test_entities

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Fixtures.
folder, world, place = test_entities.folder, test_bias.world, test_diversity.place


def written(root):
    """{file: its table} of all texts and losses of a run."""
    paths = [*root.glob("texts/*/*.parquet"), root / "losses.parquet"]
    return {str(path.relative_to(root)): pd.read_parquet(path) for path in sorted(paths)}


def same(module, tmp_path, settings, few):
    """A run with one model in a call, or `few`, gives what a run with all in one gives."""
    for name, more in (("whole", "run.chains_per_call=1000"), ("parts", few)):
        assert module.run(settings(more), tmp_path / name) == 0
    whole, parts = written(tmp_path / "whole"), written(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for file, table in whole.items():
        key = [name for name in ("chain", "entity", "step") if name in table]
        left, right = (
            t.sort_values(key, kind="stable").reset_index(drop=True) if key else t
            for t in (table, parts[file])
        )
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-5)


def test_models_that_read_each_other(folder, tmp_path):
    def settings(more):
        return test_entities.settings(folder, "exchange.generations=2", more)

    driver = entities.inputs.prepare(settings("run.devices=1")).driver
    assert driver.seconds_per_call == calls.SECONDS and driver.first_members >= 1
    same(entities, tmp_path, settings, "run.chains_per_call=1")


def test_articles(world, tmp_path):
    def settings(more):
        changes = ("chain.generations=2", "neurons.measure=false", "measure.quality=false")
        setups = "chain.setups=greedy,nucleus"
        return test_bias.settings(world, *changes, setups, "measure.detector=none", more)

    driver = bias.prepare(settings("run.devices=1")).driver
    assert driver.seconds_per_call == calls.SECONDS and driver.first_members >= 1
    same(bias, tmp_path, settings, "run.chains_per_call=1")


def test_diversity_trains(place, tmp_path):
    with diversity_place.endpoint(diversity_place.Answers()) as url:

        def settings(more):
            few = ("tasks=story", "seeds=0", "together=none", f"generator.url={url}")
            return test_diversity.settings(place, *few, more)

        driver = diversity.inputs.prepare(settings("run.devices=1")).driver
        assert driver.seconds_per_call == calls.SECONDS
        assert set(driver.first_members) == {str(place / "base")}
        same(diversity, tmp_path, settings, "run.chains_per_call=2")


def test_a_large_model_is_trained_alone():
    """At the scale of the paper one 8 B model takes more than five minutes, and small ones less."""
    raw = test_diversity.config.read_file("configs/diversity.py")
    settings = test_diversity.config.build(diversity.CONFIG, raw)
    cells = diversity.all_cells(settings)
    seconds = {}
    for name in settings.models.pool:
        shape, _ = cost.model_config_of(settings, name)
        work = diversity.inputs.largest_work(settings, cells, name)
        seconds[name] = calls.seconds_of(shape, work, settings.fit, "gpu")
    large, small = "meta-llama/Llama-3.1-8B", "openai-community/gpt2"
    assert seconds[large] > calls.SECONDS > seconds[small]
