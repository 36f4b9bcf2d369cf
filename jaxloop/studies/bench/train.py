"""Training, timed: steps/s, tokens/s, the ratio to torch and peft."""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config import FitConfig
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.target import target_of
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, run_steps
from jaxloop.runtime.devices import platform_of, run_concurrently
from jaxloop.runtime.roofline import Work, training_flops
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import Measurement, bench_model, peak_bytes, time_in_turn

PEER = "torch + peft"


def time_train(config: BenchConfig, chains: int) -> Measurement:
    """Time so many chains in a program; a step trains every chain on its batch.

    Raises ValueError where the chains cannot be dealt out to `config.together`.
    """
    programs = config.programs or 1
    together = config.together or (1 if platform_of() == "cpu" else chains)
    if chains % together:
        raise ValueError(f"together = {together}: must divide chains = {chains}")
    model = bench_model(config, chains)
    target = target_of(model.config, model.base)
    fit = FitConfig(
        lora=model.lora, batch_size=config.batch_size, dtype=config.dtype, remat=config.remat
    )
    options = TrainOptions(steps_per_call=config.steps)
    shape = (config.steps, chains, config.batch_size, config.length)
    random = np.random.default_rng(config.seed)
    tokens = random.integers(0, model.config.vocab_size, shape).astype(np.int32)
    batch = StepArrays(tokens, np.ones(shape, bool), np.ones(shape[:3], np.float32))
    # The state of each program, of arrays of its own: a call uses up the one that it is given.
    states = [
        init_state(
            fit,
            options,
            jax.tree.map(jnp.copy, model.adapters.weights),
            jax.random.split(jax.random.key(3), chains),
        )
        for _ in range(programs)
    ]

    def start(i: int) -> Any:
        states[i], log = run_steps(
            model.config,
            fit,
            options,
            model.base,
            states[i],
            batch,
            np.int32(config.steps),
            np.int32(10**6),
            vmapped_chains=together,
            target=target,
        )
        return log

    def train() -> None:
        run_concurrently(start, lambda i, log: None, range(programs), programs)

    runs = {"jaxloop": train}
    if config.peer:
        # torch and peft are optional, and slow to load.
        from jaxloop.studies.bench import peers

        runs[PEER] = peers.train_one_chain(model, tokens[:, :1], config)
    times = time_in_turn(runs, config.repeats)
    seconds = statistics.median(times.repeats["jaxloop"]) / config.steps
    count = programs * chains * config.batch_size * config.length
    row = {
        "what": "train",
        "chains": programs * chains,
        "value": count / seconds,
        "unit": "tokens/s",
        "steps_per_s": 1 / seconds,
        "compile_s": times.first["jaxloop"] - seconds * config.steps,
        "peak_bytes": peak_bytes(),
    }
    if config.peer:
        pairs = zip(times.repeats["jaxloop"], times.repeats[PEER], strict=True)
        row["peer"] = f"{PEER}, one chain at a time"
        row["peer_ratio"] = statistics.median(
            programs * chains * theirs / ours for ours, theirs in pairs
        )
    flops = training_flops(sizes_of(model.config, model.lora), count, config.length)
    return Measurement(row, Work(flops=flops / seconds))
