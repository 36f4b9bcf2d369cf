"""What changes places in a neuron study: every arrangement counted by hand, and the whole path from
trajectories to the verdict under nulls that shuffling steps inside a chain takes for evidence.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from jaxloop.studies.bias_amplification import neuron_exchange as exchange
from jaxloop.studies.bias_amplification import neuron_summary
from jaxloop.studies.bias_amplification.neuron_exchange import Rows
from jaxloop.studies.bias_amplification.neuron_study import neuron_study

ALPHA = 0.05


def rows(setups, seeds, generations):
    setup, seed, generation = (
        column.ravel()
        for column in np.meshgrid(
            [f"setup{k}" for k in range(setups)],
            np.arange(seeds),
            np.arange(generations),
            indexing="ij",
        )
    )
    return Rows(setup, seed, generation)


@pytest.mark.parametrize(
    ("seeds", "scheme", "wanted"),
    [([4, 4], "seeds", 24), ([3, 2], "chains", 12), ([4, 4], "signs", 8), ([1], "seeds", 1)],
)
def test_all_arrangements_but_the_observed_one_are_drawn_once(seeds, scheme, wanted):
    assert exchange.arrangements(seeds, scheme) == wanted
    at = rows(len(seeds), max(seeds), 3)
    kept = (
        np.concatenate(
            [(at.setup == f"setup{k}") & (at.seed < count) for k, count in enumerate(seeds)]
        )
        .reshape(len(seeds), -1)
        .any(0)
    )
    at = Rows(*(column[kept] for column in at))
    rng = np.random.default_rng(0)
    y = rng.standard_normal((len(at.seed), 2))
    drawn = exchange.draw(y, exchange.blocks(at, scheme), scheme, permutations=23, seed=0)
    assert drawn.shape == (wanted - 1, *y.shape)
    everything = np.concatenate([y[None], drawn])
    assert len(np.unique(everything.round(9), axis=0)) == wanted


def test_whole_trajectories_go_to_another_seed_in_all_setups_at_once():
    at = rows(2, 5, 3)
    y = np.stack([at.seed * 100.0 + (at.setup == "setup1") * 10 + at.generation] * 2, 1)
    y[:, 1] += 0.5
    drawn = exchange.draw(y, exchange.blocks(at, "seeds"), "seeds", permutations=40, seed=1)
    assert len(drawn) == 40  # of 119
    np.testing.assert_array_equal(drawn[..., 1], drawn[..., 0] + 0.5)
    # Setup and generation stay; the seed is one and the same for all rows of a seed.
    np.testing.assert_array_equal(drawn[..., 0] % 100, np.broadcast_to(y[:, 0] % 100, (40, 30)))
    sources = (drawn[..., 0] // 100).reshape(40, 2, 5, 3)
    assert (sources == sources[:, :1, :, :1]).all()
    assert (np.sort(sources[:, 0, :, 0], 1) == np.arange(5)).all()
    apart = exchange.draw(y, exchange.blocks(at, "chains"), "chains", permutations=40, seed=1)
    sources = (apart[..., 0] // 100).reshape(40, 2, 5, 3)
    assert (sources == sources[..., :1]).all() and (sources[:, 0] != sources[:, 1]).any()


def test_signs_change_deviations_from_the_mean_over_seeds():
    at = rows(2, 4, 3)
    y = np.random.default_rng(2).standard_normal((24, 1)) + 10
    table = y[:, 0].reshape(2, 4, 3)
    drawn = exchange.draw(y, exchange.blocks(at, "signs"), "signs", permutations=99, seed=0)
    away = table - table.mean(1, keepdims=True)
    found = []
    for signs in itertools.product((1, -1), repeat=3):
        turned = np.array([1, *signs])[None, :, None] * away
        found.append(table.mean(1, keepdims=True) + turned - turned.mean(1, keepdims=True))
    np.testing.assert_allclose(drawn.reshape(7, 2, 4, 3), found[1:], atol=1e-12)


def test_deviations_have_no_course_in_time():
    at = rows(2, 3, 4)
    order = np.random.default_rng(3).permutation(24)
    at = Rows(*(column[order] for column in at))
    y = np.random.default_rng(4).standard_normal((24, 2))
    frame = pd.DataFrame(
        {"setup": at.setup, "generation": at.generation, "a": y[:, 0], "b": y[:, 1]}
    )
    means = frame.groupby(["setup", "generation"])[["a", "b"]].transform("mean").to_numpy()
    np.testing.assert_allclose(exchange.centred(y, at), y - means, atol=1e-14)


@pytest.mark.parametrize(
    ("setups", "scheme", "alpha", "needed"),
    [
        (6, "seeds", 0.05, 4),  # 24 arrangements
        (6, "seeds", 0.01, 5),
        (6, "signs", 0.05, 6),  # 32
        (6, "chains", 0.05, 2),  # 64
        (1, "chains", 0.05, 4),
    ],
)
def test_the_seeds_that_a_verdict_needs(setups, scheme, alpha, needed):
    assert exchange.needed_seeds(setups, scheme, alpha) == needed
    assert exchange.too_few([needed] * setups, scheme, alpha) is None
    assert f"at least {needed} seeds" in exchange.too_few([needed - 1] * setups, scheme, alpha)


def test_huge_designs_have_many_arrangements():
    assert exchange.arrangements([200] * 6, "seeds") == exchange.MANY
    assert exchange.arrangements([12], "seeds") == math.factorial(12)


def test_versions_are_cut_to_those_that_all_seeds_have():
    at = rows(2, 4, 5)
    whole = np.ones(40, bool)
    np.testing.assert_array_equal(exchange.balanced(*at), whole)
    # Seed 1 stopped in setup 1 after two generations: 4 x 7 versions are less than 3 x 10.
    lost = (at.seed == 1) & (at.setup == "setup1") & (at.generation > 1)
    left = Rows(*(column[~lost] for column in at))
    np.testing.assert_array_equal(exchange.balanced(*left), left.seed != 1)
    # One generation less costs the others one version each, a seed would cost ten.
    lost = (at.seed == 1) & (at.setup == "setup1") & (at.generation == 4)
    left = Rows(*(column[~lost] for column in at))
    cut = (left.setup == "setup1") & (left.generation == 4)
    np.testing.assert_array_equal(exchange.balanced(*left), ~cut)
    with pytest.raises(ValueError, match="seed 1 lacks generation 4 of setup 'setup1'"):
        exchange.blocks(left, "seeds")


# ---- the whole path

SHAPES = {"seeds": (3, 4), "signs": (3, 7), "chains": (3, 3)}
GENERATIONS, NEURONS = 6, 30


def trajectories(rng, null, setups, seeds, width, together):
    """Levels [setups, seeds, generations, width] that know nothing of others of their kind.

    together: how much of the steps the neurons of a model share.
    """
    steps = rng.standard_normal((setups, seeds, GENERATIONS - 1, width))
    steps += together * rng.standard_normal((setups, seeds, GENERATIONS - 1, 1))
    start = rng.standard_normal((setups, seeds, 1, width))
    step = np.arange(GENERATIONS - 1)[:, None]
    if null == "step sizes halve":
        steps *= 0.5**step
    elif null == "steps fall by 0.6":
        steps *= 0.6**step
    elif null == "generation 0 is shared":
        start = 3 * rng.standard_normal((1, seeds, 1, width)) + np.zeros_like(start)
        # What follows does not depend on where it began, so first steps of one seed correlate.
        steps[:, :, :1] += start.mean(0, keepdims=True) * -1
    elif null == "a course that all seeds share":
        steps += 2 * rng.standard_normal((setups, 1, GENERATIONS - 1, width))
    return np.concatenate([start, start + steps.cumsum(2)], 2)


def verdicts(rng, null, scheme, *, effect=0.0, together=0.7):
    """(a count is called beyond chance, a neuron is singled out) in differences and deviations."""
    setups, seeds = SHAPES[scheme]
    x, y = (trajectories(rng, null, setups, seeds, width, together) for width in (NEURONS, 1))
    x[..., : NEURONS // 3] += effect * y
    at = rows(setups, seeds, GENERATIONS)
    study = neuron_study(
        {"weight": x.reshape(-1, NEURONS)},
        {"bias": y.reshape(-1)},
        at.setup,
        at.generation,
        seeds=at.seed,
        modes=("differences", "deviations"),
        scheme=scheme,
        permutations=99,
        seed=int(rng.integers(1 << 30)),
    )
    words = neuron_summary.sentences(study)
    beyond = [
        any(f", {mode}, " in text and "; beyond what exchanged" in text for text in words)
        for mode in ("differences", "deviations")
    ]
    least = study.tests.groupby("mode")["p_familywise"].min()
    return [*beyond, *(least[["differences", "deviations"]] < ALPHA)]


NULLS = (
    "step sizes halve",
    "steps fall by 0.6",
    "generation 0 is shared",
    "a course that all seeds share",
)


def rate(null, scheme, studies, **options):
    rng = np.random.default_rng(7)
    return np.sum([verdicts(rng, null, scheme, **options) for _ in range(studies)], 0)


# One of each kind; all four, in more studies, in the slow suite.
@pytest.mark.parametrize("null", NULLS[1:])
def test_neurons_that_know_nothing_of_the_outcome_are_called_so(null):
    """At most 5 % of studies may say otherwise: of 60, more than the bound with probability 0.001.
    Shuffling steps inside chains said so in up to 92 %.
    """
    assert (rate(null, "seeds", 60) <= binom.isf(1e-3, 60, ALPHA)).all()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", exchange.SCHEMES)
@pytest.mark.parametrize("null", NULLS)
def test_every_scheme_keeps_its_level_in_many_studies(null, scheme):
    if scheme == "chains" and null == "generation 0 is shared":
        pytest.skip("refused: setups share a model, see the test of refusals")
    assert (rate(null, scheme, 500) <= binom.isf(1e-3, 500, ALPHA)).all()


def power(studies, together):
    """Share of studies that see a third of the neurons take up 1.5 of the outcome."""
    return rate("step sizes halve", "seeds", studies, effect=1.5, together=together) / studies


def test_a_real_effect_is_found():
    """With four seeds, and so 24 arrangements. Of 200 studies 0.995 and 1 called the neurons beyond
    chance (in differences, deviations), 0.98 and 0.97 singled one out; where the neurons of a model
    move together besides, 0.885 and 0.87, 0.955 and 0.94.
    """
    assert (power(20, 0.0) >= 0.85).all()
    assert (power(20, 0.7) >= 0.65).all()


# ---- refusals


def small(seeds, **options):
    at = rows(2, seeds, 5)
    rng = np.random.default_rng(9)
    return neuron_study(
        {"weight": rng.standard_normal((len(at.seed), 8))},
        {"bias": rng.standard_normal(len(at.seed))},
        at.setup,
        at.generation,
        seeds=at.seed,
        permutations=99,
        **options,
    )


def test_too_few_seeds_give_no_verdict_and_say_how_many_are_needed():
    study = small(3)
    assert study.counts[["null_mean", "p"]].isna().all(axis=None)
    assert study.tests[["p_permutation", "p_familywise"]].isna().all(axis=None)
    (word,) = [text for text in neuron_summary.sentences(study) if "No verdict" in text]
    assert word == (
        "No verdict on chance: 3 seeds give 6 arrangements (scheme 'seeds'), so that no p is below "
        "0.17; a permutation test at 0.05 needs at least 4 seeds in each setup."
    )
    assert not any("exchanged" in text for text in neuron_summary.sentences(study))
    alone = small(1)
    assert list(alone.settings["modes"]) == ["differences", "levels"]
    assert "1 seed gives 1 arrangement " in alone.settings["no_verdict"]
    assert small(3, alpha=0.2).settings["permutations"] == 5
    with pytest.raises(ValueError, match="deviations from the mean over seeds need at least two"):
        small(1, modes=["deviations"])


def test_setups_that_share_a_model_do_not_change_places_apart():
    at = rows(2, 4, 5)
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 4, 5, 8)), rng.standard_normal((2, 4, 5))
    x[1, 2, 0], y[1, 2, 0] = x[0, 2, 0], y[0, 2, 0]
    with pytest.raises(ValueError, match="setups 'setup0' and 'setup1' share a model of seed 2"):
        neuron_study(
            {"weight": x.reshape(40, 8)},
            {"bias": y.ravel()},
            at.setup,
            at.generation,
            seeds=at.seed,
            scheme="chains",
        )
