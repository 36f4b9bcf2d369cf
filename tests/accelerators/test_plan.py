"""Plans for hardware that is absent: the cards, what is said where a compiler is missing, what
fits, and what would make a model fit.
"""

import dataclasses
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxloop.accelerators import absent, account, cards, report
from jaxloop.accelerators.cards import CARDS
from jaxloop.accelerators.report import Device, Shapes
from jaxloop.config import FitConfig, LoraConfig, SampleConfig
from jaxloop.lm import programs
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.target import Target, complete
from jaxloop.lm.training.step import TrainOptions
from jaxloop.runtime import roofline
from tests.command import call

QUICKSTART = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.py")
LORA = LoraConfig(rank=4, alpha=4.0)
CONFIG = ModelConfig(
    "llama",
    vocab_size=512,
    d_model=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    d_ff=128,
    max_seq_len=128,
)
FIT = FitConfig(lora=LORA, batch_size=2, max_length=32)
WRITE = SampleConfig(max_new_tokens=16, slots=16, texts_per_call=32, chains_per_call=2)
SHAPES = Shapes(
    "tiny",
    CONFIG,
    "float32",
    FIT,
    WRITE,
    32,
    16,
    4,
    train_options=TrainOptions(steps_per_call=2),
    generate_options=GenerateOptions(lora=LORA, window=8),
)


def here(room: int) -> Device:
    """This CPU with so many bytes, and the rates of an H100."""
    return Device(
        "cpu", None, jax.devices()[:1], room, account.rates_of(CARDS["h100"]), Target("cpu")
    )


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    monkeypatch.setattr(cards, "keep_to_the_cpu", lambda: None)


def test_cards_are_complete_and_described_to_the_compiler_as_it_asks():
    assert cards.TARGETS == ("h100", "h200", "a100", "v5e-8", "v5p-8", "v6e-8", "cpu")
    for card in CARDS.values():
        assert (
            card.source.startswith("https://")
            and card.room < card.memory
            and 1e11 < card.bandwidth < 1e13 < card.peak
        )
        assert (card.platform == "gpu") == bool(card.fields) and (card.platform == "tpu") == bool(
            card.topology and card.clock
        )
    text = cards.target_config(CARDS["a100"])
    assert (
        text.count("{") == text.count("}")
        and "cuda_compute_capability { major: 8 minor: 0 }" in text
        and "ecc_enabled: true" in text
    )
    text = cards.target_config(CARDS["h200"])
    assert (
        "feature_extension: ACCELERATED_FEATURES" in text
        and f"memory_bandwidth: {int(4.8e12)}" in text
    )
    assert cards.find("cpu") is None
    with pytest.raises(ValueError, match="--for=b200 is not a target; there are h100, .*, cpu$"):
        cards.find("b200")


