"""Draws by the inverse of the cumulative sum: weight zero is never drawn, and the shares are those
of the weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.core import categorical
from jaxloop.core.categorical import inverse_cdf
from jaxloop.lm.generation.sampling import Sampler, next_token, weights

# What prefixes round to depends on how the compiler fuses: these are programs as users get them.
pytestmark = pytest.mark.optimised

draw = jax.jit(inverse_cdf)
# Counts of 12 categories, three of them extinct; at 256 rows XLA's prefixes move by a rounding over
# the zeros.
COUNTS = np.array([0, 3, 1, 45, 3, 11, 2, 65, 0, 3, 0, 67], np.float32) / 200
STEPS = 2**23  # uniforms of float32 that jax.random makes


@pytest.fixture(scope="module")
def walked():
    """The draw of every uniform of 23 bits, 256 rows at a time, in order."""
    rows = jnp.broadcast_to(COUNTS, (256, len(COUNTS)))
    uniforms = (np.arange(STEPS) / STEPS).astype(np.float32).reshape(-1, 256)

    @jax.jit
    def walk(rows, uniforms):  # the sums are taken anew each time, as in a call of its own
        return jax.lax.map(
            lambda u: inverse_cdf(*jax.lax.optimization_barrier((rows, u))), uniforms
        )

    return np.asarray(walk(rows, uniforms)).ravel()


def test_no_uniform_draws_a_category_of_weight_zero(walked):
    assert (COUNTS[walked] > 0).all()


def test_all_uniforms_together_have_the_shares_of_the_weights(walked):
    shares = np.bincount(walked, minlength=len(COUNTS)) / STEPS
    np.testing.assert_allclose(
        shares, COUNTS / COUNTS.sum(dtype=np.float64), atol=4e-7, rtol=0
    )  # 3 to 4 roundings of float32


def test_larger_uniforms_draw_later_categories(walked):
    order = np.diff(walked)
    # Where a boundary rounds, single uniforms may fall on either side of it: no more than one in a
    # million.
    assert (order < 0).sum() <= STEPS // 10**6


def test_a_uniform_on_a_boundary_beside_an_extinct_category():
    drawn = draw(jnp.broadcast_to(COUNTS, (256, 12)), jnp.full(256, 5452595 / 2**23, jnp.float32))
    assert set(np.asarray(drawn).tolist()) <= {7, 9}


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        *((1, size) for size in (1, 7, 9, 60, 1000)),
        *((7, size) for size in (2, 8, 12, 1024, 4097)),
        *((256, size) for size in (1, 12, 129, 1000, 4097)),
    ],
)
def test_any_shape(rows, size):
    """Sparse weights of any scale, at uniforms on the boundaries of their own cumulative sum and at
    both ends.
    """
    rng = np.random.default_rng(size * 1000 + rows)
    for kept in (1.0, 0.5, 0.03):
        w = np.exp(3 * rng.standard_normal((rows, size))).astype(np.float32) * (
            rng.random((rows, size)) < kept
        )
        w[:, rng.integers(size)] += 1
        upto = np.cumsum(w, -1, dtype=np.float64)
        edges = (upto[np.arange(rows), rng.integers(size, size=rows)] / upto[:, -1]).astype(
            np.float32
        )
        for u in (
            edges,
            np.nextafter(edges, 0),
            np.zeros(rows, np.float32),
            np.full(rows, 1 - 2**-24, np.float32),
        ):
            drawn = np.asarray(draw(w, np.minimum(u, np.float32(1 - 2**-24))))
            assert (np.take_along_axis(w, drawn[:, None], 1) > 0).all()


def test_draws_are_those_of_the_exact_cumulative_sum_but_at_its_boundaries():
    rng = np.random.default_rng(0)
    for size in (5, 300, 1000, 50257):
        w, u = (
            np.exp(rng.standard_normal((64, size))).astype(np.float32),
            rng.random(64, np.float32),
        )
        upto = np.cumsum(w, -1, dtype=np.float64) / w.sum(-1, dtype=np.float64)[:, None]
        exact = (upto <= u[:, None]).sum(-1)
        drawn = np.asarray(draw(w, u))
        near = np.abs(np.take_along_axis(upto, np.minimum(drawn, exact)[:, None], 1)[:, 0] - u)
        assert ((drawn == exact) | (near < 1e-6)).all()  # a few roundings of float32


def test_weights_that_are_all_zero_give_index_zero():
    w = np.zeros((3, 40), np.float32)
    w[1, 33] = 2
    np.testing.assert_array_equal(draw(w, jnp.array([0.0, 0.9, 0.5])), [0, 33, 0])


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(top_k=100),
        Sampler(min_p=0.05),
        Sampler(top_p=0.5),
        Sampler(top_k=3, temperature=0.3),
    ],
)
@pytest.mark.parametrize("vocab", [pytest.param(50, marks=pytest.mark.slow), 1024])
def test_no_token_that_a_filter_cut(sampler, vocab):
    """Uniforms on the boundaries between kept tokens, 256 rows a call, as in the first test."""
    logits = (2 * np.random.default_rng(1).standard_normal((256, vocab))).astype(np.float32)
    kept = np.asarray(jax.jit(weights, static_argnums=0)(sampler, logits))
    upto = np.cumsum(kept, -1) / kept.sum(-1, keepdims=True)
    sample = jax.jit(next_token, static_argnums=0)
    places = np.random.default_rng(2).integers(0, vocab, (12, 256, 1))
    for place in places:
        edge = np.take_along_axis(upto, place, 1)[:, 0]
        for u in (edge, np.nextafter(edge, 0)):
            drawn = np.asarray(sample(sampler, logits, np.minimum(u, np.float32(1 - 2**-24))))
            assert (np.take_along_axis(kept, drawn[:, None], 1) > 0).all()


@pytest.mark.parametrize("size", [12, 300, 1024, pytest.param(1536, marks=pytest.mark.slow)])
def test_a_tpu_draws_the_same(size):
    """What is made for a TPU, run here: the same entries but where sums of other blocks round
    across a uniform (at most 2 of 4,096).
    """
    rng = np.random.default_rng(size)
    weights = (
        jnp.asarray(rng.random((4096, size)) * (rng.random((4096, size)) < 0.3), jnp.float32)
        .at[:, size // 2]
        .set(0.5)
    )
    u = jnp.asarray(rng.random(4096), jnp.float32)
    here, there = jax.jit(categorical._draw)(weights, u), jax.jit(categorical._on_tpu)(weights, u)
    assert int((here != there).sum()) <= 2
    assert (jnp.take_along_axis(weights, there[:, None], 1) > 0).all()


@pytest.mark.parametrize(
    "size, dtype",
    [
        (300, jnp.bfloat16),
        (1570, jnp.float32),
        pytest.param(12, jnp.float32, marks=pytest.mark.slow),
        pytest.param(1536, jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_a_tpu_draws_the_same_of_weights_that_it_never_holds(size, dtype):
    """As above, with logits of which some are -inf, and a cut as min_p makes it."""
    rng = np.random.default_rng(size)
    z = jnp.asarray(rng.standard_normal((4096, size)) * 2, dtype)
    z = jnp.where(jnp.asarray(rng.random((4096, size)) < 0.7), -jnp.inf, z).at[:, size // 2].set(1)
    u = jnp.asarray(rng.random(4096), jnp.float32)

    def weigh(z, top):
        w = jnp.exp(z.astype(jnp.float32) - top.astype(jnp.float32))
        return jnp.where(w >= 0.05, w, 0)

    def run(how):
        return jax.jit(lambda *x: how(weigh, *x))(z, z.max(-1), u)

    on_tpu = functools.partial(categorical._weighed_on_tpu, pick=categorical.masked_block)
    here, there = run(categorical._weighed), run(on_tpu)
    assert int((here != there).sum()) <= 2
    assert (here == draw(weigh(z, z.max(-1)[:, None]), u)).all()
    assert (jnp.take_along_axis(weigh(z, z.max(-1)[:, None]), there[:, None], 1) > 0).all()
