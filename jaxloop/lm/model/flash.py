"""Causal attention by JAX's own kernel for TPUs (splash attention, in Pallas).

It never holds the scores of a whole row.

Dimensions: R rows, T time, H query heads, G key/value heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128  # time is padded to a multiple: the width of the TPU's vector registers
BLOCK = 512  # queries, and keys, of one step of the kernel at most


def causal(
    q_RTHK: jax.Array, k_RTGK: jax.Array, v_RTGK: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Return causal attention [R, T, H, K], which has a first derivative in reverse mode only.

    Args:
        q_RTHK: queries; H is a multiple of G.
        k_RTGK: keys.
        v_RTGK: values.
        interpret: run the kernel step by step on any platform, for tests.
    """
    _, seq_len, heads, head_dim = q_RTHK.shape
    padding = -seq_len % LANES

    def heads_first(x):
        # Keys after the last token are seen by none that is before them.
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    q = q_RTHK * jnp.asarray(head_dim**-0.5, q_RTHK.dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.vmap(_kernel(heads, seq_len + padding, interpret))(
            heads_first(q), heads_first(k_RTGK), heads_first(v_RTGK)
        )
    return out.transpose(0, 2, 1, 3)[:, :seq_len]


def _kernel(heads: int, seq_len: int, interpret: bool) -> Callable:
    # Only a TPU needs these modules.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    size = max(n for n in range(LANES, min(BLOCK, seq_len) + 1, LANES) if seq_len % n == 0)
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
    mask = masks.MultiHeadMask([masks.CausalMask((seq_len, seq_len))] * heads)
    sizes: dict[str, Any] = dict.fromkeys(names, size)
    blocks = kernel.BlockSizes(**sizes)
    return kernel.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
    )


@functools.cache
def works(head_dim: int) -> bool:
    """Return whether the kernel compiles on this process's TPU and agrees with XLA.

    Compared are the gradients for this head size, within 2e-2 in bfloat16.
    """
    try:
        device, rng = jax.local_devices(backend="tpu")[0], np.random.default_rng(0)
        q, k, v = (
            jax.device_put(
                jnp.asarray(rng.standard_normal((2, 200, n, head_dim)), jnp.bfloat16), device
            )
            for n in (4, 2, 2)
        )
        plain = functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation="xla"
        )

        def gradients(attend):
            def total(q, k, v):
                return (attend(q, k, v).astype(jnp.float32) ** 2).sum()

            return jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)

        return all(
            bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-2, rtol=2e-2))
            for a, b in zip(gradients(causal), gradients(plain), strict=True)
        )
    except Exception:  # any failure of the probe means the same: use XLA
        return False
