"""The engine: plans, sources, keys; the same items as a language-model chain; every workflow
against a plain loop.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.config import FitConfig, SampleConfig
from jaxloop.core import mixing
from jaxloop.core.keys import chain_key
from jaxloop.core.map_chains import chain_mesh
from jaxloop.lm import family as language
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.recursion import chains as ch
from jaxloop.recursion import driver
from jaxloop.recursion import workflow as wf
from jaxloop.recursion.family import FamilyFunctions
from jaxloop.recursion.plan import index_plan
from jaxloop.recursion.sources import Dataset, human_stream
from jaxloop.runtime.tables import read_parquet
from jaxloop.runtime.workdir import open_workdir
from jaxloop.simulators.family import ArrayFamily, reads_only_the_last, rows, run
from jaxloop.simulators.gaussian import gaussian_family

N, T = 8, 4


def recorder(workflow, generations=T) -> ArrayFamily:
    """Items are (source, number): human items count up, written ones are numbered by the model's
    own count of fits. The fit keeps what it saw.
    """
    size = rows(workflow, generations)

    def label(source, n, offset=0):
        return jnp.stack(
            [jnp.full(n, source, jnp.int32), jnp.arange(n, dtype=jnp.int32) + offset], 1
        )

    def fit(key, items, weights, start):
        return jnp.concatenate([items, weights[:, None].astype(jnp.int32)], 1), start[1] + 1

    return ArrayFamily(
        draw=lambda key, n: label(wf.HUMAN, n),
        fit=fit,
        sample=lambda key, params, n: label(wf.SYNTHETIC, n, 1000 * params[1]),
        measure=lambda params, items: {"seen": params[0]},
        base=lambda key: (jnp.zeros((size, 3), jnp.int32), jnp.int32(-1)),
        outside=lambda key, n: label(wf.EXTERNAL, n),
        continues=True,
    )


def expected(workflow, key, generation, entity, generations=T):
    plan = jax.device_get(
        index_plan(workflow, key, generation, generations=generations + 1, entity=entity)
    )
    number = np.where(
        plan.source == wf.SYNTHETIC, plan.generation * 1000 + plan.position, plan.position
    )
    return np.stack([plan.source, number, plan.valid], 1)


WORKFLOWS = {
    "replace": wf.replace(N, start="previous"),
    "accumulate": wf.accumulate(N, start="previous"),
    "accumulate_subsample": wf.accumulate_subsample(N, start="previous"),
    "fresh_human": wf.fresh_human(N, 0.5, start="previous"),
    "all_human": wf.fresh_human(N, 0.0, start="previous"),
    "preserve": wf.preserve(N, 0.25, start="previous"),
    "window": wf.window(N, 2, ratio=0.75, start="previous"),
    "external": wf.external(N, 0.25, ratio=0.5, start="previous"),
    "mixing": wf.fresh_human(N, 0.5, entities=3, mixing=mixing.ring(3).tolist(), start="previous"),
    "shared": wf.window(N, 2, entities=2, shared=True, train=N, start="previous"),
    "late_pool": wf.replace(N, initial=12, start="previous"),
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_trains_on_what_the_plan_says(name):
    flow = WORKFLOWS[name]
    keys = jnp.stack([chain_key(3), chain_key(4)])
    seen = run(recorder(flow), flow, generations=T, keys=keys)["seen"]
    seen = seen[:, :, None] if flow.entities == 1 else seen
    for c, key in enumerate(keys):
        for g in range(T + 1):
            for k in range(flow.entities):
                wanted = expected(flow, key, g, k)
                valid = wanted[:, 2] == 1
                np.testing.assert_array_equal(seen[c, g, k][valid], wanted[valid])
                np.testing.assert_array_equal(seen[c, g, k][:, 2], wanted[:, 2])


@pytest.mark.slow
def test_a_simulated_chain_and_a_language_model_chain_train_on_the_same_items(tmp_path):
    """A real (random) transformer through the driver, its training texts in order, against the
    index plan inside the simulators' scan.
    """
    words = [f"post {i} says {'yes' if i % 3 else 'no'} {i * 7 % 11}" for i in range(90)]
    model_config = ModelConfig(
        "llama",
        vocab_size=280,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=16,
        max_seq_len=48,
    )
    lm.save(
        Model(model_config, init(jax.random.key(0), model_config), bpe.train(words, 280)),
        tmp_path / "base",
    )
    fitted = []

    def fit(model, tasks, settings):
        fitted.extend(task.texts for task in tasks)
        return language.fit(model, tasks, settings)

    recording = FamilyFunctions(language.load, fit, language.generate)
    flow = wf.fresh_human(N, 0.5)
    chain = ch.ChainSpec("one", flow, "posts", 7, (str(tmp_path / "base"),))
    data = {"posts": Dataset(words, "Go. ")}
    fit = FitConfig(steps=1, batch_size=4, learning_rate=1e-3, max_length=32)
    sample = SampleConfig(max_new_tokens=6, slots=4)
    settings = driver.RunSettings(generations=3, fit=fit, sample=sample, evaluate=0)
    with open_workdir(tmp_path / "run", {"generations": 3}, console=False) as workdir:
        driver.run(recording, [chain], data, settings, workdir.path, progress=False)
    flow = dataclasses.replace(
        flow, start="previous"
    )  # the recorder counts its fits; plans do not read `start`
    seen = run(recorder(flow, 2), flow, generations=2, keys=chain.key[None])["seen"][0]
    stream = human_stream(chain, data, 3)
    written = [
        read_parquet(tmp_path / f"run/texts/chain=one/generation={g:04d}.parquet")["text"]
        for g in range(2)
    ]
    for g in range(3):
        items = [(source, number) for source, number, valid in seen[g].tolist() if valid]
        texts = [
            words[stream[n]] if source == wf.HUMAN else written[n // 1000][n % 1000]
            for source, n in items
        ]
        assert texts == list(fitted[g])


@pytest.fixture(scope="module")
def gaussian():
    return gaussian_family(2, sd=2.0)


def test_chains_are_independent_of_their_number_and_of_devices(gaussian):
    flow = wf.window(16, 2)
    options = dict(generations=2, seed=5, batch_size=2)
    many = run(gaussian, flow, replicates=7, **options)
    few = run(gaussian, flow, replicates=2, **options)
    spread = run(gaussian, flow, replicates=7, mesh=chain_mesh(), **options)
    for name in many:
        np.testing.assert_array_equal(few[name], many[name][:2])
        np.testing.assert_allclose(spread[name], many[name], rtol=1e-10)
    assert many["mean"].shape == (7, 3, 2) and many["mean"].dtype == np.float64
    assert len(np.unique(many["trace"])) == 21
    assert jnp.ones(1).dtype == np.float32, "64-bit arithmetic must not leak out"
    assert run(gaussian, flow, replicates=2, x64=False, **options)["mean"].dtype == np.float32


def test_reading_in_order_is_what_gathering_by_plan_gives(gaussian):
    """A window of one and a pool that never grows are the same plan; only the first is recognised
    as needing no gathering.
    """
    direct, gathered = wf.replace(12), wf.replace(12, train=12)
    assert reads_only_the_last(direct) and not reads_only_the_last(gathered)
    assert not any(
        reads_only_the_last(flow) for name, flow in WORKFLOWS.items() if name != "replace"
    )
    key = chain_key(0)
    order = [np.asarray(index_plan(gathered, key, g, generations=3).position) for g in (0, 1, 2)]
    assert (np.sort(order[1]) == np.arange(12)).all() and (order[0] == np.arange(12)).all()
    a, b = (run(gaussian, flow, generations=2, keys=key[None]) for flow in (direct, gathered))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9)


def test_settings_are_an_axis(gaussian):
    settings = {"sd": np.array([1.0, 2.0, 5.0])}
    out = run(
        lambda s: gaussian_family(1, sd=s["sd"]),
        wf.replace(50),
        generations=1,
        replicates=40,
        settings=settings,
        seed=1,
    )
    assert out["var"].shape == (3, 40, 2, 1) and out["w2"].shape == (3, 40, 2)
    np.testing.assert_allclose(out["var"][:, :, 0, 0].mean(1), settings["sd"] ** 2, rtol=0.15)
    scaled = out["var"][:, :, 0, 0] / settings["sd"][:, None] ** 2
    assert np.abs(np.corrcoef(scaled)[0, 1]) < 0.6, "settings draw their own numbers"


@pytest.mark.parametrize(
    "call,sentence",
    [
        (
            lambda: run(gaussian_family(), wf.replace(5), generations=0),
            "generations=0: must be an integer of at least 1",
        ),
        (
            lambda: run(gaussian_family(), wf.replace(5), generations=1, replicates=0),
            "replicates=0",
        ),
        (
            lambda: run(gaussian_family(), wf.replace(5), generations=1, replicates=2.5),
            "replicates=2.5: must be an integer",
        ),
        (
            lambda: run(gaussian_family(), wf.replace(5), generations=1, batch_size=0),
            "batch_size=0: must be an integer of at least 1",
        ),
        (
            lambda: run(gaussian_family(), wf.replace(1), generations=1),
            "generation 0 trains on N=1 items, this family needs at least 2",
        ),
        (
            lambda: run(gaussian_family(), wf.external(8, 0.5), generations=1),
            "workflow=external: has external items",
        ),
        (lambda: gaussian_family(0), "dim=0: must be an integer of at least 1"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
