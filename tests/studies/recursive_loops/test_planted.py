"""The synthetic check: chains simulated with planted coefficients are found again by the whole
analysis path, chains of pure noise are not.

Rates are means over independent worlds (clusters, properties, texts); their standard errors are
those of the worlds.
"""

import numpy as np
import pytest
from scipy import stats

from jaxloop.studies.recursive_loops.analysis import (
    overlap,
    regression_robust,
    regression_tables,
    regression_tasks,
)
from jaxloop.studies.recursive_loops.analysis import regression as rg
from tests.studies.recursive_loops import planted

BETA = np.array([0.03, -0.03, -0.01, 0.02, 0.0, 0.0])


def build(tables, dependents=planted.DEPENDENTS):
    metrics, chains, properties, members = tables
    return regression_tasks.build(
        metrics, chains, properties, overlap.from_members(members), dependents
    )


def covered(fit, truth):
    return ((fit.coefficients["low"] <= truth) & (truth <= fit.coefficients["high"])).to_numpy()


def test_planted_coefficients_lie_in_their_intervals():
    """Tidy tables in, coefficients out: 95 % intervals hold the planted values in 95 % of cases,
    within 4 standard errors of the worlds.
    """
    shares = {"classical": [], "overlap": []}
    estimates = []
    for seed in range(8):
        plain = build(
            planted.single(seed, datasets=("web",), beta=BETA, overlapping=False, noise=0.03)
        )
        shared = build(
            planted.single(seed + 100, datasets=("web",), beta=BETA, noise=0.02, shared=0.02)
        )
        whole = [t for t in plain.tasks if t.column == "All"]
        shares["classical"].append(
            np.mean(
                [
                    covered(rg.fit_ols(*t.data("relative"), shown=t.shown), BETA)
                    for t in plain.tasks
                    if t not in whole
                ]
            )
        )
        fits = [
            overlap.fit_overlap(*t.data("relative"), t.kernels, shown=t.shown)[0]
            for t in shared.tasks
        ]
        shares["overlap"].append(np.mean([covered(fit, BETA) for fit in fits]))
        estimates.append(np.mean([fit.coefficients["coefficient"] for fit in fits], axis=0))
    for values in shares.values():
        assert (
            abs(np.mean(values) - 0.95) < 4 * np.std(values, ddof=1) / np.sqrt(len(values)) + 0.005
        )
        assert np.mean(values) > 0.9
    error = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - BETA) < 4.5 * error).all()
    assert (error < 0.006).all()


def test_planted_coefficients_come_out_of_the_tables():
    tables = regression_tables.evaluate(
        build(planted.single(1, datasets=("web", "wiki"), beta=BETA, noise=0.005, count=30)).tasks
    )
    values, shades = regression_tables.table_1(tables.coefficients)
    for dependent in ("diversity", "quality"):
        np.testing.assert_allclose(values.loc[dependent, "All"], BETA, atol=0.006)
        assert shades.loc[dependent, "All"].tolist()[:2] == ["plus3", "minus3"]
    assert (tables.fits["r2"] > 0.9).all() and tables.problems == [
        p for p in tables.problems if "bootstrap" in p
    ]
    least = tables.equivalence.query(
        "column == 'All' and term == 'text_length' and errors == 'classical'"
    )["least"]
    assert (least < 0.01).all()  # no influence is shown, with a bound


def rates(seed, shared, noise, *, outcomes=100, **world):
    """Share of p < .05 among outcomes of pure noise, {column: (classical, overlap-aware)}, with the
    X and the kernels of the analysis path.
    """
    rng = np.random.default_rng(seed + 1000)
    tables = planted.single(seed, datasets=("web",), **world)
    members = tables[3]
    names = [f"c{i}" for i in range(world.get("count", 24))]
    rows = [members["row"][members["cluster"] == name].to_numpy() for name in names]
    texts = planted.unit(planted.means(rng.normal(size=(members["row"].max() + 1, outcomes)), rows))
    found = {}
    for task in build(tables, {"diversity": ("cosine_diversity",)}).tasks[:2]:
        x = np.column_stack([rg.standardise(task.x), np.ones(len(task.rows))])
        at = [names.index(cluster) for cluster in task.rows["cluster"]]
        y = shared * texts[at] + noise * rng.normal(size=(len(x), outcomes))
        b = np.linalg.lstsq(x, y, rcond=None)[0]
        df = len(x) - x.shape[1]
        se = np.sqrt(np.diag(np.linalg.inv(x.T @ x))[:, None] * ((y - x @ b) ** 2).sum(0) / df)
        classical = 2 * stats.t.sf(np.abs(b / se), df)
        first = rg.fit_ols(y[:, 0], task.x).coefficients
        np.testing.assert_allclose(
            classical[:-1, 0], first["p"], rtol=1e-6
        )  # the loop below is the path's own test, many outcomes at a time
        aware = overlap.mixture(x, y, task.kernels).p() if task.kernels else classical
        shown = len(task.shown)
        found[task.column] = ((classical[:shown] < 0.05).mean(), (aware[:shown] < 0.05).mean())
    return found


