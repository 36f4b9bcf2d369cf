"""How programs that run once are compiled: initialisers, derivations of keys, index plans."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.log import LOGGER

FAST_COMPILE = {"cpu": {"xla_backend_optimization_level": 1}}


def setup_jit(function: Callable | None = None, **options: Any) -> Callable:
    """Return `jax.jit(function, **options)` for a program that takes longer to compile than to run.

    Such programs are mostly random draws, and the compiler's usual level of optimisation is slow on
    Threefry: jax 0.12.0.1 takes 11 s of processor time for the adapters of a small GPT-2, 0.4 s
    with level 1. Values are the same to the last bit, which tests check for every
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
    fast = fast_forms(function, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # `is_traced` is False under `jax.ensure_compile_time_eval`, where arguments may still be
        # tracers.
        if is_traced() or any(
            isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))
        ):
            return usual(*args, **kwargs)
        platform = platform_of((args, kwargs))
        return (fast[platform] if understood(platform) else usual)(*args, **kwargs)

    return call


def fast_forms(function: Callable, **options: Any) -> dict[str, Any]:
    """Return {platform: `jax.jit(function, **options)` with its compiler options}.

    They are `FAST_COMPILE`'s. For a program whose caller knows the platform, and that the compiler
    takes them (see `understood`).
    """
    return {
        platform: jax.jit(function, compiler_options=compiler_options, **options)
        for platform, compiler_options in FAST_COMPILE.items()
    }


def is_traced() -> bool:
    """Return whether the caller is part of a program that is being traced.

    It is so if even a constant becomes a tracer. `jax.vmap` outside of `jax.jit` does not count.
    """
    return isinstance(jax.device_put(np.int32(0)), jax.core.Tracer)


@functools.cache
def understood(platform: str) -> bool:
    """Say whether the compiler of a platform takes the options of `FAST_COMPILE`.

    It is asked once, with a program of one operation.
    """
    if platform not in FAST_COMPILE:
        return False
    try:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend=platform)[0])
        jax.jit(
            lambda x: x + 1, compiler_options=FAST_COMPILE[platform], out_shardings=device
        ).lower(jax.ShapeDtypeStruct((), np.int32)).compile()
    except jax.errors.JaxRuntimeError as error:
        LOGGER.info("set-up programs are compiled as all others: %s", str(error).splitlines()[0])
        return False
    return True
