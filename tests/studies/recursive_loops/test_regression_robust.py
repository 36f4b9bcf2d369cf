"""Overlap, errors that know it, bootstrap, many tests, equivalence and power: against statsmodels,
scipy and plain counting.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.power import TTestPower

from jaxloop.studies.recursive_loops.analysis import (
    findings_regression,
    power,
    regression_robust,
    regression_tables,
)
from jaxloop.studies.recursive_loops.analysis import overlap as ov
from jaxloop.studies.recursive_loops.analysis import regression as rg
from jaxloop.studies.recursive_loops.data import cluster_choice
from tests.studies.recursive_loops import planted

MEMBERS = {"a": [0, 1, 2, 3], "b": [2, 3, 4], "c": [9], "d": [0, 1, 2, 3, 4]}


@pytest.fixture
def members():
    return pd.DataFrame(
        [("web", name, row) for name, rows in MEMBERS.items() for row in rows] + [("wiki", "a", 0)],
        columns=["dataset", "cluster", "row"],
    )


def test_overlap_by_counting(members):
    found = ov.from_members(pd.concat([members, members[:2]]))  # a repeated line counts once
    assert list(found) == ["web", "wiki"] and found["web"].names == tuple("abcd")
    sets = [set(v) for v in MEMBERS.values()]
    shared = np.array([[len(p & q) for q in sets] for p in sets])
    np.testing.assert_array_equal(found["web"].shared, shared)
    np.testing.assert_allclose(
        found["web"].jaccard, [[len(p & q) / len(p | q) for q in sets] for p in sets]
    )
    np.testing.assert_allclose(
        found["web"].cosine, [[len(p & q) / np.sqrt(len(p) * len(q)) for q in sets] for p in sets]
    )
    texts = found["web"].texts
    np.testing.assert_allclose(
        texts / texts[0, 0], [[len(p & q) / (len(p) * len(q)) * 4 for q in sets] for p in sets]
    )
    assert np.diag(texts).mean() == pytest.approx(1) and np.linalg.eigvalsh(texts).min() > -1e-12
    assert (
        np.diag(found["web"].neighbours) == pytest.approx(1)
        and np.linalg.eigvalsh(found["web"].neighbours).min() > -1e-12
    )


def test_overlap_from_pairs_and_from_clusterings(members):
    from_members = ov.from_members(members)["web"]
    sizes = {k: len(v) for k, v in MEMBERS.items()}
    pairs = [
        ("web", a, b, len(set(MEMBERS[a]) & set(MEMBERS[b])), sizes[a], sizes[b])
        for a in MEMBERS
        for b in MEMBERS
        if a < b
    ]
    from_pairs = ov.from_pairs(
        pd.DataFrame(
            pairs, columns=["dataset", "cluster_a", "cluster_b", "shared", "size_a", "size_b"]
        )
    )["web"]
    np.testing.assert_array_equal(from_pairs.shared, from_members.shared)
    labels = {"one": np.array([0, 0, 1, 1, 1]), "two": np.array([0, 1, 0, 1, 1])}
    clusters = [
        cluster_choice.Cluster("one", "direct", (1,), 3),
        cluster_choice.Cluster("two", "direct", (1,), 3),
    ]
    rows = [
        ("web", c.name, row)
        for c in clusters
        for row in cluster_choice.members(c, labels[c.clustering])
    ]
    mine = ov.from_members(pd.DataFrame(rows, columns=["dataset", "cluster", "row"]))["web"]
    np.testing.assert_allclose(mine.jaccard, cluster_choice.jaccard(clusters, labels))


def test_kernel_between_chains(members):
    found = ov.from_members(members)
    k = ov.kernel(
        ["web", "web", "wiki", "web", "web"], ["a", "b", "a", "a", "unknown"], found, "cosine"
    )
    assert k[0, 3] == 1 and k[0, 2] == 0 and k[0, 4] == 0 and k[4, 4] == 1
    assert k[0, 1] == pytest.approx(2 / np.sqrt(12))
    np.testing.assert_array_equal(ov.kernel(["x", "x"], ["1", "2"], {}), np.eye(2))
    np.testing.assert_array_equal(ov.groups(k, 0.5), ov.groups(k, 0.5)[[3, 1, 2, 0, 4]])
    assert len(set(ov.groups(k, 0.5))) == 3 and len(set(ov.groups(k, 0.99))) == 4
    with pytest.raises(ValueError, match=r"^at=1.5: must lie in \(0, 1\)$"):
        ov.groups(k, 1.5)


@pytest.fixture(scope="module")
def grouped():
    """24 chains in 8 groups of three, whose errors have a part in common."""
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(8), 3)
    x = pd.DataFrame(rng.normal(size=(24, 2)) + rng.normal(size=(8, 2))[group], columns=["a", "b"])
    y = 1 + 0.3 * x["a"] + rng.normal(size=24) + rng.normal(size=8)[group]
    return x, y.to_numpy(), group, (group[:, None] == group[None]).astype(float)


def test_every_point_of_the_grid_is_generalised_least_squares(grouped):
    x, y, _, kernel = grouped
    design = np.column_stack([rg.standardise(x), np.ones(24)])
    found = ov.mixture(design, y[:, None], [kernel])
    for h, w in enumerate(ov.grid(1)):
        gls = sm.GLS(y, design, sigma=w[0] * np.eye(24) + w[1] * kernel).fit()
        np.testing.assert_allclose(found.centres[h, :, 0], gls.params, rtol=1e-8)
        np.testing.assert_allclose(found.scales[h, :, 0], gls.bse, rtol=1e-8)
    assert found.df == 21 and found.weights.sum() == pytest.approx(1)


def test_the_likeliest_weight_is_that_of_a_mixed_model(grouped):
    x, y, group, kernel = grouped
    design = np.column_stack([rg.standardise(x), np.ones(24)])
    model = sm.MixedLM(y, design, group).fit(reml=True)
    share = float(model.cov_re[0, 0] / (model.cov_re[0, 0] + model.scale))
    weights = ov.mixture(design, y[:, None], [kernel]).weights[:, 0]
    assert abs(ov.grid(1)[weights.argmax(), 1] - share) <= 0.02 + 1e-6  # half a cell of the grid


def test_without_overlap_the_errors_are_classical(grouped):
    x, y, _, _ = grouped
    classical, (aware, posterior) = rg.fit_ols(y, x), ov.fit_overlap(y, x, [np.eye(24)])
    for name in ("coefficient", "p", "low", "high"):
        np.testing.assert_allclose(
            aware.coefficients[name], classical.coefficients[name], rtol=1e-6
        )
    np.testing.assert_allclose(
        posterior.below(classical.coefficients["low"].to_numpy().tolist()[0])[0, 0],
        0.025,
        rtol=1e-6,
    )


@pytest.mark.parametrize("kernels", [1, 2, 3, 4])
def test_grids_cover_the_simplex(kernels):
    weights = ov.grid(kernels)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights > 0).all() and len(np.unique(weights, axis=0)) == len(weights)
    np.testing.assert_allclose(weights.mean(0), 1 / (kernels + 1), atol=0.07)


# ---- bootstrap


def test_bootstrap_of_single_chains_has_the_robust_errors():
    rng = np.random.default_rng(5)
    x = pd.DataFrame(rng.normal(size=(300, 2)), columns=["a", "b"])
    y = x["a"] * 0.2 + rng.normal(size=300) * (1 + x["b"].abs())
    robust = sm.OLS(y, sm.add_constant(rg.standardise(x))).fit(cov_type="HC1")
    found = regression_robust.fit_bootstrap(y, x, np.arange(300), draws=4000)
    np.testing.assert_allclose(
        found["se"], robust.bse[1:], rtol=0.08
    )  # 4000 draws give se to 1 %; the rest is the bootstrap's own
    np.testing.assert_allclose(found["coefficient"], robust.params[1:], rtol=1e-9)
    np.testing.assert_allclose(
        found[["low", "high"]], robust.conf_int()[1:], atol=0.2 * robust.bse[1:].max()
    )


def test_bootstrap_draws_whole_groups():
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(60), 3)
    x = pd.DataFrame(
        rng.normal(size=(60, 2))[group] + 0.1 * rng.normal(size=(180, 2)), columns=["a", "b"]
    )
    y = rng.normal(size=180) * 0.3 + rng.normal(size=60)[group]
    clustered = sm.OLS(y, sm.add_constant(rg.standardise(x))).fit(
        cov_type="cluster", cov_kwds={"groups": group}
    )
    found = regression_robust.fit_bootstrap(y, x, [f"g{g}" for g in group], draws=4000, shown=["b"])
    assert found["term"].tolist() == ["b"]
    assert found["se"][0] == pytest.approx(clustered.bse.iloc[2], rel=0.12)
    assert found["se"][0] > 1.4 * sm.OLS(y, sm.add_constant(rg.standardise(x))).fit().bse.iloc[2]


def test_bootstrap_needs_groups(grouped):
    x, y, group, _ = grouped
    with pytest.raises(
        ValueError,
        match="^the fit has 3 groups of overlapping clusters for 2 predictors, a bootstrap needs "
        "at least 4$",
    ):
        regression_robust.fit_bootstrap(y, x, group // 3)


# ---- many tests, equivalence, power


def test_counts_by_chance():
    assert regression_robust.by_chance(3, 72) == pytest.approx(
        0.70, abs=0.005
    )  # the paper's cross-domain count
    assert regression_robust.by_chance(0, 10) == 1


def test_equivalence_is_two_one_sided_tests(grouped):
    x, y, _, _ = grouped
    fit = rg.fit_ols(y, x)
    result = sm.OLS(y, sm.add_constant(rg.standardise(x))).fit()
    found = regression_robust.equivalence(fit, bound=0.5)
    for i, name in enumerate(("a", "b")):
        tests = [result.t_test(f"{name} = {edge}").tvalue.item() for edge in (-0.5, 0.5)]
        expected = max(scipy.stats.t.sf(tests[0], 21), scipy.stats.t.cdf(tests[1], 21))
        assert found.p[i] == pytest.approx(expected, rel=1e-9)
        assert regression_robust.equivalence(fit, bound=float(found.least[i])).p[
            i
        ] == pytest.approx(0.05, rel=1e-6)
    aware, posterior = ov.fit_overlap(y, x, [np.eye(24)])
    same = regression_robust.equivalence_overlap(aware, posterior, bound=0.5)
    np.testing.assert_allclose(same.p, found.p, rtol=1e-6)
    np.testing.assert_allclose(same.least, found.least, rtol=1e-6)
    with pytest.raises(
        ValueError, match="^bound=0: must be above 0, it is the largest effect that counts as none$"
    ):
        regression_robust.equivalence(fit, bound=0)


def test_joint_test_is_that_of_nested_models(grouped):
    x, y, group, _ = grouped
    x = x.assign(c=group)
    z = sm.add_constant(rg.standardise(x))
    expected = sm.OLS(y, z).fit().compare_f_test(sm.OLS(y, z[["const", "b"]]).fit())
    assert regression_robust.joint_f(y, x, ["a", "c"]) == pytest.approx(
        (expected[0], expected[1], 2), rel=1e-8
    )
    with pytest.raises(ValueError, match="the joint test has 4 chains for 3 predictors"):
        regression_robust.joint_f(y[:4], x[:4], ["a", "c"])


def test_power_is_statsmodels_and_simulated():
    n, p, sd = 40, 6, 0.05
    effect = 0.02
    expected = TTestPower().power(
        effect / sd, nobs=n, alpha=0.05, df=n - p - 1, alternative="two-sided"
    )
    assert power.power(effect, n, p, sd) == pytest.approx(expected, rel=1e-6)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, p))
    z = (z - z.mean(0)) / z.std(0)
    inflation = rg.vif(pd.DataFrame(z))[0]
    y = effect * z[:, :1] + sd * rng.normal(size=(n, 20_000))
    design = np.column_stack([np.ones(n), z])
    b = np.linalg.lstsq(design, y, rcond=None)[0]
    se = np.sqrt(
        np.linalg.inv(design.T @ design)[1, 1] * ((y - design @ b) ** 2).sum(0) / (n - p - 1)
    )
    found = (2 * scipy.stats.t.sf(np.abs(b[1] / se), n - p - 1) < 0.05).mean()
    assert power.power(effect, n, p, sd, vif=inflation) == pytest.approx(
        found, abs=4 * np.sqrt(0.25 / 20_000)
    )


def test_least_effects_and_needed_chains_invert_power():
    for n, p in ((9, 6), (24, 6), (400, 19)):
        least = power.least_effect(n, p, 0.05, vif=1.7)
        assert power.power(least, n, p, 0.05, vif=1.7) == pytest.approx(0.8, rel=1e-6)
    needed = power.chains_needed(0.01, 6, 0.05)
    assert power.power(0.01, needed, 6, 0.05) >= 0.8 > power.power(0.01, needed - 1, 6, 0.05)
    # Beyond what scipy's F distribution takes, by the normal distribution.
    normal, z = scipy.stats.norm, scipy.stats.norm.isf(0.025)
    shift = scipy.optimize.brentq(lambda d: normal.sf(z - d) + normal.cdf(-z - d) - 0.8, 0, 9)
    for sd in (50, 1e10):
        assert power.chains_needed(0.01, 6, sd) == pytest.approx((shift * sd / 0.01) ** 2, rel=1e-6)
    assert power.power(1.0, 30, 6, 1e-14) == 1 and power.chains_needed(0.01, 6, 1e-14) == 8
    assert (
        power.chains_needed(10.0, 6, 0.05) == 8
        and power.least_effect(7, 6, 0.05) == np.inf
        and power.power(1.0, 7, 6, 0.05) == 0
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power.power(0.1, 9, 1, 0.0), "residual_sd=0.0: must be above 0"),
        (lambda: power.power(0.1, 9, 1, 1.0, vif=0.5), "vif=0.5: must be at least 1"),
        (lambda: power.power(0.1, 9, 1, 1.0, level=1.0), "level=1.0: must lie in (0, 1)"),
        (
            lambda: power.least_effect(9, 1, 1.0, wanted=0.01),
            "wanted=0.01: must lie between the level 0.05 and 1",
        ),
        (lambda: power.chains_needed(0.0, 1, 1.0), "effect=0: no number of chains finds it"),
        (
            lambda: regression_robust.form(pd.DataFrame({"first": [1.0], "late": [1.0]}), "log"),
            "form 'log' is not one of relative, difference, ancova",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_forms():
    table = pd.DataFrame({"first": [2.0, 4.0], "late": [1.0, 4.0]})
    assert regression_robust.form(table, "relative")[0].tolist() == [0.5, 1.0]
    assert regression_robust.form(table, "difference")[0].tolist() == [-1 / 3, 0.0]
    y, covariates = regression_robust.form(table, "ancova")
    assert y.tolist() == [1 / 3, 4 / 3] and covariates["first"].tolist() == [2.0, 4.0]


def test_vif_by_dataset_leaves_out_what_has_none():
    _, _, properties, _ = planted.single(datasets=("web", "wiki"), count=12)
    properties.loc[properties["dataset"] == "wiki", "quality"] = 3.0
    found = regression_tables.vif_table(properties, list(rg.PROPERTIES))
    assert np.isnan(found.loc["quality", "wiki"]) and np.isfinite(found["web"]).all()
    np.testing.assert_allclose(
        found["web"], rg.vif(properties[properties["dataset"] == "web"][list(rg.PROPERTIES)])
    )
    names = [n for n in rg.PROPERTIES if n != "quality"]
    with_dummy = properties[names].assign(dummy=(properties["dataset"] == "wiki").astype(float))
    pooled = regression_tables.vif_table(properties, names)["All"]
    np.testing.assert_allclose(
        pooled
        * (
            properties[names].var()
            / (properties[names] - properties.groupby("dataset")[names].transform("mean")).var()
        ),
        rg.vif(with_dummy)[names],
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("forms", "says"),
    [
        (("relative", "difference", "ancova"), "(under every reading below as well)"),
        (
            ("relative", "difference"),
            "(under every reading below as well; ANCOVA could not be computed)",
        ),
    ],
)
def test_readings_that_a_fit_does_not_have_are_no_readings_that_bear_it_out(forms, says):
    rows = [
        ("diversity", "All", form, "classical", "quality", 0.1, 0.01, 10.0, 0.001, 0.08, 0.12, 20)
        + (0.01,)
        for form in forms
    ]
    names = [*regression_tables.KEYS, *rg.COEFFICIENTS, "n", "q"]
    fits = pd.DataFrame([("diversity", "All", 20, 1)], columns=regression_tables.FITS[:4])
    fits = fits.reindex(columns=regression_tables.FITS).astype({"cv_r2": float})
    coefficients = pd.DataFrame(rows, columns=names)
    nothing = pd.DataFrame()
    tables = regression_tables.Tables(coefficients, fits, nothing, nothing, [])
    said = findings_regression.conclusions(None, tables)
    assert f"Quality +0.1000 [0.0800, 0.1200] {says}." in " ".join(said)
