"""The U-shape toy: the literal reading cannot have it, the smoothed one does."""

import numpy as np
import pytest

from jaxloop.simulators import histogram
from jaxloop.simulators.histogram import Column

RATIOS = (0.0, 1 / 4, 1.0)
# Toy model of arXiv 2504.03814, C.3: relative entropy at these ratios for smoothing 1e-3 and bias
# 100 without overlap, SE .01-.04.
SPEC = {False: [1.00, 0.14, 0.27], True: [1.00, 0.22, 0.37]}
COLUMNS = {
    "smoothed": Column(),
    "literal": Column(smoothing=0.0),
    "literal, unbiased": Column(1.0, 0.0),
    "overlap": Column(overlap=True),
    "unbiased": Column(1.0),
    "weak": Column(20.0),
}


@pytest.fixture(scope="module")
def toy():
    """Relative entropy of the last generation [columns, ratios, R], without accumulation."""
    return dict(
        zip(
            COLUMNS,
            histogram.simulate_columns(
                list(COLUMNS.values()), ratios=RATIOS, replicates=50, seed=2
            )["relative_entropy"][..., -1],
            strict=True,
        )
    )


def _mean_se(x):
    return x.mean(-1), x.std(-1, ddof=1) / np.sqrt(x.shape[-1])


def _has_u(mean, se):
    assert mean[0] - mean[1] > 10 * se.max() and mean[2] - mean[1] > 3 * np.hypot(se[2], se[1])


def test_u_shape_of_the_smoothed_reading(toy):
    mean, se = _mean_se(toy["smoothed"])
    assert (np.abs(mean - SPEC[False]) < 4 * np.hypot(se, 0.025)).all()
    _has_u(mean, se)


@pytest.mark.slow
def test_u_shape_with_accumulation():
    mean, se = _mean_se(
        histogram.simulate(ratios=RATIOS, accumulate=True, replicates=50, seed=2)[
            "relative_entropy"
        ][..., -1]
    )
    assert (np.abs(mean - SPEC[True]) < 4 * np.hypot(se, 0.025)).all()
    _has_u(mean, se)


def test_without_smoothing_the_bias_does_nothing_and_there_is_no_u(toy):
    """Non-overlap, literally: even numbers have no mass, so that every bias strength is the same
    rule.
    """
    (mean, se), (plain, plain_se) = _mean_se(toy["literal"]), _mean_se(toy["literal, unbiased"])
    assert (np.abs(mean - plain) < 4.5 * np.hypot(se, plain_se)).all() and (
        mean[2] < mean[:2] - 3 * se.max()
    ).all()
    same = [histogram.histogram_family(9, bias=b, smoothing=0.0) for b in (1.0, 100.0)]
    items, weights = np.array([1, 1, 3, 9, 7]), np.ones(5, np.float32)
    fits = [f.fit(None, items, weights) for f in same]
    np.testing.assert_allclose(fits[0], fits[1], rtol=1e-6)
    np.testing.assert_allclose(fits[0], np.bincount(items, minlength=10) / 5, rtol=1e-6)


@pytest.mark.parametrize("name", ["overlap", "unbiased", "weak"])
def test_overlap_and_weak_bias_have_no_u(toy, name):
    mean, se = _mean_se(toy[name])
    assert mean[-1] < mean[:-1].min() + 3 * se.max()


@pytest.mark.parametrize(
    "options,sentence",
    [
        (dict(ratios=()), "ratios: is empty; at least one is needed"),
        (dict(ratios=(1.5,)), r"ratio=1.5: must lie in \[0, 1\]"),
        (dict(bias=0.0), "bias=0.0: must be a positive number or 101 positive numbers"),
        (dict(smoothing=-1.0), "smoothing=-1.0: must be at least 0"),
        (dict(size=0), "size=0: must be an integer of at least 1"),
    ],
)
def test_refusals(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        histogram.simulate(**{"generations": 1, "replicates": 1, **options})
