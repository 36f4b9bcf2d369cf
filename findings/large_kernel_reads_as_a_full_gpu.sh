#!/usr/bin/env bash
# jax 0.10.2 (jax-cuda12-pjrt 0.10.2): a Pallas kernel whose blocks are too large for a GPU's shared memory fails with RESOURCE_EXHAUSTED, as a full GPU does.
#
# Programs can be compiled for a GPU on a machine that has none (jax.experimental.topologies). Shared memory is what the threads of one block have: 227 KiB on an H100.
# One would guess: a kernel that asks for more has an argument that is not allowed; RESOURCE_EXHAUSTED says that arrays do not fit the GPU's memory, 80 GB there.
# What happens: arrays of 0.5 MB in all, and the same status code. Code that answers it with fewer rows at a time tries again in vain: the blocks stay as they are.
# So: where a batch is halved after RESOURCE_EXHAUSTED, look for "Shared memory" in the message first.
#
# Usage: findings/large_kernel_reads_as_a_full_gpu.sh [PYTHON]     (Linux x86-64; installs 0.6 GB)
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "jax-cuda12-plugin==0.10.2" "jax-cuda12-pjrt==0.10.2" "nvidia-cuda-nvcc-cu12==12.9.86"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { tail -n 3 "$folder/log" >&2; exit 1; }
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import triton

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 device_memory_size: 85899345920 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  cuda_compute_capability { major: 9 minor: 0 } device_vendor: "NVIDIA Corporation" name: "NVIDIA H100"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100"
"""
DEVICE = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1").devices[0]
ROWS, INSIDE, OUT = 256, 512, 128


def kernel(x, w, y):
    y[...] = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32).astype(y.dtype)


def outcome(rows):
    """What compiling a product says whose kernel takes so many rows at a time."""

    @jax.jit
    def program(x, w):
        return pl.pallas_call(
            kernel,
            grid=(ROWS // rows,),
            in_specs=[pl.BlockSpec((rows, INSIDE), lambda i: (i, 0)), pl.BlockSpec((INSIDE, OUT), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((rows, OUT), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((ROWS, OUT), jnp.bfloat16),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        )(x, w)

    where = jax.sharding.SingleDeviceSharding(DEVICE)
    shapes = [(ROWS, INSIDE), (INSIDE, OUT)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in shapes]
    try:
        program.lower(*arrays).compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return "compiled"


said = {rows: outcome(rows) for rows in (32, 128)}
megabytes = 2 * (ROWS * INSIDE + INSIDE * OUT + ROWS * OUT) / 1e6
print(f"jax {jax.__version__}, for an absent H100 of 80 GB, arrays of {megabytes:.2f} MB in all")
for rows, what in said.items():
    print(f"  {rows} rows at a time: {what}")
if said[32] != "compiled" or not said[128].startswith("RESOURCE_EXHAUSTED: Shared memory"):
    raise SystemExit("this no longer happens")
PYTHON
