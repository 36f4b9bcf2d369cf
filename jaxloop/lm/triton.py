"""JAX's Pallas backend for Triton, for kernels on GPUs.

JAX deprecates it from 0.11 on and will remove it. Then the kernels that need it cannot be made,
their probes say so, and programs are XLA's alone.
"""

from typing import Any

plgpu: Any = None
try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:
    pass

AVAILABLE = plgpu is not None
