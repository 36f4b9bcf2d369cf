"""Mixing matrices and integer allocation."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.core import mixing


@pytest.mark.parametrize("entities", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", mixing.NAMES)
def test_named_matrices_are_row_stochastic(name, entities):
    matrix = mixing.named(name, entities)
    np.testing.assert_array_equal(mixing.check_mixing(matrix, entities), matrix)


def test_shapes_of_influence():
    np.testing.assert_allclose(
        mixing.ring(4, own=0.5),
        [[0.5, 0.25, 0, 0.25], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.25], [0.25, 0, 0.25, 0.5]],
    )
    np.testing.assert_allclose(
        mixing.star(3, own=0.75, hub=1), [[0.75, 0.25, 0], [1 / 3] * 3, [0, 0.25, 0.75]]
    )
    np.testing.assert_allclose(mixing.blocks([1, 2]), [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    np.testing.assert_allclose(mixing.named("blocks", 3), mixing.blocks([2, 1]))
    np.testing.assert_allclose(
        mixing.ring(2), mixing.blocks([2]) * np.array([[2 / 3, 4 / 3], [4 / 3, 2 / 3]])
    )


def test_mix_is_a_weighted_sum_over_writers():
    matrix, messages = mixing.ring(3), np.random.default_rng(0).normal(size=(3, 2, 5))
    expected = sum(matrix[:, j, None, None] * messages[j] for j in range(3))
    np.testing.assert_allclose(
        mixing.mix(jnp.asarray(matrix, jnp.float32), jnp.asarray(messages, jnp.float32)),
        expected,
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: mixing.check_mixing(np.ones((2, 2)), 2),
            r"row-stochastic\), sums are \[2.0, 2.0\]",
        ),
        (lambda: mixing.check_mixing([[2, -1], [0, 1]], 2), "non-negative"),
        (lambda: mixing.check_mixing([[np.nan, 1], [0, 1]], 2), "row-stochastic"),
        (lambda: mixing.check_mixing(np.eye(3), 2), r"must be \(2, 2\)"),
        (lambda: mixing.named("mesh", 3), "mixing='mesh': must be one of complete"),
        (lambda: mixing.star(3, hub=3), "hub=3"),
        (lambda: mixing.ring(3, own=1.5), r"own=1.5: must lie in \[0, 1\]"),
        (lambda: mixing.blocks([2, 0]), "at least one entity"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