def test_a_compiler_that_is_missing_or_of_another_jax_is_named_with_the_command(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    with pytest.raises(
        absent.Missing,
        match=r"compiler for a GPU is not installed \(jax-cuda12-plugin\); pip install "
        r"'jaxloop-lm\[plan-gpu\]' brings it$",
    ):
        absent.devices(CARDS["h100"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(
        absent.Missing,
        match=rf"libtpu 0.0.1 does not belong to jax {re.escape(jax.__version__)}, which needs "
        rf".*; pip install .*plan-tpu",
    ):
        absent.check("tpu")
    absent.check("cpu")
    with pytest.raises(ValueError, match="devices = 99: this process has 4 CPU devices"):
        absent.devices(None, 99)


def test_a_compilers_refusal_for_memory_is_read():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.52G of 15.75G hbm. "
        "Exceeded hbm capacity by 1.77G.\nmore"
    )
    found = absent._refusal(jax.errors.JaxRuntimeError(said), "training")
    assert isinstance(found, absent.TooLarge) and found.needed == int(17.52 * 2**30)
    assert str(found) == "training: needs 17.52G of 15.75G bytes, says the compiler"
    assert absent._refusal(error := jax.errors.JaxRuntimeError("INTERNAL: no"), "training") is error


def test_the_front_end_of_cudnn_answers_for_the_card_and_is_itself_again():
    from jax._src.cudnn import fused_attention_stablehlo as front

    before = front.check_cudnn_version
    with absent.as_card(CARDS["a100"]):
        assert (
            front.check_cudnn_version() == 91000
            and front.check_compute_capability("8.0")
            and not front.check_compute_capability("9.0")
        )
    assert front.check_cudnn_version is before


def test_a_plan_says_what_fits_and_what_a_step_takes(monkeypatch):
    one, two = (
        absent.compile_program(report.training(SHAPES, c, here(0)), None).memory for c in (1, 2)
    )
    rows, best = report.model_rows(SHAPES, here(two))
    said = dict(rows)
    assert list(said) == [
        f"{name}{step}"
        for name in ("training", "loss", "prefill", "decoding")
        for step in ("", " step")
    ]
    assert (
        said["training"].startswith("2 chains in a program of 2 x 32 tokens each fit (1: ")
        and best.trained > 0
        and best.seconds > 0
    )
    assert (
        re.search(r"at least [\d.]+ ms \(.*thin products", said["decoding step"])
        and "16 slots" in said["decoding step"]
        and best.written > 0
    )
    assert one < two
    monkeypatch.setattr(
        report,
        "compiled",
        lambda program, at: (_ for _ in ()).throw(
            absent.TooLarge("decoding: needs 3G of 2G bytes", 3 << 30)
        ),
    )
    assert report._lines("decoding", None, here(0))[0] == [
        ("decoding", "does not fit: decoding: needs 3G of 2G bytes")
    ]


def test_a_model_that_does_not_fit_with_one_chain_is_refused_with_what_would_help(monkeypatch):
    at = here(10_000_000)._replace(name="v5e-8", card=CARDS["v5e-8"])
    needs = dict(
        remat=9_000_000, dtype=20_000_000, rank=11_000_000, length=9_999_999, cut=10_000_001
    )

    def memory(changed):
        differs = dict(
            cut=changed.shard_base,
            remat=changed.fit.remat,
            dtype=changed.dtype == "bfloat16",
            rank=changed.fit.lora.rank == 2,
        )
        which = next((name for name, found in differs.items() if found), "length")
        assert (changed.time == 16) == (which == "length")
        return needs[which]

    said = report.refusal(SHAPES, at, 12_500_000, memory)
    assert said == (
        "config.models.pool: one chain of tiny needs 12.5 MB of 10.0 MB on v5e-8, 2.5 MB too many; "
        "config.fit.remat=true or config.fit.max_length=16 would make it fit"
    )
    needs |= dict(cut=10_000_000, remat=10_000_001, length=10_000_001)
    assert report.refusal(SHAPES, at, 12_500_000, memory).endswith(
        "; config.run.shard_base=true would make it fit"
    )
    assert (
        "no single one of fit.remat, fit.dtype, fit.lora.rank, fit.max_length, run.shard_base "
        "makes it fit" in report.refusal(SHAPES, here(1), 10**9, lambda changed: 10**12)
    )
    monkeypatch.setattr(report, "training_bytes", lambda changed, at: 2)
    with pytest.raises(ValueError, match="one chain of tiny needs .* too many"):
        report.model_rows(SHAPES, here(1))


def test_arithmetic_stands_in_for_the_compiler():
    rows = dict(report.estimate(SHAPES, CARDS["h100"]))
    assert (
        rows["training"].startswith("4 chains in a program: about ")
        and "16 slots" in rows["decoding"]
    )
    planned = [
        programs.generation_plan(CONFIG, SampleConfig(), complete(platform)).slots
        for platform in ("gpu", "tpu", "cpu")
    ]
    assert planned == [1024, 1024, 64]


def test_arithmetic_says_what_fits():
    """As many chains as fit, by halves; what is asked for stays, and is said to be too much."""
    card = CARDS["h100"]

    def at_most(room):
        return dataclasses.replace(card, memory=room, usable=1.0)

    each = [dataclasses.replace(SHAPES.train_options, chains_per_program=n) for n in (1, 2, 4)]
    one, two, four = (
        dict(report.estimate(SHAPES._replace(train_options=options), card))["training"]
        for options in each
    )
    assert (one[:7], two[:8], four[:8]) == (
        "1 chain",
        "2 chains",
        "4 chains",
    ) and "more than there is" not in one
    sizes = sizes_of(SHAPES.model_config, SHAPES.fit.lora)
    common = dict(
        base_width=jnp.dtype(SHAPES.dtype).itemsize,
        frozen=SHAPES.fit.mode == "lora",
        width=jnp.dtype(SHAPES.fit.dtype).itemsize,
    )
    need = [
        roofline.training_memory(
            sizes, n, SHAPES.fit.batch_size, SHAPES.time, remat=SHAPES.fit.remat, **common
        )
        for n in (1, 2)
    ]
    for room, chains, over in (
        (need[1], "2 chains", False),
        (need[1] - 1, "1 chain ", False),
        (need[0] - 1, "1 chain ", True),
    ):
        said = dict(report.estimate(SHAPES, at_most(room)))["training"]
        assert said.startswith(chains) and ("more than there is" in said) == over
    assert (
        "more than there is"
        in dict(report.estimate(SHAPES._replace(train_options=each[2]), at_most(need[1])))[
            "training"
        ]
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["--plan", "--for=b200"], "--for=b200 is not a target; there are h100"),
        (["--for=h100", "--validate"], "--for=h100 belongs to --plan"),
    ],
)
def test_targets_that_make_no_sense_are_refused_in_one_line(capsys, words, said):
    code, out, err = call(capsys, f"--config={QUICKSTART}", *words)
    assert code == 2 and out == "" and err.startswith(f"jaxloop: {said}") and err.count("\n") == 1


