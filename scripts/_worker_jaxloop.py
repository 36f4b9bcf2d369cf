"""jaxloop as a worker of `bench_decode.py --peer=…`: the programs that a study runs.

A setting is the number of slots; "planned" is what studies have.
"""

import functools

import _root  # noqa: F401
import jax
import numpy as np
from _planned_calls import planned_calls
from _worker import read_work, serve

from jaxloop.config import SampleConfig
from jaxloop.lm.generation.decode_loop import decode
from jaxloop.lm.generation.prefill import prefill, unstack_layers
from jaxloop.lm.generation.sampling import sampler_of
from jaxloop.lm.generation.slot_plan import plan_slots
from jaxloop.lm.generation.slots import DecodeShape
from jaxloop.lm.model import lora
from jaxloop.lm.target import target_of
from jaxloop.runtime.devices import run_concurrently
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import bench_model


def main() -> None:
    _, work = read_work()
    chains = max(len(job) for job in work["jobs"].values())
    model = bench_model(BenchConfig(**work["model"]), chains)
    params, prompt = unstack_layers(model.base), np.array(work["prompt"], np.int32)
    pack = functools.partial(lora.pack_adapters, layout="block_diagonal")

    def write(job: str, setting: str) -> int:
        lengths = [np.array(chain, np.int32) for chain in work["jobs"][job]]
        sample = SampleConfig(
            max_new_tokens=max(map(max, lengths)),
            slots=None if setting == "planned" else int(setting),
        )
        counts = list(map(len, lengths))
        target = target_of(model.config, model.base)
        plan = plan_slots(sample, model.config, target, counts, dtype="float32")
        shape = DecodeShape(
            num_groups=plan.num_groups,
            slots_per_group=plan.slots // plan.num_groups,
            window=plan.window,
            max_new_tokens=sample.max_new_tokens,
            prompt_len=len(prompt) - 1,
        )
        written = []
        for at in range(0, len(lengths), plan.chains_per_call):
            chosen = np.arange(at, at + plan.places_per_call)
            chosen = np.where(chosen < len(lengths), chosen, at)
            some = jax.tree.map(lambda leaf: leaf[chosen], model.adapters)  # noqa: B023
            packed = pack(model.config, some, np.float32)
            places = np.tile(prompt, (len(chosen), 1))
            filled = np.full(len(chosen), len(prompt), np.int32)
            cached = prefill(model.config, params, packed, places, filled, target=target)

            def start(call):
                arrays = (params, packed, cached, call.requests, call.jobs)  # noqa: B023
                static = dict(sampler=sampler_of(sample), shape=shape, eos=-1)
                return decode(model.config, *arrays, **static)

            def take(call, out):
                if (out.length[: len(call.lengths)] != call.lengths).any():
                    raise RuntimeError("texts have other lengths than asked for")
                written.append(int(call.lengths.sum()))

            of_calls = lengths[at : at + plan.chains_per_call]
            calls = planned_calls(plan, of_calls, work["threads"], padded=True)
            run_concurrently(start, take, calls, work["threads"])
        return sum(written)

    serve(lambda setting: None, write)


if __name__ == "__main__":
    main()
