"""Plans against a brute-force reading of the workflows' definitions: sets of named items, built one
generation at a time.
"""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxloop.core.keys import chain_key
from jaxloop.recursion import workflow as wf
from jaxloop.recursion.plan import IndexPlan, gather, human_rows, index_plan, on_host, plan_rows

N, GENERATIONS = 48, 6
RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
EVERY = {
    "replace": wf.replace(N),
    "accumulate": wf.accumulate(N),
    "accumulate_subsample": wf.accumulate_subsample(N),
    **{f"fresh_human_{r:g}": wf.fresh_human(N, r) for r in RATIOS},
    "preserve": wf.preserve(N, 0.1),
    "window": wf.window(N, 3, ratio=0.5),
    "window_drawn": wf.window(N, 2, ratio=0.75, train=N, real="never"),
    "external": wf.external(N, 0.25, ratio=0.5),
    "initial": wf.fresh_human(N, 0.25, initial=2 * N),
    "entities": wf.fresh_human(
        N, 0.5, entities=3, mixing=((0.5, 0.5, 0), (0, 1, 0), (0.2, 0.3, 0.5))
    ),
    "shared": wf.fresh_human(8, 0.5, entities=3, shared=True, initial=N, train=N),
    "exchange": wf.exchange(
        N, alpha=0.5, beta=0.5, private=(20, 30), public=40, synthetic=12, initial_beta=1.0
    ),
    "exchange_changing": wf.exchange(
        N,
        alpha=((0, 0), (0.5, 0), (0, 1)),
        beta=(1, 0.5),
        private=(20, 30),
        public=40,
        synthetic=12,
        initial_beta=(1, 0),
        past=2,
        mixing=((0, 1), (0.5, 0.5)),
    ),
}


def items(plan):
    plan = on_host(plan)
    return list(zip(*(x.tolist() for x in plan[:4]), strict=True))


def pool_by_reading(flow, generation, entity, writers):
    """Items that the definition lets generation g >= 1 draw from; `writers` maps (generation,
    index) to who wrote the item.
    """
    synthetic, human, external = flow.synthetic, flow.human, flow.external
    readers = range(flow.entities) if flow.shared else [entity]
    pool = set()
    for born in range(1, generation + 1):
        if flow.window is not None and born <= generation - flow.window:
            continue
        for reader in readers:
            for i in range(synthetic):
                pool.add((wf.SYNTHETIC, born - 1, i, writers.get((born - 1, i), reader)))
            for i in range(human):
                pool.add((wf.HUMAN, born, flow.initial + (born - 1) * human + i, reader))
            for i in range(external):
                pool.add((wf.EXTERNAL, born, (born - 1) * external + i, reader))
    keeps = flow.real == "always" or (
        flow.real == "window" and (flow.window is None or generation < flow.window)
    )
    if keeps:
        pool |= {(wf.HUMAN, 0, i, reader) for reader in readers for i in range(flow.initial)}
    return pool


@pytest.mark.parametrize("name", [n for n in EVERY if not n.startswith("exchange")])
def test_every_training_set_is_what_the_specification_says(name):
    flow, key = EVERY[name], chain_key(3)
    for entity in range(flow.entities):
        writers = {}
        for generation in range(GENERATIONS):
            got = items(index_plan(flow, key, generation, generations=GENERATIONS, entity=entity))
            assert len(set(got)) == len(got)
            if generation == 0:
                assert got == [(wf.HUMAN, 0, i, entity) for i in range(flow.initial)]
                continue
            if flow.mixing is not None:
                for source, born, index, owner in got:
                    if source == wf.SYNTHETIC:
                        assert writers.setdefault((born, index), owner) == owner
            kept = [item for item in got if flow.preserved and item[1] == 0 and item[0] == wf.HUMAN]
            drawn = got[len(kept) :] if flow.preserved else got
            assert len(kept) == flow.preserved
            pool = pool_by_reading(flow, generation, entity, writers)
            assert set(drawn) <= pool
            assert len(drawn) == (len(pool) if flow.train is None else min(flow.train, len(pool)))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [N, 37])
def test_fresh_human_adds_exactly_int_ratio_size_and_never_repeats_a_human_item(ratio, size):
    flow = wf.fresh_human(size, ratio)
    assert (flow.synthetic, flow.human) == (int(ratio * size), size - int(ratio * size))
    seen = {}
    for generation in range(GENERATIONS):
        for source, born, index, _ in items(
            index_plan(flow, chain_key(1), generation, generations=GENERATIONS)
        ):
            if source == wf.HUMAN:
                assert seen.setdefault(index, born) == born
                assert 0 <= index < wf.human_needed(flow, GENERATIONS)
                assert generation == 0 or (born >= 1 and index >= size)
    first = Counter(
        source for source, *_ in items(index_plan(flow, chain_key(1), 1, generations=GENERATIONS))
    )
    assert (
        first
        == Counter({wf.SYNTHETIC: int(ratio * size), wf.HUMAN: size - int(ratio * size)})
        - Counter()
    )


