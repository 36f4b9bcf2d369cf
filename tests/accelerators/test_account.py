"""The account of HLO text: programs written by hand, whose kernels, bytes and FLOPs are counted on
paper, and small ones that XLA compiles here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.accelerators import account, hlo, kernels
from jaxloop.accelerators.account import Rates

RATES = Rates(bandwidth=1e6, peak=1e9, peak32=5e8, exact=1e8)

LOOP = """HloModule by_hand, is_scheduled=true

%update (p0: f32[8,128], p1: f32[128], p2: s32[]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0} parameter(0)
  %p1 = f32[128]{0} parameter(1)
  %two = f32[] constant(2)
  %twos = f32[128]{0} broadcast(%two), dimensions={}
  %product = f32[128]{0} multiply(%p1, %twos)
  %row = f32[1,128]{1,0} bitcast(%product)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[8,128]{1,0} dynamic-update-slice(%p0, %row, %p2, %zero)
}

%row_of (q0: f32[8,128], q1: s32[]) -> f32[128] {
  %q0 = f32[8,128]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %origin = s32[] constant(0)
  %cut = f32[1,128]{1,0} dynamic-slice(%q0, %q1, %origin), dynamic_slice_sizes={1,128}
  ROOT %flat = f32[128]{0} bitcast(%cut)
}

%body (b: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %b = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%b), index=1
  %row_fusion = f32[128]{0} fusion(%x, %i), kind=kLoop, calls=%row_of
  %new = f32[8,128]{1,0} fusion(%x, %row_fusion, %i), kind=kLoop, calls=%update
  %moved = f32[8,128]{0,1} copy(%new)
  %back = f32[8,128]{1,0} bitcast(%moved)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8,128]{1,0}) tuple(%next, %back)
}

