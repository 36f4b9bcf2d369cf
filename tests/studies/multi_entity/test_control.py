"""The control of transfer: chains whose entities read as much synthetic text, all of it their own;
and the same control in the linear model, formula against simulation.
"""

import dataclasses

import numpy as np
import pytest

from jaxloop.core.keys import chain_key
from jaxloop.recursion.plan import index_plan, on_host
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import SYNTHETIC
from jaxloop.simulators import linear
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import effects, linear_theory, sentences
from jaxloop.studies.multi_entity import run as entities
from jaxloop.studies.theory import isotropic
from tests.studies.multi_entity.test_effects import NAMES, alike, made_up

THREE = ("one", "two", "three")


def planned(names=THREE, **exchange):
    """(settings, chains) of a study whose data are never read."""
    s = entities.CONFIG(
        entities=names,
        tasks={n: {"task": "qa"} for n in names},
        exchange={"size": 200, "synthetic": 40, "generations": 4, "seeds": (0, 7)} | exchange,
        measure={"probes": 0},
    )
    data = {name: Dataset(["text"] * 50, "") for name in (*names, plan_chains.PUBLIC)}
    weights, mixing = plan_chains.weights_of(s), plan_chains.mixing_of(s)
    return s, plan_chains.make_chains(s, data, weights, mixing)[0]


def plan_of(chain, generation, entity):
    key = chain_key(chain.seed)
    return on_host(index_plan(chain.workflow, key, generation, generations=4, entity=entity))


@pytest.mark.parametrize(
    "mixing, past",
    [("complete", 1), (((0.0, 0.5, 0.5), (0.2, 0.8, 0.0), (1.0, 0.0, 0.0)), None)],
)
def test_a_control_reads_row_by_row_what_its_setting_does_but_for_whose_text_it_is(mixing, past):
    _, chains = planned(mixing=mixing, past=past, alphas=(0.0, 0.3), betas=(0.5,), seeds=(7,))
    (_, chain), (control,) = plan_chains.exchanges(chains), plan_chains.controls(chains)
    others = 0
    for generation in range(4):
        for entity in range(3):
            ours, theirs = (plan_of(c, generation, entity) for c in (control, chain))
            for field in ("source", "generation", "position", "valid"):
                assert np.array_equal(getattr(ours, field), getattr(theirs, field))
            written = np.asarray(ours.source) == SYNTHETIC
            assert written.any() == (generation > 0)
            assert (np.asarray(ours.entity)[written] == entity).all()
            others += (np.asarray(theirs.entity)[written] != entity).sum()
            assert np.array_equal(ours.entity[~written], theirs.entity[~written])
    assert others > 0


def test_a_control_is_the_chain_of_a_self_only_study_and_changes_no_other():
    _, chains = planned()
    _, plain = planned(control=None)
    _, alone = planned(mixing="self_only")
    assert not plan_chains.controls(plain) and not plan_chains.controls(alone)
    assert [c.id for c in plan_chains.exchanges(chains)] == [c.id for c in plain]

    def without_names(chain):
        return dataclasses.replace(chain, id="x", factors=())

    assert [*map(without_names, plan_chains.exchanges(chains))] == [*map(without_names, plain)]
    by_setting = {c.factors: c for c in alone}
    controls = plan_chains.controls(chains)
    assert len(controls) == 12
    for control in controls:
        setting = tuple(pair for pair in control.factors if pair[0] != "mixing")
        assert without_names(control) == without_names(by_setting[setting])
        assert dict(control.factors)["mixing"] == "self_only" and control.seed in (0, 7)
    # The directory of a run without controls is what it was before there were any.
    assert [name for name, _ in plain[0].factors] == ["alpha", "beta", "seed"]


def test_where_nothing_of_others_is_read_there_is_no_control():
    for options in (
        {"names": ("one",)},
        {"mixing": ((1, 0, 0), (0, 1, 0), (0, 0, 1))},
        {"alphas": (0.0,)},
        # At generation 0 alpha is 0, whatever the list says.
        {"alphas": ((1, 0, 0, 0),)},
    ):
        assert not plan_chains.controls(planned(**options)[1])
    changing = planned(alphas=((0, 0, 0.5, 0),), betas=(0.5,))[1]
    assert len(plan_chains.controls(changing)) == 2


def test_what_controls_add_is_counted():
    s, chains = planned()
    count = plan_chains.distinct_count
    assert count(s, plan_chains.exchanges(chains)) == 2 * 7
    assert count(s, plan_chains.controls(chains)) == 2 * 4
    s, chains = planned(initial_beta=None)
    assert count(s, plan_chains.controls(chains)) == 2 * 6


# ---- both readings


