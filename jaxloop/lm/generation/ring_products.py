"""The products of gate and up with their adapters and the activation in one kernel for a TPU.

XLA writes what the adapters of gate and up add as float32 arrays, and reads them again. Written in
Pallas, compiled by Mosaic; `row_products` is the same for a GPU.

A group's rank is small against the 128 rows of a TPU's products. So several groups are taken
together: a row of x A has zeros in the ranks of the other groups.

Dimensions: A adapter groups, B slots of a group, N rows (A B), D input width, F output width of
gate and of up, R rank, T sets of groups taken together, K their ranks.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop.core.categorical import LANES, SUBLANES
from jaxloop.lm.generation.ring_kernel import quotient

ROWS, COLUMNS = (512, 256, 128), (256, 128)  # sides of a program's tile, best ones first
BYTES = 1 << 23  # of a core's own memory, for two tiles of the inputs and of each weight
ADAPTER_BYTES = 1 << 21  # the same for B, all ranks of the groups in a tile


class Tiling(NamedTuple):
    """How a product is divided."""

    rows: int  # of a program's tile
    columns: int
    together: int  # groups that are taken together


def tiling(rows: int, groups: int, inputs: int, outputs: int, rank: int) -> Tiling | None:
    """Return the first tiling of `COLUMNS` and `ROWS` with whole registers and room, or None."""
    slots = rows // groups
    for columns, most in itertools.product(COLUMNS, ROWS):
        tile = min(most, rows)
        together = _together(tile, slots, groups, rank)
        height, ranks = slots * together, rank * together
        whole = not (height % SUBLANES or ranks % SUBLANES or inputs % LANES)
        divides = not (rows % tile or outputs % columns or tile % height)
        room = 4 * inputs * (tile + 2 * columns) <= BYTES
        room_of_adapters = 8 * (tile // slots) * rank * columns <= ADAPTER_BYTES
        if whole and divides and room and room_of_adapters:
            return Tiling(tile, columns, together)
    return None


def _together(tile: int, slots: int, groups: int, rank: int) -> int:
    most = max(1, min(LANES // rank, tile // slots))
    return max(n for n in range(1, most + 1) if groups % n == 0)


def fits(rows: int, groups: int, inputs: int, outputs: int, rank: int) -> bool:
    """Return whether these sizes divide into tiles of whole registers that have room."""
    return tiling(rows, groups, inputs, outputs, rank) is not None


def gate(
    x_ND: jax.Array,
    w_DO: jax.Array,
    z_PANR: jax.Array,
    b_ARO: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Return silu(x Wg + zg Bg) (x Wu + zu Bu) [N, F].

    Args:
        x_ND: N rows in equal runs, one for each group.
        w_DO: Wg and Wu side by side.
        z_PANR: x A of gate and of up, [2, A, B, R].
        b_ARO: B of gate and up side by side, of each group.
        interpret: run the kernel step by step on any platform, for tests.
    """
    (rows, inputs), outputs = x_ND.shape, w_DO.shape[1] // 2
    _, groups, slots, rank = z_PANR.shape
    found = tiling(rows, groups, inputs, outputs, rank)
    assert found is not None, "see fits"
    tile, columns, together = found
    ranks, blocks = tile // slots * rank, outputs // columns
    # Row tiles are the inner dimension: weights are read once.
    of_weights = [pl.BlockSpec((inputs, columns), _columns(n * blocks)) for n in (0, 1)]
    of_adapters = [pl.BlockSpec((ranks, columns), _both(n * blocks)) for n in (0, 1)]
    b_KO = b_ARO.reshape(groups * rank, 2 * outputs)
    return pl.pallas_call(
        functools.partial(_kernel, slots, together),
        grid=(blocks, rows // tile),
        in_specs=[
            pl.BlockSpec((tile, inputs), lambda j, i: (i, 0)),
            *of_weights,
            pl.BlockSpec((2, tile, rank), lambda j, i: (0, i, 0)),
            *of_adapters,
        ],
        out_specs=pl.BlockSpec((tile, columns), _both(0)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x_ND.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="gate_rings",
    )(x_ND, w_DO, w_DO, z_PANR.reshape(2, rows, rank), b_KO, b_KO)


def _columns(first):
    return lambda j, i: (0, first + j)


def _both(first):
    return lambda j, i: (i, first + j)


def _kernel(slots, together, x, w_gate, w_up, z, b_gate, b_up, out):
    """A tile of rows and columns."""

    def adapted(part, w, b):
        z_TNK = _side_by_side(z[part], slots, together)
        b_TKO = b[...].reshape(z_TNK.shape[0], z_TNK.shape[2], b.shape[-1])
        axes = ((2,), (1,)), ((0,), (0,))
        added = jax.lax.dot_general(z_TNK, b_TKO, axes, preferred_element_type=jnp.float32)
        y = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32)
        return y + added.reshape(y.shape)

    gated, up = adapted(0, w_gate, b_gate), adapted(1, w_up, b_up)
    out[...] = (jax.nn.silu(gated) * up).astype(out.dtype)


def _side_by_side(z_NR, slots, together):
    """[T, B groups, K]: a row's numbers in the place of its group, zeros in those of the others."""
    rank = z_NR.shape[1]
    number, place = (_iota((rank, together * rank), axis) for axis in (0, 1))
    repeat = (jax.lax.rem(place, jnp.full_like(place, rank)) == number).astype(z_NR.dtype)
    z_NK = jnp.dot(z_NR, repeat, preferred_element_type=jnp.float32)
    row, place = (_iota(z_NK.shape, axis) for axis in (0, 1))
    group = jax.lax.rem(quotient(row, slots), jnp.full_like(row, together))
    own = group == quotient(place, rank)
    z_NK = jnp.where(own, z_NK, 0.0).astype(z_NR.dtype)
    return z_NK.reshape(-1, slots * together, together * rank)


def _iota(shape, axis):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
