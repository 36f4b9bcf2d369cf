"""Compiling what runs once: the one way to compile a set-up program, such as an initialiser, a
derivation of keys or an index plan.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.log import LOGGER

SHORT = {"cpu": {"xla_backend_optimization_level": 1}}


def setup_jit(function: Callable | None = None, **options) -> Callable:
    """`jax.jit(function, **options)` for a program that runs once, or a few times, and takes far
    longer to compile than to run.

    Such programs are mostly random draws, and the compiler's usual level of optimisation is slow on
    Threefry: jax 0.12.0.1 takes 11 s of processor time for the adapters of a small GPT-2, 0.4 s
    with level 1, the short way. Values are the same to the last bit, which tests hold for every
    program compiled so. Not for programs that run often, whose code may become slower. And not for
    transcendental functions, normal draws among them: their bits depend on the level (jax 0.12.0.1:
    `jax.random.normal` of shape (384, 3) differs in 34 of 1,152 numbers).

    On a platform other than a CPU, and where the compiler does not know the option, it is
    `jax.jit`. Inside another program that is being traced it is `jax.jit` too, as only outermost
    programs have compiler options. It can be used as a decorator, with or without options. Raises
    what `jax.jit` raises.
    """
    if function is None:
        return functools.partial(setup_jit, **options)
    usual = jax.jit(function, **options)
    short = {
        platform: jax.jit(function, compiler_options=found, **options)
        for platform, found in SHORT.items()
    }

    @functools.wraps(function)
    def call(*args, **kwargs):
        # Under `jax.ensure_compile_time_eval` constants are none of the program's, but its
        # arguments are.
        if is_traced() or any(
            isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))
        ):
            return usual(*args, **kwargs)
        platform = platform_of((args, kwargs))
        return (short[platform] if understood(platform) else usual)(*args, **kwargs)

    return call


def is_traced() -> bool:
    """Whether the caller is part of a program that is being traced, where even constants become
    tracers (`jax.vmap` alone is no program).
    """
    return isinstance(jax.device_put(np.int32(0)), jax.core.Tracer)


@functools.cache
def understood(platform: str) -> bool:
    """Whether the compiler of a platform takes the options of `SHORT`; asked once, with a program
    of one operation.
    """
    if platform not in SHORT:
        return False
    try:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend=platform)[0])
        jax.jit(lambda x: x + 1, compiler_options=SHORT[platform], out_shardings=device).lower(
            jax.ShapeDtypeStruct((), np.int32)
        ).compile()
    except jax.errors.JaxRuntimeError as error:
        LOGGER.info("set-up programs are compiled as all others: %s", str(error).splitlines()[0])
        return False
    return True
