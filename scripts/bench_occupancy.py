"""Occupancy of the decoding slots: the share of slots x steps that writes a token of a text, with
the real decoder on a toy model.

python scripts/bench_occupancy.py [--engine=rows|blocks] [--chains=1,16,64] [--texts=4000]
[--slots=0] [--mean=60] [--longest=300]

Lengths are a log-normal mix with a long tail, as in `bench_decode.py`; jobs, calls, lanes and slots
are those that a study on an accelerator would have. The result does not depend on the device that
runs this.
"""

import argparse
import json
import sys

import _root  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.generation import decode_loop, row_kernels
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.scheduler import SampleSettings
from jaxloop.lm.generation.slot_plan import calls, plan, share_out
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import Spec, init
from jaxloop.lm.target import Target

TOY = Spec(
    "llama", vocab=64, width=32, layers=1, heads=2, kv_heads=1, head_size=16, mlp=32, context=512
)


def lengths_of(count: int, mean: int, longest: int, seed: int) -> np.ndarray:
    """Lengths [count] of texts, in tokens."""
    drawn = np.random.default_rng(seed).lognormal(np.log(0.75 * mean), 0.75, count)
    return np.clip(drawn.astype(int), 5, longest)


def measure(engine: str, chains: int, texts: int, slots: int, mean: int, longest: int) -> dict:
    """Steps and occupancy of chains that write `texts` texts each."""
    settings = SampleSettings(engine=engine, slots=slots, max_new_tokens=longest)
    # "rows" on a CPU is computed by jax.numpy, at the same steps as a GPU's kernels; "blocks" is
    # planned as for a TPU.
    made = plan(settings, TOY, Target("cpu" if engine == "rows" else "tpu"), [texts] * chains)
    ids = [[(1,)] * texts] * chains
    lengths = [lengths_of(texts, mean, longest, c) for c in range(chains)]
    params = decode_loop.unstack(init(jax.random.key(0), TOY))
    tree = lora.init(
        jax.random.split(jax.random.key(1), made.chains_per_call),
        TOY,
        lora.Lora(rank=4, alpha=4.0),
    )
    shape = decode_loop.Shape(made.lanes, made.slots // made.lanes, settings.window, longest, 0)
    if engine == "rows":
        pool = row_kernels.pool(TOY, tree, 1.0, jnp.float32)
    else:
        pool = lora.fuse(TOY, tree, lora.Lora(rank=4, alpha=4.0), jnp.float32, block_diagonal=True)
    start = np.ones((made.chains_per_call, 1), np.int32)
    prompts = decode_loop.prefill(TOY, params, pool, start, np.ones(made.chains_per_call, np.int32))
    steps = useful = programs = 0
    for at in range(0, chains, made.chains_per_call):
        chosen = list(range(at, min(chains, at + made.chains_per_call)))
        for (device,) in calls(
            share_out(ids, chosen, True, made, 1), made.texts_per_call, made.lanes, 1
        ):
            rows = np.concatenate([lengths[job.task][job.rows] for job in device.jobs]).astype(
                np.int32
            )
            ends = np.cumsum([len(job.rows) for job in device.jobs]).astype(np.int32)
            chain = np.array([device.chains.index(job.task) for job in device.jobs], np.int32)
            jobs = decode_loop.Jobs(np.concatenate([[0], ends[:-1]]).astype(np.int32), ends, chain)
            prompt = np.repeat(chain, [len(job.rows) for job in device.jobs])
            keys = jax.random.key_data(jax.random.split(jax.random.key(at), len(rows)))
            args = (
                TOY,
                Sampler(greedy=True),
                shape,
                -1,
                params,
                pool,
                prompts,
                decode_loop.Requests(prompt, keys, rows),
                jobs,
            )
            out = decode_rows(*args, how="plain") if engine == "rows" else decode_loop.decode(*args)
            assert (np.asarray(out.length) == rows).all()
            steps, useful, programs = (
                steps + int(out.steps[0]),
                useful + int(rows.sum()),
                programs + 1,
            )
    return {
        "engine": engine, "chains": chains, "texts": texts, "slots": made.slots, "lane_slots": made.lane_slots, "calls": programs,
        "steps": steps, "occupancy": useful / (steps * made.slots),
    }  # fmt: skip


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
        ("longest", 5, TOY.context - 1),
    ):
        if not least <= getattr(flags, name) <= most:
            print(
                f"--{name}={getattr(flags, name)}: must be from {least} to {most}", file=sys.stderr
            )
            return 2
    rows = []
    print(
        f"{'engine':<8}{'chains':>7}{'texts':>8}{'slots':>7}{'lanes of':>10}{'calls':>7}{'steps':>9}{'occupancy':>11}"
    )
    for chains in map(int, counts):
        row = measure(flags.engine, chains, flags.texts, flags.slots, flags.mean, flags.longest)
        rows.append(row)
        print(
            f"{row['engine']:<8}{chains:>7}{flags.texts:>8,}{row['slots']:>7}{row['lane_slots']:>10}{row['calls']:>7}{row['steps']:>9,}"
            f"{row['occupancy']:>11.3f}",
            flush=True,
        )
    print(json.dumps({"what": "occupancy", "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