def mean_rates(worlds, **options):
    """{column: (mean, standard error) for classical and for overlap-aware errors} over worlds."""
    each = [rates(seed, **options) for seed in range(worlds)]
    return {
        c: [
            (np.mean(v), np.std(v, ddof=1) / np.sqrt(worlds))
            for v in zip(*(r[c] for r in each), strict=True)
        ]
        for c in each[0]
    }


def test_noise_on_disjoint_clusters_gives_five_percent():
    found = mean_rates(12, shared=0.0, noise=0.03, overlapping=False, count=30)
    for column, ((classical, se), (aware, _)) in found.items():
        assert abs(classical - 0.05) < 4 * se, column
        assert aware < 0.05 + 4 * se, column
    # 12 worlds of 600 tests, whose outcomes are independent: binomial bounds on the count.
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 12 * 600, 0.05) / (12 * 600)
    assert low * 0.9 < found["web 1/8"][0][0] < high * 1.1


def test_noise_that_texts_share_misleads_classical_errors_and_not_overlap_aware_ones():
    """Half of the noise belongs to the texts of a cluster: overlapping clusters, and two ratios on
    one cluster, share it.
    """
    for column, ((classical, _), (aware, se)) in mean_rates(12, shared=0.03, noise=0.03).items():
        assert classical > 0.10, column
        assert abs(aware - 0.05) < max(4 * se, 0.015), column


def test_chains_on_one_cluster_are_dependent_without_any_overlap():
    found = mean_rates(12, shared=0.03, noise=0.03, overlapping=False, count=30)
    (classical, _), (aware, se) = found["All"]
    assert classical > 0.09 and abs(aware - 0.05) < max(4 * se, 0.015)
    (classical, se), _ = found["web 1/8"]
    assert abs(classical - 0.05) < 4 * se


def test_noise_without_a_shared_part_on_overlapping_clusters_is_not_called_an_effect():
    for (_, _), (aware, se) in mean_rates(8, shared=0.0, noise=0.03).values():
        assert aware < 0.05 + 2 * se


def test_ratio_coupling_is_seen_by_ancova():
    """A property that raises generation 0 and nothing else: the ratio and the difference show an
    effect, ANCOVA does not.
    """
    significant = {form: [] for form in regression_robust.FORMS}
    for seed in range(20):
        task = build(
            planted.single(
                seed, datasets=("web",), ratios=(0.25,), overlapping=False, coupling=0.1, noise=0.03
            ),
            {"quality": ("judge_quality",)},
        )
        for form in significant:
            fit = rg.fit_ols(*task.tasks[0].data(form), shown=["cosine_diversity"])
            significant[form].append(fit.coefficients["p"][0] < 0.05)
    assert np.mean(significant["relative"]) > 0.9 and np.mean(significant["difference"]) > 0.9
    assert sum(significant["ancova"]) <= stats.binom.ppf(1 - 1e-4, 20, 0.05)


@pytest.mark.slow
def test_domains_that_do_not_interact_are_shown_not_to():
    tables = regression_tables.evaluate(
        build(planted.multi(2, beta=0.02, noise=0.01, count=40, sizes={"clusterings": 16})).tasks
    )
    equivalence = tables.equivalence[tables.equivalence["errors"] == "overlap"]
    own = (
        equivalence["dependent"].str.partition("@")[2] == equivalence["term"].str.partition("@")[2]
    )
    assert (len(equivalence), own.sum()) == (108, 36)
    assert (equivalence[~own]["p"] < 0.05).all() and equivalence[~own]["least"].max() < 0.02
    assert (equivalence[own]["p"] < 0.05).mean() < 0.2
    np.testing.assert_allclose(equivalence[own]["coefficient"], 0.02, atol=0.01)
    crossed = regression_tables.evaluate(
        build(
            planted.multi(2, beta=0.02, cross=0.01, noise=0.01, count=40, sizes={"clusterings": 16})
        ).tasks[:1]
    )
    rows = crossed.equivalence[
        (crossed.equivalence["errors"] == "overlap")
        & ~crossed.equivalence["term"].str.endswith("@reddit")
    ]
    np.testing.assert_allclose(rows["coefficient"], 0.01, atol=0.008)


@pytest.mark.slow
def test_nearly_all_noise_shared_in_larger_studies():
    for options in (
        {"shared": 0.03, "noise": 0.01},
        {"shared": 0.03, "noise": 0.03, "count": 48, "sizes": {"clusterings": 16}},
    ):
        for (classical, _), (aware, _) in mean_rates(12, **options).values():
            assert classical > 0.15 and 0.03 < aware < 0.09
