"""The accelerators that a plan can be made for: published numbers, and what XLA asks for.

Units: bytes, bytes/s, FLOP/s of dense products (a multiplication and an addition are two), Hz.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """One kind of device.

    Attributes:
        memory: bytes of one device.
        usable: the share of them that JAX gives to programs.
        bandwidth: of that memory.
        peak: of products in bfloat16.
        peak32: of float32 products at JAX's default precision: TF32 on these GPUs, one bfloat16
            pass on a TPU.
        exact: of float32 products at the highest precision: the GPU's plain units, six bfloat16
            passes on a TPU.
        source: where the published numbers stand.
        devices: TPU chips of the `topology`, XLA's name of their arrangement.
        clock: of a TPU's cores, in which XLA counts `estimated_cycles`.
        fields: what XLA's description of a GPU holds.
    """

    name: str
    platform: str
    kind: str
    memory: int
    usable: float
    bandwidth: float
    peak: float
    peak32: float
    exact: float
    source: str
    devices: int = 1
    topology: str = ""
    clock: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def room(self) -> int:
        """The bytes that programs may use on one device."""
        return int(self.memory * self.usable)

    @property
    def shared_memory(self) -> int | None:
        """The bytes of shared memory that a block of threads may ask for; None on a TPU."""
        return self.fields.get("shared_memory_per_block_optin")


# JAX takes three quarters of a GPU when it starts (XLA_PYTHON_CLIENT_MEM_FRACTION); a TPU's
# compiler keeps a little for itself.
_GPU_USABLE, _TPU_USABLE = 0.75, 0.98

# What `cudaGetDeviceProperties` says of a card, under the names of XLA's GpuDeviceInfoProto
# (xla/stream_executor/device_description.proto); XLA keeps such descriptions of its own in
# xla/backends/gpu/target_config/specs.
_COMMON: dict[str, Any] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "device_address_bits": 64,
    "pcie_bandwidth": 34359738368,
    "ecc_enabled": True,
}
_HOPPER = {
    **_COMMON,
    "shared_memory_per_core": 233472,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_block_optin": 232448,
    "cuda_compute_capability": (9, 0, True),
}
_AMPERE = {
    **_COMMON,
    "shared_memory_per_core": 167936,
    "core_count": 108,
    "fpus_per_core": 64,
    "l2_cache_size": 41943040,
    "clock_rate_ghz": 1.41,
    "shared_memory_per_block_optin": 166912,
    "cuda_compute_capability": (8, 0, False),
}

_CARDS = (
    Card(
        name="h100",
        platform="gpu",
        kind="NVIDIA H100 80GB HBM3",
        memory=84942979072,
        usable=_GPU_USABLE,
        bandwidth=3.35e12,
        peak=989.4e12,
        peak32=494.7e12,
        exact=67e12,
        source="https://www.nvidia.com/en-us/data-center/h100/ (SXM; half of the figures with "
        "sparsity)",
        fields=_HOPPER,
    ),
    Card(
        name="h200",
        platform="gpu",
        kind="NVIDIA H200",
        memory=150121545728,
        usable=_GPU_USABLE,
        bandwidth=4.8e12,
        peak=989.4e12,
        peak32=494.7e12,
        exact=67e12,
        source="https://www.nvidia.com/en-us/data-center/h200/ (SXM; half of the figures with "
        "sparsity)",
        fields=_HOPPER,
    ),
    Card(
        name="a100",
        platform="gpu",
        kind="NVIDIA A100-SXM4-80GB",
        memory=84987740160,
        usable=_GPU_USABLE,
        bandwidth=2.039e12,
        peak=312e12,
        peak32=156e12,
        exact=19.5e12,
        source="https://www.nvidia.com/en-us/data-center/a100/ (80GB SXM)",
        fields=_AMPERE,
    ),
    Card(
        name="v5e-8",
        platform="tpu",
        kind="TPU v5e",
        memory=16 << 30,
        usable=_TPU_USABLE,
        bandwidth=819e9,
        peak=197e12,
        peak32=197e12,
        exact=197e12 / 6,
        source="https://cloud.google.com/tpu/docs/v5e; clock: 197 TFLOP/s over 4 units of "
        "128 x 128",
        devices=8,
        topology="v5e:2x4",
        clock=1.5e9,
    ),
    Card(
        name="v5p-8",
        platform="tpu",
        kind="TPU v5p",
        memory=95 << 30,
        usable=_TPU_USABLE,
        bandwidth=2.765e12,
        peak=459e12,
        peak32=459e12,
        exact=459e12 / 6,
        source="https://cloud.google.com/tpu/docs/v5p (8 cores on 4 chips); clock: 459 TFLOP/s "
        "over 8 units of 128 x 128",
        devices=4,
        topology="v5p:2x2x1",
        clock=1.75e9,
    ),
    Card(
        name="v6e-8",
        platform="tpu",
        kind="TPU v6e",
        memory=32 << 30,
        usable=_TPU_USABLE,
        bandwidth=1.638e12,
        peak=918e12,
        peak32=918e12,
        exact=918e12 / 6,
        source="https://cloud.google.com/tpu/docs/v6e; clock: that of v5p, as no other is "
        "published",
        devices=8,
        topology="v6e:2x4",
        clock=1.75e9,
    ),
)
CARDS: dict[str, Card] = {card.name: card for card in _CARDS}
TARGETS = (*CARDS, "cpu")


def find(name: str) -> Card | None:
    """Return the card of a name, None for "cpu".

    Raises:
        ValueError: there is no target of that name; they are listed.
    """
    if name not in TARGETS:
        raise ValueError(f"--for={name} is not a target; there are {', '.join(TARGETS)}")
    return CARDS.get(name)


def target_config(card: Card) -> str:
    """Return the text proto (xla.gpu.GpuTargetConfigProto) that describes a GPU to XLA."""
    major, minor, accelerated = card.fields["cuda_compute_capability"]
    numbers = {**card.fields}
    del numbers["cuda_compute_capability"]
    numbers["memory_bandwidth"] = int(card.bandwidth)
    numbers["device_memory_size"] = card.memory
    texts = {
        "device_vendor": "NVIDIA Corporation",
        "name": card.kind,
        "driver_version": "13.0.0",
        "runtime_version": "12.9.0",
        "compile_time_toolkit_version": "12.9.0",
        "dnn_version": "9.10.0",
    }
    extension = " feature_extension: ACCELERATED_FEATURES" if accelerated else ""
    lines = [
        "gpu_device_info {",
        *(f"  {name}: {str(value).lower()}" for name, value in numbers.items()),
        *(f'  {name}: "{value}"' for name, value in texts.items()),
        f"  cuda_compute_capability {{ major: {major} minor: {minor}{extension} }}",
        "}",
        'platform_name: "CUDA"',
        "dnn_version_info { major: 9 minor: 10 patch: 0 }",
        "runtime_version { major: 12 minor: 9 patch: 0 }",
        f'device_description_str: "{card.kind}"',
        "",
    ]
    return "\n".join(lines)


def keep_to_the_cpu() -> None:
    """Restrict this process to the CPU; to be called before jax is imported.

    The compilers of accelerators then look for no device, and say nothing of it.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The lock of libtpu guards chips, and there is none.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
