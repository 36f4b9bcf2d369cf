"""Products of factors, names that are safe as file names, seeded base models, canonical groups."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxloop.recursion import chains as ch
from jaxloop.recursion import workflow as wf

COMMON = {"dataset": "posts", "bases": ("a", "b", "c"), "size": 16}


def test_product_is_every_combination_with_its_factors():
    made = ch.product({"ratio": [0.25, 1], "seed": [0, 1, 2]}, **COMMON)
    assert [dict(c.factors) for c in made] == [
        {"ratio": r, "seed": s} for r in (0.25, 1) for s in (0, 1, 2)
    ]
    assert [c.id for c in made] == [f"ratio-{r}_seed-{s}" for r in ("0.25", "1") for s in (0, 1, 2)]
    assert {c.workflow for c in made} == {wf.fresh_human(16, 0.25), wf.fresh_human(16, 1)}
    assert len(set(made)) == 6 and all(
        c.bases == ("a", "b", "c") and c.dataset == "posts" for c in made
    )


def test_factors_of_one_value_are_in_the_tables_and_not_in_the_name():
    (made,) = ch.product({"dataset": ["posts"], "ratio": [0.5]}, bases="a", size=16, seed=3)
    assert dict(made.factors) == {"dataset": "posts", "ratio": 0.5} and made.bases == ("a",)
    first, second = ch.product(
        {"dataset": ["posts", "other"], "ratio": [0.5]}, bases="a", size=16, seed=3
    )
    assert (first.id, second.id) == ("dataset-posts", "dataset-other")


def test_every_kind_of_factor_reaches_its_place():
    factors = {
        "workflow": ["preserve"],
        "share": [0.25],
        "start": ["previous"],
        "fit.learning_rate": [1e-4],
        "sample.num_beams": [3],
        "seed": [1],
    }
    (made,) = ch.product(factors, dataset="posts", bases=["a"], size=16)
    assert made.workflow == wf.preserve(16, 0.25, start="previous")
    assert made.fit == (("learning_rate", 1e-4),) and made.sample == (("num_beams", 3),)


def test_ids_are_safe_and_never_shared_by_different_values():
    values = [
        "m-newhauser/senator-tweets",
        "m-newhauser~senator-tweets",
        "../../etc/passwd",
        "a b",
        "",
        "x" * 300,
        "é",
        1 / 3,
        0.333333,
    ]
    ids = [ch.chain_id({"dataset": v}) for v in values]
    assert len(set(ids)) == len(ids)
    for name in ids:
        assert ch._SAFE.fullmatch(name) and len(name) <= 200 and ".." not in name.split("/")


def test_a_pool_is_drawn_from_uniformly_by_seed_and_generation_alone():
    made = ch.product({"ratio": [0.25, 1], "seed": list(range(150))}, **COMMON)
    first, second = made[:150], made[150:]
    draws = [[ch.base_of(c, g) for g in range(3)] for c in first]
    assert draws == [[ch.base_of(c, g) for g in range(3)] for c in second]
    counts = [sum(row.count(b) for row in draws) for b in "abc"]
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.zeros((3, 3))
    for row in draws:
        pairs["abc".index(row[0]), "abc".index(row[1])] += 1
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_a_fixed_pool_gives_each_entity_its_own_base():
    (made,) = ch.product(
        {"seed": [0]},
        dataset="posts",
        bases=("a", "b"),
        draw_base=False,
        size=8,
        ratio=0.5,
        entities=3,
    )
    assert [ch.base_of(made, g, k) for g in (0, 5) for k in range(3)] == ["a", "b", "a"] * 2


def test_groups_partition_the_members_in_an_order_of_their_own():
    made = ch.product(
        {"ratio": [0.25, 1], "seed": list(range(6))}, **COMMON, entities=2, **{"fit.steps": 3}
    )
    for generation in range(3):
        found = ch.groups(made, generation)
        members = [m for group in found for m in group.members]
        assert sorted(members, key=repr) == sorted(
            (ch.Member(c, k) for c in made for k in (0, 1)), key=repr
        )
        assert [g.base for g in found] == sorted({g.base for g in found})
        assert len({g.name for g in found}) == len(found)
        for group in found:
            assert all(
                ch.base_of(m.chain, generation, m.entity) == group.base for m in group.members
            )
            places = [made.index(m.chain) for m in group.members]
            assert places == sorted(places)


def test_settings_and_random_starts_are_calls_of_their_own():
    made = ch.product(
        {"sample.decoder": ["greedy", "beam"], "start": ["base", "scratch"]},
        dataset="posts",
        bases="a",
        size=8,
        ratio=1.0,
        seed=0,
    )
    found = ch.groups(made, 0)
    assert sorted((dict(g.sample)["decoder"], g.scratch) for g in found) == [
        ("beam", False),
        ("beam", True),
        ("greedy", False),
        ("greedy", True),
    ]


REFUSED = {
    "seed='x'": {"seed": "x"},
    "seed=-1": {"seed": -1},
    "workflow='recycle': must be one of replace": {"workflow": "recycle"},
    "dataset: every chain needs one": {"dataset": None},
    "bases: chain": {"bases": ()},
    "ratio: not an option of workflow replace": {"workflow": "replace", "ratio": 0.5},
    "missing 1 required positional argument: 'share'": {"workflow": "preserve", "ratio": None},
    "start='previous'": {"start": "previous"},
    "dataset: 2 names for 3 entities": {"dataset": ("x", "y"), "entities": 3},
    "external: workflow external reads": {"workflow": "external", "share": 0.5},
    "public: workflow exchange reads": {
        "workflow": "exchange",
        "ratio": None,
        "alpha": 0,
        "beta": 0,
        "private": (1,),
        "public": None,
    },
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_bad_chains_are_refused_in_one_sentence(message):
    values = {"seed": 0, "ratio": 0.5, **COMMON, **REFUSED[message]}
    if message.startswith("public"):
        flow = wf.exchange(8, alpha=0, beta=0, private=(1,), public=4, synthetic=1)
        values = {"workflow": flow, "dataset": "posts", "bases": "a", "seed": 0}
    values = {k: v for k, v in values.items() if v is not None}
    with pytest.raises(ValueError) as error:
        ch.make_chain(values, id="x")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("factors", [{"seed": []}, {"dataset": "posts"}])
def test_a_factor_needs_a_list_of_values(factors):
    with pytest.raises(ValueError, match="must be a list of at least one value"):
        ch.product(factors, **COMMON)


def test_the_key_of_a_chain_is_its_seed():
    a, b = ch.product({"ratio": [0.25, 1]}, seed=7, **COMMON)
    np.testing.assert_array_equal(jax.random.key_data(a.key), jax.random.key_data(b.key))