def test_human_needed_is_the_table_of_the_paper():
    table = {1 / 16: 75_250, 1 / 8: 70_500, 1 / 4: 61_000, 1 / 2: 42_000, 3 / 4: 23_000, 1: 4_000}
    assert {r: wf.human_needed(wf.fresh_human(4000, r), 20) for r in table} == table
    counts = {r: wf.fresh_human(4000, r).synthetic for r in table}
    assert list(counts.values()) == [250, 500, 1000, 2000, 3000, 4000]


def test_every_item_of_the_pool_is_drawn_with_probability_one_over_g():
    flow, generation, chains = wf.fresh_human(20, 0.25), 4, 3000
    keys = jax.vmap(jax.random.key)(jnp.arange(chains))
    plans = jax.jit(jax.vmap(lambda k: index_plan(flow, k, generation)))(keys)
    born = np.where(plans.source == wf.SYNTHETIC, plans.generation + 1, plans.generation)
    slot = np.where(
        plans.source == wf.SYNTHETIC,
        plans.position,
        plans.position - flow.initial - (born - 1) * flow.human + flow.synthetic,
    )
    counts = np.bincount(((born - 1) * 20 + slot).ravel(), minlength=80)
    assert counts.shape == (80,)
    expected = chains / generation
    z = (counts - expected) / np.sqrt(chains * 0.25 * 0.75)
    assert np.abs(z).max() < 4.5
    # Draws are without replacement, so the counts of one chain sum to 20 and the statistic has 79
    # degrees of freedom scaled by 80/79.
    assert 1e-3 < stats.chi2.sf((z**2).sum() * 79 / 80, 79) < 1 - 1e-3
    first_row = np.bincount(((born - 1) * 20 + slot)[:, 0], minlength=80)
    assert stats.chisquare(first_row).pvalue > 1e-3


def test_mixing_rows_are_the_shares_of_the_writers():
    mixing = ((0.5, 0.5, 0.0), (0.0, 1.0, 0.0), (0.2, 0.3, 0.5))
    flow = wf.replace(4000, entities=3, mixing=mixing)
    for entity in range(3):
        owners = on_host(index_plan(flow, chain_key(5), 2, entity=entity)).entity
        shares = np.bincount(owners, minlength=3) / 4000
        assert np.abs(shares - mixing[entity]).max() < 4 * np.sqrt(0.25 / 4000)
        assert (shares[np.asarray(mixing[entity]) == 0] == 0).all()


@pytest.mark.parametrize("generation", [0, 1, 5])
def test_exchange_draws_every_source_by_its_weight(generation):
    alpha, beta, first = 0.4, 0.25, 1.0
    flow = wf.exchange(
        20_000, alpha=alpha, beta=beta, private=(7, 11), public=5, synthetic=3, initial_beta=first
    )
    for entity in range(2):
        plan = on_host(index_plan(flow, chain_key(9), generation, entity=entity))
        a, b = (0, first) if generation == 0 else (alpha, beta)
        cells = Counter(
            zip(plan.source.tolist(), plan.entity.tolist(), plan.position.tolist(), strict=True)
        )
        expected = {
            (wf.HUMAN, entity, i): (1 - a) * b / flow.exchange.private[entity]
            for i in range(flow.exchange.private[entity])
        }
        expected |= {(wf.PUBLIC, 0, i): (1 - a) * (1 - b) / 5 for i in range(5)}
        expected |= {(wf.SYNTHETIC, j, i): a / 2 / 3 for j in range(2) for i in range(3)}
        expected = {cell: p for cell, p in expected.items() if p > 0}
        assert set(cells) == set(expected)
        observed = np.asarray([cells[cell] for cell in expected])
        assert stats.chisquare(observed, 20_000 * np.asarray(list(expected.values()))).pvalue > 1e-3
        assert set(plan.generation[plan.source == wf.SYNTHETIC].tolist()) <= {generation - 1}


