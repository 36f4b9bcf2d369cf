"""Plans of studies whose factors change what a chain costs."""

import dataclasses

import numpy as np
import pytest

from jaxloop import config
from jaxloop.lm.io import huggingface
from jaxloop.lm.model.config import count_parameters
from jaxloop.recursion import driver
from jaxloop.recursion.chains import make_chain
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime import roofline
from jaxloop.runtime.tables import to_parquet
from jaxloop.studies.common import calls, cost, target_plan
from jaxloop.studies.common.device_hours import AssumedLengths
from jaxloop.studies.recursive_loops import cost as loops_cost
from jaxloop.studies.recursive_loops.config import LoopsConfig

SMALL, LARGE = "openai-community/gpt2", "openai-community/gpt2-xl"
SHAPES = {name: target_plan.model_config_of(config.ModelsConfig(), name) for name in (SMALL, LARGE)}


def test_a_plan_for_absent_hardware_asks_for_the_commit_of_the_pool(monkeypatch):
    """And for nothing where the shapes of a model of the hub are known."""
    asked = []

    def locate(name, revision):
        asked.append((name, revision))
        raise ValueError("not here")

    monkeypatch.setattr(huggingface, "locate", locate)
    models = config.ModelsConfig(pool=(SMALL, "owner/gpt2"), revisions=("1a", "2b"))
    found = [target_plan.model_config_of(models, name) for name in models.pool]
    assert found[0] == found[1] == SHAPES[SMALL]
    assert asked == [("owner/gpt2", "2b")]


def settings(**changes):
    raw = config.read_file("configs/fit_modes.py")
    return config.build(LoopsConfig, config.override(raw, list(changes.items()), LoopsConfig))


def test_a_plan_counts_the_checkpoints_of_chains_that_train_all_weights():
    """Two thirds of the chains of fit_modes.py train whole models, of 4 bytes a weight."""
    run = {"run.keep": "1", "run.overlap_eval": "false"}
    large = settings(**run, **{"models.pool": LARGE, "models.revisions": ""})
    rows = dict(loops_cost.table(large))
    # 15 chains of each mode; two generations are on the disk while one is made.
    whole = 4 * count_parameters(SHAPES[LARGE]) * 15 * 2 / 1e9
    for mode in ("full", "scratch"):
        row = rows[f"with fit.mode={mode}"]
        on_disk = float(row.split(", ")[1].split(" GB")[0].replace(",", ""))
        assert whole < on_disk < 1.01 * whole and "15 chains" in row
    total = float(rows["disk"].split()[0].replace(",", ""))
    assert 2 * whole < total < 2.1 * whole
    # Weights, gradients and two moments in float32, at least.
    assert float(rows["memory"].split()[0]) > 16 * count_parameters(SHAPES[LARGE]) / 1e9


def workload(chains):
    plain = settings()
    fit = plain.fit.replace(steps=10, epochs=None)
    return cost.Workload(
        models=plain.models.replace(pool=(SMALL, LARGE), revisions=()),
        fit=fit,
        sample=plain.sample,
        run=plain.run,
        start="base",
        generation_size=100,
        chains=chains,
        driver=driver.RunSettings(2, fit, plain.sample, evaluate=10, keep=1),
        bases={name: (shape, AssumedLengths(60, 14)) for name, shape in SHAPES.items()},
        dataset=Dataset(("",), "Go."),
    )


def chain(number, **values):
    fields = {"dataset": "d", "bases": (SMALL,), "seed": 0, "size": 100, "ratio": 0.5} | values
    return make_chain(fields, factors={"number": number})


FIT = {"fit.mode": "full"}


