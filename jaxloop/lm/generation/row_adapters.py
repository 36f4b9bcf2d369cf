"""Applies the adapters of all adapter groups in a decoding step of `decode_rows`.

Without a kernel, XLA copies each group's adapter out of the array of all chains' adapters. The
kernel (Pallas, compiled by Triton, for a GPU) reads it in place. `adapt_plain` is the same in
jax.numpy, and the kernel is tested against it.

Dimensions: A adapter groups, C chains whose adapters are held, L layers, N rows, n targets of a
fused projection, D input width, O output width, R rank.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jaxloop.lm.generation import ring_products, row_products
from jaxloop.lm.generation.row_attention import LEAST
from jaxloop.lm.model.config import ModelConfig, fused_projections
from jaxloop.lm.model.lora import Adapter
from jaxloop.lm.triton import plgpu

IN_BLOCK, OUT_BLOCK = 128, 512  # inputs and outputs of an adapter that are read at a time
SPAN = 2048  # outputs of one program of the kernel
SLOTS = 128  # of a group, at most; larger groups are several with one adapter
BYTES = 1 << 16  # of the memory that a program shares, for what it reads ahead: every GPU has more


class RowAdapter(NamedTuple):
    """The adapters of all chains for a fused projection, as the kernel reads them.

    Ranks are padded to the smallest side of a product that the tensor cores take.
    """

    a: jax.Array  # [C, L, n, D, R], or without the layers, or with chains and layers in one axis
    b: jax.Array  # [C, L, R, O], the targets side by side


class GroupAdapter(NamedTuple):
    """A fused projection's adapters in one layer, for groups that each use one of them."""

    all: RowAdapter  # chains and layers in one axis; for rings, those of the groups
    entry: jax.Array  # [A] where in it
    implementation: str  # as in `decode_rows`

    @property
    def by_target(self) -> bool:
        """Whether each target is a product of its own, which a TPU's compiler joins with the rest.

        A fused projection's output would be written in float32 and read again.
        """
        return self.implementation.startswith("ring")

    @property
    def fused(self) -> bool:
        """Whether gate and up are computed by `row_products`, for rings by `ring_products`."""
        return "fused" in self.implementation

    @property
    def interpreted(self) -> bool:
        """Whether kernels are run by Pallas's interpreter."""
        return self.implementation.endswith("interpret")


def pack_for_rows(
    config: ModelConfig, adapters: Adapter, dtype: jnp.dtype
) -> dict[str, RowAdapter]:
    """Pack the adapters of C chains by fused projection, with their scale multiplied into b.

    Targets without an adapter have zeros.
    """
    packed = {}
    for projection, targets in fused_projections(config).items():
        present = [target.name for target in targets if target.name in adapters]
        if not present:
            continue
        some_a = adapters[present[0]]["a"]
        chains, layers, _, rank = some_a.shape
        padding = max(LEAST, pl.next_power_of_2(rank)) - rank
        all_a, all_b = [], []
        for target in targets:
            if target.name in adapters:
                a, b = adapters[target.name]["a"], adapters[target.name]["b"]
            else:
                a = jnp.zeros_like(some_a)
                b = jnp.zeros((chains, layers, rank, target.width), some_a.dtype)
            all_a.append(jnp.pad(a.astype(dtype), ((0, 0), (0, 0), (0, 0), (0, padding))))
            b = (b * adapters.config.scale).astype(dtype)
            all_b.append(jnp.pad(b, ((0, 0), (0, 0), (0, padding), (0, 0))))
        packed[projection] = RowAdapter(jnp.stack(all_a, 2), jnp.concatenate(all_b, -1))
    return packed


def project(
    x_ND: jax.Array,
    w_DO: jax.Array,
    adapter: GroupAdapter | RowAdapter,
    widths: tuple[int, ...],
    *,
    added_NO: jax.Array | None = None,
    gated: bool = False,
) -> jax.Array:
    """Return x W + (x a) b, each run of rows with its own adapter, and what follows it in a block.

    The arguments are those of `adapt`.
    """
    if isinstance(adapter, GroupAdapter) and adapter.by_target:
        sizes = x_ND.shape[0], adapter.entry.shape[0], x_ND.shape[1], widths[0]
        if gated and adapter.fused and ring_products.fits(*sizes, adapter.all.b.shape[1]):
            z_PANR = _inputs_of_targets(x_ND, adapter.all)
            interpret = adapter.interpreted
            return ring_products.gate(x_ND, w_DO, z_PANR, adapter.all.b, interpret=interpret)
        parts = _targets(x_ND, w_DO, adapter.all, widths)
        if gated:
            parts = [jax.nn.silu(parts[0]) * parts[1]]
        if added_NO is not None:
            parts = [parts[0] + added_NO.astype(jnp.float32)]
        return jnp.concatenate([part.astype(x_ND.dtype) for part in parts], -1)
    if gated and isinstance(adapter, GroupAdapter) and adapter.fused:
        entry_A = _of_smaller_groups(adapter.entry, x_ND.shape[0])
        if row_products.fits(x_ND.shape[0], entry_A.shape[0], x_ND.shape[1], widths[0]):
            interpret = adapter.interpreted
            return row_products.gate(x_ND, w_DO, *adapter.all, entry_A, interpret=interpret)
    return adapt(x_ND, x_ND @ w_DO, adapter, widths, added_NO=added_NO, gated=gated)


