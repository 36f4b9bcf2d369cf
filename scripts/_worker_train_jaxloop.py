"""jaxloop as a worker of `bench_train.py --peer=…`: the program that a study runs.

A setting is P:K, P programs at the same time of K chains each.
"""

import json

import _root  # noqa: F401
import jax
import numpy as np
from _worker import read_work, serve

from jaxloop.config import FitConfig, LoraConfig
from jaxloop.lm.model import lora
from jaxloop.lm.target import target_of
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, run_steps
from jaxloop.runtime.devices import run_concurrently
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import bench_model


def main() -> None:
    folder, work = read_work()
    model = bench_model(BenchConfig(size=work["size"]), 1)
    params = jax.device_put(model.base, jax.devices()[0])
    target = target_of(model.config, params)
    adapters = LoraConfig(rank=work["rank"], alpha=work["rank"])
    fit = FitConfig(lora=adapters, batch_size=work["batch_size"])

    def write(job: str, setting: str) -> int:
        chains, steps = map(int, job.split("x"))
        programs, together = map(int, setting.split(":"))
        options = TrainOptions(steps_per_call=steps)
        shape = (steps, work["batch_size"], work["length"])
        losses = {}

        def start(first: int) -> jax.Array:
            numbers = range(first, first + together)
            of_chains = [
                np.random.default_rng(c).integers(0, work["vocab"], shape) for c in numbers
            ]
            tokens = np.stack(of_chains, 1).astype(np.int32)
            rows = np.ones(tokens.shape[:3], np.float32)
            batch = StepArrays(tokens, np.ones(tokens.shape, bool), rows)
            keys = jax.random.split(jax.random.key(first), together)
            weights = lora.init(keys, model.config, adapters).weights
            state = jax.device_put(init_state(fit, options, weights, keys), jax.devices()[0])
            counts = np.int32(steps), np.int32(10**6)
            return run_steps(
                model.config, fit, options, params, state, batch, *counts, target=target
            )[1]

        def take(first: int, log: np.ndarray) -> None:
            losses.update({first + c: float(log[0, c]) for c in range(together)})

        run_concurrently(start, take, range(0, chains, together), programs)
        said = [losses[chain] for chain in range(chains)]
        (folder / "losses.jaxloop.json").write_text(json.dumps(said), encoding="utf8")
        return chains * steps * work["batch_size"] * work["length"]

    serve(lambda setting: None, write)


if __name__ == "__main__":
    main()