def test_exchange_weights_change_with_generation_and_entity_and_mixing_says_who_is_read():
    alpha, beta, first, mixing = (
        ((0, 0), (0.5, 0.25), (0.0, 1.0)),
        (1.0, 0.5, 0.25, 0.75),
        (1.0, 0.0),
        ((0.0, 1.0), (0.5, 0.5)),
    )
    flow = wf.exchange(
        20_000,
        alpha=alpha,
        beta=beta,
        private=(2, 3),
        public=4,
        synthetic=1,
        initial_beta=first,
        past=2,
        mixing=mixing,
    )
    for generation in range(6):
        for entity in range(2):
            a = alpha[min(generation, 2)][entity] if generation else 0.0
            b = beta[min(generation, 3)] if generation else first[entity]
            plan = on_host(index_plan(flow, chain_key(11), generation, entity=entity))
            cells = Counter(
                zip(
                    plan.source.tolist(),
                    plan.entity.tolist(),
                    plan.generation.tolist(),
                    strict=True,
                )
            )
            born = [g for g in (generation - 1, generation - 2) if g >= 0]
            expected = {(wf.HUMAN, entity, 0): (1 - a) * b, (wf.PUBLIC, 0, 0): (1 - a) * (1 - b)}
            expected |= {
                (wf.SYNTHETIC, j, g): a * mixing[entity][j] / len(born)
                for j in range(2)
                for g in born
            }
            expected = {cell: p for cell, p in expected.items() if p > 0}
            assert set(cells) == set(expected)
            if len(expected) > 1:
                assert (
                    stats.chisquare(
                        [cells[c] for c in expected], 20_000 * np.asarray(list(expected.values()))
                    ).pvalue
                    > 1e-3
                )


def test_a_constant_weight_is_one_number_however_it_is_written():
    common = {"private": (7, 11), "public": 5, "synthetic": 3}
    flow = wf.exchange(64, alpha=0.5, beta=0.25, **common)
    assert flow == wf.exchange(64, alpha=(0.5, 0.5, 0.5), beta=((0.25, 0.25),), **common)
    everything = wf.exchange(64, alpha=0.5, beta=0.25, past=None, **common)
    for generation in (0, 1):
        assert items(index_plan(flow, chain_key(1), generation)) == items(
            index_plan(everything, chain_key(1), generation)
        )
    born = on_host(index_plan(everything, chain_key(1), 5))
    assert set(born.generation[born.source == wf.SYNTHETIC].tolist()) == set(range(5))


@pytest.mark.parametrize("name", list(EVERY))
def test_scan_vmap_and_host_give_the_same_plan(name):
    flow = EVERY[name]
    keys = jax.vmap(jax.random.key)(jnp.arange(3))

    def chain(key):
        def step(carry, generation):
            return carry, index_plan(flow, key, generation, generations=GENERATIONS)

        return jax.lax.scan(step, 0, jnp.arange(GENERATIONS))[1]

    together = jax.jit(jax.vmap(chain))(keys)
    assert together.valid.shape == (3, GENERATIONS, plan_rows(flow, GENERATIONS))
    for c in range(3):
        for generation in range(GENERATIONS):
            alone = index_plan(flow, keys[c], generation, generations=GENERATIONS)
            assert items(alone) == items(IndexPlan(*(x[c, generation] for x in together)))


def test_more_generations_change_no_plan_and_no_human_item():
    flow, key = wf.fresh_human(N, 0.25), chain_key(8)
    for generation in (1, 3):
        assert items(index_plan(flow, key, generation, generations=4)) == items(
            index_plan(flow, key, generation, generations=9)
        )
    short = human_rows(key, 1000, wf.human_needed(flow, 4))
    longer = human_rows(key, 1000, wf.human_needed(flow, 9))
    np.testing.assert_array_equal(short, longer[: len(short)])
    assert len(set(longer.tolist())) == len(longer)


def test_human_rows_are_a_uniform_sample_and_streams_of_entities_are_disjoint():
    draws = np.stack([human_rows(chain_key(s), 30, 10) for s in range(1500)])
    assert (np.sort(draws, axis=1)[:, 1:] > np.sort(draws, axis=1)[:, :-1]).all()
    z = (np.bincount(draws.ravel(), minlength=30) - 500) / np.sqrt(1500 / 3 * 2 / 3)
    assert np.abs(z).max() < 4.5
    assert stats.chisquare(np.bincount(draws[:, 0], minlength=30)).pvalue > 1e-3
    streams = [human_rows(chain_key(0), 40, 13, entity=k, entities=3).tolist() for k in range(3)]
    assert len(set(sum(streams, []))) == 39


def test_too_few_human_items_names_what_the_chain_needs():
    needed = wf.human_needed(wf.fresh_human(4000, 1 / 8), 20)
    with pytest.raises(ValueError, match=r"60,000 human items: this chain needs 70,500"):
        human_rows(chain_key(0), 60_000, needed)


