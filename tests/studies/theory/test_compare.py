"""Tables of analytic against empirical values: z against SciPy's t test, replicates until the
standard error is small.
"""

import numpy as np
import pytest
import scipy.stats

from jaxloop.reporting import figures
from jaxloop.studies.theory import compare
from jaxloop.studies.theory.agreement import Power
from jaxloop.studies.theory.compare import Experiment, Quantity

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 0.5, (400, 3))
POWER = Power(detect=0.05, power=0.95, level=0.01, curves=1)


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
    def table(values):
        quantity = Quantity.of("constant", np.arange(len(values)), values)
        return compare.table([compare.check(quantity, np.ones((5, len(values))))], POWER, study="s")

    rows = table([1.0, 2.0])
    assert rows["z"].tolist() == [0.0, -np.inf] and rows["flag"].all()
    assert tuple(rows.columns) == compare.COLUMNS
    assert table([1.0, np.nan])["flag"].all() and not table([1.0, 1.0])["flag"].any()


def test_draws_until_an_error_is_found():
    seeds = []

    def draw(seed):
        seeds.append(seed)
        return [
            np.random.default_rng(seed).normal(1.0, 0.3, (200, 1)),
            np.random.default_rng(seed + 10**6).normal(0.0, 5.0, (200, 1)),
        ]

    experiment = Experiment(
        "e", (Quantity.of("a", [0], [1.0]), Quantity.of("zero", [0], [0.0])), draw
    )
    power = POWER._replace(detect=0.03)
    options = dict(seed=7, most=100_000, power=power)
    first, second = compare.measure(experiment, **options)
    # (0.3 (2.58 + 1.64) / 0.03)^2 = 1,780 replicates, more for what luck the spread may have had; a
    # quantity of value 0 has no relative error and asks for none.
    assert first.replicates == second.replicates and 1780 <= first.replicates <= 2200
    assert seeds == list(range(7, 7 + first.replicates // 200))
    found = compare.curves([first, second], power)
    assert found["finds"][0] <= 0.03 and np.isnan(found["finds"][1]) and not found["flag"].any()
    assert len(compare.imprecise(found)) == 0
    few = compare.measure(experiment, **options | {"most": 300})
    assert few[0].replicates == 400 and len(compare.imprecise(compare.curves(few, power))) == 1
    assert compare.measure(experiment, replicates=2, **options)[0].replicates == 200
    np.testing.assert_array_equal(
        compare.measure(experiment, **options)[0].empirical, first.empirical
    )


def test_replicates_that_are_left_out_are_counted_and_bounded():
    def draw(seed):
        x = np.random.default_rng(seed).normal(1.0, 0.1, (50, 2))
        x[:5] = np.nan
        return [x]

    experiment = Experiment("e", (Quantity.of("a", [0, 1], [1.0, 1.0]),), draw, 0.2, "no fit")
    (found,) = compare.measure(experiment, seed=1, most=200, replicates=100, power=POWER)
    assert (found.replicates, found.left_out) == (135, 15) and np.isfinite(found.z).all()
    with pytest.raises(ValueError, match=r"e: 10% of the replicates would be left out \(no fit\)"):
        strict = experiment._replace(left_out=0.05)
        compare.measure(strict, seed=1, most=200, power=POWER)
    # Where none may be left out, a number that is none is a disagreement.
    (found,) = compare.measure(
        experiment._replace(left_out=0.0), seed=1, most=1, replicates=2, power=POWER
    )
    assert compare.curves([found], POWER)["flag"].all()


def test_summary_and_figures():
    checks = [
        compare.check(Quantity.of("Error", [0, 1, 2], [2.0, 2.0, v], line=f"line {v}"), X)
        for v in (2.0, 3.0)
    ]
    strict = POWER._replace(level=1e-4)
    checks.append(compare.check(Quantity.of("Other", [0], [2.0]), X[:, :1]))
    found = compare.summary(compare.curves(checks, strict)).set_index("quantity")
    assert (
        found.loc["Error", ["curves", "entries", "flags"]].tolist() == [2, 6, 1]
        and found.loc["Other", "flags"] == 0
    )
    assert compare.disagreements(compare.curves(checks, strict))["line"].tolist() == ["line 3.0"]
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