def test_a_study_without_language_models_has_no_such_plan(capsys):
    code, out, err = call(
        capsys, f"--config={Path(QUICKSTART).with_name('theory.py')}", "--plan", "--for=h100"
    )
    assert (
        code == 2
        and "a study of kind 'theory' has no plan for hardware that is absent; those of kind "
        "chain, bias, loops"
        in err
        and err.count("\n") == 1
    )


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is not None, reason="the compiler is installed"
)
def test_without_the_compiler_the_plan_is_arithmetic_and_one_line_says_so(capsys):
    one = "--config.models.pool=jaxloop/assets/bases/llama"
    code, out, err = call(capsys, f"--config={QUICKSTART}", one, "--plan", "--for=h100")
    assert code == 0, err
    assert re.search(
        r"^compiler +the compiler for a GPU is not installed \(jax-cuda12-plugin\); pip install "
        r".*plan-gpu.* brings it; mean",
        out,
        re.M,
    )
    assert re.search(
        r"^training +4 chains in a program: about .* of 63.7 GB", out, re.M
    ) and re.search(r"^decoding +1024 slots", out, re.M)


@pytest.mark.slow
def test_the_plan_of_a_study_for_this_cpu(capsys):
    small = [
        "--config.models.pool=jaxloop/assets/bases/llama",
        "--config.sample.max_new_tokens=16",
        "--config.fit.max_length=32",
    ]
    code, out, err = call(capsys, f"--config={QUICKSTART}", *small, "--plan", "--for=cpu")
    assert code == 0, err
    for line in (
        "target +this CPU",
        r"training +\d+ chains? in a program",
        "decoding step +at least",
        "encoder ",
        "time +at least",
        "compiling ",
    ):
        assert re.search(rf"^{line}", out, re.M), line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100", "v5e-8"])
def test_the_compilers_of_absent_hardware_where_they_are_installed(name):
    """Training and decoding of a tiny model; memory grows with the chains, and a TPU's text has its
    cycles.
    """
    card = CARDS[name]
    try:
        devices = absent.devices(card)
    except absent.Missing as missing:
        pytest.skip(str(missing))
    at = Device(name, card, devices, card.room, account.rates_of(card), complete(card.platform))
    fit = FIT.replace(dtype="bfloat16")
    shapes = SHAPES._replace(fit=fit, dtype="bfloat16")
    few, many = (
        absent.compile_program(report.training(shapes, chains, at), card) for chains in (1, 4)
    )
    assert few.memory < many.memory
    found = account.account(many.text, at.rates)
    assert (
        found.step.flops > 0
        and found.step.kernels > 10
        and (found.total.cycles > 0) == (card.platform == "tpu")
    )
