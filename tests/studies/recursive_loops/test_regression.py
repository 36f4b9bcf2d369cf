"""Regressions as the paper makes them, against statsmodels and scikit-learn used directly; relative
scores; what is refused.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, cross_val_score
from statsmodels.stats.outliers_influence import variance_inflation_factor

from jaxloop.reporting import scores
from jaxloop.studies.recursive_loops.analysis import (
    overlap,
    regression_tables,
    regression_tasks,
    relative,
)
from jaxloop.studies.recursive_loops.analysis import regression as rg
from tests.studies.recursive_loops import planted


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = pd.DataFrame(
        rng.normal(size=(60, 3)) @ rng.normal(size=(3, 3)) + 5, columns=["a", "b", "c"]
    )
    return x, 0.9 + x["a"] * 0.02 - x["c"] * 0.01 + 0.05 * rng.normal(size=60)


def test_ols_is_that_of_statsmodels(data):
    x, y = data
    table = pd.DataFrame({name: scipy.stats.zscore(x[name], ddof=0) for name in x} | {"y": y})
    expected = smf.ols("y ~ a + b + c", table).fit()
    fit = rg.fit_ols(y, x)
    names = ["a", "b", "c"]
    for column, values in (
        ("coefficient", expected.params),
        ("se", expected.bse),
        ("t", expected.tvalues),
        ("p", expected.pvalues),
    ):
        np.testing.assert_allclose(fit.coefficients[column], values[names], rtol=1e-9)
    np.testing.assert_allclose(
        fit.coefficients[["low", "high"]], expected.conf_int().loc[names], rtol=1e-9
    )
    summary = (
        expected.rsquared,
        expected.rsquared_adj,
        expected.fvalue,
        expected.f_pvalue,
        np.sqrt(expected.scale),
    )
    np.testing.assert_allclose(
        (fit.r2, fit.adjusted_r2, fit.f, fit.p, fit.residual_sd), summary, rtol=1e-9
    )
    folds = np.arange(60).reshape(10, 6)
    held = [np.setdiff1d(np.arange(60), fold) for fold in folds]
    r2 = [
        LinearRegression().fit(x.iloc[h], y[h]).score(x.iloc[f], y[f])
        for f, h in zip(folds, held, strict=True)
    ]
    assert fit.cv_r2 == pytest.approx(np.mean(r2), rel=1e-9)


def test_a_fold_of_equal_outcomes_counts_as_in_scikit_learn(data):
    x, y = data
    tied = y.where(y.index >= 6, 0.9)
    expected = cross_val_score(LinearRegression(), x, tied, cv=KFold(10), scoring="r2").mean()
    assert rg.fit_ols(tied, x).cv_r2 == pytest.approx(expected, rel=1e-9) and expected > -10


def test_only_shown_terms_are_listed_and_all_count(data):
    x, y = data
    fit = rg.fit_ols(y, x, shown=["c", "a"])
    assert fit.coefficients["term"].tolist() == ["a", "c"] and fit.regressors == ("a", "b", "c")
    assert fit.r2 == rg.fit_ols(y, x).r2


def test_vif_is_that_of_statsmodels(data):
    x, _ = data
    z = np.column_stack([np.ones(len(x)), x])
    np.testing.assert_allclose(
        rg.vif(x), [variance_inflation_factor(z, i) for i in (1, 2, 3)], rtol=1e-6
    )
    assert np.isinf(rg.vif(x.assign(d=x["a"] - 2 * x["b"]))[["a", "b", "d"]]).all()
    np.testing.assert_allclose(
        rg.vif(x.assign(d=x["a"] - 2 * x["b"]))["c"], rg.vif(x)["c"], rtol=1e-6
    )


def test_vif_selection():
    rng = np.random.default_rng(1)
    x = pd.DataFrame(rng.normal(size=(80, 3)), columns=["a", "b", "c"])
    x["sum"] = x["a"] + x["b"] + 0.1 * rng.normal(size=80)
    left = rg.select_by_vif(x, most=5)
    assert [name for name, _ in left] == ["a", "b", "c"] and max(v for _, v in left) < 1.5
    assert "sum" in dict(rg.select_by_vif(x, most=5, keep=["sum"]))
    assert len(rg.select_by_vif(x, most=1e9)) == 4
    with pytest.raises(
        ValueError, match="^keep holds 'z', which is not among the properties a, b, c, sum$"
    ):
        rg.select_by_vif(x, keep=["z"])


def test_rank_correlations(data):
    x, _ = data
    assert rg.rank_correlations(x).loc["a", "b"] == pytest.approx(
        abs(scipy.stats.spearmanr(x["a"], x["b"]).statistic), rel=1e-12
    )


def test_significance_colours():
    assert [rg.stars(p) for p in (0.2, 0.049, 0.009, 0.0009)] == ["", "*", "**", "***"]
    assert [rg.shade(*cell) for cell in ((0.1, 0.04), (-0.1, 0.004), (-0.1, 0.5), (0.1, 1e-9))] == [
        "plus1",
        "minus2",
        "",
        "plus3",
    ]


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.assign(a=3.5),
            "predictor 'a' is 3.5 for all 60 chains of the fit of y, a predictor must vary",
        ),
        (
            lambda x: x.assign(b=[np.nan, *x["b"][1:]]),
            "predictor 'b' has no value for 1 of the 60 chains of the fit of y, every chain "
            "needs one",
        ),
        (
            lambda x: x.assign(d=x["a"] + x["b"]),
            "the fit of y: a predictor is a linear combination of the others (a, b, c, d), leave "
            "one out",
        ),
        (
            lambda x: x[:4],
            "the fit of y has 4 chains for 3 predictors and an intercept, at least 5 are needed",
        ),
        (
            lambda x: x[:1],
            "the fit of y has 1 chain for 3 predictors and an intercept, at least 5 are needed",
        ),
    ],
)
def test_refused(data, change, message):
    x, y = data
    x = change(x)
    with pytest.raises(ValueError) as error:
        rg.fit_ols(y[: len(x)], x, name="the fit of y")
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        overlap.fit_overlap(y[: len(x)], x, [np.eye(len(x))], name="the fit of y")
    assert str(error.value) == message


def test_a_constant_outcome_is_refused(data):
    # Rounding alone would give it coefficients, errors and p values.
    x, _ = data
    for fit in (rg.fit_ols, lambda y, x: overlap.fit_overlap(y, x, [np.eye(60)])):
        with pytest.raises(ValueError, match="the outcome is 0.1 for all 60 chains, so that"):
            fit(np.full(60, 0.1), x)


# ---- relative scores


def test_outcomes_are_the_relative_scores():
    metrics, chains, _, _ = planted.single(seed=3, datasets=("web",), count=6)
    found = relative.outcomes(metrics, chains, "judge_quality")
    expected = scores.relative_by_chain(metrics[metrics["metric"] == "judge_quality"]).set_index(
        "chain"
    )["value"]
    np.testing.assert_allclose(found.table["relative"], expected[found.table["chain"]], rtol=1e-12)
    by_hand = metrics[
        (metrics["chain"] == chains["chain"][0]) & (metrics["metric"] == "judge_quality")
    ].set_index("generation")["value"]
    assert found.table["late"][0] == pytest.approx(by_hand[[3, 4, 5, 6, 7]].mean(), rel=1e-12)
    np.testing.assert_allclose(
        found.table["difference"], found.table["late"] - found.table["first"]
    )
    assert found.skipped.empty


def test_missing_chains_are_named():
    metrics, chains, _, _ = planted.single(seed=3, datasets=("web",), ratios=(0.25,), count=6)
    chains["status"] = ["ok", "ok", "ok", "ok", "generation 3: loss is not finite", "ok"]
    ids = chains["chain"].tolist()
    quality = metrics[metrics["metric"] == "judge_quality"]
    lost = (
        quality["chain"].eq(ids[0])
        | (quality["chain"].eq(ids[1]) & (quality["generation"] == 0))
        | (quality["chain"].eq(ids[4]) & (quality["generation"] > 2))
    )
    quality = quality[~lost].copy()
    quality.loc[quality["chain"].eq(ids[2]) & (quality["generation"] == 0), "value"] = 0.0
    quality.loc[quality["chain"].eq(ids[3]) & (quality["generation"] == 7), "value"] = np.inf
    found = relative.outcomes(quality, chains, "judge_quality")
    assert found.table["chain"].tolist() == [ids[5]]
    assert found.skipped.values.tolist() == [
        [ids[0], "metrics.csv has no value of judge_quality for it"],
        [ids[1], "it has no value of judge_quality in generation 0"],
        [ids[2], "judge_quality is 0 in generation 0, so there is no relative value"],
        [ids[3], "it has values of judge_quality to generation 6 only, of 7"],
        [
            ids[4],
            "it has values of judge_quality to generation 2 only, of 7 (generation 3: loss is "
            "not finite)",
        ],
    ]


def test_entities_are_averaged():
    rows = [
        ("c", e, g, "m", v)
        for e, values in ((0, (1.0, 2.0)), (1, (3.0, 6.0)))
        for g, v in enumerate(values)
    ]
    metrics = pd.DataFrame(rows, columns=["chain", "entity", "generation", "metric", "value"])
    assert relative.outcomes(metrics, pd.DataFrame({"chain": ["c"]}), "m").table["relative"][
        0
    ] == pytest.approx(4 / 2)


def test_metric_names():
    metrics = pd.DataFrame(
        {"metric": ["judge_quality(model='x')", "cosine_diversity@wiki", "cosine_diversity"]}
    )
    assert relative.find_metric(metrics, ("quality", "judge_quality")) == "judge_quality(model='x')"
    assert relative.find_metric(metrics, "cosine_diversity") == "cosine_diversity"
    assert relative.find_metric(metrics, "cosine_diversity", "wiki") == "cosine_diversity@wiki"
    assert relative.find_metric(metrics, "cosine_diversity", "tweets") is None
    with pytest.raises(
        ValueError,
        match=r"^metric 'm' is not in metrics.csv, which holds judge_quality\(model='x'\), "
        r"cosine_diversity@wiki, ",
    ):
        relative.outcomes(metrics, pd.DataFrame({"chain": ["c"]}), "m")
    with pytest.raises(
        ValueError, match="^chains.csv lists chain 'c' twice, one row for each chain is needed$"
    ):
        relative.outcomes(metrics, pd.DataFrame({"chain": ["c", "c"]}), "cosine_diversity")


# ---- which fits


def test_the_eighteen_fits_of_table_1():
    names = ("webis_reddit", "100M_tweets", "reddit_submissions", "wikipedia")
    metrics, chains, properties, members = planted.single(datasets=names, count=10)
    built = regression_tasks.build(
        metrics, chains, properties, overlap.from_members(members), planted.DEPENDENTS
    )
    assert len(built.tasks) == 18 and built.absent == () and built.skipped.empty
    every = built.tasks[0]
    assert (every.column, len(every.rows)) == ("All", 80)
    dummies = [f"dataset={name}" for name in sorted(names) if name != "100M_tweets"]
    assert list(every.x.columns) == [*rg.PROPERTIES, "ratio", *dummies] and every.shown == tuple(
        rg.PROPERTIES
    )
    assert [t.column for t in built.tasks[1:9]] == [
        f"{name} {r}" for name in sorted(names) for r in ("1/8", "1/4")
    ]
    assert all(
        list(t.x.columns) == list(rg.PROPERTIES) and len(t.rows) == 10 for t in built.tasks[1:9]
    )
    tables = regression_tables.evaluate([built.tasks[0]])
    expected = rg.fit_ols(every.rows["relative"], every.x)
    found = tables.coefficients[
        (tables.coefficients["form"] == "relative") & (tables.coefficients["errors"] == "classical")
    ]
    np.testing.assert_array_equal(found["coefficient"], expected.coefficients["coefficient"][:6])


def test_the_six_fits_of_figure_4():
    metrics, chains, properties, members = planted.multi(count=12)
    built = regression_tasks.build(
        metrics, chains, properties, overlap.from_members(members), planted.DEPENDENTS
    )
    assert [t.dependent for t in built.tasks] == [
        f"{d}@{place}" for d in ("diversity", "quality") for place in ("reddit", "twitter", "wiki")
    ]
    for task in built.tasks:
        assert (
            len(task.shown) == 18
            and list(task.x.columns) == [*task.shown, "ratio"]
            and len(task.rows) == 24
        )
    one = built.tasks[0]
    cluster = properties.set_index(["dataset", "cluster"])
    assert one.x["quality@wiki"][3] == cluster.loc[("wiki", one.rows["cluster.wiki"][3]), "quality"]


def test_absent_properties_and_unusable_tables():
    metrics, chains, properties, _ = planted.single(datasets=("web",), count=12)
    built = regression_tasks.build(
        metrics,
        chains,
        properties.drop(columns="quality").assign(positivity=np.nan),
        {},
        planted.DEPENDENTS,
    )
    assert built.absent == ("quality", "positivity") and len(built.properties) == 4
    partly = properties.copy()
    partly.loc[0, "quality"] = np.nan
    built = regression_tasks.build(metrics, chains, partly, {}, planted.DEPENDENTS)
    assert (
        set(built.skipped["reason"]) == {"its cluster has no value of quality"}
        and len(built.skipped) == 4
    )
    for table, message in (
        (
            properties[:-1],
            "properties.csv has no row for cluster 'c11' of 'web', which a chain of chains.csv "
            "was run on",
        ),
        (
            pd.concat([properties, properties[:1]]),
            "properties.csv lists cluster 'c0' of 'web' twice, one row for each cluster is needed",
        ),
    ):
        with pytest.raises(ValueError) as error:
            regression_tasks.build(metrics, chains, table, {}, planted.DEPENDENTS)
        assert str(error.value) == message
    with pytest.raises(
        ValueError,
        match="^metrics.csv holds neither a or b, one of them is the outcome of the regressions$",
    ):
        regression_tasks.build(
            metrics, chains, properties, {}, {"diversity": ("a",), "quality": ("b",)}
        )


def test_latex_has_a_coloured_cell_where_p_is_small():
    rows = [
        ("diversity", "All", "relative", "classical", 9, "quality", 0.0123, 1, 1, p, 0, 0, p)
        for p in (0.0005,)
    ]
    rows += [
        ("diversity", "a_b 1/8", "relative", "classical", 9, "quality", -0.5, 1, 1, 0.3, 0, 0, 0.3)
    ]
    table = pd.DataFrame(rows, columns=[*regression_tables.KEYS, "n", *rg.COEFFICIENTS, "q"])
    text = regression_tables.to_latex(
        *regression_tables.table_1(table), caption="50 % & more", label="tab:x"
    )
    assert r"{\cellcolor[HTML]{6AAED6}} \bfseries 0.0123 & -0.5000 \\" in text
    assert (
        r"a\_b 1/8" in text
        and r"\caption{50 \% \& more}" in text
        and text.count(r"\cellcolor") == 1
    )