def _of_smaller_groups(entry_A: jax.Array, rows: int) -> jax.Array:
    """Entries of groups of at most `SLOTS` rows, of which several may be one group."""
    slots = rows // entry_A.shape[0]
    parts = next(n for n in range(1, slots + 1) if slots % n == 0 and slots <= n * SLOTS)
    return entry_A if parts == 1 else jnp.repeat(entry_A, parts)


def _blocks(tile: int, rank: int, itemsize: int, gated: bool) -> tuple[int, int]:
    """Outputs and inputs that a program reads at a time, as many as `BYTES` hold.

    Two blocks of each array are there at once: of b, which is two arrays where there is a gate, and
    of x and a.
    """
    outputs = BYTES // ((4 if gated else 2) * rank * itemsize)
    inputs = BYTES // (4 * max(rank, tile) * itemsize)
    return (
        max(LEAST, min(OUT_BLOCK * LEAST // tile, outputs)),
        max(LEAST, min(IN_BLOCK, inputs)),
    )


def project_targets(
    x_ND: jax.Array, w_DO: jax.Array, adapter: GroupAdapter, widths: tuple[int, ...]
) -> list[jax.Array]:
    """Return x W + (x a) b of each target [N, O]."""
    if adapter.by_target:
        return [part.astype(x_ND.dtype) for part in _targets(x_ND, w_DO, adapter.all, widths)]
    return jnp.split(project(x_ND, w_DO, adapter, widths), np.cumsum(widths)[:-1], -1)


def _targets(
    x_ND: jax.Array, w_DO: jax.Array, adapter: RowAdapter, widths: tuple[int, ...]
) -> list[jax.Array]:
    """x W + (x a) b of each target in float32, each by a product of its own."""
    z_PANR = _inputs_of_targets(x_ND, adapter)
    cuts = np.cumsum(widths)[:-1]
    return [
        (x_ND @ w).astype(jnp.float32)
        + jnp.einsum("anr,aro->ano", z, b, preferred_element_type=jnp.float32).reshape(
            x_ND.shape[0], -1
        )
        for w, z, b in zip(
            jnp.split(w_DO, cuts, -1), z_PANR, jnp.split(adapter.b, cuts, -1), strict=True
        )
    ]


def _inputs_of_targets(x_ND: jax.Array, adapter: RowAdapter) -> jax.Array:
    """x a of each target, [n, A, N / A, R]."""
    x_AND = x_ND.reshape(adapter.a.shape[0], -1, x_ND.shape[1])
    z_PANR = jnp.einsum("and,apdr->panr", x_AND, adapter.a, preferred_element_type=jnp.float32)
    return z_PANR.astype(x_ND.dtype)


def adapt(
    x_ND: jax.Array,
    y_NO: jax.Array,
    adapter: GroupAdapter | RowAdapter,
    widths: tuple[int, ...],
    *,
    added_NO: jax.Array | None = None,
    gated: bool = False,
) -> jax.Array:
    """Return y + (x a) b, each run of rows with its own adapter, and what follows it in a block.

    What follows is the gated activation (`gated`) or the sum with the residual stream (`added_NO`).

    Args:
        x_ND: N rows in equal runs, one for each group of a `GroupAdapter` or each chain of a
            `RowAdapter` without layers.
        y_NO: the projection of x without adapters.
        adapter: adapters of the projection.
        widths: output widths of the projection's targets, O in all.
        added_NO: the residual stream, added to the result.
        gated: there are two targets of one width; the result is silu(first) * second, [N, O / 2].
    """
    if isinstance(adapter, RowAdapter):
        return adapt_plain(x_ND, y_NO, adapter, widths, added_NO, gated)
    entry_A = _of_smaller_groups(adapter.entry, x_ND.shape[0])
    if adapter.implementation == "plain":
        chosen = RowAdapter(adapter.all.a[entry_A], adapter.all.b[entry_A])
        return adapt_plain(x_ND, y_NO, chosen, widths, added_NO, gated)
    groups, inside = entry_A.shape[0], x_ND.shape[1]
    slots, outside = x_ND.shape[0] // groups, widths[0] if gated else sum(widths)
    tile = max(LEAST, pl.next_power_of_2(slots))
    span = math.gcd(SPAN, *widths)
    block, chunk = _blocks(tile, adapter.all.b.shape[-2], y_NO.dtype.itemsize, gated)
    kernel = functools.partial(
        _adapt_kernel,
        slots,
        tile,
        span,
        min(span, block),
        math.gcd(chunk, inside),
        tuple(int(end) for end in np.cumsum(widths)[:-1]),
        gated,
    )
    args = [entry_A, x_ND, adapter.all.a, adapter.all.b, y_NO]
    if added_NO is not None:
        args.append(added_NO)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        kernel,
        grid=(groups, outside // span),
        in_specs=[whole] * len(args),
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((y_NO.shape[0], outside), y_NO.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=adapter.implementation.endswith("interpret"),
        name="adapt_groups",
    )
    return call(*args)


def _adapt_kernel(slots, tile, span, block, chunk, starts, gated, entry_ref, x, a, b, y, *refs):
    """Compute one group and a span of output columns, all of one target.

    x a is computed once, then the span block by block.
    """
    *added, out = refs
    group, first = pl.program_id(0), pl.program_id(1) * span
    entry, part = entry_ref[group], jnp.int32(0)
    for start in starts:
        part += (first >= start).astype(jnp.int32)
    # Beyond the group's slots a row of the tile repeats the last one, and stores the same.
    rows = group * slots + jnp.minimum(jnp.arange(tile, dtype=jnp.int32), slots - 1)
    inside, rank = a.shape[-2:]
    product = functools.partial(
        plgpu.dot, precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    )

    def times_a(part):
        """x a of one target, [tile, R]."""

        def add(i, z):
            at = pl.ds(i * chunk, chunk)
            return z + product(x[rows, at], a[entry, part, at, :])

        return jax.lax.fori_loop(
            0, inside // chunk, add, jnp.zeros((tile, rank), jnp.float32)
        ).astype(x.dtype)

    def times_b(z, at):
        """y + z b of some output columns."""
        return y[rows, at].astype(jnp.float32) + product(z, b[entry, :, at])

    z = times_a(jnp.int32(0) if gated else part)
    z_up = times_a(jnp.int32(1)) if gated else None

    def write(i, carry):
        at = pl.ds(first + i * block, block)
        result = times_b(z, at)
        if gated:
            result = jax.nn.silu(result) * times_b(
                z_up, pl.ds(starts[0] + first + i * block, block)
            )
        if added:
            result = result + added[0][rows, at].astype(jnp.float32)
        out[rows, at] = result.astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, span // block, write, 0)


def adapt_plain(
    x_ND: jax.Array,
    y_NO: jax.Array,
    adapter: RowAdapter,
    widths: tuple[int, ...],
    added_NO: jax.Array | None = None,
    gated: bool = False,
) -> jax.Array:
    """`adapt` in jax.numpy: a [A, n, D, R] and b [A, R, O] are the adapters of the runs of rows."""
    x_AND = x_ND.reshape(adapter.a.shape[0], -1, x_ND.shape[1])
    z_APNR = jnp.einsum(
        "and,apdr->apnr", x_AND, adapter.a, preferred_element_type=jnp.float32
    ).astype(x_ND.dtype)
    parts = jnp.split(adapter.b, np.cumsum(widths)[:-1], -1)
    added = [
        jnp.einsum("anr,aro->ano", z_APNR[:, p], b, preferred_element_type=jnp.float32)
        for p, b in enumerate(parts)
    ]
    result = y_NO.astype(jnp.float32) + jnp.concatenate(added, -1).reshape(y_NO.shape)
    if gated:
        gate, up = jnp.split(result, 2, -1)
        result = jax.nn.silu(gate) * up
    if added_NO is not None:
        result = result + added_NO.astype(jnp.float32)
    return result.astype(y_NO.dtype)


def merge(w_DO: jax.Array, a_PDR: jax.Array, b_RO: jax.Array, widths: tuple[int, ...]) -> jax.Array:
    """W + a b of one chain and layer."""
    parts = jnp.split(b_RO, np.cumsum(widths)[:-1], -1)
    products = [
        jnp.einsum("dr,ro->do", a, b, preferred_element_type=jnp.float32)
        for a, b in zip(a_PDR, parts, strict=True)
    ]
    return (w_DO.astype(jnp.float32) + jnp.concatenate(products, -1)).astype(w_DO.dtype)
