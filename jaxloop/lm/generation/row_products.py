"""The products of gate and up with their adapters and the activation in one kernel.

With cuBLAS the products write what the adapters' kernel reads again, the largest arrays of a
decoding step. Written in Pallas, compiled by Triton, for a GPU; `row_adapters.adapt_plain` is the
same in jax.numpy, and the kernel is tested against it.

Dimensions: A adapter groups, B slots of a group, C chains and layers in one axis, N rows (A B), D
input width, F output width of gate and of up, R rank.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxloop.lm.triton import plgpu

LEAST = 16  # smallest side of a product that the tensor cores take
ROWS, COLUMNS, CHUNK = 128, 64, 64  # sides of a program's tile, and inputs read at a time
STACKED = 128  # ranks of several groups in one product


def fits(rows: int, groups: int, inputs: int, outputs: int) -> bool:
    """Return whether these sizes divide into tiles; groups of a tile have 2^n slots each."""
    slots, tile = rows // groups, min(ROWS, rows)
    power = slots & (slots - 1) == 0 and tile & (tile - 1) == 0
    return power and tile >= LEAST and not (rows % tile or inputs % CHUNK or outputs % COLUMNS)


def gate(
    x_ND: jax.Array,
    w_DO: jax.Array,
    a_CPDR: jax.Array,
    b_CRO: jax.Array,
    entry_A: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Return silu(x Wg + x Ag Bg) (x Wu + x Au Bu) [N, F].

    Args:
        x_ND: N rows in equal runs, one for each group.
        w_DO: Wg and Wu side by side.
        a_CPDR: A of gate and up.
        b_CRO: B of gate and up side by side.
        entry_A: which adapter a group uses.
        interpret: run the kernels step by step on any platform, for tests.
    """
    rows, outputs, groups = x_ND.shape[0], w_DO.shape[1] // 2, entry_A.shape[0]
    slots, rank, tile = rows // groups, a_CPDR.shape[-1], min(ROWS, rows)
    # Ranks of a tile's groups stand side by side: a row has zeros in those of the other groups.
    stacked = max(1, tile // slots) * rank
    whole = pl.BlockSpec(memory_space=pl.ANY)
    thin = pl.pallas_call(
        functools.partial(_thin_kernel, slots, max(LEAST, slots), rank),
        grid=(groups, 2),
        in_specs=[whole] * 3,
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((2, rows, stacked), x_ND.dtype),
        compiler_params=None if interpret else plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="adapt_inputs",
    )
    call = pl.pallas_call(
        functools.partial(_gate_kernel, slots, tile, rank),
        grid=(rows // tile, outputs // COLUMNS),
        in_specs=[whole] * 5,
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((rows, outputs), x_ND.dtype),
        compiler_params=None if interpret else plgpu.CompilerParams(num_warps=8, num_stages=4),
        interpret=interpret,
        name="gate_groups",
    )
    return call(entry_A, x_ND, w_DO, thin(entry_A, x_ND, a_CPDR), b_CRO)


def _product(x, y):
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)


def _thin_kernel(slots, tile, rank, entry_ref, x, a, out):
    """x A of one group and one of gate and up, in the group's place among those of a tile."""
    group, part = pl.program_id(0), pl.program_id(1)
    # Beyond the group's slots a row of the tile repeats the last one, and stores the same.
    rows = group * slots + jnp.minimum(jnp.arange(tile, dtype=jnp.int32), slots - 1)
    entry, inputs, stacked = entry_ref[group], a.shape[-2], out.shape[-1]

    def add(i, z):
        at = pl.ds(i * CHUNK, CHUNK)
        return z + _product(x[rows, at], a[entry, part, at, :])

    z = jax.lax.fori_loop(0, inputs // CHUNK, add, jnp.zeros((tile, rank), jnp.float32))
    z, piece = z.astype(out.dtype), min(STACKED, stacked)

    def write(i, carry):
        place = i * piece + jnp.arange(piece, dtype=jnp.int32)[None]
        repeat = place % rank == jnp.arange(rank, dtype=jnp.int32)[:, None]
        repeated = _product(z, repeat.astype(out.dtype))
        own = place // rank == group % (stacked // rank)
        at = pl.ds(i * piece, piece)
        out[part, rows, at] = jnp.where(own, repeated, 0.0).astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, stacked // piece, write, 0)


def _gate_kernel(slots, tile, rank, entry_ref, x, w, z, b, out):
    """A tile of rows, of one or several groups, and of columns."""
    first, column = pl.program_id(0) * tile, pl.program_id(1) * COLUMNS
    rows, outputs = pl.ds(first, tile), out.shape[1]
    columns = pl.ds(column, COLUMNS), pl.ds(outputs + column, COLUMNS)
    stacked = min(STACKED, z.shape[-1])

    def add(i, sums):
        at = pl.ds(i * CHUNK, CHUNK)
        x_tile = x[rows, at]
        return tuple(s + _product(x_tile, w[at, c]) for s, c in zip(sums, columns, strict=True))

    def adapt(i, sums):
        place = i * stacked + jnp.arange(stacked, dtype=jnp.int32)
        entry = entry_ref[first // slots + place // rank]
        ranks, at = place % rank, pl.ds(i * stacked, stacked)
        return tuple(
            s + _product(z[part, rows, at], b[entry, ranks, columns[part]])
            for part, s in enumerate(sums)
        )

    zero = jnp.zeros((tile, COLUMNS), jnp.float32)
    sums = jax.lax.fori_loop(0, x.shape[1] // CHUNK, add, (zero, zero))
    gated, up = jax.lax.fori_loop(0, z.shape[-1] // stacked, adapt, sums)
    out[rows, pl.ds(column, COLUMNS)] = (jax.nn.silu(gated) * up).astype(out.dtype)