@pytest.mark.parametrize("drawn", [False, True])
def test_gather_returns_the_items_that_the_plan_names(drawn):
    flow = wf.external(N, 0.25, ratio=0.5) if drawn else EVERY["exchange"]
    k, stream = flow.entities, 400
    human = jnp.arange(k * stream).reshape(k, stream)
    synthetic = 10_000 + jnp.arange(GENERATIONS * k * flow.synthetic).reshape(
        GENERATIONS, k, flow.synthetic
    )
    external, public = 20_000 + jnp.arange(k * stream).reshape(k, stream), 30_000 + jnp.arange(40)
    plan = index_plan(flow, chain_key(2), 4)
    got = gather(plan, human=human, synthetic=synthetic, external=external, public=public)
    for value, source, generation, index, entity, valid in zip(
        np.asarray(got), *(np.asarray(x) for x in plan), strict=True
    ):
        want = {
            wf.HUMAN: human[entity, index],
            wf.SYNTHETIC: synthetic[generation, entity, index % flow.synthetic],
            wf.EXTERNAL: external[entity, index],
            wf.PUBLIC: public[index % 40],
        }[int(source)]
        assert not valid or value == want


REFUSED = {
    "ratio=1.5": partial(wf.fresh_human, 10, 1.5),
    "ratio=-0.1": partial(wf.window, 10, 2, ratio=-0.1),
    "share=2": partial(wf.preserve, 10, 2),
    "initial=0": partial(wf.replace, 0),
    "start='bse'": partial(wf.replace, 10, start="bse"),
    "real='sometimes'": partial(wf.window, 10, 2, real="sometimes"),
    "window=0": partial(wf.window, 10, 0),
    "size=: not an option": partial(wf.replace, 10, size_=3),
    "mixing: shape is (1, 1)": partial(wf.replace, 10, entities=2, mixing=((1.0,),)),
    "mixing: rows must": partial(wf.replace, 10, entities=2, mixing=((0.5, 0.4), (0, 1))),
    "alpha=2.0": partial(wf.exchange, 10, alpha=2, beta=0.5, private=(1, 1), public=1, synthetic=1),
    "public=0": partial(
        wf.exchange, 10, alpha=0.5, beta=0.5, private=(1, 1), public=0, synthetic=1
    ),
    "alpha=2.0: must lie in [0, 1]": partial(
        wf.exchange, 10, alpha=(0.5, 2), beta=0.5, private=(1, 1), public=1, synthetic=1
    ),
    "beta=((0.5, 0.5, 0.1),)": partial(
        wf.exchange, 10, alpha=0.5, beta=((0.5, 0.5, 0.1),), private=(1, 1), public=1, synthetic=1
    ),
    "initial_beta=(1, 0, 1)": partial(
        wf.exchange,
        10,
        alpha=0.5,
        beta=0.5,
        private=(1, 1),
        public=1,
        synthetic=1,
        initial_beta=(1, 0, 1),
    ),
    "past=0": partial(
        wf.exchange, 10, alpha=0.5, beta=0.5, private=(1, 1), public=1, synthetic=1, past=0
    ),
    "private=(1, 0): entity 1 has no private data but beta=0.5": partial(
        wf.exchange,
        10,
        alpha=0.5,
        beta=((1, 0), (0, 0), (0, 0.5)),
        private=(1, 0),
        public=1,
        synthetic=1,
    ),
    "private=": partial(
        wf.exchange, 10, alpha=0.5, beta=0.5, private=(1, 0), public=1, synthetic=1
    ),
    "preserved=11": partial(wf.replace, 10, preserved=11),
    "at least one new item": partial(wf.replace, 10, synthetic=0),
}


def test_numbers_of_numpy_are_numbers():
    flow = wf.fresh_human(np.int64(10), np.float32(0.5), window=np.uint8(3))
    assert flow == wf.fresh_human(10, 0.5, window=3)
    assert {type(flow.initial), type(flow.train), type(flow.window)} == {int}


@pytest.mark.parametrize("message", list(REFUSED))
def test_bad_workflows_are_refused_in_one_sentence(message):
    expected = "size_: not an option" if message.startswith("size=") else message
    with pytest.raises(ValueError) as error:
        REFUSED[message]()
    assert str(error.value).startswith(expected) or expected in str(error.value)
    assert "\n" not in str(error.value)


def test_traced_generation_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="generations: must be given"):
        jax.jit(lambda g: index_plan(wf.replace(4), chain_key(0), g))(1)
