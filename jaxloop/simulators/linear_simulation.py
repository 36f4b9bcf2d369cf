"""Simulation of linear models that train on each other's output: the fits as maps of labels, and
the labels drawn. `linear.simulate` is the entry; 64-bit arithmetic is switched on there.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.core.keys import chain_key, phase_key
from jaxloop.core.map_chains import map_chains
from jaxloop.runtime.devices import run_concurrently
from jaxloop.runtime.setup_jit import setup_jit
from jaxloop.simulators.linear_designs import Designs, Setting

# What `label_maps` gives, in its order.
LabelMaps = tuple[jax.Array, ...]


def simulate_in_batches(
    maps: LabelMaps, seed: int, replicates: int, generations: int, batch: int
) -> np.ndarray:
    """Simulate a batch a call, some calls at a time; the result is [R, T+1, Kd].

    A large study's result is hundreds of megabytes: a program that made all of it would spend more
    on pages of memory that it touches first than on arithmetic.
    """
    key = chain_key(seed)
    out = np.empty((replicates, generations + 1, maps[0].shape[1]), maps[0].dtype)

    def simulate_from(first):
        with jax.enable_x64(True):  # holds for one thread
            return _simulate_batch(maps, key, np.uint32(first), batch, generations)

    def take(first, found):
        out[first : first + batch] = found[: replicates - first]

    run_concurrently(simulate_from, take, range(0, replicates, batch))
    return out


@setup_jit(static_argnames="count", inline=True)
def replicate_keys(
    key: jax.Array, count: int, start: np.uint32 | jax.Array = np.uint32(0)
) -> jax.Array:
    """Keys of `count` replicates from number `start` on: fold_in(key, r)."""
    return jax.vmap(partial(jax.random.fold_in, key))(start + jnp.arange(count, dtype=jnp.uint32))


@partial(jax.jit, static_argnames=("count", "generations"))
def _simulate_batch(maps, key, start, count, generations):
    return simulate_replicates(maps, replicate_keys(key, count, start), generations, None, None)


@partial(jax.jit, static_argnames=("generations", "batch_size", "mesh"))
def simulate_replicates(
    maps: LabelMaps,
    keys: jax.Array,
    generations: int,
    batch_size: int | None,
    mesh: Mesh | None,
) -> jax.Array:
    """Return theta_hat [R, T+1, Kd] of the replicates with these keys."""
    first, real, refit, first_on, real_on, refit_on, expected, scale = maps
    known, rows = expected.shape[0], first_on.shape[1]

    def along(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (generations, *x.shape[1:]))

    def one(key):
        noise = scale * standard_normals(
            phase_key(key, 0, "labels"), known + generations * rows
        ).astype(scale.dtype)
        labels, fresh = expected + noise[:known], noise[known:].reshape(generations, rows)

        def step(said, now):
            noise_t, on_t, *real_t = now
            written = said + noise_t
            return (
                fixed_on if fixed_on is not None else labels @ real_t[0]
            ) + written @ on_t, written

        # Real weights that do not change with t are multiplied out once, not once per generation.
        fixed_on = labels @ real_on[0] if real_on.shape[0] == 1 else None
        xs = (fresh, along(refit_on)) if fixed_on is not None else (fresh, along(refit_on), real_on)
        _, written = jax.lax.scan(step, labels @ first_on, xs, unroll=5)
        fixed = labels @ real[0] if real.shape[0] == 1 else jnp.einsum("n,tnx->tx", labels, real)
        heard = (
            written @ refit[0] if refit.shape[0] == 1 else jnp.einsum("tn,tnx->tx", written, refit)
        )
        return jnp.concatenate(
            [(labels @ first)[None], heard + (fixed[None] if fixed.ndim == 1 else fixed)]
        )

    return map_chains(one, keys, batch_size=batch_size, mesh=mesh)


def standard_normals(key: jax.Array, count: int) -> jax.Array:
    """`count` standard normal numbers, float32, draw i whatever `count` is: 23 bits each,
    symmetric, the largest is 5.3.

    Two come from one block of the generator, which `jax.random.normal` spends on one; call it where
    64-bit types are enabled.
    """
    words = jax.lax.bitcast_convert_type(
        jax.random.bits(key, (count // 2 + count % 2,), jnp.uint64), jnp.uint32
    ).reshape(-1)[:count]
    middle = (words >> np.uint32(9)).astype(jnp.float32) + np.float32(0.5)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(middle * np.float32(2.0**-22) - np.float32(1))


def label_maps(
    designs: Designs,
    w: Setting,
    inverse: np.ndarray,
    theta: np.ndarray,
    sigma2: float,
    generations: int,
    dtype: np.dtype,
) -> LabelMaps:
    """Matrices of the fits as maps of label rows. One for all generations where nothing changes.

    inverse [T+1, K, d, d]: the generalised inverses of the fits.

    theta_0 = labels @ first, theta_t = labels @ real_t + written_t @ refit_t, and what the next
    labels are before their noise, `write` being the synthetic rows of the next generation: first_on
    = first @ write_1, real_on_t = real_t @ write_t+1, refit_on_t = refit_t @ write_t+1. A fit reads
    the labels of a design X = QR through R'(Q'y) only, so that a design with more rows than columns
    stands as R.
    """
    k, d = designs.entities, designs.dim
    rows = [_triangle(x) for x in (*designs.private, designs.public)]
    own = np.concatenate([w.a[:, :, None] * np.eye(k), w.b[:, :, None]], 2)
    real = np.concatenate(
        [np.einsum("tk,nx,tkxy->tnky", own[:, :, j], x, inverse) for j, x in enumerate(rows)], 1
    )
    real = real.reshape(generations + 1, -1, k * d)
    groups = [[_triangle(x) for x in group] for group in designs.synthetic_groups]

    def group(t: int) -> list[np.ndarray]:
        return groups[0 if designs.fixed else t - 1]

    write = (
        [_block_columns(group(t)) for t in range(1, generations + 1)]
        if not designs.fixed
        else [_block_columns(groups[0])] * generations
    )
    refit = []
    for t in range(1, generations + 1):
        parts = [
            np.einsum("k,nx,kxy->nky", w.alpha[t] * w.who[t, :, j], x, inverse[t])
            for j, x in enumerate(group(t))
        ]
        refit.append(np.concatenate(parts).reshape(-1, k * d))

    def once(x: np.ndarray) -> np.ndarray:
        return x[:1] if (x == x[:1]).all() else x

    # Nothing is written after the last generation: its map only gives the arrays their shape.
    following = [*write[1:], write[-1]]

    def on(fits: Iterable[np.ndarray]) -> np.ndarray:
        return once(np.stack([fit @ x for fit, x in zip(fits, following, strict=True)]))

    expected = np.concatenate(rows) @ theta
    arrays = (
        real[0],
        once(real[1:]),
        once(np.stack(refit)),
        real[0] @ write[0],
        on(real[1:]),
        on(refit),
        expected,
        np.sqrt(sigma2),
    )
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def _triangle(x):
    return np.linalg.qr(x, mode="r") if x.shape[0] > x.shape[1] else x


def _block_columns(matrices):
    """[K d, rows] with X_k' in block k."""
    out = np.zeros((sum(x.shape[1] for x in matrices), sum(x.shape[0] for x in matrices)))
    i = j = 0
    for x in matrices:
        out[i : i + x.shape[1], j : j + x.shape[0]] = x.T
        i, j = i + x.shape[1], j + x.shape[0]
    return out
