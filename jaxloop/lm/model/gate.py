"""A gated activation and the adapters' thin products beside it in one kernel for NVIDIA GPUs
(Pallas, by Triton): [N, F] arrays are read and written once, where thin products of their own would
read or write them six times more.

Dimensions: C chains, N tokens of all chains, F mlp, R ranks of gate and up together, S rank of
down.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

TOKENS, COLUMNS = 64, 64  # of the tile that a program holds in registers
RANKS = (16, 32, 64)


def fits(chains: int, tokens: int, mlp: int, *ranks: int) -> bool:
    """Whether the kernels can cut these sizes into their tiles, whose sides are powers of two of at
    least 16.
    """
    return (
        tokens % (chains * TOKENS) == 0
        and mlp % COLUMNS == 0
        and all(rank in RANKS for rank in ranks)
    )


def forward(act, g_NF, u_NF, z_CNR, bg_CRF, bu_CRF, a_CFS, *, interpret: bool = False):
    """(h [N, F], h A [C, N / C, S]) with h = act(g + z Bg) (u + z Bu), in the dtype of the inputs."""
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
    act, dh_NF, g_NF, u_NF, dz_CNS, z_CNR, bg_CRF, bu_CRF, a_CFS, *, interpret: bool = False
):
    """(dg [N, F], du [N, F], dg Bg' + du Bu' [C, N / C, R]) where the gradient of h is dh + dz A'."""
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
    from jax.experimental import pallas as pl

    return pl.ds(i * COLUMNS, COLUMNS)


def _dot(x, y):
    return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _call(kernel, wide, thin, of_chain, out, interpret):
    """`kernel` in [C, N / C / TOKENS] programs: of `wide` [N, F], `thin` [C, N / C, R] and `out`
    (like either) each sees its tokens, of `of_chain` [C, ...] what is its chain's.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

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
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=2),
    )(*wide, *thin, *of_chain)


@functools.cache
def works() -> bool:
    """Whether the kernels compile on this process's GPU and agree with XLA (2e-2 in bfloat16)."""
    try:
        device, rng = jax.local_devices(backend="gpu")[0], np.random.default_rng(0)
        draw = lambda *shape: jax.device_put(
            jnp.asarray(0.5 * rng.standard_normal(shape), jnp.bfloat16), device
        )
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


def plainly(act, dh_NF, g_NF, u_NF, dz_CNS, z_CNR, bg_CRF, bu_CRF, a_CFS):
    """What `forward` and `backward` return, by XLA: (h, h A, dg, du, dg Bg' + du Bu')."""
    chains = lambda x: x.reshape(z_CNR.shape[0], -1, x.shape[-1])

    def active(g, u):
        return act(g + jnp.einsum("cnr,crf->cnf", z_CNR, bg_CRF)) * (
            u + jnp.einsum("cnr,crf->cnf", z_CNR, bu_CRF)
        )

    h, pull = jax.vjp(active, chains(g_NF), chains(u_NF))
    dg, du = pull(chains(dh_NF) + jnp.einsum("cns,cfs->cnf", dz_CNS, a_CFS))
    up = jnp.einsum("cnf,crf->cnr", dg, bg_CRF) + jnp.einsum("cnf,crf->cnr", du, bu_CRF)
    flat = lambda x: x.reshape(g_NF.shape)
    return flat(h), jnp.einsum("cnf,cfs->cns", h, a_CFS), flat(dg), flat(du), up
