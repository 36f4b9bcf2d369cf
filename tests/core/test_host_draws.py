"""Draws on the host have the bits of `jax.random`; where they would not, a program draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.core import host_draws, keys

SEEDS = (0, 7, 2**32 - 1, 2**40 + 7)
LIMITS = (1, 2, 977, 2**16, 2**16 + 1, 2**31 - 1)


def same(ours, jaxs):
    jaxs = np.asarray(jaxs)
    assert ours.dtype == jaxs.dtype and ours.shape == jaxs.shape
    np.testing.assert_array_equal(ours, jaxs)


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_are_those_of_jax_random(seed):
    key = keys.chain_key(seed)
    data = host_draws.key_data(key)
    same(data, jax.random.key_data(key))
    same(np.stack(host_draws.split(data)), jax.random.key_data(jax.random.split(key)))
    for number in (0, 1, 2**31, 2**32 - 1, np.int32(-3)):
        same(host_draws.fold_in(data, number), jax.random.key_data(jax.random.fold_in(key, number)))
    same(host_draws.bits(data, 1003), jax.random.bits(key, (1003,)))
    same(host_draws.uniform(data, 1003), jax.random.uniform(key, (1003,)))
    limits = np.resize(np.array(LIMITS, np.int32), 1003)
    same(host_draws.randint(data, 1003, limits), jax.random.randint(key, (1003,), 0, limits))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_single_limit(limit):
    key = keys.chain_key(3)
    got = host_draws.randint(host_draws.key_data(key), 1003, limit)
    same(got, jax.random.randint(key, (1003,), 0, limit))


# From 1,626 on numbers are sorted twice.
@pytest.mark.parametrize("count", [0, 1, 2, 20, 1625, 1626, 5000])
def test_orders_are_those_of_jax_random(count):
    key = keys.chain_key(9)
    same(
        host_draws.permutation(host_draws.key_data(key), count), jax.random.permutation(key, count)
    )


def test_many_keys_at_a_time():
    many = jax.random.split(keys.chain_key(1), 5)
    data = host_draws.key_data(many)
    same(host_draws.bits(data, 7), jax.vmap(lambda key: jax.random.bits(key, (7,)))(many))
    below = jax.vmap(lambda key: jax.random.randint(key, (7,), 0, 11))(many)
    same(host_draws.randint(data, 7, 11), below)


CALLS = {
    "fold_in": lambda key: jax.random.key_data(keys.fold_in(key, 2**32 - 1)),
    "row_keys": lambda key: jax.random.key_data(keys.row_keys(key, np.arange(3))),
    "fold_each": lambda key: jax.random.key_data(keys.fold_each(key[None], np.uint32(4))),
    "random_bits": lambda key: keys.random_bits(key, 9),
    "random_below": lambda key: keys.random_below(key, 977),
    "rows_below": lambda key: keys.rows_below(key, np.arange(9, dtype=np.uint32), 977),
    "random_order": lambda key: keys.random_order(key, 40),
}


@pytest.mark.parametrize("name", CALLS)
def test_inside_a_program_and_outside_the_values_are_the_same(name):
    key, call = keys.chain_key(5), CALLS[name]
    outside = np.asarray(call(key))
    same(outside, jax.jit(call)(key))
    same(outside, jax.jit(lambda: call(key))())


def test_other_keys_are_drawn_from_by_jax():
    other = jax.random.key(3, impl="rbg")
    assert host_draws.key_data(other) is None
    same(np.asarray(keys.random_bits(other, 5)), jax.random.bits(other, (5,), jnp.uint32))
    key = keys.chain_key(3)
    with jax.threefry_partitionable(False):
        assert host_draws.key_data(key) is None
        original = np.asarray(keys.random_bits(key, 5))
        same(original, jax.random.bits(key, (5,), jnp.uint32))
    assert (original != np.asarray(keys.random_bits(key, 5))).any()


def test_nothing_is_compiled(monkeypatch):
    key = keys.chain_key(11)
    keys.random_bits(key, 1)

    def compiled(*args, **more):
        raise AssertionError("a draw on the host was compiled")

    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", compiled)
    for call in (keys.random_bits, keys.random_below, keys.random_order):
        call(key, 12_347)
