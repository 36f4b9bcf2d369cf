"""Compiling for hardware that is absent: devices that only the compiler knows, and what it says of
a program for them.
"""

import contextlib
import functools
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

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
    """The compiler for a platform is not installed, or belongs to another version of JAX; the
    message names the pip command.
    """


class TooLarge(ValueError):
    """The compiler refuses a program that needs more memory than the device has. needed: bytes, 0
    where the compiler does not say.
    """

    def __init__(self, message: str, needed: int = 0):
        super().__init__(message)
        self.needed = needed


def check(platform: str) -> None:
    """Raises `Missing` where the compiler for a platform cannot be used. A CPU needs none."""
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
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Missing(
            f"the compiler for a {platform.upper()} is not installed ({package}); "
            f"{how_to_install(extra)} brings it"
        ) from None
    if allowed is not None and not allowed.contains(found, prereleases=True):
        raise Missing(
            f"{package} {found} does not belong to jax {jax.__version__}, which needs {allowed}; "
            f"{how_to_install(extra)} brings it"
        )


def devices(card: Card | None, count: int = 1) -> list:
    """`count` devices of a card that only the compiler knows; of this process where `card` is None.
    Raises `Missing`, and ValueError where a card has no such number.
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
    """Nothing reaches stderr inside: compilers report there, past Python, the devices that they do
    not find.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@functools.cache
def _topology(card: Card, count: int) -> tuple:
    if card.platform == "gpu":
        found = topologies.get_topology_desc(
            card.name, "cuda", target_config=target_config(card), topology=f"1x1x{count}"
        )
    elif count <= card.devices:  # all on one host, as in a machine of that name
        family, sides = card.topology.split(":")
        shape = [1 if count == 1 else int(n) for n in sides.split("x")]
        name = f"{family}:{'x'.join(map(str, shape))}"
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=(*shape, 1, 1)[:3])
    else:
        raise ValueError(f"devices = {count}: {card.name} has {card.devices}")
    return tuple(found.devices)


class Compiled(NamedTuple):
    """What the compiler says. Bytes are those of one device: `memory` all that must be there at
    once, of it arguments, results that are no argument's memory, and temporary arrays. text:
    optimised HLO.
    """

    text: str
    memory: int
    arguments: int
    results: int
    temporary: int
    seconds: float


def compile_program(program, card: Card | None, options: dict | None = None) -> Compiled:
    """Compile a `lm.programs.Program` for the devices that its arguments name, those of `card` or
    of this process. Raises `TooLarge` where a TPU's compiler refuses it for memory.
    """
    options = dict(GPU_OPTIONS if card is not None and card.platform == "gpu" else {}) | dict(
        options or {}
    )
    start = time.perf_counter()
    with as_card(card):
        lowered = program.lower()
        try:
            compiled = lowered.compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            raise _refusal(error, program.name) from error
    seconds = time.perf_counter() - start
    m = compiled.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    return Compiled(
        compiled.as_text(),
        programs.memory(compiled),
        m.argument_size_in_bytes,
        results,
        m.temp_size_in_bytes,
        seconds,
    )


def _described(card: Card):
    """The mesh of no axes whose device is the card; nothing where JAX knows no absent devices
    (before 0.11) and Triton takes the newest.
    """
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(
        device_kind=card.kind, num_cores=card.fields["core_count"], platform="gpu"
    )
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _refusal(error: Exception, name: str) -> Exception:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return error
    found = re.search(r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", text)
    if found is None:
        return TooLarge(f"{name}: the compiler refuses it: {text.splitlines()[0]}")
    needed = int(float(found[1]) * _UNITS[found[2]])
    return TooLarge(
        f"{name}: needs {found[1]}{found[2]} of {found[3]}{found[4]} bytes, says the compiler",
        needed,
    )


@contextlib.contextmanager
def as_card(card: Card | None) -> Iterator[None]:
    """Inside, JAX's front ends to cuDNN and to Triton answer for a card: they ask the process,
    which has no GPU. Newer versions of JAX can be told of a device that is absent; cuDNN's front
    end has no parameter for that.
    """
    if card is None or card.platform != "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as front

    mine = card.fields["cuda_compute_capability"][:2]

    def asked(capability: str) -> tuple[int, ...]:
        return tuple(map(int, capability.split(".")))

    answers = {
        "check_cudnn_version": lambda: _CUDNN,
        "check_compute_capability": lambda capability: mine >= asked(capability),
        "is_cuda_compute_capability_equal": lambda capability: mine == asked(capability),
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
