"""Each family's fit and draws against SciPy, scikit-learn or plain counting, and each family under
each workflow.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.mixture

from jaxloop.core import mixing
from jaxloop.recursion import workflow as wf
from jaxloop.simulators import gmm, ngram
from jaxloop.simulators.beta import beta_family
from jaxloop.simulators.discrete import bernoulli_family, discrete_family, poisson_family
from jaxloop.simulators.family import run
from jaxloop.simulators.gaussian import gaussian_family
from jaxloop.simulators.histogram import histogram_family
from jaxloop.simulators.kde import kde_family
from jaxloop.simulators.regression import regression_family
from jaxloop.simulators.small_linalg import cholesky, spd_inverse

RNG = np.random.default_rng(0)
KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def compiled(family):
    """The family with functions that are one program each, and not one per operation."""
    programs = {
        "draw": jax.jit(family.draw, static_argnums=1),
        "fit": jax.jit(family.fit),
        "sample": jax.jit(family.sample, static_argnums=2),
        "measure": jax.jit(family.measure),
    }
    if family.base is not None:
        programs["base"] = jax.jit(family.base)
    return family._replace(**programs)


def test_small_factorisations():
    x = RNG.normal(size=(5, 7))
    full, thin = x @ x.T / 7, x[:, :2] @ x[:, :2].T
    np.testing.assert_allclose(cholesky(jnp.asarray(full)), np.linalg.cholesky(full), atol=1e-12)
    root = np.asarray(cholesky(jnp.asarray(thin)))
    np.testing.assert_allclose(root @ root.T, thin, atol=1e-12)
    np.testing.assert_allclose(
        spd_inverse(jnp.asarray(full)), np.linalg.inv(full), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_array_equal(cholesky(jnp.zeros((2, 2))), np.zeros((2, 2)))


@pytest.mark.parametrize("unbiased", [True, False])
def test_gaussian_fit_and_draws(unbiased):
    x = RNG.normal(size=(30, 3)) @ RNG.normal(size=(3, 3))
    family = compiled(gaussian_family(3, unbiased=unbiased))
    counts = RNG.integers(0, 3, 30)
    mean, cov = family.fit(KEY, jnp.asarray(x), jnp.ones(30))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.T, ddof=int(unbiased)), rtol=1e-10)
    if not unbiased:
        mean, cov = family.fit(KEY, jnp.asarray(x), jnp.asarray(counts, float))
        np.testing.assert_allclose(cov, np.cov(np.repeat(x, counts, axis=0).T, ddof=0), rtol=1e-10)
    drawn = np.asarray(family.sample(KEY, (mean, cov), 20000))
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=6 * np.trace(cov) / np.sqrt(20000))


def test_discrete_fit_and_draws():
    family = compiled(
        discrete_family([0.5, 0.2, 0.0, 0.3], smoothing=0.5, bias=np.array([1.0, 2.0, 1.0, 1.0]))
    )
    items, weights = RNG.integers(0, 4, 50), RNG.uniform(size=50)
    counts = (np.bincount(items, weights, 4) + 0.5) * [1, 2, 1, 1]
    np.testing.assert_allclose(
        family.fit(KEY, jnp.asarray(items, jnp.int32), jnp.asarray(weights)),
        counts / counts.sum(),
        rtol=1e-12,
    )
    drawn = np.bincount(family.draw(KEY, 20000), minlength=4)
    assert (
        drawn[2] == 0
        and scipy.stats.chisquare(drawn[[0, 1, 3]], 20000 * np.array([0.5, 0.2, 0.3])).pvalue > 1e-3
    )
    found = family.measure(jnp.asarray([0.5, 0.5, 0, 0]), jnp.asarray([0, 0, 3], jnp.int32))
    assert {k: float(v) for k, v in found.items()} == pytest.approx(
        {"entropy": np.log(2), "zeros": 2, "heterozygosity": 0.5, "unique": 2}
    )


def test_coin_and_counts():
    items = RNG.poisson(2.0, 40).astype(float)
    assert float(poisson_family(2.0).fit(KEY, jnp.asarray(items), jnp.ones(40))) == pytest.approx(
        items.mean()
    )
    drawn = np.asarray(poisson_family(2.0).draw(KEY, 5000))
    assert abs(drawn.mean() - 2) < 5 * np.sqrt(2 / 5000) and abs(drawn.var() / 2 - 1) < 0.12
    flips = np.asarray(bernoulli_family(0.3).draw(KEY, 5000))
    assert set(flips) == {0.0, 1.0} and abs(flips.mean() - 0.3) < 5 * np.sqrt(0.21 / 5000)


@pytest.mark.parametrize("rule", ["scott", "silverman", 0.4])
def test_kernel_density(rule):
    x = RNG.normal(size=(25, 2)) @ np.array([[1.0, 0.6], [0, 0.5]])
    weights = RNG.uniform(0.2, 1, 25)
    family = compiled(kde_family(2, bandwidth=rule, heldout=20))
    params = family.fit(KEY, jnp.asarray(x), jnp.asarray(weights))
    theirs = scipy.stats.gaussian_kde(
        x.T, weights=weights, bw_method=rule if isinstance(rule, str) else None
    )
    root = np.asarray(params[2])
    if isinstance(rule, str):
        np.testing.assert_allclose(root @ root.T, theirs.covariance, rtol=1e-10)
        held = np.asarray(family.draw(jax.random.key(0), 20))
        assert float(family.measure(params, None)["nll"]) == pytest.approx(
            -theirs.logpdf(held.T).mean(), rel=1e-10
        )
    else:
        np.testing.assert_allclose(root, 0.4 * np.eye(2))
    drawn = np.asarray(family.sample(KEY, params, 20000))
    var = np.asarray(family.measure(params, None)["var"])
    np.testing.assert_allclose(drawn.var(0), var, rtol=0.06)


def test_tophat_kernel_is_a_density_and_what_is_drawn():
    family = compiled(kde_family(1, bandwidth=0.5, kernel="tophat", heldout=1))
    items = jnp.asarray([[0.0], [0.2]])
    params = family.fit(KEY, items, jnp.ones(2))
    drawn = np.asarray(family.sample(KEY, params, 20000))[:, 0]
    assert drawn.min() >= -0.5 and drawn.max() <= 0.7
    assert drawn.var() == pytest.approx(float(family.measure(params, None)["var"][0]), rel=0.03)
    at = np.asarray(family.draw(jax.random.key(0), 1))[0, 0]
    density = ((np.abs(at - np.array([0.0, 0.2])) <= 0.5) / 1.0).mean()
    assert float(family.measure(params, None)["nll"]) == pytest.approx(
        -np.log(density) if density else np.inf
    )


def test_mixture_em_is_scikit_learns():
    means, sds = np.array([[-2.0, 0.0], [1.5, 1.0]]), np.array([1.0, 0.7])
    family = compiled(gmm.gmm_family(means, weights=[0.3, 0.7], sds=sds, iterations=12))
    x = np.asarray(family.draw(KEY, 200))
    start = family.base(KEY)
    ours = family.fit(KEY, jnp.asarray(x), jnp.ones(200), start)
    theirs = sklearn.mixture.GaussianMixture(
        2,
        max_iter=12,
        tol=0,
        means_init=means,
        weights_init=[0.3, 0.7],
        precisions_init=np.linalg.inv(np.asarray(start.covs)),
    )
    with pytest.warns(sklearn.exceptions.ConvergenceWarning):
        theirs.fit(x)
    np.testing.assert_allclose(ours.weights, theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.covs, theirs.covariances_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        gmm.log_normal(jnp.asarray(x), ours.means[0], ours.covs[0]),
        scipy.stats.multivariate_normal(ours.means[0], ours.covs[0]).logpdf(x),
        rtol=1e-9,
    )
    grid = np.linspace(-9, 9, 361)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)

    def density(m):
        return sum(
            w * scipy.stats.multivariate_normal(c, s).pdf(points)
            for w, c, s in zip(*map(np.asarray, m), strict=True)
        )

    area = (grid[1] - grid[0]) ** 2
    assert float(family.measure(ours, None)["l2"]) == pytest.approx(
        ((density(ours) - density(start)) ** 2).sum() * area, rel=1e-6
    )
    drawn = np.asarray(family.sample(KEY, ours, 20000))
    assert float(family.measure(ours, None)["trace"]) == pytest.approx(
        np.trace(np.cov(drawn.T)), rel=0.05
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_counts_and_draws(order):
    text = "the cat sat on the mat and the rat ate the hat " * 6
    tokens, alphabet = ngram.encode([text], symbols=12)
    size, length = len(alphabet), 12
    assert "".join(alphabet[t] for t in tokens[:7]) == "the cat" and size == 12
    family = compiled(ngram.ngram_family(tokens, order=order, length=length, symbols=size))
    items = np.asarray(family.draw(KEY, 30))
    windows = {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}
    assert all(tuple(row) in windows for row in items.tolist())
    weights = RNG.integers(0, 3, 30)
    _, counts = family.fit(KEY, jnp.asarray(items), jnp.asarray(weights, float))
    expected = Counter()
    for row, w in zip(items.tolist(), weights.tolist(), strict=True):
        for i in range(length - order + 1):
            expected[tuple(row[i : i + order])] += w
    flat = np.asarray(counts).reshape((size,) * order)
    assert {g: flat[g] for g in map(tuple, np.argwhere(flat))} == {
        g: n for g, n in expected.items() if n
    }
    params = family.fit(KEY, jnp.asarray(items), jnp.ones(30))
    found = family.measure(params, None)
    p = np.asarray(params[1]) / np.maximum(np.asarray(params[1]).sum(1, keepdims=True), 1)
    conditional = scipy.stats.entropy(p, axis=1)[np.asarray(params[1]).sum(1) > 0]
    share = np.asarray(params[1]).sum(1)[np.asarray(params[1]).sum(1) > 0]
    assert float(found["entropy"]) == pytest.approx(
        (conditional * share).sum() / share.sum(), rel=1e-9
    )
    assert int(found["grams"]) == (np.asarray(params[1]) > 0).sum()
    written = np.asarray(family.sample(KEY, params, 400))
    assert written.shape == (400, length) and written.max() < size
    seen = {tuple(row[i : i + order]) for row in items.tolist() for i in range(length - order + 1)}
    new = [
        tuple(row[i : i + order]) in seen
        for row in written.tolist()
        for i in range(length - order + 1)
    ]
    assert np.mean(new) > 0.97, (
        "only what was counted is written, but for contexts at the end of a window"
    )


def test_ngram_model_of_real_text_loses_its_vocabulary(shared):
    import json

    lines = shared("data/aesop_fables").glob("*.jsonl")
    texts = [
        json.loads(line)["text"] for path in lines for line in path.read_text().splitlines()[:60]
    ]
    tokens, alphabet = ngram.encode(texts, symbols=32)
    out = run(
        ngram.ngram_family(tokens, order=3, length=48, symbols=len(alphabet)),
        wf.replace(60),
        generations=8,
        replicates=2,
        x64=False,
    )
    assert (out["grams"][:, -1] < 0.75 * out["grams"][:, 0]).all() and (
        out["entropy"][:, -1] < out["entropy"][:, 0]
    ).all()
    assert (out["cross_entropy"][:, -1] > out["cross_entropy"][:, 0]).all()


FAMILIES = {
    "gaussian": lambda: gaussian_family(2),
    "discrete": lambda: discrete_family(np.ones(6)),
    "bernoulli": lambda: bernoulli_family(0.4),
    "poisson": lambda: poisson_family(3.0),
    "kde": lambda: kde_family(2, bandwidth="scott", heldout=4),
    "gmm": lambda: gmm.gmm_family([[-2.0, 0.0], [2.0, 0.0]], iterations=3),
    "ngram": lambda: ngram.ngram_family(
        np.random.default_rng(0).integers(0, 5, 200), order=2, length=8
    ),
    "regression": lambda: regression_family([1.0, 2.0]),
    "histogram": lambda: histogram_family(12),
    "beta": lambda: beta_family((2.0, 2.0), (3.0, 2.0), 12),
}
N = 12
FLOWS = {
    "replace": wf.replace(N),
    "accumulate": wf.accumulate(N),
    "accumulate_subsample": wf.accumulate_subsample(N),
    "fresh_human": wf.fresh_human(N, 0.5),
    "preserve": wf.preserve(N, 0.25),
    "window": wf.window(N, 2),
    "external": wf.external(N, 0.25, ratio=0.5),
    "exchange": wf.exchange(N, alpha=0.5, beta=0.5, private=(N, N), public=N, synthetic=N),
    "mixing": wf.fresh_human(N, 0.5, entities=3, mixing=mixing.star(3).tolist()),
    "previous": wf.replace(N, start="previous"),
}
PAIRS = [(f, w) for f in FAMILIES for w in FLOWS]


def _runs(name, flow):
    family = FAMILIES[name]()._replace(outside=FAMILIES[name]().draw)
    rule = FLOWS[flow]
    out = run(family, rule, generations=2, replicates=2, seed=1)
    shape = (2, 3) + ((rule.entities,) if rule.entities > 1 else ())
    for metric, values in out.items():
        assert values.shape[: len(shape)] == shape and np.isfinite(values).all(), metric
        first = values[:, 0].reshape(2, -1)
        assert metric in (
            "zeros",
            "unique",
            "steps",
            "converged",
            "vocabulary",
            "grams",
        ) or not np.array_equal(first[0], first[1]), metric


# Most of a diagonal through the table in the fast suite, all of it in the slow one. Beta chains
# have tests of their own under this workflow.
LEFT_OUT = ("beta", "kde", "discrete")
DIAGONAL = [pair for i, pair in enumerate(PAIRS) if i % 11 == 2 and pair[0] not in LEFT_OUT]


@pytest.mark.parametrize("name,flow", DIAGONAL)
def test_family_under_workflow(name, flow):
    _runs(name, flow)


@pytest.mark.slow
@pytest.mark.parametrize("name,flow", [pair for pair in PAIRS if pair not in DIAGONAL])
def test_every_family_under_every_workflow(name, flow):
    _runs(name, flow)


@pytest.mark.parametrize(
    "call,sentence",
    [
        (lambda: discrete_family([0.5, -0.5]), "probabilities=.*: must be non-negative"),
        (lambda: discrete_family([1.0], smoothing=-1), "smoothing=-1: must be at least 0"),
        (lambda: bernoulli_family(1.5), r"p=1.5: must lie in \[0, 1\]"),
        (lambda: poisson_family(0), "rate=0: must be positive"),
        (lambda: poisson_family(np.inf), "rate=inf: must be positive and finite"),
        (lambda: discrete_family([np.inf, 1.0]), "probabilities=.*: must be non-negative"),
        (lambda: discrete_family([1.0], smoothing=np.nan), "smoothing=nan: must be at least 0"),
        (lambda: discrete_family([1.0, 1.0], bias=[1.0]), r"bias=\[1.0\]: must be 2 non-neg"),
        (lambda: discrete_family([1.0, 1.0], bias=[1.0, -1.0]), "bias=.*: must be 2 non-negative"),
        (lambda: gaussian_family(sd=-1.0), "sd=-1.0: must be positive and finite"),
        (lambda: gaussian_family(1.5), "dim=1.5: must be an integer of at least 1"),
        (lambda: kde_family(sd=0), "sd=0: must be positive and finite"),
        (lambda: kde_family(0), "dim=0: must be an integer of at least 1"),
        (lambda: kde_family(heldout=-1), "heldout=-1: must be an integer of at least 0"),
        (lambda: kde_family(2, centres=[[1.0]]), r"centres: shape is \(1, 1\), must be \[m, 2\]"),
        (lambda: gmm.gmm_family([[np.nan]]), r"means: .*must be \[k, d\], a row of finite"),
        (lambda: gmm.gmm_family([]), r"means: shape is \(1, 0\), must be \[k, d\]"),
        (lambda: gmm.gmm_family([[0.0]], ridge=-1e-6), "ridge=-1e-06: must be at least 0"),
        (
            lambda: ngram.ngram_family([0, 1, 2], order=1, length=2, smoothing=-1),
            "smoothing=-1: must be at least 0",
        ),
        (lambda: regression_family([]), r"coefficients=\[\]: must be a list of finite numbers"),
        (lambda: regression_family([1.0], sigma=-2), "sigma=-2: must be at least 0"),
        (lambda: histogram_family(4, bias=np.inf), "bias=inf: must be a positive number"),
        (
            lambda: kde_family(bandwidth="wide"),
            "bandwidth='wide': must be a number, scott or silverman",
        ),
        (lambda: kde_family(bandwidth=0), "bandwidth=0: must be positive"),
        (lambda: kde_family(kernel="box"), "kernel='box': must be one of gaussian, tophat"),
        (lambda: gmm.gmm_family([[0.0], [1.0]], weights=[1.0]), r"weights, sds: shapes are \(1,\)"),
        (lambda: gmm.gmm_family([[0.0]], sds=-1.0), "sds positive"),
        (lambda: gmm.gmm_family([[0.0]], iterations=0), "iterations=0: must be an integer of"),
        (lambda: ngram.encode([]), "need at least one character"),
        (
            lambda: ngram.ngram_family([0, 1, 2], order=2, length=9),
            "order=2, length=9: must be 1 <= order < length <= 3",
        ),
        (
            lambda: ngram.ngram_family([0, 1, 2, 3], order=2, length=3, symbols=3),
            "symbols=3, order=2: must exceed the largest token 3",
        ),
        (lambda: ngram.ngram_family([-1, 1], order=1, length=2), "non-negative integer"),
        (
            lambda: regression_family([1.0, 2.0], design=np.ones((4, 3))),
            r"design: shape is \(4, 3\), must be \[T, 2\]",
        ),
        (
            lambda: regression_family([1.0, 2.0], design=np.ones((4, 2))),
            "design: rank is 1, least squares needs 2",
        ),
        (lambda: histogram_family(0), "size=0: must be an integer of at least 1"),
        (lambda: histogram_family(4, bias=[1, 2]), "or 5 positive numbers"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
