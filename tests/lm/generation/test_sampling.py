"""The sampler against the logits processors of `transformers`, and its draws against its
probabilities.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxloop.lm.generation.sampling import Sampler, next_token, weights
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers.generation.logits_process", "torch")

TOLERANCE = 1e-6  # absolute, probabilities in float32
weigh = jax.jit(weights, static_argnums=0)
draw = jax.jit(next_token, static_argnums=0)


def processed(sampler, logits, texts=None):
    """Scores after transformers' processors, in the order of
    `GenerationMixin._get_logits_processor` (5.23, generation/utils.py).
    """
    scores = torch.from_numpy(logits)
    if sampler.repetition_penalty != 1:
        scores = hf.RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty)(
            torch.from_numpy(texts), scores
        )
    if sampler.temperature != 1:
        scores = hf.TemperatureLogitsWarper(sampler.temperature)(None, scores)
    if sampler.top_k:
        scores = hf.TopKLogitsWarper(sampler.top_k)(None, scores)
    if sampler.top_p < 1:
        scores = hf.TopPLogitsWarper(sampler.top_p)(None, scores)
    if sampler.min_p:
        scores = hf.MinPLogitsWarper(sampler.min_p)(None, scores)
    return scores


def probabilities(sampler, logits, texts=None):
    return processed(sampler, logits, texts).softmax(-1).numpy()


def normalised(w):
    w = np.asarray(w)
    return w / w.sum(-1, keepdims=True)


@functools.cache
def logits(rows=24, vocab=300, seed=0):
    """Rows from nearly flat to nearly one-hot, with cut (-inf) tokens in one of them."""
    rng = np.random.default_rng(seed)
    x = (
        rng.standard_normal((rows, vocab)) * np.geomspace(0.2, 12, rows)[:, None]
        + rng.normal(0, 20, (rows, 1))
    ).astype(np.float32)
    x[3, 10:200] = -np.inf
    x.setflags(write=False)
    return x


def seen(texts, vocab):
    mask = np.zeros((len(texts), vocab), bool)
    np.put_along_axis(mask, texts, True, -1)
    return mask


GRID = [
    Sampler(**dict(zip(("temperature", "top_k", "top_p", "min_p"), values, strict=True)))
    for values in itertools.product((0.6, 1.0), (0, 1, 7), (0.05, 0.9, 1.0), (0.0, 0.1))
] + [
    Sampler(temperature=1.7, top_k=10**6, min_p=1.0),
    Sampler(temperature=3.0, top_k=250, top_p=0.999),
]


@pytest.mark.parametrize(
    "part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3))]
)
def test_weights_equal_the_probabilities_of_transformers_on_a_grid(part):
    x = logits()
    for sampler in GRID[part::4]:
        ours, theirs = normalised(weigh(sampler, x)), probabilities(sampler, x.copy())
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, err_msg=str(sampler))
        tiny = (
            np.finfo(np.float32).tiny / 1e-6
        )  # below it, XLA flushes to zero what torch keeps as a denormal number
        np.testing.assert_array_equal(ours > tiny, theirs > tiny, err_msg=str(sampler))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
@pytest.mark.parametrize(
    "rest", [{}, dict(temperature=0.8, top_k=20, top_p=0.95, min_p=0.02), dict(greedy=True)]
)
def test_repetition_penalty_comes_first_and_acts_once_on_a_token(penalty, rest):
    x = logits()
    texts = np.random.default_rng(1).integers(0, 300, (len(x), 60))
    sampler = Sampler(repetition_penalty=penalty, **rest)
    assert sampler.needs_seen and not Sampler(**rest).needs_seen
    mask = seen(texts, 300)
    if sampler.greedy:
        expected = (
            processed(dataclasses.replace(sampler, greedy=False), x.copy(), texts)
            .argmax(-1)
            .numpy()
        )
        np.testing.assert_array_equal(draw(sampler, x, jnp.zeros(len(x)), mask), expected)
        np.testing.assert_array_equal(np.asarray(weigh(sampler, x, mask)).argmax(-1), expected)
    else:
        np.testing.assert_allclose(
            normalised(weigh(sampler, x, mask)),
            probabilities(sampler, x.copy(), texts),
            atol=TOLERANCE,
            rtol=0,
        )


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(min_p=0.1),
        Sampler(top_p=0.9),
        Sampler(top_k=50),
        Sampler(temperature=0.7, top_k=2000, top_p=0.95),
    ],
)
def test_a_vocabulary_of_128k(sampler):
    x = (
        np.random.default_rng(2).standard_normal((6, 128256))
        * np.array([0.5, 1, 2, 3, 5, 8])[:, None]
    ).astype(np.float32)
    ours, theirs = normalised(weigh(sampler, x)), probabilities(sampler, x.copy())
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
    # Sums over 128,256 terms round differently in float32, so one token at the edge of the nucleus
    # may go either way.
    assert (np.abs((ours > 0).sum(-1) - (theirs > 0).sum(-1)) <= 1).all()


@pytest.mark.parametrize("vocab", [12, 300])
@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(top_k=5),
        Sampler(top_p=0.5),
        Sampler(top_p=0.01),
        Sampler(top_k=5, top_p=0.3),
        Sampler(min_p=1.0),
        Sampler(top_p=0.9, min_p=0.3),
    ],
)
def test_ties(sampler, vocab):
    """Which of several equal tokens stay is not specified; how many stay, and how probable they
    are, is.
    """
    x = np.round(np.random.default_rng(3).standard_normal((8, vocab))).astype(np.float32)
    x[0] = 0.0
    x[1] = np.where(np.arange(vocab) % 3 == 0, 0.0, -0.0)
    x[2, :4], x[2, 4:] = 1.0, -2.0
    ours, theirs = normalised(weigh(sampler, x)), probabilities(sampler, x.copy())
    np.testing.assert_allclose(np.sort(ours, -1), np.sort(theirs, -1), atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal((ours > 0).sum(-1), (theirs > 0).sum(-1))
    for row, (w, z) in enumerate(zip(ours, x, strict=True)):
        assert z[w > 0].min() >= z[w == 0].max(initial=-np.inf), row


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(temperature=0.7, min_p=0.05),
        Sampler(top_p=0.9),
        Sampler(top_k=12),
        Sampler(temperature=1.4, top_k=30, top_p=0.8, min_p=0.02, repetition_penalty=1.5),
    ],
)
def test_draws_pass_a_chi_square_test_against_transformers(sampler):
    n, vocab = 40_000, 60
    one = (np.random.default_rng(4).standard_normal(vocab) * 1.5).astype(np.float32)
    text = np.arange(0, 20)[None]
    expected = probabilities(sampler, one[None].copy(), text)[0].astype(np.float64)
    u = jax.random.uniform(jax.random.key(7), (n,))
    rows = jnp.broadcast_to(one[None], (4000, vocab))
    mask = jnp.broadcast_to(seen(text, vocab), rows.shape)
    tokens = np.concatenate([draw(sampler, rows, part, mask) for part in u.reshape(-1, 4000)])
    assert tokens.dtype == np.int32
    counts = np.bincount(tokens, minlength=vocab)
    assert not counts[expected == 0].any()
    kept = expected * n > 5
    observed = np.append(counts[kept], counts[~kept].sum())
    wanted = np.append(expected[kept], expected[~kept].sum()) * n
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) >= 5
    assert scipy.stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_greedy_is_the_first_of_the_most_probable_tokens():
    x = logits().copy()
    x[5, [40, 17, 250]] = x[5].max() + 1
    tokens = draw(Sampler(greedy=True, temperature=0.3, top_p=0.4), x, jnp.full(len(x), 0.99))
    assert tokens.dtype == jnp.int32 and tokens[5] == 17
    np.testing.assert_array_equal(tokens, x.argmax(-1))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(temperature=1e-4),
        Sampler(temperature=1e-7, min_p=0.2),  # of what a study samples with
        Sampler(temperature=1e-9),
        Sampler(temperature=1e-9, top_p=0.9, min_p=0.2),
        Sampler(temperature=1e-42),
    ],
)
def test_a_vanishing_temperature_is_greedy(sampler):
    """As soon as the two largest logits are more than a thousand temperatures apart: in all rows
    here.
    """
    x = 1 + logits()
    tokens = draw(sampler, x, jnp.linspace(0, 0.999, len(x)))
    np.testing.assert_array_equal(tokens, x.argmax(-1))


def test_a_low_temperature_is_that_of_transformers():
    """On both sides of the one below which logits are taken from the largest before they are
    divided.
    """
    x = logits() / 100
    for temperature in (0.0101, 0.0099):
        sampler = Sampler(temperature=temperature, top_p=0.95, min_p=0.01)
        np.testing.assert_allclose(
            normalised(weigh(sampler, x)), probabilities(sampler, x), atol=TOLERANCE
        )


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(temperature=0.8, min_p=0.1),
        Sampler(top_p=0.9),
        Sampler(top_k=9, top_p=0.7),
        Sampler(repetition_penalty=1.2),
        Sampler(greedy=True),
    ],
)
def test_a_row_does_not_depend_on_its_neighbours(sampler):
    """Bit for bit, at the same compiled shape: other rows may hold ties, infinities or anything."""
    x = logits().copy()
    mask = seen(np.random.default_rng(1).integers(0, 300, (len(x), 60)), 300)
    u = np.linspace(0, 0.99, len(x), dtype=np.float32)
    other = np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)
    other[1] = 0.0
    moved = [7, 0, 2]
    other[[3, 20, 11]], other_u, other_mask = x[moved], u[::-1].copy(), ~mask
    other_u[[3, 20, 11]], other_mask[[3, 20, 11]] = u[moved], mask[moved]
    np.testing.assert_array_equal(
        np.asarray(weigh(sampler, x, mask))[moved],
        np.asarray(weigh(sampler, other, other_mask))[[3, 20, 11]],
    )
    np.testing.assert_array_equal(
        np.asarray(draw(sampler, x, u, mask))[moved],
        np.asarray(draw(sampler, other, other_u, other_mask))[[3, 20, 11]],
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("temperature", "1"),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(field, value):
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed; it must be a") as caught:
        Sampler(**{field: value})
    assert repr(value) in str(caught.value) and "\n" not in str(caught.value)
    assert ("greedy" in str(caught.value)) == (field == "temperature" and value == 0)


def test_a_penalty_without_the_texts_is_refused():
    with pytest.raises(
        ValueError, match="repetition_penalty: 1.2 needs to know the tokens already in each text"
    ):
        next_token(Sampler(repetition_penalty=1.2), jnp.zeros((1, 4)), jnp.zeros(1))


def test_samplers_are_static_arguments():
    assert hash(Sampler(top_k=3)) == hash(Sampler(top_k=3)) and Sampler(top_k=3) != Sampler(top_k=4)
