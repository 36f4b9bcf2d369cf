"""The logits of one block of the vocabulary for every slot (Pallas, compiled by Mosaic, for a TPU).

A draw needs, of all logits, the block in which a slot's random number falls. XLA for TPUs reads all
of them to find it; the kernel reads that block, of the 128 slots that lie beside each other.

Dimensions: V vocabulary, G blocks of W tokens, S slots.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop.core.categorical import LANES, SUBLANES, masked_block

TOGETHER = 8  # slots of one program


def pick(z_GWS: jax.Array, block_S: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Return `z_GWS[block_S[s], :, s]` for every slot s, [W, S] in float32.

    Where slots or blocks do not fill registers, `masked_block` does the same.

    Args:
        z_GWS: logits in blocks, slots last.
        block_S: each slot's block.
        interpret: run the kernel step by step on any platform, for tests.
    """
    blocks, width, slots = z_GWS.shape
    if slots % LANES or width % SUBLANES:
        return masked_block(z_GWS, block_S)
    z_VS = z_GWS.reshape(blocks * width, slots)
    steps = LANES // TOGETHER
    specs = [
        pl.BlockSpec((width, LANES), functools.partial(_block_of_slot, nth))
        for nth in range(TOGETHER)
    ]
    return pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(slots // LANES, steps),
            in_specs=specs,
            out_specs=pl.BlockSpec((width, LANES), lambda i, j, block: (0, i)),
        ),
        out_shape=jax.ShapeDtypeStruct((width, slots), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="pick_blocks",
    )(block_S, *[z_VS] * TOGETHER)


def _block_of_slot(nth, i, j, block):
    return block[i * LANES + j * TOGETHER + nth], i


def _kernel(block, *refs):
    """Put the logits of some slots into their lanes; the others keep what is there."""
    *parts, out = refs
    first = pl.program_id(1) * TOGETHER
    lane = jax.lax.broadcasted_iota(jnp.int32, out.shape, 1)
    z = out[...]
    for nth, part in enumerate(parts):
        z = jnp.where(lane == first + nth, part[...].astype(jnp.float32), z)
    out[...] = z
