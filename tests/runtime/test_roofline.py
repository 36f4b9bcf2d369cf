"""The cost model against counts made by hand, against XLA's own count of a compiled program, and
against parameter shapes.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxloop.config import LoraConfig
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import ModelConfig, abstract, init
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.training.loss import row_nll
from jaxloop.runtime import roofline

CONFIG = ModelConfig(
    "llama",
    vocab_size=1000,
    d_model=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    d_ff=96,
    max_seq_len=256,
)


def test_sizes_by_hand():
    sizes = sizes_of(CONFIG, LoraConfig(rank=8))
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 64 * 192 + 96 * 64
    assert sizes.body == 2 * layer and sizes.head == 64000
    assert sizes.adapter == 2 * 8 * (
        (64 + 64) + (64 + 32) * 2 + (64 + 64) + (64 + 96) * 2 + (96 + 64)
    )
    assert sizes.cache == 2 * 2 * 2 * 16
    assert sizes.total == sum(leaf.size for leaf in jax.tree.leaves(abstract(CONFIG)))
    tree = lora.init(jax.random.split(jax.random.key(0), 1), CONFIG, LoraConfig(rank=8))
    assert sizes.adapter == sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_llama_1b_adapters_are_the_published_size():
    """11.3 M adapter weights at rank 16 on all projections of Llama-3.2-1B; 32 KB of bf16 cache per
    token.
    """
    model_config = ModelConfig(
        "llama",
        vocab_size=128256,
        d_model=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        d_ff=8192,
        max_seq_len=4096,
    )
    sizes = sizes_of(model_config)
    assert sizes.adapter == 11_272_192 and 2 * sizes.cache == 32768
    assert sizes.body == pytest.approx(973e6, rel=1e-3) and sizes.head == pytest.approx(
        263e6, rel=2e-3
    )
    flops = roofline.training_flops(sizes, 1, 512)
    assert flops == pytest.approx(5.13e9, rel=0.01)


def test_memory_of_a_training_program_agrees_with_the_compiler():
    """Llama-3.2-1B's shapes, 8 x 512 tokens a chain in bfloat16: what XLA says of the programs for
    an H100 (8 and 4 chains; it holds the state of eight more, and of twelve) and for a TPU v5e (1
    chain), within a fifth.
    """
    model_config = ModelConfig(
        "llama",
        vocab_size=128256,
        d_model=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        d_ff=8192,
        max_seq_len=4096,
    )
    for chains, compiled in ((8, 52.4e9), (4, 31.6e9), (1, 10.9e9)):
        assert roofline.training_memory(
            sizes_of(model_config), chains, 8, 512, base_width=2, width=2
        ) == pytest.approx(compiled, rel=0.2), chains


def test_forward_flops_agree_with_the_compiler():
    """A third of a full training step's dense FLOPs, plus full-square attention, is what XLA counts
    for the forward pass (within 5%).
    """
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    compiled = (
        jax.jit(lambda p, t: row_nll(CONFIG, p, t))
        .lower(init(jax.random.key(0), CONFIG), tokens)
        .compile()
    )
    counted = compiled.cost_analysis()["flops"]
    sizes = sizes_of(CONFIG)
    dense = 4 * 64 * 2 * sizes.body + 4 * 63 * 2 * sizes.head
    attention = 4 * 64 * 4 * sizes.layers * sizes.attention_width * 64
    assert counted == pytest.approx(dense + attention, rel=0.05)
    assert roofline.training_flops(sizes, 256, 64, frozen=False) == pytest.approx(
        3 * (256 * 2 * (sizes.body + sizes.head) + attention / 2)
    )


def test_decoding_counts():
    sizes = sizes_of(CONFIG)
    assert roofline.decoding_flops(sizes, 10, 0, adapted=False) == 20 * (sizes.body + sizes.head)
    one, two = (roofline.decoding_bytes(sizes, 1, rows, 50, chains=1, width=4) for rows in (1, 2))
    assert two - one == 4 * 50 * sizes.cache


def test_limits_are_measured():
    limits = roofline.measure_limits(size=256, seconds=0.02)
    assert limits.flops > 1e8 and limits.bandwidth > 1e7


def test_the_nearer_limit_counts_and_the_better_measurement():
    limits = roofline.Limits(100.0, 10.0).or_better(roofline.Limits(50.0, 20.0))
    assert limits == roofline.Limits(100.0, 20.0)
    assert (
        roofline.Work(50.0, 5.0).share(limits) == 0.5
        and roofline.Work(50.0, 15.0).share(limits) == 0.75
        and roofline.Work(30.0).share(limits) == 0.3
    )
