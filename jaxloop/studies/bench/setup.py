"""What the benchmarks time: a model with adapters, texts of mixed lengths; and how they time it."""

import dataclasses
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config import LoraConfig
from jaxloop.core.keys import chain_key
from jaxloop.lm.io.config_json import parse_config
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.runtime.roofline import Work
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.common.published_models import PUBLISHED

# The context of the timed model of Llama-3.2-1B's shapes, whose own is 131,072.
MAX_SEQ_LEN = 4096


class BenchModel(NamedTuple):
    """A decoder with random weights, and the adapters of every chain, stacked."""

    config: ModelConfig
    lora: LoraConfig
    base: dict
    adapters: adapters.Adapter


class Measurement(NamedTuple):
    """One number of chains: what is printed of it, and what a second of it had to do."""

    row: dict[str, Any]
    work: Work


class Times(NamedTuple):
    """Seconds of every repeat of every run, and of each one's first call (warm-up, compilation
    included).
    """

    repeats: dict[str, list[float]]
    first: dict[str, float]


def model_config_of(config: BenchConfig) -> ModelConfig:
    """Return the decoder that is timed."""
    model_config = _model_config(config.size)
    if config.vocab is None:
        return model_config
    return dataclasses.replace(model_config, vocab_size=config.vocab)


def _model_config(size: str) -> ModelConfig:
    if size == "llama-1b":
        published = parse_config(PUBLISHED["Llama-3.2-1B"].config)
        return dataclasses.replace(published, max_seq_len=MAX_SEQ_LEN)
    if size == "tiny":
        return ModelConfig(
            "llama",
            vocab_size=512,
            d_model=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=32,
            d_ff=128,
            max_seq_len=512,
        )
    if size == "124m":
        return parse_config(PUBLISHED["gpt2"].config)
    heads, depth = {"small": (4, 4), "15m": (8, 4), "60m": (12, 8)}[size]
    return ModelConfig(
        "llama",
        vocab_size=4096,
        d_model=64 * heads,
        num_layers=depth,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        d_ff=176 * heads,
        max_seq_len=512,
    )


def bench_model(config: BenchConfig, chains: int) -> BenchModel:
    """Make the model with adapters of so many chains; no adapter is zero."""
    model_config = model_config_of(config)
    lora = LoraConfig(rank=config.rank, alpha=float(config.rank))
    base = init(chain_key(config.seed), model_config, jnp.dtype(config.dtype))
    keys = jax.random.split(chain_key((config.seed + 1) % 2**32), chains)
    fresh = adapters.init(keys, model_config, lora)
    b_keys = iter(jax.random.split(chain_key((config.seed + 2) % 2**32), 32))
    stacked = {
        name: {
            "a": factors["a"],
            "b": 0.02 * jax.random.normal(next(b_keys), factors["b"].shape),
        }
        for name, factors in fresh.items()
    }
    return BenchModel(model_config, lora, base, adapters.Adapter(stacked, lora))


def lengths_of(config: BenchConfig, count: int) -> np.ndarray:
    """Return lengths [count] of the mix: log-normal with a long tail, mean about `mean_length`, at
    least 5, at most `longest`.
    """
    drawn = np.random.default_rng(config.seed).lognormal(
        np.log(0.75 * config.mean_length), 0.75, count
    )
    return np.clip(drawn.astype(int), 5, config.longest)


def time_in_turn(runs: Mapping[str, Callable[[], None]], repeats: int) -> Times:
    """Time the runs in turn, `repeats` times after a first call of each."""
    first = {name: _seconds(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(_seconds(run))
    return Times(times, first)


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Return the most bytes in use so far: of the accelerator, or of the process on a CPU."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return int(peak) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
