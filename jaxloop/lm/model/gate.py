"""A gated activation together with the adapters' products, in one kernel for NVIDIA GPUs.

Written in Pallas, compiled by Triton. Arrays [N, F] are read and written once; with kernels of
their own the adapters' products would read or write them six more times.

Dimensions: C chains, N tokens of all chains, F width of the mlp, R ranks of gate and up together,
S rank of down.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jaxloop.lm.triton import plgpu

TOKENS, COLUMNS = 64, 64  # sides of the tile that a program holds in registers
RANKS = (16, 32, 64)

Activation = Callable[[jax.Array], jax.Array]


def fits(chains: int, tokens: int, mlp: int, *ranks: int) -> bool:
    """Return whether these sizes divide into the kernels' tiles.

    Sides of tiles are powers of two of at least 16.
    """
    return (
        tokens % (chains * TOKENS) == 0
        and mlp % COLUMNS == 0
        and all(rank in RANKS for rank in ranks)
    )


def forward(
    act: Activation,
    g_NF: jax.Array,
    u_NF: jax.Array,
    z_CNR: jax.Array,
    bg_CRF: jax.Array,
    bu_CRF: jax.Array,
    a_CFS: jax.Array,
    *,
    interpret: bool = False,
) -> list[jax.Array]:
    """Return h = act(g + z Bg) (u + z Bu) [N, F] and h A [C, N / C, S], in the inputs' dtype.

    Args:
        act: the activation.
        g_NF: output of the gate projection, without its adapter.
        u_NF: output of the up projection, without its adapter.
        z_CNR: x A of gate and up.
        bg_CRF: B of gate.
        bu_CRF: B of up.
        a_CFS: A of down.
        interpret: run the kernel step by step on any platform, for tests.
    """
    thin = jax.ShapeDtypeStruct((*z_CNR.shape[:2], a_CFS.shape[-1]), g_NF.dtype)
    return _call(
        functools.partial(_forward, act),
        (g_NF, u_NF),
        (z_CNR,),
        (bg_CRF, bu_CRF, a_CFS),
        (g_NF, thin),
        interpret,
    )


def backward(
    act: Activation,
    dh_NF: jax.Array,
    g_NF: jax.Array,
    u_NF: jax.Array,
    dz_CNS: jax.Array,
    z_CNR: jax.Array,
    bg_CRF: jax.Array,
    bu_CRF: jax.Array,
    a_CFS: jax.Array,
    *,
    interpret: bool = False,
) -> list[jax.Array]:
    """Return dg [N, F], du [N, F] and dg Bg' + du Bu' [C, N / C, R].

    The gradient of h is dh + dz A'. The other arguments are those of `forward`.
    """
    inputs = (dh_NF, g_NF, u_NF), (dz_CNS, z_CNR), (bg_CRF, bu_CRF, a_CFS)
    return _call(functools.partial(_backward, act), *inputs, (g_NF, u_NF, z_CNR), interpret)


def _forward(act, g_ref, u_ref, z_ref, bg_ref, bu_ref, a_ref, h_ref, down_ref):
    z = z_ref[...]

    def column(i, down):
        at = _columns(i)
        g = g_ref[:, at].astype(jnp.float32) + _dot(z, bg_ref[:, at])
        u = u_ref[:, at].astype(jnp.float32) + _dot(z, bu_ref[:, at])
        h = (act(g) * u).astype(h_ref.dtype)
        h_ref[:, at] = h
        return down + _dot(h, a_ref[at, :])

    down = jax.lax.fori_loop(
        0, g_ref.shape[1] // COLUMNS, column, jnp.zeros(down_ref.shape, jnp.float32)
    )
    down_ref[...] = down.astype(down_ref.dtype)


def _backward(
    act, dh_ref, g_ref, u_ref, dz_ref, z_ref, bg_ref, bu_ref, a_ref, dg_ref, du_ref, up_ref
):
    dz, z = dz_ref[...], z_ref[...]

    def column(i, up):
        at = _columns(i)
        bg, bu = bg_ref[:, at], bu_ref[:, at]
        g = g_ref[:, at].astype(jnp.float32) + _dot(z, bg)
        u = u_ref[:, at].astype(jnp.float32) + _dot(z, bu)
        dh = dh_ref[:, at].astype(jnp.float32) + _dot(dz, a_ref[at, :].T)
        active, pull = jax.vjp(act, g)
        dg, du = pull(dh * u)[0].astype(dg_ref.dtype), (dh * active).astype(du_ref.dtype)
        dg_ref[:, at], du_ref[:, at] = dg, du
        return up + _dot(dg, bg.T) + _dot(du, bu.T)

    up = jax.lax.fori_loop(
        0, g_ref.shape[1] // COLUMNS, column, jnp.zeros(up_ref.shape, jnp.float32)
    )
    up_ref[...] = up.astype(up_ref.dtype)


def _columns(i):
    return pl.ds(i * COLUMNS, COLUMNS)


def _dot(x, y):
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _call(kernel, wide, thin, of_chain, out, interpret):
    """Run `kernel` as a grid of [C, N / C / TOKENS] programs, each for a block of a chain's tokens.

    A program sees its tokens of the arrays `wide` [N, F], `thin` [C, N / C, R] and `out` (shaped
    like either), and its chain's entry of the arrays `of_chain` [C, ...].
    """
    chains, tokens, _ = thin[0].shape
    blocks = tokens // TOKENS

    def block(x):
        if x.ndim == 2:
            return pl.BlockSpec((TOKENS, x.shape[1]), lambda c, n: (c * blocks + n, 0))
        return pl.BlockSpec((None, TOKENS, x.shape[2]), lambda c, n: (c, n, 0))

    return pl.pallas_call(
        kernel,
        grid=(chains, blocks),
        in_specs=[block(x) for x in (*wide, *thin)]
        + [pl.BlockSpec((None, *x.shape[1:]), lambda c, n: (c, 0, 0)) for x in of_chain],
        out_specs=[block(x) for x in out],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out],
        interpret=interpret,
        compiler_params=None if interpret else plgpu.CompilerParams(num_warps=4, num_stages=2),
    )(*wide, *thin, *of_chain)


@functools.cache
def works() -> bool:
    """Return whether the kernels run on this process's GPU and agree with XLA.

    They are compared on random numbers in bfloat16, within 2e-2.
    """
    try:
        device, rng = jax.local_devices(backend="gpu")[0], np.random.default_rng(0)

        def draw(*shape):
            values = jnp.asarray(0.5 * rng.standard_normal(shape), jnp.bfloat16)
            return jax.device_put(values, device)

        dh, g, u, dz, z = (
            draw(256, 128),
            draw(256, 128),
            draw(256, 128),
            draw(2, 128, 16),
            draw(2, 128, 32),
        )
        factors = draw(2, 32, 128), draw(2, 32, 128), draw(2, 128, 16)
        ahead, back = (jax.jit(functools.partial(f, jax.nn.silu)) for f in (forward, backward))
        ours = _float32((*ahead(g, u, z, *factors), *back(dh, g, u, dz, z, *factors)))
        theirs = plainly(jax.nn.silu, *_float32((dh, g, u, dz, z, *factors)))
        return all(
            bool(jnp.allclose(a, b, atol=2e-2, rtol=2e-2))
            for a, b in zip(ours, theirs, strict=True)
        )
    except Exception:  # any failure of the probe means the same: use XLA
        return False


def _float32(arrays):
    return [x.astype(jnp.float32) for x in arrays]


def plainly(
    act: Activation,
    dh_NF: jax.Array,
    g_NF: jax.Array,
    u_NF: jax.Array,
    dz_CNS: jax.Array,
    z_CNR: jax.Array,
    bg_CRF: jax.Array,
    bu_CRF: jax.Array,
    a_CFS: jax.Array,
) -> tuple[jax.Array, ...]:
    """Return h, h A, dg, du and dg Bg' + du Bu' of `forward` and `backward`, computed by XLA."""

    def by_chain(x):
        return x.reshape(z_CNR.shape[0], -1, x.shape[-1])

    def active(g, u):
        return act(g + jnp.einsum("cnr,crf->cnf", z_CNR, bg_CRF)) * (
            u + jnp.einsum("cnr,crf->cnf", z_CNR, bu_CRF)
        )

    h, pull = jax.vjp(active, by_chain(g_NF), by_chain(u_NF))
    dg, du = pull(by_chain(dh_NF) + jnp.einsum("cns,cfs->cnf", dz_CNS, a_CFS))
    up = jnp.einsum("cnf,crf->cnr", dg, bg_CRF) + jnp.einsum("cnf,crf->cnr", du, bu_CRF)
    thin = jnp.einsum("cnf,cfs->cns", h, a_CFS)
    return h.reshape(g_NF.shape), thin, dg.reshape(g_NF.shape), du.reshape(g_NF.shape), up
