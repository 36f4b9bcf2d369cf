"""Causal attention by JAX's own kernel for TPUs (splash attention, in Pallas), which never holds
scores of a whole row.

Dimensions: R rows, T time, H query heads, G key/value heads, K head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128  # time is padded to a multiple: the width of the TPU's vector registers
BLOCK = 512  # queries, and keys, of one step of the kernel at most


def causal(q_RTHK, k_RTGK, v_RTGK, *, interpret: bool = False):
    """Causal attention [R, T, H, K]; H is a multiple of G. Differentiable once, backwards.
    `interpret`: step by step on any platform, for tests.
    """
    _, time, heads, width = q_RTHK.shape
    pad = -time % LANES
    # Keys after the last token are seen by none that is before them.
    ahead = lambda x: jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
    q = q_RTHK * jnp.asarray(width**-0.5, q_RTHK.dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.vmap(_kernel(heads, time + pad, interpret))(*map(ahead, (q, k_RTGK, v_RTGK)))
    return out.transpose(0, 2, 1, 3)[:, :time]


def _kernel(heads, time, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    size = max(n for n in range(LANES, min(BLOCK, time) + 1, LANES) if time % n == 0)
    names = (
        "block_q",
        "block_kv",
        "block_kv_compute",
        "block_q_dkv",
        "block_kv_dkv",
        "block_kv_dkv_compute",
        "block_q_dq",
        "block_kv_dq",
    )
    mask = masks.MultiHeadMask([masks.CausalMask((time, time))] * heads)
    blocks = kernel.BlockSizes(**dict.fromkeys(names, size))
    return kernel.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
    )


@functools.cache
def works(head_size: int) -> bool:
    """Whether the kernel compiles on this process's TPU for this head size and agrees with XLA
    (forward and gradient, 2e-2 in bf16).
    """
    try:
        device, rng = jax.local_devices(backend="tpu")[0], np.random.default_rng(0)
        q, k, v = (
            jax.device_put(
                jnp.asarray(rng.standard_normal((2, 200, n, head_size)), jnp.bfloat16), device
            )
            for n in (4, 2, 2)
        )
        plain = functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation="xla"
        )
        total = lambda attention, *qkv: (attention(*qkv).astype(jnp.float32) ** 2).sum()
        found = [
            jax.jit(jax.grad(functools.partial(total, f), (0, 1, 2)))(q, k, v)
            for f in (causal, plain)
        ]
        return all(
            bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-2, rtol=2e-2))
            for a, b in zip(*found)
        )
    except Exception:  # any failure of the probe means the same: use XLA
        return False
