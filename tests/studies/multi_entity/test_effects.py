"""Effects with intervals against scipy, the linear model beside the study against its closed form,
and the paper's tables.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.workflow import exchange
from jaxloop.reporting import figures
from jaxloop.simulators import linear
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import effects as entities_effects
from jaxloop.studies.multi_entity import figures as entities_figures
from jaxloop.studies.multi_entity import linear_theory
from jaxloop.studies.multi_entity import report as entities_report
from jaxloop.studies.multi_entity import run as entities

NAMES = ("one", "two", "three")


def made_up(seeds=4, generations=3, control=False):
    """Losses of three models on their tasks and a public one: exchange takes 0.3 alpha off the
    others' tasks and adds 0.1 alpha to the own; the controls' own text adds 0.2 alpha to both.
    """
    rng, rows = np.random.default_rng(0), []
    for own, alpha, beta, seed, g in itertools.product(
        (False, True)[: 1 + control], (0.0, 0.5, 1.0), (0.5, 1.0), range(seeds), range(generations)
    ):
        if own and alpha == 0:
            continue
        for model, task in itertools.product(NAMES, (*NAMES, "public")):
            slope = 0.2 if own else 0.1 if model == task else -0.3
            value = 3 + (0 if g == 0 else alpha * slope) + 0.01 * rng.normal()
            common = {
                "chain": f"{alpha}-{beta}-{seed}" + "-own" * own,
                "alpha": alpha,
                "beta": beta,
                "control": own,
                "seed": seed,
                "generation": g,
            }
            rows.append(
                common | {"model": model, "task": task, "value": value, "own": model == task}
            )
    return pd.DataFrame(rows)


def alike(losses):
    """Output similarity that grows with alpha where entities read each other."""
    table = losses[entities_effects.KEYS].drop_duplicates()
    return pd.concat(
        [
            table.assign(
                set=name,
                value=0.4
                + 0.1 * (table["alpha"] * table["generation"]).where(~table["control"], 0),
            )
            for name in NAMES
        ]
    )


def test_effects_are_paired_and_their_intervals_are_scipys():
    losses = made_up()
    chains = entities_effects.by_chain(losses, alike(losses), NAMES)
    effects = entities_effects.effects(chains, 2)
    assert set(effects.against) == {"alpha = 0", "generation 0"}
    summary = entities_effects.summary(effects).set_index(["effect", "alpha", "beta"])
    assert summary.loc[("transfer", 1.0, 0.5), "mean"] == pytest.approx(0.3, abs=0.01)
    assert summary.loc[("damage", 0.5, 1.0), "mean"] == pytest.approx(0.05, abs=0.02)
    assert (
        summary.loc[("alike_outputs", 0.5, 0.5), "mean"] == pytest.approx(0.1)
        and ("transfer", 0.0, 0.5) not in summary.index
    )
    assert (
        summary.loc[("alike_since", 0.5, 0.5), "mean"] == pytest.approx(0.1)
        and summary.loc[("alike_since", 0.0, 0.5), "mean"] == 0
    )
    end = (
        losses[
            (losses.generation == 2)
            & (losses.beta == 0.5)
            & (losses.task != "public")
            & ~losses.own
        ]
        .groupby(["alpha", "seed"])["value"]
        .mean()
    )
    by_seed = (end[0.0] - end[1.0]).to_numpy()
    low, high = scipy.stats.t.interval(0.95, 3, by_seed.mean(), scipy.stats.sem(by_seed))
    row = summary.loc[("transfer", 1.0, 0.5)]
    np.testing.assert_allclose(
        [row["mean"], row["low"], row["high"]], [by_seed.mean(), low, high], rtol=1e-10
    )
    spread = (
        losses[(losses.generation == 0) & (losses.chain == "0.0-0.5-0") & (losses.task != "public")]
        .groupby("task")["value"]
        .std(ddof=0)
        .mean()
    )
    np.testing.assert_allclose(
        chains[(chains.chain == "0.0-0.5-0") & (chains.generation == 0)]["spread"], spread
    )
    # At alpha = 1 one of three models is 0.4 worse on every task, at alpha = 0 none is: the
    # standard deviation of (0.4, 0, 0).
    assert summary.loc[("alike_losses", 1.0, 0.5), "mean"] == pytest.approx(
        -0.4 * np.sqrt(2) / 3, abs=0.015
    )
    changed = entities_effects.changes(chains, "cross", 2).set_index(["alpha", "beta"])
    assert (
        changed.loc[(1.0, 1.0), "mean"] == pytest.approx(-0.3, abs=0.01)
        and (changed["n"] == 4).all()
    )


def test_a_chain_that_stopped_and_one_seed_leave_no_interval():
    losses = made_up(seeds=1)
    losses = losses[~((losses.alpha == 0.5) & (losses.generation == 2))]
    chains = entities_effects.by_chain(losses, pd.DataFrame(), NAMES)
    summary = entities_effects.summary(entities_effects.effects(chains, 2))
    assert (
        set(summary.alpha) == {0.0, 1.0}
        and summary.low.isna().all()
        and chains.similarity.isna().all()
    )
    assert entities_effects.interval([]) == pytest.approx((np.nan,) * 3 + (0,), nan_ok=True)
    assert entities_effects.interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


def test_a_mean_over_models_of_which_one_has_no_value_has_none():
    losses = made_up(seeds=2)
    at = (losses["chain"] == "1.0-0.5-1") & (losses["generation"] == 2)
    losses.loc[at & (losses["model"] == "two") & (losses["task"] == "one"), "value"] = np.nan
    chains = entities_effects.by_chain(losses, alike(losses), NAMES).set_index(
        ["chain", "generation"]
    )
    row = chains.loc[("1.0-0.5-1", 2)]
    assert np.isnan(row[["cross", "spread"]].to_numpy(float)).all()
    assert np.isfinite(row[["own", "public", "similarity"]].to_numpy(float)).all()
    others = chains.drop(("1.0-0.5-1", 2))
    assert others[["own", "cross", "spread"]].notna().all(axis=None)
    keys = losses[entities_effects.KEYS].drop_duplicates()
    texts = pd.concat([keys.assign(entity=k, metric="kl_entropy", value=1.0) for k in range(3)])
    texts.iloc[0, texts.columns.get_loc("value")] = np.nan
    curves = entities_report.curves(texts, chains.reset_index(), "all")
    entropies = curves[curves["metric"] == "kl_entropy"]["value"].to_numpy()
    assert np.isnan(entropies[0]) and (entropies[1:] == 1).all()


def test_the_papers_tables():
    own, cross = (
        entities_effects.paper_changes("Llama 3.2 1B, K = 2", flag) for flag in (True, False)
    )
    assert own[0.0, 0.0] == pytest.approx(((4.5 - 2.8) + (2.0 - 1.2)) / 2) and cross[
        0.5, 1.0
    ] == pytest.approx(((1.3 - 2.0) + (2.9 - 3.7)) / 2)
    three = entities_effects.PAPER["OPT-350m, K = 3"]
    assert len(three) == 9 and all(
        len(row) == 10 for table in entities_effects.PAPER.values() for row in table.values()
    )
    # By these tables beta = 1 does as well at alpha = 1/2 as beta = 1/2 does.
    assert own[0.5, 1.0] <= own[0.5, 0.5] and cross[0.5, 1.0] <= cross[0.5, 0.5]


# ---- theory


def study(
    mixing="complete",
    names=NAMES,
    initial_beta=None,
    pairs=((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 0.5)),
    grid=9,
):
    """(settings, something prepared) of a study whose data are never read."""
    s = entities.CONFIG(
        entities=names,
        tasks={n: {"task": "qa"} for n in names},
        exchange={"mixing": mixing, "initial_beta": initial_beta},
        theory={"designs": 3, "grid": grid},
    )
    matrix = plan_chains.mixing_of(s)
    common = {
        "private": (5,) * len(names),
        "public": 5,
        "synthetic": 3,
        "mixing": matrix,
        "initial_beta": initial_beta,
    }
    chains = [
        ChainSpec(
            f"c{i}",
            exchange(8, alpha=a, beta=b, **common),
            names,
            0,
            ("base",),
            draw_base=False,
            public="public",
            factors=(("alpha", a), ("beta", b)),
        )
        for i, (a, b) in enumerate(pairs)
    ]
    return s, SimpleNamespace(chains=chains, mixing=matrix)


def test_the_linear_models_curves_are_the_closed_form_of_the_same_weights():
    s, prepared = study()
    found = linear_theory.curves(s, prepared.chains, 5)
    for (alpha, beta), curve in found.items():
        moments = [
            linear.closed_form(d, theta, alpha=alpha, beta=beta, generations=4)
            for d, theta in linear_theory.designs_of(s)
        ]
        # At alpha = 1 no real data are read after generation 0, whatever beta is.
        own = np.mean([np.einsum("tkk->tk", m.mspe).mean(1) for m in moments], axis=0) / 5
        np.testing.assert_allclose(curve.own, own, rtol=1e-8)
        np.testing.assert_allclose(
            curve.disagreement,
            np.mean([m.disagreement for m in moments], axis=0),
            rtol=1e-8,
            atol=1e-12,
        )
        assert curve.radius == pytest.approx(np.mean([m.spectral_radius for m in moments]))
    assert found[0.0, 0.5].radius == 0 and found[1.0, 0.5].radius == pytest.approx(1)
    assert found[0.5, 0.5].without_limit == 0 and found[1.0, 0.5].without_limit == 3
    assert (
        found[0.5, 0.5].disagreement[-1] < found[0.0, 0.5].disagreement[-1]
        and found[0.5, 0.5].cross[-1] < found[0.0, 0.5].cross[-1]
    )


def test_generation_zero_has_its_own_beta_in_the_linear_model_too():
    s, prepared = study(initial_beta=1.0)
    found = linear_theory.curves(s, prepared.chains, 4)
    starts = {key: curve.own[0] for key, curve in found.items()}
    assert len({round(v, 9) for v in starts.values()}) == 1
    design, theta = linear_theory.designs_of(s)[0]
    moments = linear.closed_form(design, theta, alpha=0.5, beta=[1, 0.5, 0.5, 0.5], generations=3)
    one = linear_theory.curves(
        s.model_copy(update={"theory": s.theory.model_copy(update={"designs": 1})}),
        prepared.chains,
        4,
    )
    np.testing.assert_allclose(
        one[0.5, 0.5].own, np.einsum("tkk->tk", moments.mspe).mean(1) / 5, rtol=1e-8
    )


def test_whom_entities_read_reaches_the_linear_model():
    (s, one), (_, other) = study("self_only"), study("ring")
    alone, ring = (linear_theory.curves(s, some.chains, 5) for some in (one, other))
    np.testing.assert_allclose(alone[0.0, 0.5].cross, ring[0.0, 0.5].cross)
    assert alone[0.5, 0.5].disagreement[-1] > ring[0.5, 0.5].disagreement[-1]


def test_the_fine_grid_beats_the_coarse_one():
    s, prepared = study(grid=15)
    found = linear_theory.surface(s, prepared)
    score = np.mean(
        [
            linear.sweep(
                d, theta, alpha=[found.best[0]], beta=[found.best[1]]
            ).relative_efficiency.mean()
            for d, theta in linear_theory.designs_of(s)
        ]
    )
    assert found.best[2] == pytest.approx(score, rel=1e-6) and found.best[2] > found.coarse[2]
    assert found.efficiency.shape == (15, 15) and np.nanmax(found.efficiency) == found.best[2]


def test_agreement_of_ranks():
    assert (
        linear_theory.agreement([1, 2, 3, 4], [10, 20, 30, 40])[0] == 1
        and linear_theory.agreement([1, 2, 3, 4], [4, 3, 2, 1])[0] == -1
    )
    assert linear_theory.agreement([1, 2, np.nan, 4], [1, 2, 3, 4])[2] == 3
    noisy = [1.0, 2.0, 2.0 + 1e-12, 2.0 - 1e-12, -3.0]
    assert linear_theory.agreement(noisy, [1, 2, 2, 2, -3])[0] == pytest.approx(
        scipy.stats.kendalltau([1, 2, 2, 2, -3], [1, 2, 2, 2, -3]).statistic
    )
    assert np.isnan(linear_theory.agreement([1, 1, 1], [1, 2, 3])[0]) and np.isnan(
        linear_theory.agreement([1, 2], [1, 2])[0]
    )


def test_alpha_one_is_one_setting_where_generation_zero_is_shared():
    values = {(0.5, 0.0): 1.0, (1.0, 0.0): 2.0, (1.0, 0.5): 4.0}
    assert linear_theory.distinct(study(initial_beta=1.0)[0], values) == {
        (0.5, 0.0): 1.0,
        (1.0, None): 3.0,
    }
    assert linear_theory.distinct(study()[0], values) == values


def test_figures_of_settings_that_are_lists():
    def listed(table):
        return table.assign(
            alpha=table["alpha"].map({0.0: "[0, 0]", 0.5: "[0, 0.5]", 1.0: "[0, 1]"})
        )

    losses, similarity = listed(made_up(seeds=2)), listed(alike(made_up(seeds=2)))
    chains = entities_effects.by_chain(losses, similarity, NAMES)
    summary = entities_effects.summary(entities_effects.effects(chains, 2))
    for figure in (
        entities_figures.effects(summary),
        entities_figures.matrix(losses, NAMES, [*NAMES, "public"]),
    ):
        assert figures.png(figure).startswith(b"\x89PNG") and figures.svg(figure, "x").startswith(
            "<svg"
        )