def test_both_readings_of_the_effects():
    losses = made_up(control=True)
    chains = effects.by_chain(losses, alike(losses), NAMES)
    summary = effects.summary(effects.effects(chains, 2))
    table = summary.set_index(["effect", "against", "alpha", "beta"])["mean"]
    expected = {
        ("transfer", "alpha = 0"): 0.3,
        ("transfer", "own text"): 0.5,
        ("damage", "alpha = 0"): 0.1,
        ("damage", "own text"): -0.1,
        ("alike_outputs", "alpha = 0"): 0.2,
        ("alike_outputs", "own text"): 0.2,
    }
    for (effect, against), slope in expected.items():
        for alpha in (0.5, 1.0):
            found = table[effect, against, alpha, 0.5]
            assert found == pytest.approx(slope * alpha, abs=0.02), (effect, against)
    # Against each other the readings differ by what own text does to the control.
    ends = chains[(chains.generation == 2) & (chains.beta == 0.5)]
    own = ends[ends.control & (ends.alpha == 1.0)]["cross"].mean()
    none = ends[ends.alpha == 0]["cross"].mean()
    both = table["transfer", "own text", 1.0, 0.5] - table["transfer", "alpha = 0", 1.0, 0.5]
    assert both == pytest.approx(own - none)
    assert set(summary.against[summary.effect == "alike_since"]) == {"generation 0"}
    said = "\n".join(sentences.of_effects(summary))
    assert "Damage: the readings differ in 4 of 4 settings" in said
    assert "Transfer: both readings lie on the same side of 0 in all 4 settings" in said


# ---- the linear model


def scaled_rows(entities):
    private, public, synthetic = (np.sqrt(size) * np.eye(2) for size in (5.0, 7.0, 2.0))
    return linear.Designs((private,) * entities, public, (synthetic,) * entities)


@pytest.mark.parametrize("alpha, beta, k", [(0.4, 0.3, 4), (0.9, 0.9, 2), (0.1, 1.0, 3)])
def test_the_formula_of_transfer_is_the_difference_of_two_closed_forms(alpha, beta, k):
    found = isotropic.transfer(
        isotropic.Setting(
            entities=k, d=2, private=5, public=7, synthetic=2, alpha=alpha, beta=beta, sigma2=1.7
        )
    )
    designs, options = scaled_rows(k), {"beta": beta, "sigma2": 1.7}
    both = linear.limit(designs, np.ones(2), alpha=alpha, **options)
    own = linear.limit(designs, np.ones(2), alpha=alpha, mixing=np.eye(k), **options)
    none = linear.limit(designs, np.ones(2), alpha=0.0, **options)
    assert found.others == pytest.approx(own.mse[0] - both.mse[0], rel=1e-10)
    assert found.paper == pytest.approx(none.mse[0] - both.mse[0], rel=1e-9)
    assert found.own_text == pytest.approx(own.mse[0] - none.mse[0], rel=1e-9)
    # By the control, the others' text always helps here; the paper's reading has both signs.
    assert found.others > 0 and found.paper == pytest.approx(found.others - found.own_text)


def test_the_two_readings_have_different_signs_where_own_text_hurts_more():
    common = dict(entities=2, d=1, private=50, public=50, synthetic=1, beta=0.5)
    hurt = isotropic.transfer(isotropic.Setting(alpha=0.99, **common))
    assert hurt.paper < 0 < hurt.others
    alone = isotropic.transfer(isotropic.Setting(alpha=0.5, **common | {"entities": 1}))
    assert alone.others == pytest.approx(0, abs=1e-15) and alone.paper < 0
    nothing = isotropic.transfer(isotropic.Setting(alpha=0.0, **common))
    assert nothing == (0.0, 0.0, 0.0)


def test_transfer_of_the_linear_model_against_drawn_labels():
    """The closed form that the page shows beside the language models, by both readings, within 4.5
    standard errors of simulated chains: 12 comparisons, 1e-4 of false alarm.
    """
    s, chains = planned(alphas=(0.0, 0.6, 1.0), betas=(0.5,))
    s = s.model_copy(update={"theory": s.theory.model_copy(update={"designs": 1})})
    exchanged = linear_theory.curves(s, plan_chains.exchanges(chains), 4)
    controlled = linear_theory.curves(s, plan_chains.controls(chains), 4)
    transfer = sentences.linear_transfer(exchanged, controlled)
    (designs, theta), runs = linear_theory.designs_of(s)[0], 4000

    def cross(alpha, mixing=None):
        # Generation 0 has beta = 1 (exchange.initial_beta).
        hat = linear.simulate(
            designs,
            theta,
            alpha=alpha,
            beta=[1, 0.5, 0.5, 0.5],
            generations=3,
            mixing=mixing,
            replicates=runs,
            seed=3,
        )[:, -1]
        errors = np.stack([((hat - theta) @ x.T) ** 2 for x in designs.private], 2).sum(3)
        off = ~np.eye(3, dtype=bool)
        return errors[:, off].mean(1) / s.theory.rank

    for alpha in (0.6, 1.0):
        for against, base in (
            (effects.OWN_TEXT, cross(alpha, np.eye(3))),
            (effects.NO_EXCHANGE, cross(0.0)),
        ):
            drawn = base - cross(alpha)
            away = drawn.mean() - transfer[against][alpha, 0.5]
            assert abs(away) < 4.5 * drawn.std(ddof=1) / np.sqrt(runs), (alpha, against)
            assert drawn.std() > 0