%condition (c: (s32[], f32[8,128])) -> pred[] {
  %c = (s32[], f32[8,128]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[8,128], w: bf16[64,128]) -> (s32[], f32[8,128]) {
  %a = f32[8,128]{1,0} parameter(0)
  %w = bf16[64,128]{1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[8,128]{1,0}) tuple(%start, %a)
  ROOT %loop = (s32[], f32[8,128]{1,0}) while(%init), condition=%condition, body=%body, \
metadata={op_name="jit(f)/while"}
}
"""


def test_a_loop_counts_its_body_as_often_as_it_turns_and_updates_in_place_what_they_write():
    found = account.account(LOOP, RATES)
    (loop,) = found.loops
    assert (loop.trips, loop.turn.kernels, loop.operation) == (5, 4, "jit(f)/while")
    row, whole, number = 128 * 4, 8 * 128 * 4, 4
    # the row is sliced: row and index; updated: row, index; copied whole; the counter
    assert loop.turn.read == (row + number) + (row + number) + whole + 2 * number
    assert loop.turn.written == row + row + whole + number
    assert found.total.kernels == 20 and found.total.bytes == 5 * loop.turn.bytes
    assert found.total.seconds == pytest.approx(found.total.bytes / RATES.bandwidth)
    assert (
        [(c.bytes, c.place) for c in found.copies] == [(whole, "loop")]
        and not found.collectives
        and not found.scatters
    )
    assert found.total.kinds["copies, slices, updates"] == pytest.approx(
        5 * (2 * row + number + 2 * row + number + 2 * whole) / RATES.bandwidth
    )


def test_a_loop_whose_length_is_known_only_when_it_runs_turns_once_and_is_the_step():
    open_ended = LOOP.replace("%n = s32[] constant(5)", "%n = s32[] get-tuple-element(%c), index=0")
    found = account.account(open_ended, RATES)
    assert (
        found.loops[0].trips is None
        and found.total == found.step
        and found.step.kernels == 4
        and found.copies[0].place == "step"
    )
    said = LOOP.replace(
        'metadata={op_name="jit(f)/while"}', 'backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert account.account(said, RATES).total.kernels == 28


GPU = """HloModule calls, is_scheduled=true

%double (p: bf16[16,64]) -> bf16[16,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  ROOT %sum = bf16[16,64]{1,0} add(%p, %p)
}

%first (s: bf16[16,64]) -> bf16[16,64] {
  %s = bf16[16,64]{1,0} parameter(0)
  ROOT %same = bf16[16,64]{1,0} copy(%s)
}

%second (t: bf16[16,64]) -> bf16[16,64] {
  %t = bf16[16,64]{1,0} parameter(0)
  %once = bf16[16,64]{1,0} fusion(%t), kind=kLoop, calls=%double
  ROOT %twice = bf16[16,64]{1,0} fusion(%once), kind=kLoop, calls=%double
}

ENTRY %main (x: bf16[16,32], w: bf16[32,64], q: bf16[2,8,4,16], i: s32[5], u: bf16[5,64], k: \
s32[]) -> bf16[16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w = bf16[32,64]{1,0} parameter(1)
  %q = bf16[2,8,4,16]{3,2,1,0} parameter(2)
  %i = s32[5]{0} parameter(3)
  %u = bf16[5,64]{1,0} parameter(4)
  %k = s32[] parameter(5)
  %gemm = (bf16[16,64]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]\
,"rhs_contracting_dimensions":["0"]}}}
  %y = bf16[16,64]{1,0} get-tuple-element(%gemm), index=0
  %fmha = (bf16[2,8,4,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": \
{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "8", "8"]}, \
"mask_type": "CAUSAL"}}
  %rows = bf16[5,64]{1,0} gather(%y, %i), offset_dims={1}, collapsed_slice_dims={0}, \
start_index_map={0}, index_vector_dim=1, slice_sizes={1,64}
  %put = bf16[16,64]{1,0} scatter(%y, %i, %u), update_window_dims={1}, inserted_window_dims={0}, \
scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%double
  %all = bf16[16,64]{1,0} all-reduce(%put), replica_groups={}, to_apply=%double
  ROOT %chosen = bf16[16,64]{1,0} conditional(%k, %all, %all), branch_computations={%first, %second}
}
"""


def test_library_calls_gathers_scatters_and_the_longest_branch():
    module = hlo.parse(GPU)
    main = module.computations["main"]
    gemm, fmha, rows, put = (main[name] for name in ("gemm", "fmha", "rows", "put"))
    assert (
        hlo.flops(module, "main", gemm) == 2 * 16 * 64 * 32
        and hlo.operand_type(module, "main", gemm) == "bf16"
    )
    assert hlo.traffic(module, "main", gemm) == (
        2 * (16 * 32 + 32 * 64),
        2 * 16 * 64,
    )  # its workspace is no result
    assert hlo.flops(module, "main", fmha) == 0.5 * 2 * 2 * (2 * 4 * 8 * 8) * 16
    assert hlo.traffic(module, "main", rows) == (2 * 5 * 64 + 4 * 5, 2 * 5 * 64)
    assert hlo.traffic(module, "main", put) == (2 * (2 * 5 * 64) + 4 * 5, 2 * 5 * 64)
    found = account.account(GPU, RATES)
    assert found.total.kernels == 7  # the longer branch has two
    assert found.total.flops == 2 * 16 * 64 * 32 + 2 * 2 * 4 * 8 * 8 * 16
    assert set(found.total.kinds) == {
        "thin products",
        "attention calls",
        "elementwise, reductions",
        "collectives",
    }
    assert [s.place for s in found.scatters] == [
        "once"
    ] and not found.collectives  # the all-reduce is in no loop
    fast = account.account(GPU, RATES._replace(peak=1e3))
    assert fast.total.kinds["large products"] == pytest.approx(2 * 16 * 64 * 32 / 1e3)


TPU = """HloModule chip, is_scheduled=true

%batched (l: bf16[4,16,32], r: bf16[4,32,64]) -> f32[4,16,64] {
  %l = bf16[4,16,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %r = bf16[4,32,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = f32[4,16,64]{2,1,0:T(8,128)} convolution(%l, %r), \
window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}

ENTRY %main (a: bf16[4,16,32], b: bf16[4,32,64]) -> f32[4,16,64] {
  %a = bf16[4,16,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4,32,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %go = (bf16[4,32,64]{2,1,0:T(8,128)(2,1)S(1)}, \
bf16[4,32,64]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%b)
  %here = bf16[4,32,64]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%go)
  ROOT %y = f32[4,16,64]{2,1,0:T(8,128)} fusion(%a, %here), kind=kOutput, calls=%batched, \
backend_config={"window_config":{"estimated_cycles":"1500"}}
}
"""


def test_a_tpus_text_arrays_on_the_chip_cost_nothing_and_batches_are_not_summed():
    found = account.account(TPU, RATES)
    assert found.total.flops == 2 * 4 * 16 * 64 * 32 and found.total.cycles == 1500
    weights, left, out = 2 * 4 * 32 * 64, 2 * 4 * 16 * 32, 4 * 4 * 16 * 64
    assert (found.total.read, found.total.written) == (
        weights + left,
        out,
    )  # the weights are read once, into the chip
    assert (
        account.seconds_of_cycles(found.total, 1.5e9) == pytest.approx(1e-6)
        and found.total.kernels == 2
    )


def test_what_a_tpus_compiler_does_not_estimate_counts_as_its_roofline():
    """A Pallas kernel has no cycles; what is moved into fast memory is no copy."""
    kernel = """  ROOT %z = f32[4,16,64]{2,1,0:T(8,128)} custom-call(%y), \
custom_call_target="tpu_custom_call"
}
"""
    text = TPU.replace("ROOT %y", "%y").rstrip().rstrip("}") + kernel
    found = account.account(text, RATES).total
    assert found.cycles == 1500
    assert found.unestimated == pytest.approx(2 * 4 * 4 * 16 * 64 / RATES.bandwidth)
    assert account.seconds_of_cycles(found, 1.5e9) == pytest.approx(1e-6 + found.unestimated)
    (moved,) = (i for i in hlo.parse(TPU).computations["main"].values() if i.op == "copy-start")
    assert not account._is_copy(hlo.parse(TPU), moved)  # noqa: SLF001


def test_arithmetic_before_a_slice_reads_only_the_slice():
    text = """HloModule s
%fused (p: bf16[64,128], i: s32[]) -> f32[1,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[64,128]{1,0} convert(%p)
  %power = f32[64,128]{1,0} exponential(%wide)
  %both = f32[64,128]{1,0} multiply(%power, %wide)
  ROOT %row = f32[1,128]{1,0} dynamic-slice(%both, %i, %zero), dynamic_slice_sizes={1,128}
}
ENTRY %main (a: bf16[64,128], i: s32[]) -> f32[1,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %y = f32[1,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused
}
"""
    row = 2 * 128
    assert account.account(text, RATES).total.read == row + 4
    whole = text.replace("ROOT %row", "%row").replace(
        "dynamic_slice_sizes={1,128}\n",
        "dynamic_slice_sizes={1,128}\n  ROOT %t = (f32[1,128]{1,0}, f32[64,128]{1,0}) "
        "tuple(%row, %both)\n",
    )
    assert account.account(whole, RATES).total.read > 64 * row

    # Float64 on a TPU is arithmetic in which every value is used twice, thousands deep.
    steps = [f"%both{n + 1} = f32[64,128]{{1,0}} add(%both{n}, %both{n})" for n in range(2000)]
    deep = text.replace("%both = ", "%both0 = ").replace("(%both, ", "(%both2000, ")
    deep = deep.replace("  ROOT %row", "".join(f"  {step}\n" for step in steps) + "  ROOT %row")
    assert account.account(deep, RATES).total.read == row + 4


def test_products_in_float32_are_as_fast_as_their_precision():
    text = """HloModule p
ENTRY %main (a: f32[8,16], b: f32[16,32]) -> f32[8,32] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,32]{1,0} parameter(1)
  %view = f32[16,32]{1,0} custom-call(%b), custom_call_target="ConcatBitcast"
  ROOT %y = f32[8,32]{1,0} dot(%a, %view), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
operand_precision={default,default}
}
"""
    rates, flops = RATES._replace(bandwidth=1e12), 2 * 8 * 16 * 32
    assert account.account(text, rates).total.kinds == {
        "large products": pytest.approx(flops / rates.peak32)
    }
    exact = account.account(text.replace("default", "highest"), rates).total
    assert (
        exact.kinds == {"large products": pytest.approx(flops / rates.exact)} and exact.kernels == 1
    )
    asked = (
        jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
        .lower(jnp.zeros((64, 64)), jnp.zeros((64, 64)))
        .compile()
        .as_text()
    )
    module = hlo.parse(asked)
    assert (
        any(hlo.is_exact(module, i) for i in module.computations[module.entry].values())
        or "operand_precision" not in asked
    )


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("stablehlo.add")


# ---- what XLA compiles here


def _text(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def test_products_in_a_scan_agree_with_xlas_own_count():
    x, w = (
        jax.ShapeDtypeStruct((32, 64), jnp.float32),
        jax.ShapeDtypeStruct((6, 64, 64), jnp.float32),
    )

    def scanned(x, w):
        return jax.lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w)[0]

    found = account.account(_text(scanned, x, w), RATES)
    assert found.total.flops == 6 * 2 * 32 * 64 * 64 and found.loops[0].trips == 6
    unrolled = (
        jax.jit(lambda x, w: [x := jnp.tanh(x @ w[i]) for i in range(6)][-1]).lower(x, w).compile()
    )
    assert account.account(unrolled.as_text(), RATES).total.flops == found.total.flops
    # Each weight is read once and each state read and written at least once; what a CPU adds is
    # copies of the loop's state.
    least = 4 * (6 * 64 * 64 + 2 * 6 * 32 * 64)
    assert least <= found.total.bytes <= 4 * least


def test_a_step_of_unknown_length_is_found_and_its_float32_arrays_are_seen():
    def steps(x, w, n):
        return jax.lax.fori_loop(0, n, lambda i, h: jax.nn.softmax(h @ w, -1), x)

    text = _text(
        steps,
        jax.ShapeDtypeStruct((8, 256), jnp.float32),
        jax.ShapeDtypeStruct((256, 256), jnp.float32),
        np.int32(3),
    )
    found = account.account(text, RATES)
    assert found.step.flops == 2 * 8 * 256 * 256 == found.total.flops
    assert account.widest(text, "f32") == 256 * 256 and account.widest(text, "bf16") == 0


def test_a_scatter_in_a_loop_and_collectives_in_a_loop_are_named():
    def writes(x, at):
        return jax.lax.fori_loop(0, 4, lambda i, h: h.at[at].add(1.0), x)

    found = account.account(
        _text(
            writes,
            jax.ShapeDtypeStruct((64, 8), jnp.float32),
            jax.ShapeDtypeStruct((5,), jnp.int32),
        ),
        RATES,
    )
    assert any(s.place in ("loop", "step") for s in found.scatters) or any(
        loop.trips == 5 for loop in found.loops
    )  # a CPU may make a loop of it
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    cut = jax.NamedSharding(mesh, jax.P("d"))

    def summed(x):
        return jax.lax.fori_loop(0, 3, lambda i, h: h + jax.lax.psum(h, "d"), x)

    run = jax.jit(
        jax.shard_map(summed, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"), check_vma=False)
    )
    text = run.lower(jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=cut)).compile().as_text()
    assert [c.op for c in account.account(text, RATES).collectives] == ["all-reduce"]


def test_our_kernels_are_counted_as_they_read():
    """Caches of 320 tokens at the mean age of 80: a quarter of them; of a pool of 8 adapters the 2
    that lanes use.
    """
    cache, small = ((4, 2, 320, 64), 4.0 * 2 * 320 * 64 * 2), ((4, 12, 64), 4.0 * 12 * 64 * 2)
    read, written = kernels.moved(
        "attend_rows", [small, ((4,), 16.0), cache, cache], [100.0, cache[1], cache[1]]
    )
    assert read == small[1] + 16 + cache[1] / 2 and written == 100 + 2 * cache[1] / 320
    a, b, x, y = (
        ((8, 1, 32, 16), 8192.0),
        ((8, 16, 64), 16384.0),
        ((32, 32), 2048.0),
        ((32, 64), 4096.0),
    )
    assert kernels.moved("adapt_groups", [((2,), 8.0), x, a, b, y], [4096.0]) == (
        8 + 2048 + 2048 + 4096 + 4096,
        4096,
    )
    assert kernels.computed("adapt_groups", [((2,), 8.0), x, a, b, y]) == 2 * 32 * 16 * (32 + 64)
    weights, thin = ((32, 128), 8192.0), ((2, 32, 16), 2048.0)
    assert kernels.moved("adapt_inputs", [((2,), 8.0), x, a], [2048.0]) == (8 + 2048 + 2048, 2048)
    moved = kernels.moved("gate_groups", [((2,), 8.0), x, weights, thin, b], [4096.0])
    assert moved == (8 + 2048 + 8192 + 2048 + 4096, 4096)
    computed = kernels.computed("gate_groups", [((2,), 8.0), x, weights, thin, b])
    assert computed == 2 * 32 * 64 * (32 + 16)
    assert kernels.computed("adapt_inputs", [((2,), 8.0), x, a]) == 2 * 32 * 32 * 16
    ring, queries = ((8, 320, 128), 8.0 * 320 * 128 * 2), ((8, 4, 128), 8192.0)
    operands = [((2,), 8.0), ((1,), 4.0), ((1,), 4.0), queries, ring, ring]
    assert kernels.moved("attend_ring", operands, [8192.0]) == (
        16 + 8192 + 2 * kernels.RING_SHARE * ring[1],
        8192,
    )
    assert kernels.computed("attend_ring", operands) == 4 * 8 * 4 * 128 * 80
    for rows, width, again in ((1024, 128, 2), (512, 128, 1), (1024, 4096, 4)):
        x, z = ((rows, width), 2.0 * rows * width), ((2, rows, 16), 64.0 * rows)
        w, b = ((width, 1024), 2048.0 * width), ((rows, 1024), 2048.0 * rows)  # 16 slots a group
        operands = [x, w, w, z, b, b]
        # Two tiles of 256 columns, of the widest inputs four of 128; 512 rows are one tile.
        read = again * (x[1] + z[1]) + w[1] + b[1]
        assert kernels.moved("gate_rings", operands, [1024.0 * rows]) == (read, 1024 * rows)
        assert kernels.computed("gate_rings", operands) == 2 * rows * 1024 * (width + 128)
    logits = ((256, 128), 65536.0)
    moved = kernels.moved("pick_blocks", [((128,), 512.0), *[logits] * 8], [8192.0])
    assert moved == (512 + 128 * 16 * 128 * 2, 8192)  # blocks of 16 tokens, of 128 slots each
    assert kernels.computed("pick_blocks", [((128,), 512.0), logits]) == 0
    assert (
        kernels.name_of("jit(f)/while/body/adapt_groups/pallas_call") == "adapt_groups"
        and kernels.name_of("jit(f)/dot") is None
    )
