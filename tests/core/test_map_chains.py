"""map_chains: the same numbers as a loop, whatever the batch and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.core.map_chains import chain_mesh, map_chains, padded_count

CHAINS = 11


def _chain(one):
    """A little chain: a scan of matrix products with its own random draws and a data-dependent
    loop.
    """
    x, key = one

    def step(state, generation):
        draw = jax.random.normal(jax.random.fold_in(key, generation), state.shape)
        state = jnp.tanh(state @ state.T @ state) + 0.1 * draw
        return state, state.sum()

    last, sums = jax.lax.scan(step, x, jnp.arange(4))
    turns = jax.lax.while_loop(lambda n: n * 0.3 < jnp.abs(last).sum(), lambda n: n + 1, 0)
    return {"last": last, "sums": sums, "turns": turns}


def _args(chains=CHAINS):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(chains))
    x = np.random.default_rng(1).standard_normal((CHAINS, 3, 5)).astype(np.float32)
    return x[:chains], keys


@pytest.fixture(scope="module")
def reference():
    x, keys = _args()
    one = jax.jit(_chain)
    return [one((x[i], keys[i])) for i in range(CHAINS)]


@pytest.mark.parametrize("batch_size", [None, 1, 4, 16])
@pytest.mark.parametrize("devices", [None, pytest.param(1, marks=pytest.mark.slow), 4])
def test_equals_a_loop_over_chains(reference, batch_size, devices):
    mesh = None if devices is None else chain_mesh(jax.devices()[:devices])
    out = jax.jit(lambda a: map_chains(_chain, a, batch_size=batch_size, mesh=mesh))(_args())
    for i, expected in enumerate(reference):
        np.testing.assert_allclose(out["last"][i], expected["last"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out["sums"][i], expected["sums"], rtol=1e-4, atol=1e-5)
        assert out["turns"][i] == expected["turns"]


@pytest.mark.optimised
@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_chain_does_not_depend_on_its_neighbours(devices):
    """Bit for bit at a given batch: alone, in other company, at another place in the batch."""
    mesh = chain_mesh(jax.devices()[:devices])
    run = jax.jit(lambda a: map_chains(_chain, a, batch_size=4, mesh=mesh))
    x, keys = _args()
    together = run((x, keys))
    for few in ([0], [6], [10, 3, 0, 9, 1]):
        alone = run((x[few], keys[jnp.asarray(few)]))
        for name in together:
            np.testing.assert_array_equal(alone[name], np.asarray(together[name])[few])


def test_devices_share_the_chains_without_communication():
    mesh = chain_mesh()
    run = jax.jit(lambda a: map_chains(_chain, a, batch_size=1, mesh=mesh))
    out = run(_args(8))
    assert mesh.shape["chains"] == 4 and len(out["last"].sharding.device_set) == 4
    compiled = run.lower(_args(8)).compile().as_text()
    assert not [
        word
        for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all")
        if word in compiled
    ]


def test_whole_is_what_needs_no_padding():
    mesh = chain_mesh()
    assert [padded_count(n, batch_size=4, mesh=mesh) for n in (1, 16, 17)] == [16, 16, 32]
    assert (
        [padded_count(n, batch_size=4) for n in (1, 4, 5)] == [4, 4, 8]
        and padded_count(11) == 11
        and padded_count(11, mesh=mesh) == 12
    )


@pytest.mark.parametrize(
    ("args", "options", "sentence"),
    [
        ((jnp.zeros((3, 2)), jnp.zeros(2)), {}, "same chain axis"),
        ((jnp.zeros((0, 2)),), {}, "at least 1"),
        (jnp.zeros(()), {}, "same chain axis"),
        (jnp.zeros(3), {"batch_size": 0}, "batch_size=0: must be at least 1"),
        (
            jnp.zeros(3),
            {"mesh": jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))},
            "'chains'",
        ),
    ],
)
def test_refusals(args, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        map_chains(lambda x: x, args, **options)
