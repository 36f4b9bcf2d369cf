"""Transfer as a share of the gap, over tasks that are read and that are not: losses that are known,
and the linear model against its closed form.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxloop.api.runs import load_config
from jaxloop.config import catalogue
from jaxloop.core.mixing import complete, self_only
from jaxloop.reporting.figures import png
from jaxloop.results import expectations
from jaxloop.simulators import linear
from jaxloop.studies.multi_entity import effects, figures, linear_theory, sentences, theory_section
from tests.studies.multi_entity.test_control import planned
from tests.studies.multi_entity.test_effects import NAMES, alike, made_up

# One reads two, two reads three, three reads one.
CIRCLE = ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5))
FOUR = ("one", "two", "three", "four")
SHIPPED = catalogue.shipped().parent / "docs/results/expectations"


def test_transfer_and_its_share_over_tasks_that_are_read_and_that_are_not():
    """Losses on others' tasks are 1 above those on the own; exchange takes 0.3 alpha off, and 0.2
    alpha more where the text is read.
    """
    losses = made_up()
    read = [
        NAMES.index(k) == (NAMES.index(m) - 1) % 3 if m in NAMES else False
        for k, m in zip(losses["model"], losses["task"], strict=True)
    ]
    later = losses["generation"] > 0
    losses["value"] += 1.0 * ~losses["own"] - 0.2 * losses["alpha"] * (np.array(read) & later)
    chains = effects.by_chain(losses, alike(losses), NAMES, CIRCLE)
    np.testing.assert_allclose(chains["cross"], (chains["read"] + chains["unread"]) / 2)
    table = effects.summary(effects.effects(chains, 2)).set_index(["effect", "alpha", "beta"])
    for alpha in (0.5, 1.0):
        expected = {
            "transfer": 0.4,
            "transfer_read": 0.5,
            "transfer_unread": 0.3,
            "transfer_nearer": 0.2,
        }
        for effect, slope in expected.items():
            found = table.loc[(effect, alpha, 0.5), "mean"]
            assert found == pytest.approx(slope * alpha, abs=0.02), effect
            share = effect.replace("transfer", "transfer_share")
            if effect != "transfer_nearer":
                assert table.loc[(share, alpha, 0.5), "mean"] == pytest.approx(found, abs=0.02)
    # A gap half as wide is closed by twice the share.
    losses["value"] -= 0.5 * ~losses["own"]
    half = effects.by_chain(losses, alike(losses), NAMES, CIRCLE)
    half = effects.summary(effects.effects(half, 2)).set_index(["effect", "alpha", "beta"])
    assert half.loc[("transfer_share", 1.0, 0.5), "mean"] == pytest.approx(0.8, abs=0.04)


def test_a_setting_with_a_seed_without_a_gap_has_no_share():
    """Neither of that seed, a ratio to almost nothing, nor of the others, which were chosen."""
    losses = made_up()
    losses["value"] += 1.0 * ~losses["own"]
    lost = (losses["seed"] == 2) & (losses["alpha"] == 0) & (losses["beta"] == 0.5)
    losses.loc[lost & ~losses["own"], "value"] -= 1.1
    table = effects.effects(effects.by_chain(losses, alike(losses), NAMES), 2)
    shares = table[table["effect"] == "transfer_share"].set_index(["beta", "seed"])["value"]
    assert shares[0.5].isna().all() and shares[1.0].notna().all()
    assert table.loc[table["effect"] == "transfer", "value"].notna().all()
    found = effects.summary(table).set_index(["effect", "alpha", "beta"])["n"]
    assert found["transfer_share", 1.0, 0.5] == 0 and found["transfer_share", 1.0, 1.0] == 4
    assert np.isnan(effects.share(1.0, 1.0 - 1e-15, 0.5)) and np.isnan(effects.share(1.0, 2.0, 0.5))


@pytest.mark.parametrize("mixing", [(), complete(3), self_only(3)])
def test_where_all_are_read_or_none_there_is_one_transfer(mixing):
    assert not effects.unread_pairs(mixing)
    losses = made_up(seeds=1)
    chains = effects.by_chain(losses, pd.DataFrame(), NAMES, mixing)
    assert not {"read", "unread"} & set(chains)
    assert not any(name.endswith("read") for name in effects.effects(chains, 2)["effect"])
    assert np.isnan(effects.share(1.0, 1.0, 0.5))


def test_shares_of_the_linear_model_are_those_of_its_closed_form():
    s, chains = planned(FOUR, mixing="ring", alphas=(0.0, 0.6), betas=(0.5,), control=None)
    mixing = chains[0].workflow.mixing
    curves = linear_theory.curves(s, chains, 4, mixing)
    shares = sentences.linear_shares(curves, {})
    far = [(0, 2), (1, 3), (2, 0), (3, 1)]
    assert effects.unread_pairs(mixing) == frozenset(far)
    errors = {}
    for alpha in (0.0, 0.6):
        errors[alpha] = np.mean(
            [
                linear.closed_form(
                    d, theta, alpha=alpha, beta=[1, 0.5, 0.5, 0.5], generations=3, mixing=mixing
                ).mspe[-1]
                for d, theta in linear_theory.designs_of(s)
            ],
            axis=0,
        )
    others = [(k, m) for k in range(4) for m in range(4) if k != m]
    own = np.trace(errors[0.0]) / 4
    for effect, pairs in (
        ("transfer_share", others),
        ("transfer_share_read", [pair for pair in others if pair not in far]),
        ("transfer_share_unread", far),
    ):
        before, after = (np.mean([errors[a][pair] for pair in pairs]) for a in (0.0, 0.6))
        expected = (before - after) / (before - own)
        found = shares[effect, effects.NO_EXCHANGE][0.6, 0.5]
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.isnan(shares["transfer_share", effects.OWN_TEXT][0.6, 0.5])


def test_the_figure_has_a_panel_for_every_share_and_draws_what_was_predicted():
    s, chains = planned(FOUR[:3], mixing=CIRCLE, alphas=(0.0, 0.5, 1.0), betas=(0.5, 1.0))
    shares = sentences.linear_shares(linear_theory.curves(s, chains, 3, CIRCLE), {})
    losses = made_up()
    losses["value"] += 1.0 * ~losses["own"]
    summary = effects.summary(
        effects.effects(effects.by_chain(losses, alike(losses), NAMES, CIRCLE), 2)
    )
    figure = figures.shares(summary, shares)
    assert len(figure.axes) == 3
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2 and png(figure)
    drawn = {float(x): float(y) for x, y in zip(*dashed[0].get_data(), strict=True)}
    expected = shares["transfer_share", effects.NO_EXCHANGE]
    assert drawn == {a: expected[a, 0.5] for a in (0.5, 1.0)}


def test_no_share_is_drawn_without_private_text_and_the_legend_lies_inside():
    betas = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [
        dict(
            effect="transfer_share", against="alpha = 0", alpha=a, beta=b, mean=5.0 if b == 0 else b
        )
        for a in (0.5, 1.0)
        for b in betas
    ]
    table = pd.DataFrame(rows).assign(low=lambda t: t["mean"], high=lambda t: t["mean"], n=3)
    predicted = {("transfer_share", "alpha = 0"): {(r["alpha"], r["beta"]): 1.0 for r in rows}}
    figure = figures.shares(table, predicted)
    assert max(max(line.get_ydata()) for line in figure.axes[0].lines) == 1.0
    png(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"β {b:g}" for b in betas[1:]]
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_ranks_of_transfer_are_over_every_beta_it_is_held_against(tmp_path, monkeypatch):
    """At alpha = 1 beta has no part in losses, but in those at alpha = 0 it has."""
    s, chains = planned(
        FOUR[:3], mixing=CIRCLE, alphas=(0.0, 0.5, 1.0), betas=(0.5, 1.0), initial_beta=1.0
    )
    at = {(a, b): np.array([1.0, 1 + a + b]) for a in (0.0, 0.5, 1.0) for b in (0.5, 1.0)}
    known = {key: linear_theory.Curves(x, 2 * x, x, 0.5, 0) for key, x in at.items()}
    monkeypatch.setattr(linear_theory, "curves", lambda s, some, *_: known if some else {})
    monkeypatch.setattr(linear_theory, "surface", lambda *_: None)
    losses = effects.by_chain(made_up(), alike(made_up()), NAMES, CIRCLE)
    summary = effects.summary(effects.effects(losses, 2))
    prepared = SimpleNamespace(chains=chains, mixing=CIRCLE)
    section = theory_section.linear(s, prepared, tmp_path, losses, summary, 2)
    ranks = next(table for table in section.tables if table.title == "Agreement of ranks")
    settings = {row[0]: row[-1] for row in ranks.rows}
    assert settings["transfer against alpha = 0 / the same in errors"] == 4
    assert settings["loss on own tasks / error on own tasks"] == 5
    assert ranks.note.endswith("but in transfer against alpha = 0 at the same beta")


def test_claims_name_effects_of_runs_that_are_shipped():
    expected = expectations.read(SHIPPED / "entities.toml")
    sizes = {}
    for name in expected.runs:
        settings = load_config(f"multi_entity:{name}_small")
        sizes[name] = len(settings.entities)
        assert (settings.exchange.mixing == "ring") == (name == "ring")
    assert sizes == {"two": 2, "three": 3, "five": 5, "ring": 5}
    for claim in expected.claims:
        effect = claim.measure["where"]["effect"].removesuffix("_own_text")
        assert effect in figures.TITLES and claim.measure["run"] in sizes
