"""What a program is made for: a static argument, decided once where a program is called, never
asked of the process deeper inside.
"""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.generation import row_kernels
from jaxloop.lm.model import flash, gate
from jaxloop.lm.model.config import Spec
from jaxloop.runtime.devices import platform_of


@dataclass(frozen=True)
class Target:
    """platform: "cpu", "gpu" or "tpu"; cudnn: whether cuDNN's fused attention may be used; splash:
    `flash.causal`, on a TPU; gate and rows: the kernels of `gate` and `row_kernels`, on a GPU. A
    program runs on every platform if it is made for a CPU, only slower.
    """

    platform: str = "cpu"
    cudnn: bool = False
    splash: bool = False
    gate: bool = False
    rows: bool = False

    @property
    def for_a_cut_base(self) -> "Target":
        """Without Pallas kernels, which XLA cannot cut over devices."""
        return dataclasses.replace(self, splash=False, gate=False, rows=False)


def target_of(spec: Spec, params, mesh=None) -> Target:
    """The target of programs that read `params`: the devices that these lie on. XLA cannot cut
    Pallas kernels, so that programs of several devices have none, unless each device runs a program
    of its own chains, over `mesh`.
    """
    platform = platform_of(params)
    devices = max(
        (len(x.sharding.device_set) for x in jax.tree.leaves(params) if isinstance(x, jax.Array)),
        default=1,
    )
    own = devices == 1 or mesh is not None
    return Target(
        platform,
        cudnn=platform == "gpu" and cudnn_works(spec.head_size),
        splash=own and platform == "tpu" and flash.works(spec.head_size),
        gate=own and platform == "gpu" and gate.works(),
        rows=own
        and platform == "gpu"
        and row_kernels.works(str(jax.tree.leaves(params)[0].dtype), spec.head_size),
    )


def complete(platform: str) -> Target:
    """The target of a platform whose every kernel is there and right: of hardware that is absent."""
    gpu = platform == "gpu"
    return Target(platform, cudnn=gpu, splash=platform == "tpu", gate=gpu, rows=gpu)


@functools.cache
def cudnn_works(head_size: int) -> bool:
    """Whether cuDNN's fused attention compiles on this process's GPU for this head size and agrees
    with XLA (forward and gradient, 2e-2 in bf16).
    """
    try:
        device = jax.local_devices(backend="gpu")[0]
        rng = np.random.default_rng(0)
        q, k, v = (
            jax.device_put(
                jnp.asarray(rng.standard_normal((2, 64, 2, head_size)), jnp.bfloat16), device
            )
            for _ in range(3)
        )

        def total(q, k, v, implementation):
            return (
                jax.nn.dot_product_attention(
                    q, k, v, is_causal=True, implementation=implementation
                ).astype(jnp.float32)
                ** 2
            ).sum()

        grads = [
            jax.jit(jax.grad(functools.partial(total, implementation=i), (0, 1, 2)))(q, k, v)
            for i in ("cudnn", "xla")
        ]
        return all(
            bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-2, rtol=2e-2))
            for a, b in zip(*grads)
        )
    except Exception:  # any failure of the probe means the same: use XLA
        return False
