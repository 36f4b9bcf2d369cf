"""Occupancy of the decoding slots: the share of slots x steps that writes a token of a text, with
the real decoder on a toy model.

python scripts/bench_occupancy.py [--engine=rows|blocks] [--chains=1,16,64] [--texts=4000]
[--slots=0] [--mean=60] [--longest=300]

Lengths are a log-normal mix with a long tail, as in `bench_decode.py`; jobs, calls, adapter groups
and slots are those that a study on an accelerator would have. The result does not depend on the
device that runs this.
"""

import argparse
import json
import sys

import _root  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from _planned_calls import planned_calls

from jaxloop.config import LoraConfig, SampleConfig
from jaxloop.lm.generation.decode_loop import decode
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.prefill import prefill, unstack_layers
from jaxloop.lm.generation.row_adapters import pack_for_rows
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slot_plan import plan_slots
from jaxloop.lm.generation.slots import DecodeShape
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.target import Target

TOY = ModelConfig(
    "llama",
    vocab_size=64,
    d_model=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    d_ff=32,
    max_seq_len=512,
)
LORA = LoraConfig(rank=4, alpha=4.0)


def lengths_of(count: int, mean: int, longest: int, seed: int) -> np.ndarray:
    """Lengths [count] of texts, in tokens."""
    drawn = np.random.default_rng(seed).lognormal(np.log(0.75 * mean), 0.75, count)
    return np.clip(drawn.astype(int), 5, longest)


def measure(engine: str, chains: int, texts: int, slots: int, mean: int, longest: int) -> dict:
    """Steps and occupancy of chains that write `texts` texts each."""
    sample = SampleConfig(engine=engine, slots=slots or None, max_new_tokens=longest)
    # "rows" on a CPU is computed by jax.numpy, at the same steps as a GPU's kernels; "blocks" is
    # planned as for a TPU.
    target = Target("cpu" if engine == "rows" else "tpu")
    plan = plan_slots(sample, TOY, target, [texts] * chains, dtype="float32")
    lengths = [lengths_of(texts, mean, longest, c) for c in range(chains)]
    params = unstack_layers(init(jax.random.key(0), TOY))
    tree = lora.init(
        jax.random.split(jax.random.key(1), plan.chains_per_call),
        TOY,
        LORA,
    )
    shape = DecodeShape(
        num_groups=plan.num_groups,
        slots_per_group=plan.slots // plan.num_groups,
        window=plan.window,
        max_new_tokens=longest,
        prompt_len=0,
    )
    if engine == "rows":
        pool = pack_for_rows(TOY, tree, jnp.float32)
    else:
        pool = lora.pack_adapters(TOY, tree, jnp.float32, "block_diagonal")
    start = np.ones((plan.chains_per_call, 1), np.int32)
    prompts = prefill(TOY, params, pool, start, np.ones(plan.chains_per_call, np.int32))
    steps = useful = programs = 0
    for call in planned_calls(plan, lengths):
        arrays = (TOY, params, pool, prompts, call.requests, call.jobs)
        static = dict(sampler=Sampler(greedy=True), shape=shape, eos=-1)
        if engine == "rows":
            out = decode_rows(*arrays, **static, implementation="plain")
        else:
            out = decode(*arrays, **static)
        assert (np.asarray(out.length) == call.lengths).all()
        steps += int(out.steps[0])
        useful += int(call.lengths.sum())
        programs += 1
    return {
        "engine": engine,
        "chains": chains,
        "texts": texts,
        "slots": plan.slots,
        "slots_per_adapter": plan.slots_per_adapter,
        "calls": programs,
        "steps": steps,
        "occupancy": useful / (steps * plan.slots),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("rows", "blocks"), default="rows")
    parser.add_argument("--chains", default="1,16,64", help="numbers of chains")
    parser.add_argument("--texts", type=int, default=4000, help="texts of each chain")
    parser.add_argument("--slots", type=int, default=0, help="slots (0: planned)")
    parser.add_argument("--mean", type=int, default=60)
    parser.add_argument("--longest", type=int, default=300)
    flags = parser.parse_args()
    counts = flags.chains.split(",")
    if not all(count.isdecimal() and int(count) for count in counts):
        print(
            f"--chains={flags.chains}: must be whole numbers of at least 1, with commas",
            file=sys.stderr,
        )
        return 2
    # The toy model's context holds a start and the longest text; lengths are at least 5.
    for name, least, most in (
        ("texts", 1, 1 << 24),
        ("slots", 0, 1 << 16),
        ("mean", 1, 1 << 16),
        ("longest", 5, TOY.max_seq_len - 1),
    ):
        if not least <= getattr(flags, name) <= most:
            print(
                f"--{name}={getattr(flags, name)}: must be from {least} to {most}", file=sys.stderr
            )
            return 2
    rows = []
    print(
        f"{'engine':<8}{'chains':>7}{'texts':>8}{'slots':>7}{'group':>10}"
        f"{'calls':>7}{'steps':>9}{'occupancy':>11}"
    )
    for chains in map(int, counts):
        row = measure(flags.engine, chains, flags.texts, flags.slots, flags.mean, flags.longest)
        rows.append(row)
        print(
            f"{row['engine']:<8}{chains:>7}{flags.texts:>8,}{row['slots']:>7}"
            f"{row['slots_per_adapter']:>10}{row['calls']:>7}{row['steps']:>9,}"
            f"{row['occupancy']:>11.3f}",
            flush=True,
        )
    print(json.dumps({"what": "occupancy", "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
