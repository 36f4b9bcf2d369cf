#!/usr/bin/env bash
# jax 0.10.2, libtpu 0.0.42: a Pallas kernel with `//` cannot be compiled for a TPU that is absent; one with `lax.div` or `%` can.
#
# Programs can be compiled for TPUs on a machine that has none (jax.experimental.topologies), Pallas kernels among them.
# One would guess: `index // 2` of a non-negative index is as good as `lax.div(index, 2)`; if anything asks for a device, it is the one compiled for.
# What happens: `//` asks for the devices of this process, of which none is a TPU, and compiling ends with "Unsupported TPU device kind: cpu".
# So: in kernels that are also compiled ahead of time, write `lax.div` for indices, which are not negative.
#
# Usage: findings/floor_division_in_a_tpu_kernel_needs_a_tpu.sh [PYTHON]
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "libtpu==0.0.42"
TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON'
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental import topologies

DEVICE = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
OPERATIONS = {"lax.div": lambda i: lax.div(i, 2), "%": lambda i: i % 2, "//": lambda i: i // 2}


def outcome(operation):
    """What compiling a kernel says that adds operation(index of the block) to its input."""

    def kernel(x, y):
        y[...] = x[...] + operation(pl.program_id(0)).astype(jnp.float32)

    @jax.jit
    def program(x):
        block = pl.BlockSpec((8, 128), lambda i: (i, 0))
        return pl.pallas_call(kernel, grid=(4,), in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct((32, 128), jnp.float32))(x)

    x = jax.ShapeDtypeStruct((32, 128), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(DEVICE))
    try:
        program.lower(x).compile()
    except ValueError as error:
        return str(error).splitlines()[0]
    return "compiled"


said = {name: outcome(operation) for name, operation in OPERATIONS.items()}
print(f"jax {jax.__version__}, for a {DEVICE.device_kind}: " + "; ".join(f"{name}: {what}" for name, what in said.items()))
if said != {"lax.div": "compiled", "%": "compiled", "//": "Unsupported TPU device kind: cpu"}:
    raise SystemExit("this no longer happens")
PYTHON
