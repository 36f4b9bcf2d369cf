"""What a program is made for: a static argument, decided once where a program is called."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.lm import triton as triton_backend
from jaxloop.lm.generation import ring_attention, row_kernels
from jaxloop.lm.model import flash, gate
from jaxloop.lm.model.config import ModelConfig
from jaxloop.runtime.devices import platform_of


@dataclass(frozen=True)
class Target:
    """A platform, and the kernels beside XLA's that a program may use there.

    A program that is made for a CPU runs on every platform, only slower.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        cudnn: cuDNN's fused attention, on a GPU.
        splash: `flash.causal`, on a TPU.
        gate: the kernels of `gate`, on a GPU.
        rows: the kernels of `row_kernels`: `row_attention` and `row_adapters` on a GPU,
            `ring_kernel` on a TPU.
        products: the kernel of `row_products` on a GPU, of `ring_products` on a TPU.
        shared_memory: bytes that a block of threads has on a GPU that is absent; None: whether a
            kernel fits was tried, or is not asked.
    """

    platform: str = "cpu"
    cudnn: bool = False
    splash: bool = False
    gate: bool = False
    rows: bool = False
    products: bool = False
    shared_memory: int | None = None

    @property
    def for_sharded_base(self) -> "Target":
        """The target without Pallas kernels, which XLA cannot shard over devices."""
        return dataclasses.replace(self, splash=False, gate=False, rows=False, products=False)


def target_of(config: ModelConfig, params: Any, mesh: Mesh | None = None) -> Target:
    """Return the target of programs that read `params`: the devices on which these lie.

    XLA cannot shard Pallas kernels. So programs of several devices have none, unless each device
    runs a program of its own chains, over `mesh`.
    """
    platform = platform_of(params)
    arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    devices = max((len(x.sharding.device_set) for x in arrays), default=1)
    gpu, tpu = platform == "gpu", platform == "tpu"
    pallas = devices == 1 or mesh is not None
    dtype, rows = str(jax.tree.leaves(params)[0].dtype), False
    if pallas and gpu:
        queries = config.num_heads // config.num_kv_heads
        rows = row_kernels.works(dtype, config.head_dim, queries)
    if pallas and tpu and ring_attention.fits(config, dtype):
        rows = row_kernels.rings_work(config.num_heads, config.num_kv_heads, config.head_dim)
    return Target(
        platform,
        cudnn=gpu and cudnn_works(config.head_dim),
        splash=pallas and tpu and flash.works(config.head_dim),
        gate=pallas and gpu and gate.works(),
        rows=rows,
        products=rows and row_kernels.products_work(dtype, platform),
    )


def complete(platform: str, shared_memory: int | None = None) -> Target:
    """Return the target of hardware that is absent: every kernel of the platform.

    shared_memory: bytes of a block of threads, as in `Target`.
    """
    gpu, tpu = platform == "gpu", platform == "tpu"
    triton = gpu and triton_backend.AVAILABLE
    kernels = triton or tpu
    return Target(
        platform,
        cudnn=gpu,
        splash=tpu,
        gate=triton,
        rows=kernels,
        products=kernels,
        shared_memory=shared_memory,
    )


@functools.cache
def cudnn_works(head_dim: int) -> bool:
    """Return whether cuDNN's fused attention compiles on this process's GPU and agrees with XLA.

    Compared are the gradients for this head size, within 2e-2 in bfloat16.
    """
    try:
        device = jax.local_devices(backend="gpu")[0]
        rng = np.random.default_rng(0)
        q, k, v = (
            jax.device_put(
                jnp.asarray(rng.standard_normal((2, 64, 2, head_dim)), jnp.bfloat16), device
            )
            for _ in range(3)
        )

        def total(implementation, q, k, v):
            attended = jax.nn.dot_product_attention(
                q, k, v, is_causal=True, implementation=implementation
            )
            return (attended.astype(jnp.float32) ** 2).sum()

        def gradients(implementation):
            of = functools.partial(total, implementation)
            return jax.jit(jax.grad(of, (0, 1, 2)))(q, k, v)

        return all(
            bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-2, rtol=2e-2))
            for a, b in zip(gradients("cudnn"), gradients("xla"), strict=True)
        )
    except Exception:  # any failure of the probe means the same: use XLA
        return False