@pytest.mark.parametrize(
    ("values", "disk", "memory", "train", "write"),
    [
        (FIT, True, True, True, False),
        ({"start": "previous", **FIT}, True, True, True, False),
        ({"start": "scratch"}, True, True, True, False),
        ({"bases": (LARGE,)}, True, True, True, True),
        ({"size": 300}, True, False, False, True),
        ({"fit.steps": 20}, False, False, True, False),
        ({"fit.batch_size": 64}, False, True, True, False),
        ({"fit.max_length": 32}, False, None, None, False),
        ({"sample.max_new_tokens": 30}, None, False, False, None),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_whatever_a_factor_changes_enters_the_plan(values, disk, memory, train, write):
    """True: it grows, None: it falls, False: it stays; and the plan of both levels together is the
    sum, or the larger, of the plans of each.
    """
    plain, other = chain(0), chain(1, **values)
    one, two, both = workload([plain]), workload([other]), workload([plain, other])
    amounts = [(cost.disk_bytes(w), cost.memory(w), *_flops(w)) for w in (one, two, both)]
    for was, now, together, grows, at in zip(
        *amounts, (disk, memory, train, write), range(4), strict=True
    ):
        assert {True: now > was, None: now < was, False: now == was}[grows], (was, now)
        expected = max(was, now) if at == 1 else was + now
        assert together == pytest.approx(expected, rel=0.01) or (at == 1 and together > expected)


def test_a_base_that_is_twice_in_the_pool_is_trained_as_often():
    once = workload([chain(0)])
    twice = workload([chain(0, bases=(SMALL, SMALL, LARGE, SMALL))])
    shares = [cost.costs(work)[SMALL].train_texts for work in (once, twice)]
    assert shares[1] == pytest.approx(3 / 4 * shares[0])


def test_long_texts_fit_the_bytes_that_are_counted_for_them():
    """Words at random, which compress badly: 300 tokens of the shipped base are about 200 words."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(draw.choice(letters[:12], draw.integers(2, 9))) for _ in range(5000)]
    texts = [" ".join(draw.choice(words, 200)) for _ in range(200)]
    long = workload([chain(0, size=200, ratio=1, **{"sample.max_new_tokens": 300})])
    short = workload([chain(0, size=200, ratio=1, **{"sample.max_new_tokens": 1})])
    texts_in_all = 200 * 3  # of two generations, and once more those that are being written
    counted = (cost.disk_bytes(long) - cost.disk_bytes(short)) / texts_in_all
    assert len(to_parquet({"text": texts})) / 200 < counted


def _flops(work):
    total = cost.total_cost(cost.costs(work, "cpu"))
    return total.train_flops, total.decode_flops


@pytest.mark.parametrize(
    "name, level",
    [("size", 40_000), ("fit.mode", "full"), ("fit.epochs", 8.0), ("sample.max_new_tokens", 3000)],
)
def test_first_calls_are_short_for_the_slowest_level_of_a_factor(monkeypatch, name, level):
    monkeypatch.setattr(calls, "SECONDS", 1e9)
    chain, fit, sample = config.ChainSection(), config.FitConfig(), config.SampleConfig()
    section, _, field = name.rpartition(".")
    of = {"": chain, "fit": fit, "sample": sample}
    slow = of | {section: of[section].replace(**{field: level})}
    both = chain.replace(factors={name: (getattr(of[section], field), level)})
    least, one, found = (
        calls.first_chains(SHAPES, *settings)
        for settings in (slow.values(), of.values(), (both, fit, sample))
    )
    assert found == least < one


def test_parts_have_the_settings_of_their_chains():
    work = workload([chain(0), chain(1, **FIT), chain(2, start="scratch")])
    parts = cost.variants(work)
    assert {part.fit.mode for _, part in parts} == {"lora", "full", "scratch"}
    assert [len(part.chains) for _, part in parts] == [1, 1, 1]
    assert [name for name, _ in cost.factor_rows(work, "cpu")] == [f"with {k}" for k, _ in parts]
    assert cost.factor_rows(dataclasses.replace(work, chains=work.chains[:1]), "cpu") == []
    flops = roofline.training_flops(
        cost.base_models.sizes(work.fit, SHAPES[SMALL]), 10 * 16 * 75 * 2, 75.0, frozen=False
    )
    full = next(part for _, part in parts if part.fit.mode == "full")
    assert _flops(full)[0] == pytest.approx(flops, rel=0.02)


def test_durations_are_said_in_words_from_fractions_of_a_second_to_hours():
    said = [cost.duration(seconds) for seconds in (0, 0.043, 0.7, 125, 720_000)]
    assert said == ["0 s", "0.04 s", "1 s", "2 min 05 s", "200 h"]
