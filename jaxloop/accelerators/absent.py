"""Compile programs for hardware that is absent, with devices that only the compiler knows."""

import contextlib
import functools
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from packaging.requirements import Requirement

from jaxloop.accelerators.cards import Card, target_config
from jaxloop.lm import programs
from jaxloop.runtime.environment import how_to_install

# Without a device Triton cannot time its tiles and takes the smallest; products by cuBLAS are what
# a card's own choice is mostly.
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
_EXTRA = {
    "gpu": ("plan-gpu", "jax-cuda12-plugin", "cuda12-local"),
    "tpu": ("plan-tpu", "libtpu", "tpu"),
}
_CUDNN = 91000  # 9.10, as in `cards.target_config`


class Missing(ValueError):
    """The compiler for a platform is not installed, or belongs to another version of JAX.

    The message names the pip command.
    """


class TooLarge(ValueError):
    """The compiler refuses a program that needs more memory than the device has.

    Attributes:
        needed: bytes, 0 where the compiler does not say.
    """

    def __init__(self, message: str, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


def check(platform: str) -> None:
    """Raise `Missing` where the compiler for a platform cannot be used; a CPU needs none."""
    if platform == "cpu":
        return
    extra, package, of_jax = _EXTRA[platform]
    wanted = [
        Requirement(line)
        for line in importlib.metadata.requires("jax") or []
        if re.search(rf"extra == ['\"]{of_jax}['\"]", line)
    ]
    allowed = next((r.specifier for r in wanted if r.name == package), None)
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(
            f"the compiler for a {platform.upper()} is not installed ({package}); "
            f"{how_to_install(extra)} brings it"
        ) from None
    if allowed is not None and not allowed.contains(installed, prereleases=True):
        raise Missing(
            f"{package} {installed} does not belong to jax {jax.__version__}, which needs "
            f"{allowed}; {how_to_install(extra)} brings it"
        )


def devices(card: Card | None, count: int = 1) -> list[Any]:
    """Return `count` devices of a card that only the compiler knows, of this process for None.

    Raises:
        Missing: the compiler for the card cannot be used.
        ValueError: there are not so many devices.
    """
    if card is None:
        here = jax.local_devices(backend="cpu")
        if count > len(here):
            raise ValueError(f"devices = {count}: this process has {len(here)} CPU devices")
        return here[:count]
    check(card.platform)
    try:
        with _silence():
            return list(_topology(card, count))[:count]
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise Missing(
            f"the compiler for a {card.platform.upper()} cannot be used here: "
            f"{str(error).splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nothing reach stderr, where compilers report devices that they do not find."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@functools.cache
def _topology(card: Card, count: int) -> tuple[Any, ...]:
    if card.platform == "gpu":
        topology = topologies.get_topology_desc(
            card.name, "cuda", target_config=target_config(card), topology=f"1x1x{count}"
        )
    elif count <= card.devices:  # all on one host, as in a machine of that name
        family, sides = card.topology.split(":")
        shape = [1 if count == 1 else int(n) for n in sides.split("x")]
        name = f"{family}:{'x'.join(map(str, shape))}"
        bounds = (*shape, 1, 1)[:3]
        topology = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=bounds)
    else:
        raise ValueError(f"devices = {count}: {card.name} has {card.devices}")
    return tuple(topology.devices)


class Compiled(NamedTuple):
    """What the compiler says of a program; bytes are those of one device.

    Attributes:
        text: optimised HLO.
        memory: bytes that must be there at once.
        arguments: of them for arguments.
        results: of them for results that do not lie in an argument's memory.
        temporary: of them for temporary arrays.
        seconds: that compiling took.
    """

    text: str
    memory: int
    arguments: int
    results: int
    temporary: int
    seconds: float


def compile_program(
    program: programs.Program, card: Card | None, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compile a program for the devices of its arguments: those of `card`, or of this process.

    Args:
        options: of the compiler, beside `GPU_OPTIONS` for a GPU.

    Raises:
        TooLarge: a TPU's compiler refuses the program for memory.
    """
    gpu_options = GPU_OPTIONS if card is not None and card.platform == "gpu" else {}
    compiler_options = {**gpu_options, **(options or {})}
    start = time.perf_counter()
    with as_card(card):
        lowered = program.lower()
        try:
            compiled = lowered.compile(compiler_options=compiler_options or None)
        except jax.errors.JaxRuntimeError as error:
            raise _refusal(error, program.name) from error
    seconds = time.perf_counter() - start
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    assert sizes is not None and text is not None  # every compiler here gives both
    return Compiled(
        text=text,
        memory=programs.memory(compiled),
        arguments=sizes.argument_size_in_bytes,
        results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporary=sizes.temp_size_in_bytes,
        seconds=seconds,
    )


def _described(card: Card) -> contextlib.AbstractContextManager[Any]:
    """A mesh without axes whose device is the card.

    Nothing before JAX 0.11, which knows no absent devices: Triton then assumes the newest.
    """
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(
        device_kind=card.kind, num_cores=card.fields["core_count"], platform="gpu"
    )
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _refusal(error: Exception, name: str) -> Exception:
    """`TooLarge` where the compiler ran out of memory, else the error itself."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return error
    match = re.search(r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", text)
    if match is None:
        return TooLarge(f"{name}: the compiler refuses it: {text.splitlines()[0]}")
    needed = int(float(match[1]) * _UNITS[match[2]])
    return TooLarge(
        f"{name}: needs {match[1]}{match[2]} of {match[3]}{match[4]} bytes, says the compiler",
        needed,
    )


@contextlib.contextmanager
def as_card(card: Card | None) -> Iterator[None]:
    """Let JAX's front ends to cuDNN and Triton answer for a card, while the context lasts.

    They ask the process, which has no GPU. Newer versions of JAX can be told of a device that is
    absent; cuDNN's front end has no parameter for that.
    """
    if card is None or card.platform != "gpu":
        yield
        return
    # A private module, looked up only where a GPU is the target.
    from jax._src.cudnn import fused_attention_stablehlo as front

    capability_of_card = card.fields["cuda_compute_capability"][:2]

    def numbers(capability: str) -> tuple[int, ...]:
        return tuple(map(int, capability.split(".")))

    answers = {
        "check_cudnn_version": lambda: _CUDNN,
        "check_compute_capability": lambda capability: capability_of_card >= numbers(capability),
        "is_cuda_compute_capability_equal": lambda capability: (
            capability_of_card == numbers(capability)
        ),
    }
    before = {name: getattr(front, name) for name in answers if hasattr(front, name)}
    try:
        for name in before:
            setattr(front, name, answers[name])
        with _described(card):
            yield
    finally:
        for name, function in before.items():
            setattr(front, name, function)
