"""Tables of analytic against empirical values: z against SciPy's t test, replicates until the
standard error is small.
"""

import numpy as np
import pytest
import scipy.stats

from jaxloop.reporting import figures
from jaxloop.studies.theory import compare
from jaxloop.studies.theory.compare import Experiment, Quantity

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 0.5, (400, 3))


def test_z_is_the_one_sample_t_statistic():
    checked = compare.check(Quantity.of("x", [0, 1, 2], [2.0, 2.1, 1.9]), X)
    np.testing.assert_allclose(
        checked.z, scipy.stats.ttest_1samp(X, [2.0, 2.1, 1.9]).statistic, rtol=1e-6
    )
    assert checked.replicates == 400


def test_tolerance_is_taken_off_the_difference():
    strict, lenient = (
        compare.check(Quantity.of("x", [0], [1.8], tolerance=t), X[:, :1]) for t in (0.0, 0.02)
    )
    away = strict.empirical[0] - 1.8
    assert (
        lenient.z[0] == pytest.approx((away - 0.02 * 1.8) / strict.se[0], rel=1e-6)
        and 0 < lenient.z[0] < strict.z[0]
    )
    assert compare.check(Quantity.of("x", [0], [1.8], tolerance=0.5), X[:, :1]).z[0] == 0


def test_rows_without_spread_agree_exactly_or_are_flagged():
    rows = compare.table(
        [compare.check(Quantity.of("constant", [0, 1, 2], [1.0, 2.0, np.nan]), np.ones((5, 3)))],
        study="s",
    )
    assert rows["z"].tolist()[:2] == [0.0, -np.inf] and rows["flag"].tolist() == [False, True, True]
    assert tuple(rows.columns) == compare.COLUMNS
    assert compare.disagreements(rows)["at"].tolist() == [2.0, 1.0]


def test_flag_is_beyond_four():
    for shift, flagged in ((3.9, False), (-3.9, False), (4.1, True), (-4.1, True)):
        checked = compare.check(Quantity.of("x", [0], [0.0]), X[:, :1])
        value = checked.empirical[0] + shift * checked.se[0]
        rows = compare.table([compare.check(Quantity.of("x", [0], [value]), X[:, :1])])
        assert rows["flag"].tolist() == [flagged]


def test_draws_until_the_standard_error_is_small():
    seeds = []

    def draw(seed):
        seeds.append(seed)
        return [
            np.random.default_rng(seed).normal(1.0, 0.3, (200, 2)),
            np.random.default_rng(seed + 10**6).normal(0.0, 5.0, (200, 1)),
        ]

    experiment = Experiment(
        "e", (Quantity.of("a", [0, 1], [1.0, 1.0]), Quantity.of("zero", [0], [0.0])), draw
    )
    first, second = compare.measure(experiment, seed=7, most=10_000)
    # (0.3 / 0.01)^2 = 900 replicates; a quantity of value 0 has no relative error and asks for
    # none.
    assert first.replicates == second.replicates == 1000 and seeds == [7, 8, 9, 10, 11]
    assert (first.se < 0.01).all() and np.abs(first.z).max() < 4
    assert compare.measure(experiment, seed=7, most=300)[0].replicates == 400
    assert compare.measure(experiment, seed=7, most=10_000, replicates=2)[0].replicates == 200
    few = compare.table(compare.measure(experiment, seed=7, most=300))
    assert len(compare.imprecise(few)) == 2
    np.testing.assert_array_equal(
        compare.measure(experiment, seed=7, most=10_000)[0].empirical, first.empirical
    )


def test_number_of_comparisons():
    assert (
        compare.by_chance(1000) == pytest.approx(2000 * scipy.stats.norm.sf(4))
        and compare.by_chance(1000) < 0.07
    )


def test_summary_and_figures():
    checks = [
        compare.check(Quantity.of("Error", [0, 1, 2], [2.0, 2.0, v], line=f"line {v}"), X)
        for v in (2.0, 3.0)
    ]
    checks.append(compare.check(Quantity.of("Other", [0], [2.0]), X[:, :1]))
    found = compare.summary(compare.table(checks)).set_index("quantity")
    assert (
        found.loc["Error", "comparisons"] == 6
        and found.loc["Error", "flags"] == 1
        and found.loc["Other", "flags"] == 0
    )
    assert found.loc["Error", "relative_se"] == pytest.approx(
        max((c.se / c.quantity.analytic).max() for c in checks[:2])
    )
    grouped = compare.groups(checks)
    assert list(grouped) == ["Error", "Other"]
    drawing = compare.figure(grouped["Error"])
    lines = [line for line in drawing.axes[0].lines if line.get_label().startswith("line")]
    np.testing.assert_array_equal(lines[1].get_ydata(), [2.0, 2.0, 3.0])
    assert figures.png(drawing)[:4] == b"\x89PNG" and "line 3.0" in figures.svg(drawing, "a")


@pytest.mark.parametrize(
    "call,sentence",
    [
        (
            lambda: Quantity.of("x", [0, 1], [1.0]),
            r"x: at \(2,\) and analytic \(1,\) must be \[n\] and \[n\]",
        ),
        (lambda: Quantity.of("x", [0], [1.0], tolerance=-1), "x: tolerance=-1 must be at least 0"),
        (
            lambda: compare.check(Quantity.of("x", [0], [1.0]), X),
            r"x: samples \(400, 3\) must be \[R, 1\]",
        ),
        (
            lambda: compare.check(Quantity.of("x", [0], [1.0]), X[:1, :1]),
            "x: 1 replicate, a standard error needs at least 2",
        ),
        (lambda: compare.figure([]), "there are none to draw"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
