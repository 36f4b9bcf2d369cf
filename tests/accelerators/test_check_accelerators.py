"""The check of accelerators: which programs it compiles, and that each fault is a row that fails.
Nothing is compiled for hardware that is absent.
"""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxloop.accelerators import absent
from jaxloop.accelerators.cards import CARDS
from jaxloop.lm.programs import Program
from jaxloop.lm.target import Target

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(
        "check_accelerators", SCRIPTS / "check_accelerators.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture
def on_this_cpu(monkeypatch):
    """Programs are compiled here, whatever the card, and keep their account."""
    real = absent.compile_program
    monkeypatch.setattr(absent, "compile_program", lambda program, card: real(program, None))


def program(function, *shapes):
    return lambda: Program(
        "made", jax.jit(function), tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes), {}
    )


def test_sound_programs_pass_and_each_fault_fails(script, on_this_cpu, monkeypatch):
    card, f32 = CARDS["h100"], jnp.float32
    product = program(lambda a, b: a @ b, ((64, 32), f32), ((32, 128), f32))
    assert script.check(card, "training", script.Case(product), 2, 1)["faults"] == []
    assert script.check(card, "training", script.Case(product, logits=64 * 128), 2, 1)[
        "faults"
    ] == ["holds float32 logits of the whole batch"]
    monkeypatch.setitem(script.BOUNDS, ("gpu", "training"), (1e-6, 1e-6))
    assert script.check(card, "training", script.Case(product), 2, 1)["faults"][0].startswith(
        "needs 0.00 GB, more than 0.00"
    )
    broken = script.check(card, "loss", script.Case(program(lambda a: a @ a, ((2, 3), f32))), 2, 1)
    assert broken["faults"][0].startswith("does not compile: ") and "dot" in script.line(broken)
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2])
    summed = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.fori_loop(0, 3, lambda i, h: h + jax.lax.psum(h, "d"), x),
            mesh=mesh,
            in_specs=jax.P("d"),
            out_specs=jax.P("d"),
            check_vma=False,
        )
    )
    waits = Program(
        "made",
        summed,
        (jax.ShapeDtypeStruct((4, 16), f32, sharding=jax.NamedSharding(mesh, jax.P("d"))),),
        {},
    )
    assert script.check(card, "loss", script.Case(lambda: waits), 2, 2)["faults"] == [
        "all-reduce in a loop: f32[2,16]"
    ]


def test_a_cache_that_is_copied_in_a_step_or_scattered_into_is_found(script, monkeypatch):
    text = """HloModule m
%body (b: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %b = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%b), index=1
  %again = bf16[4,8]{0,1} copy(%x)
  %same = bf16[4,8]{1,0} bitcast(%again)
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%i, %same)
}
%more (c: (s32[], bf16[4,8])) -> pred[] {
  %c = (s32[], bf16[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%j, %j), direction=LT
}
ENTRY %main (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[4,8]{1,0}) while(%s), condition=%more, body=%body
}
"""
    monkeypatch.setattr(
        absent, "compile_program", lambda program, card: absent.Compiled(text, 10, 10, 0, 0, 0.0)
    )
    made = program(jnp.sin, ((2,), jnp.float32))
    found = script.check(CARDS["v5e-8"], "decoding", script.Case(made, cache=64), 2, 1)
    assert found["faults"] == [
        "copies a cache in its step: bf16[4,8]"
    ] and "copies a cache" in script.line(found)
    assert (
        script.check(CARDS["v5e-8"], "decoding", script.Case(made, cache=65), 2, 1)["faults"] == []
    )
    text = text.replace("copy(%x)", "scatter(%x, %i, %x), to_apply=%more")
    assert script.check(CARDS["v5e-8"], "decoding", script.Case(made, cache=64), 2, 1)[
        "faults"
    ] == ["scatters into a cache: bf16[4,8]"]


def test_the_command_line_names_programs_and_refuses_others(script, capsys):
    assert script.main(["--list", "--targets=h100", "--only=training,encoder"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "h100 x 1: training",
        "h100 x 1: encoder",
        "h100 x 8: training",
    ]
    for words, said in (
        (["--targets=tpu"], "--targets=tpu: must be of h100"),
        (["--only=x"], "--only=x: must be of training"),
        (["--devices=one"], "--devices=one"),
    ):
        assert script.main(words) == 2 and capsys.readouterr().err.startswith(said)
    assert (
        script.bound(CARDS["h100"], "training", 2)
        < script.bound(CARDS["h100"], "training", 0)
        < CARDS["h100"].room
    )
    assert script.bound(CARDS["v5e-8"], "decoding", 2) == CARDS["v5e-8"].room


def test_every_program_of_the_check_can_be_made(script):
    """On the devices at hand, two layers: the arguments' shapes fit the functions (traced, not
    compiled).
    """
    made = script.cases(2, Target("gpu"), jax.devices()[:2])
    assert set(made) == set(script.NAMES)
    for name in ("training", "loss", "beam", "encoder", "metrics"):
        for case in made[name]:
            assert case.make().lower(("cuda",)).as_text()
