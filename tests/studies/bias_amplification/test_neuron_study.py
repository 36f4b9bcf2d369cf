"""Neuron tests against statsmodels, their null against simulation, and planted neurons against the
tables.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from jaxloop.studies.bias_amplification import neuron_exchange as exchange
from jaxloop.studies.bias_amplification import neuron_figures, neuron_summary
from jaxloop.studies.bias_amplification import neuron_regression as regression
from jaxloop.studies.bias_amplification.neuron_design import check_design, usable
from jaxloop.studies.bias_amplification.neuron_exchange import Rows
from jaxloop.studies.bias_amplification.neuron_null import RULES
from jaxloop.studies.bias_amplification.neuron_study import neuron_study
from jaxloop.studies.bias_amplification.neuron_tables import OVERLAP, hypergeometric

SETUPS, GENERATIONS = np.repeat([f"setup{i}" for i in range(6)], 11), np.tile(np.arange(11), 6)
# The same versions as one setup of six seeds, whose trajectories can change places.
SETUP, SEEDS = np.repeat("setup", 66), np.repeat(np.arange(6), 11)


def ar1(rng, shape, rho=0.95, series=6):
    """Independent AR(1) levels [66, *shape]: six setups of eleven generations."""
    steps = rng.standard_normal((series, 11, *shape))
    for t in range(1, 11):
        steps[:, t] += rho * steps[:, t - 1]
    return steps.reshape(series * 11, *shape)


def theirs(x, y, lags, series=None):
    """slope, standard error, t and p of statsmodels; with `series`, its Newey-West for panels,
    whose lags stay inside groups.
    """
    how = dict(cov_type="HAC", cov_kwds=dict(maxlags=lags))
    if series is not None:
        how = dict(
            cov_type="hac-panel",
            cov_kwds=dict(groups=series, maxlags=lags, use_correction=False, df_correction=False),
        )
    fit = sm.OLS(y, sm.add_constant(x)).fit(**how)
    return fit.params[1], fit.bse[1], fit.tvalues[1], fit.pvalues[1]


def against_statsmodels(x, y, lags, series, fit):
    for r, j in itertools.product(range(y.shape[1]), range(x.shape[1])):
        ours = [getattr(fit, name)[r, j] for name in ("slope", "se", "t", "p")]
        np.testing.assert_allclose(ours, theirs(x[:, j], y[:, r], lags, series), rtol=1e-8)


@pytest.mark.parametrize("lags", [0, 1, 4])
@pytest.mark.parametrize("panel", [False, True])
def test_regressions_equal_statsmodels(lags, panel):
    rng = np.random.default_rng(lags)
    x, y = (
        rng.standard_normal((60, 25)) * np.logspace(-6, 3, 25) + np.logspace(-5, 2, 25),
        rng.standard_normal((60, 2)) * [3.0, 0.06],
    )
    y[:, 0] += 2 * x[:, 3] / x[:, 3].std()
    series = np.repeat(np.arange(6), 10) if panel else None
    fit = regression.newey_west(x, y, series, lags=lags)
    against_statsmodels(x, y, lags, series, fit)
    np.testing.assert_allclose(fit.r, np.corrcoef(y.T, x.T)[:2, 2:], rtol=1e-9, atol=1e-12)
    assert jnp.zeros(1).dtype == jnp.float32  # 64-bit arithmetic ended with the call


@pytest.mark.slow
def test_all_regressions_of_the_paper_equal_statsmodels():
    rng = np.random.default_rng(0)
    x, y = (
        np.diff(ar1(rng, (9216,)).reshape(6, 11, -1), axis=1).reshape(60, -1),
        rng.standard_normal((60, 2)),
    )
    for table in (1e-3 * x, x + rng.standard_normal(x.shape)):  # weights and activations: 4 x 9,216
        against_statsmodels(
            table,
            y,
            1,
            np.repeat(np.arange(6), 10),
            regression.newey_west(table, y, np.repeat(np.arange(6), 10), lags=1),
        )


def test_lag_products_stay_inside_series():
    rng = np.random.default_rng(1)
    x, y, series = (
        rng.standard_normal((12, 3)),
        rng.standard_normal((12, 1)),
        np.repeat([0, 1, 2], [5, 4, 3]),
    )
    fit = regression.newey_west(x, y, series, lags=2)
    for j in range(3):
        xc, yc = x[:, j] - x[:, j].mean(), y[:, 0] - y[:, 0].mean()
        u = xc * (yc - fit.slope[0, j] * xc)
        pairs = [
            (t, s)
            for t in range(12)
            for s in range(12)
            if abs(t - s) <= 2 and series[t] == series[s]
        ]
        meat = sum((1 - abs(t - s) / 3) * u[t] * u[s] for t, s in pairs)
        np.testing.assert_allclose(fit.se[0, j], np.sqrt(meat) / (xc @ xc), rtol=1e-12)
    crossing = regression.newey_west(x, y, lags=2)
    assert np.abs(crossing.se / fit.se - 1).max() > 0.01
    np.testing.assert_allclose(
        regression.newey_west(x[:, ::-1], y, series, lags=2).se, fit.se[:, ::-1], rtol=1e-12
    )


def test_neurons_in_several_blocks_and_permutations_in_several_pieces(monkeypatch):
    rng = np.random.default_rng(2)
    x, y, series = (
        rng.standard_normal((20, 10)),
        rng.standard_normal((20, 2)),
        np.repeat([0, 1], 10),
    )
    whole = regression.newey_west(x, y, series, lags=1)
    drawn = rng.permuted(np.tile(y, (7, 1, 1)), axis=1)
    whole_null = np.concatenate(
        list(regression.null_statistics(x, drawn, series, lags=1, flat=whole.flat))
    )
    monkeypatch.setattr(regression, "BLOCK", 4)
    monkeypatch.setattr(regression, "MAX_NULL_VALUES", 60)
    parts = regression.newey_west(x, y, series, lags=1)
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    pieces = list(regression.null_statistics(x, drawn, series, lags=1, flat=whole.flat))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate(pieces), whole_null, rtol=1e-10)


@pytest.mark.parametrize("lags", [0, 1, 4])
def test_null_statistics_are_those_of_regressions_on_other_outcomes(lags):
    rng = np.random.default_rng(3)
    x, y, series = (
        rng.standard_normal((60, 25)),
        rng.standard_normal((60, 2)),
        np.repeat([0, 1, 2], [16, 20, 24]),
    )
    x[:, 5] = 2.0
    flat = regression.newey_west(x, y, series, lags=lags).flat
    drawn = rng.permuted(np.tile(y, (5, 1, 1)), axis=1)
    (null,) = regression.null_statistics(x, drawn, series, lags=lags, flat=flat)
    for b in range(5):
        np.testing.assert_allclose(
            null[b],
            regression.newey_west(x, drawn[b], series, lags=lags).t ** 2,
            rtol=1e-8,
            atol=1e-12,
        )


def small_study(rng=None, **changes):
    rng = rng or np.random.default_rng(4)
    tables = {"weight": 1e-3 * ar1(rng, (2, 20)), "activation": ar1(rng, (2, 20))}
    outcomes = {"bias": ar1(rng, ()), "quality": ar1(rng, ())}
    return tables, outcomes, dict(permutations=49, seeds=SEEDS) | changes


def test_the_tables_say_what_statsmodels_says():
    tables, outcomes, options = small_study()
    study = neuron_study(tables, outcomes, SETUP, GENERATIONS, **options)
    assert len(study.tests) == 3 * 4 * 40
    for (mode, kind, outcome), rows in study.tests.groupby(["mode", "neurons", "outcome"]):
        x, y = tables[kind].reshape(6, 11, 40), outcomes[outcome].reshape(6, 11)
        if mode != "levels":
            x, y = np.diff(x, axis=1), np.diff(y, axis=1)
        if mode == "deviations":
            x, y = x - x.mean(0, keepdims=True), y - y.mean(0, keepdims=True)
        groups = np.repeat(np.arange(6), x.shape[1])
        for row in rows.iloc[::7].itertuples():
            wanted = theirs(x[..., 20 * (row.layer - 1) + row.unit].ravel(), y.ravel(), 1, groups)
            np.testing.assert_allclose([row.slope, row.se, row.t, row.p], wanted, rtol=1e-8)
        assert rows["relation"].unique() == [f"{kind}-{outcome}"]
        np.testing.assert_array_equal(rows["bonferroni"], rows["p"] < 0.05 / 160)
        np.testing.assert_array_equal(rows["bh"], multipletests(rows["p"], 0.05, "fdr_bh")[0])
        found = study.counts[
            (study.counts["mode"] == mode) & (study.counts["relation"] == f"{kind}-{outcome}")
        ].set_index("rule")
        wanted = {
            "p<alpha": rows["p"] < 0.05,
            "bonferroni": rows["bonferroni"],
            "bh": rows["bh"],
            "permutation": rows["p_permutation"] < 0.05,
        }
        assert {rule: found.loc[rule, "observed"] for rule in wanted} == {
            rule: hit.sum() for rule, hit in wanted.items()
        }
        by_layer = study.layers[
            (study.layers["mode"] == mode)
            & (study.layers["relation"] == f"{kind}-{outcome}")
            & (study.layers["rule"] == "p<alpha")
        ]
        assert by_layer["significant"].tolist() == [
            int((rows["p"][rows["layer"] == i] < 0.05).sum()) for i in (1, 2)
        ]
    assert set(study.counts["nominal"].dropna().round(6)) == {2.0, round(40 * 0.05 / 160, 6)}
    assert (study.counts["tests"] == 40).all() and len(study.overlap) == 3 * 3 * 6


@pytest.mark.parametrize("mode", ["levels", "differences", "deviations"])
def test_the_null_of_the_counts_is_that_of_studies_of_other_arrangements(mode):
    tables, outcomes, options = small_study(modes=[mode], permutations=6, seed=5)
    rng = np.random.default_rng(6)
    tables["weight"] += 1e-3 * rng.uniform(0, 2, (2, 20)) * outcomes["bias"][:, None, None]
    study = neuron_study(tables, outcomes, SETUP, GENERATIONS, **options)
    y = np.stack(list(outcomes.values()), 1)
    rows = Rows(SETUP, SEEDS, GENERATIONS)
    drawn = exchange.draw(y, exchange.blocks(rows, "seeds"), "seeds", permutations=6, seed=5)
    counts, both, t2 = [], [], []
    for other in drawn:
        again = neuron_study(
            tables,
            dict(zip(outcomes, other.T)),
            SETUP,
            GENERATIONS,
            seeds=SEEDS,
            modes=[mode],
            permutations=0,
        )
        counts.append(again.counts.set_index(["relation", "rule"])["observed"])
        both.append(again.overlap["observed"])
        t2.append(again.tests["t"] ** 2)
    found = study.counts[study.counts["rule"].isin(RULES)].set_index(["relation", "rule"])
    null = pd.concat(counts, axis=1)
    np.testing.assert_allclose(found["null_mean"], null.mean(axis=1).loc[found.index])
    np.testing.assert_allclose(found["null_high"], null.quantile(0.95, axis=1).loc[found.index])
    np.testing.assert_allclose(
        found["p"], (1 + null.loc[found.index].ge(found["observed"], axis=0).sum(axis=1)) / 7
    )
    overlaps, shared = pd.concat(both, axis=1), study.overlap["observed"]
    np.testing.assert_allclose(study.overlap["null_mean"], overlaps.mean(axis=1))
    for name, beyond in (
        ("null_p", overlaps.ge(shared, axis=0)),
        ("null_p_fewer", overlaps.le(shared, axis=0)),
    ):
        np.testing.assert_allclose(study.overlap[name], (1 + beyond.sum(axis=1)) / 7)
    assert found["observed"].xs("bh", level="rule").max() > 5 or mode != "levels"
    t2, seen = pd.concat(t2, axis=1), study.tests["t"] ** 2
    np.testing.assert_allclose(
        study.tests["p_permutation"], (1 + t2.ge(seen, axis=0).sum(axis=1)) / 7
    )
    np.testing.assert_allclose(
        study.tests["p_familywise"], [(1 + (t2.max() >= s).sum()) / 7 for s in seen]
    )
    together = np.log(1 + t2).groupby(study.tests["relation"]).sum()
    as_large = together.ge(np.log(1 + seen).groupby(study.tests["relation"]).sum(), axis=0)
    p = study.counts.groupby("relation")["p_together"].first()
    np.testing.assert_allclose(p, ((1 + as_large.sum(axis=1)) / 7).loc[p.index])


def test_rows_may_come_in_any_order_and_gaps_break_series():
    tables, outcomes, options = small_study(lags=2, permutations=9)
    order = np.random.default_rng(7).permutation(66)
    kept = order[~((SETUPS[order] == "setup2") & (GENERATIONS[order] == 5))]
    take = lambda values: {name: v[kept] for name, v in values.items()}  # noqa: E731
    study = neuron_study(
        take(tables), take(outcomes), SETUPS[kept], GENERATIONS[kept], **options | {"seeds": None}
    )
    assert study.settings["differences"] == 58 and study.settings["versions"] == 65
    rows = study.tests[
        (study.tests["mode"] == "differences") & (study.tests["relation"] == "activation-bias")
    ]
    before = [
        i
        for i in range(66)
        if GENERATIONS[i] > 0 and not (SETUPS[i] == "setup2" and GENERATIONS[i] in (5, 6))
    ]
    groups = [
        f"{SETUPS[i]}{'b' if SETUPS[i] == 'setup2' and GENERATIONS[i] > 6 else ''}" for i in before
    ]
    groups = pd.factorize(np.array(groups))[0]
    for unit in (0, 11):
        x, y = tables["activation"][:, 0, unit], outcomes["bias"]
        dx, dy = (np.array([v[i] - v[i - 1] for i in before]) for v in (x, y))
        np.testing.assert_allclose(
            rows.iloc[unit][["slope", "se", "t", "p"]].astype(float),
            theirs(dx, dy, 2, groups),
            rtol=1e-8,
        )


def test_lags_across_setups_are_the_released_reading():
    tables, outcomes, _ = small_study()
    study = neuron_study(
        tables, outcomes, SETUPS, GENERATIONS, lags_cross=True, modes=["levels"], permutations=0
    )
    for unit in (0, 9):
        wanted = theirs(tables["weight"][:, 0, unit], outcomes["bias"], 1)
        np.testing.assert_allclose(
            study.tests.iloc[unit][["slope", "se", "t", "p"]].astype(float), wanted, rtol=1e-8
        )
    assert study.counts["null_mean"].isna().all() and study.tests["p_permutation"].isna().all()


def test_neurons_and_outcomes_without_variance_have_p_1_and_are_counted():
    tables, outcomes, options = small_study()
    tables["weight"][:, 0, 0] = 0.1
    tables["weight"][:, 0, 1] = 0.1 + GENERATIONS * 1e-3  # equal steps up to rounding
    outcomes["still"] = np.full(66, 100.0)
    study = neuron_study(tables, outcomes, SETUP, GENERATIONS, **options)
    tests, counts = (
        study.tests.set_index(["mode", "relation", "layer", "unit"]),
        study.counts.set_index(["mode", "relation", "rule"]),
    )
    for key in (
        ("differences", "weight-bias", 1, 0),
        ("differences", "weight-bias", 1, 1),
        ("levels", "weight-quality", 1, 0),
    ):
        row = tests.loc[key]
        assert (
            row["flat"]
            and not row["bh"]
            and (row["p"], row["t"], row["slope"], row["p_permutation"], row["p_familywise"])
            == (1, 0, 0, 1, 1)
        )
    assert not tests.loc[("levels", "weight-bias", 1, 1), "flat"]
    assert counts.loc[("differences", "weight-bias", "bh"), ["flat", "tests"]].tolist() == [2, 40]
    assert counts.loc[("levels", "weight-quality", "bh"), "flat"] == 1
    assert counts.loc[("differences", "activation-still", "bh"), ["flat", "observed"]].tolist() == [
        40,
        0,
    ]
    assert (study.tests[study.tests["outcome"] == "still"][["p", "p_permutation"]] == 1).all(
        axis=None
    )
    assert any("2 do not vary and have p = 1" in text for text in neuron_summary.sentences(study))


def planted():
    """400 neurons in 4 layers; 20 of layer 3 move with the bias, in weights and in activations."""
    rng = np.random.default_rng(11)
    tables, bias = (
        {"weight": ar1(rng, (4, 100)), "activation": ar1(rng, (4, 100))},
        3 * ar1(rng, ()),
    )
    for table in tables.values():
        table[:, 2, :20] += 1.0 * bias[:, None] * rng.choice([-1, 1], 20)
    outcomes = {"bias": bias, "quality": ar1(rng, ())}
    return neuron_study(tables, outcomes, SETUP, GENERATIONS, seeds=SEEDS, permutations=199)


@pytest.fixture(scope="module")
def found():
    return planted()


def test_planted_neurons_are_found(found):
    tests = found.tests[found.tests["mode"] == "differences"].set_index(
        ["relation", "layer", "unit"]
    )
    counts = found.counts[found.counts["mode"] == "differences"].set_index(["relation", "rule"])
    for relation in ("weight-bias", "activation-bias"):
        hits = tests.loc[relation]
        assert hits.loc[3].iloc[:20]["p_familywise"].lt(0.05).sum() >= 19
        assert hits["p_familywise"].lt(0.05).sum() <= 21
        assert hits.loc[3].iloc[:20]["bonferroni"].all() and hits.loc[3].iloc[:20]["bh"].all()
        # Two seeds that change places leave four where they were: such counts are as large.
        assert counts.loc[(relation, "bonferroni"), "p"] <= 15 / 720 + 0.01
        assert counts.loc[(relation, "bonferroni"), "null_high"] < 5
        assert counts.loc[(relation, "bonferroni"), "p_together"] == 1 / 200
        layers = found.layers[
            (found.layers["mode"] == "differences")
            & (found.layers["relation"] == relation)
            & (found.layers["rule"] == "bonferroni")
        ]
        assert layers["significant"].idxmax() == layers.index[2]
    for relation in ("weight-quality", "activation-quality"):
        assert (
            tests.loc[relation]["p_familywise"].ge(0.05).all()
            and counts.loc[(relation, "p<alpha"), "p_together"] > 0.05
        )
    overlap = found.overlap[
        (found.overlap["mode"] == "differences") & (found.overlap["rule"] == "bonferroni")
    ].set_index(["first", "second"])
    both = overlap.loc[("weight-bias", "activation-bias")]
    assert (
        both["observed"] >= 20
        and both["expected"] < 2
        and both["p_more"] < 1e-12
        and both["null_p"] <= 15 / 720 + 0.01
    )
    text = " ".join(neuron_summary.sentences(found))
    assert (
        "weight-bias, differences, 400 neurons" in text
        and "beyond what exchanged outcomes give" in text
        and "not told apart from" in text
    )


def test_overlap_against_the_papers_numbers_and_a_count_of_all_sets():
    released = hypergeometric(9216, 3243, 1033, 389)  # 363.5 expected, p = .042
    assert round(released.expected, 1) == 363.5 and round(released.p_more, 3) == 0.042
    sizes = [len({0, 1, 2} & set(second)) for second in itertools.combinations(range(7), 4)]
    for shared in range(4):
        law = hypergeometric(7, 3, 4, shared)
        np.testing.assert_allclose(
            [law.p_more, law.p_fewer],
            [np.mean(np.array(sizes) >= shared), np.mean(np.array(sizes) <= shared)],
        )
    with pytest.raises(ValueError, match="sets of 3 and 4 out of 7 neurons cannot share 4"):
        hypergeometric(7, 3, 4, 4)


def test_a_setup_has_a_chain_for_every_seed():
    tables, outcomes, options = small_study()
    order = np.random.default_rng(7).permutation(66)
    shuffled = lambda values: {name: v[order] for name, v in values.items()}  # noqa: E731
    setups = np.repeat(["a", "b", "c"], 22)[order]
    seeds = np.tile(np.repeat([0, 1], 11), 3)[order]
    options = options | {"seeds": seeds, "alpha": 0.9}
    study = neuron_study(
        shuffled(tables), shuffled(outcomes), setups, GENERATIONS[order], **options
    )
    chains = neuron_study(tables, outcomes, SETUPS, GENERATIONS, permutations=0)
    wanted = (study.settings[name] for name in ("setups", "seeds", "arrangements", "permutations"))
    assert tuple(wanted) == (3, 2, 2, 1) and study.settings["differences"] == 60
    for mode in ("differences", "levels"):
        mine, theirs = (s.tests[s.tests["mode"] == mode]["t"].to_numpy() for s in (study, chains))
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    assert set(study.tests["mode"]) == {"differences", "deviations", "levels"}


def test_tables_and_figures_are_written(found, tmp_path):
    paths = [p.name for p in neuron_summary.write(found, tmp_path)]
    assert paths == [
        "neurons_tests.parquet",
        "neurons_counts.csv",
        "neurons_overlap.csv",
        "neurons_layers.csv",
    ]
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / paths[0]), found.tests, check_dtype=False
    )
    for name in ("counts", "overlap", "layers"):
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / f"neurons_{name}.csv"), getattr(found, name), check_dtype=False
        )
    drawn = neuron_figures.write(found, tmp_path)
    assert [p.stem.removeprefix("neurons_") for p in drawn] == list(neuron_figures.CAPTIONS)
    assert all(p.read_bytes().startswith(b"\x89PNG") and p.stat().st_size > 5000 for p in drawn)
    # The correlations are those of levels, the marked dots those that pass in differences.
    axes = neuron_figures.figures(found)["correlations"].axes[0]
    marked = axes.lines[2].get_ydata()
    levels = found.tests[
        (found.tests["mode"] == "levels") & (found.tests["relation"] == "weight-bias")
    ].set_index(["layer", "unit"])["r"]
    passed = found.tests[
        (found.tests["mode"] == "differences") & (found.tests["relation"] == "weight-bias")
    ].set_index(["layer", "unit"])["bonferroni"]
    np.testing.assert_array_equal(np.sort(marked), np.sort(levels[passed]))


def test_a_study_of_one_kind_one_mode_and_no_permutations_is_drawn(tmp_path):
    tables, outcomes, _ = small_study()
    study = neuron_study(
        {"weight": tables["weight"]},
        {"bias": outcomes["bias"]},
        SETUPS,
        GENERATIONS,
        modes=["levels"],
        permutations=0,
    )
    assert (
        len(neuron_figures.write(study, tmp_path)) == 4
        and len(study.overlap) == 0
        and neuron_summary.write(study, tmp_path)
    )
    assert list(study.overlap.columns) == list(OVERLAP)
    assert not any("exchanged" in text for text in neuron_summary.sentences(study))
    with pytest.raises(ValueError, match="mode='differences': the study has levels"):
        neuron_figures.figures(study, "differences")


def test_setups_that_are_too_short_can_be_dropped():
    setups, generations = (
        np.array(["a"] * 4 + ["b"] * 2 + ["c"] * 4),
        np.array([0, 1, 2, 3, 0, 1, 0, 1, 3, 4]),
    )
    assert usable(setups, generations, lags=1).tolist() == [True] * 4 + [False] * 6
    assert usable(setups, generations, lags=0).all()
    assert not usable(["a"] * 3, [2, 0, 1], lags=1).any()  # two differences
    assert usable(["a", "b"] * 3, [2, 0, 1, 2, 0, 1], lags=1).all()
    with pytest.raises(
        ValueError,
        match="lags=1: setup 'b' has 2 generations in a row, that is 1 differences; more than "
        "lags are needed",
    ):
        check_design(setups, generations)
    design = check_design(setups, generations, lags=0)
    assert design.series.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3] and design.steps.tolist() == [
        1,
        2,
        3,
        5,
        7,
        9,
    ]


def broken(table, value):
    table = table.copy()
    table[3, 1, 2] = value
    return table


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda t, y: dict(lags=10),
            "lags=10: setup 'setup0' has 11 generations in a row, that is 10 differences; more "
            "than lags are needed",
        ),
        (lambda t, y: dict(lags=-1), "lags=-1: must be an integer of at least 0"),
        (lambda t, y: dict(lags=1.5), "lags=1.5: must be an integer"),
        (
            lambda t, y: dict(generations=[0] * 66),
            "versions: generation 0 of setup 'setup0' stands twice",
        ),
        (
            lambda t, y: dict(generations=GENERATIONS / 2),
            "generations are of type float64; integers are needed",
        ),
        (
            lambda t, y: dict(setups=["a"] * 5),
            r"setups and generations have shapes \(5,\) and \(66,\)",
        ),
        (
            lambda t, y: dict(neurons={"weight": t[:65]}),
            r"neurons 'weight' have shape \(65, 2, 20\); \[66, layers, coordinates\]",
        ),
        (
            lambda t, y: dict(neurons={"weight": broken(t, np.nan)}),
            "neurons 'weight': version 3 holds values that are not finite",
        ),
        (lambda t, y: dict(neurons={}), "neurons and outcomes: 0 and 1 are given"),
        (
            lambda t, y: dict(outcomes={"bias": y[:3]}),
            r"outcome 'bias' has shape \(3,\); one value for each of the 66 versions",
        ),
        (
            lambda t, y: dict(outcomes={"bias": np.where(np.arange(66) == 7, np.inf, y)}),
            "outcome 'bias': version 7 is not finite",
        ),
        (lambda t, y: dict(alpha=0), "alpha=0: must be between 0 and 1"),
        (
            lambda t, y: dict(modes=["ratios"]),
            r"modes=\['ratios'\]: allowed are differences, deviations, levels",
        ),
        (lambda t, y: dict(permutations=-1), "permutations=-1: must be an integer of at least 0"),
        (
            lambda t, y: dict(scheme="bootstrap"),
            "scheme='bootstrap': allowed are seeds, chains, signs",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, match):
    tables, outcomes, _ = small_study()
    given = dict(
        neurons={"weight": tables["weight"]},
        outcomes={"bias": outcomes["bias"]},
        setups=SETUPS,
        generations=GENERATIONS,
    )
    with pytest.raises(ValueError, match=match) as caught:
        neuron_study(**given | change(tables["weight"], outcomes["bias"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda x, y: regression.newey_west(x[:2], y[:2], lags=0),
            "x has 2 rows, a slope and a constant need at least 3",
        ),
        (
            lambda x, y: regression.newey_west(x, y[:5]),
            r"x, y and series have shapes \(9, 3\), \(5, 1\)",
        ),
        (
            lambda x, y: regression.newey_west(x, y, [0] * 4 + [1] * 5, lags=5),
            "lags=5: no series is longer than 5 rows",
        ),
        (
            lambda x, y: regression.newey_west(x * np.nan, y),
            "x holds 27 values that are not finite",
        ),
    ],
)
def test_regressions_refuse_what_they_cannot_fit(call, match):
    rng = np.random.default_rng(12)
    with pytest.raises(ValueError, match=match):
        call(rng.standard_normal((9, 3)), rng.standard_normal((9, 1)))


def test_three_differences_are_the_least():
    with pytest.raises(
        ValueError, match="versions: 2 differences in all; a slope and a constant need at least 3"
    ):
        check_design(["a", "a", "a"], [0, 1, 2], lags=0)
