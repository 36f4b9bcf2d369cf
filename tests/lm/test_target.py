"""The platform a program is made for is an argument: what is traced follows it, whatever this
process runs on.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxloop.lm import target
from jaxloop.lm.encoder.encoder import default_batch
from jaxloop.lm.model import attention
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.target import Target, complete, target_of
from jaxloop.lm.training.autotune import default
from jaxloop.runtime.devices import platform_of, programs_at_once

CONFIG = ModelConfig(
    "llama",
    vocab_size=64,
    d_model=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    d_ff=64,
    max_seq_len=64,
)


def test_the_target_is_that_of_the_devices_that_hold_the_weights():
    params = init(jax.random.key(0), CONFIG)
    assert target_of(CONFIG, params) == Target("cpu", cudnn=False) and platform_of(params) == "cpu"


def test_cudnn_is_asked_for_where_the_target_has_it_and_nowhere_else(monkeypatch):
    asked = []
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda q, k, v, **how: (asked.append(how["implementation"]), v)[1],
    )
    x = jnp.zeros((8, 2, 16), jnp.bfloat16)
    for made_for, dtype in (
        (Target("gpu"), x.dtype),
        (Target("gpu", cudnn=True), x.dtype),
        (Target("gpu", cudnn=True), jnp.float32),
    ):
        attention.causal(CONFIG, 2, 4, None, target=made_for)(*[x.astype(dtype)] * 3)
    attention.causal(CONFIG, 2, 4, None, jnp.ones((2, 4), bool), Target("gpu", cudnn=True))(
        x, x, x
    )  # a mask of padding is XLA's
    assert asked == ["cudnn"]


def test_without_a_gpu_the_probe_of_cudnn_says_no():
    target.cudnn_works.cache_clear()
    if platform_of() != "gpu":
        assert target.cudnn_works(64) is False


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_sizes_follow_the_platform_that_is_named(platform, monkeypatch):
    class Weights:
        """Stands for weights on another device: only `platform_of` looks at it."""

    monkeypatch.setattr(
        "jaxloop.lm.encoder.encoder.platform_of",
        lambda params: platform if isinstance(params, Weights) else "cpu",
    )
    assert default_batch(Weights()) == 65536 and default_batch({}) == 512
    assert default(platform) == 16 and default("cpu") == 1
    assert programs_at_once(platform) == 1 and programs_at_once() == programs_at_once("cpu") >= 1


def test_a_base_that_is_cut_has_no_kernels_of_ours():
    assert complete("gpu").for_sharded_base == Target("gpu", cudnn=True) and complete(
        "tpu"
    ).for_sharded_base == Target("tpu")
