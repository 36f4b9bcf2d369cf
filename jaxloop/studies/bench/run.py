"""Microbenchmarks of training and decoding against the machine's limit and against torch: steps/s,
useful tokens/s, texts/s.

Every figure is a median after a warm-up; the last line printed is one JSON object. A peer runs on
the same device, with the same weights and the same work, in turn with ours. Absolute times depend
on the machine; ratios are results.
"""

import dataclasses
import importlib.util
import json
import pathlib
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jaxloop.config import Count, Section, Seed, Text
from jaxloop.runtime.environment import how_to_install

if TYPE_CHECKING:
    from jaxloop.runtime.roofline import Work


class Settings(Section):
    """The config of a benchmark."""

    study: Literal["bench"] = Field("bench", description="which study this is a config of")
    what: Literal["train", "decode", "chains"] = Field("train", description="what is timed")
    size: Literal["tiny", "small", "llama-1b"] = Field(
        "small",
        description="model: 3 M parameters and vocabulary 4,096, Llama-3.2-1B's shapes, or a "
        "smoke test",
    )
    vocab: Count | None = Field(None, description="size of the vocabulary (none: the model's)")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the base and the computation"
    )
    chains: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (1, 16), description="numbers of chains to time"
    )
    batch_size: Count = Field(16, description="train: rows per chain and step")
    length: Count = Field(64, description="train: tokens per row")
    steps: Count = Field(8, description="train: steps per dispatch")
    together: Count | None = Field(
        None,
        description="train: chains of a program that are vmapped, a divisor of `chains`; the "
        "others take their turn (none: one on a CPU, else all)",
    )
    texts: Count = Field(1024, description="decode: texts to write, in all")
    slots: Count = Field(64, description="decode: texts written at the same time")
    devices: Count = Field(
        1,
        description="decode: devices that share the texts; each has its own slots and as many "
        "chains as are timed",
    )
    programs: Count | None = Field(
        None,
        description="programs at the same time on one device, each with its own slots (none: as "
        "studies write) or, train, its own chains (none: one)",
    )
    engine: Literal["auto", "rows", "blocks"] = Field(
        "auto", description="decode: where caches lie, as in a study's `sample.engine`"
    )
    lane_slots: Count = Field(
        8, description="decode: slots of a lane, where there are several chains"
    )
    window: Count = Field(16, description="decode: steps of a window")
    prompt: Count = Field(17, description="decode: tokens of the prompt")
    mean_length: Count = Field(
        60, description="decode: mean length of the log-normal mix of lengths"
    )
    longest: Count = Field(300, description="decode: longest text")
    rank: Count = Field(16, description="rank of the adapters, on every projection")
    remat: bool = Field(False, description="train: compute activations again in the gradient")
    peer: bool = Field(False, description="time torch (transformers, peft) in turn with ours")
    peer_texts: Count = Field(192, description="decode: texts that the peer writes")
    peer_batches: tuple[Count, ...] = Field(
        (64,), description="decode: batch sizes of the peer; its best counts"
    )
    repeats: Count = Field(5, description="timed repeats")
    seed: Seed = Field(0, description="of weights, tokens and lengths")
    profile: Text | None = Field(None, description="folder for a trace of one repeat")


def spec_of(settings: Settings):
    """The decoder that is timed."""
    from jaxloop.lm.model.config import RopeScaling, Spec

    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    spec = {
        "llama-1b": Spec(
            "llama",
            vocab=128256,
            width=2048,
            layers=16,
            heads=32,
            kv_heads=8,
            head_size=64,
            mlp=8192,
            context=4096,
            rope_theta=500000.0,
            rope_scaling=scaling,
        ),
        "tiny": Spec(
            "llama",
            vocab=512,
            width=64,
            layers=2,
            heads=2,
            kv_heads=2,
            head_size=32,
            mlp=128,
            context=512,
        ),
        "small": Spec(
            "llama",
            vocab=4096,
            width=256,
            layers=4,
            heads=4,
            kv_heads=4,
            head_size=64,
            mlp=704,
            context=512,
        ),
    }[settings.size]
    return spec if settings.vocab is None else dataclasses.replace(spec, vocab=settings.vocab)


def lengths_of(settings: Settings, count: int):
    """Lengths [count] of the mix: log-normal with a long tail, mean about `mean_length`, at least
    5, at most `longest`.
    """
    import numpy as np

    drawn = np.random.default_rng(settings.seed).lognormal(
        np.log(0.75 * settings.mean_length), 0.75, count
    )
    return np.clip(drawn.astype(int), 5, settings.longest)


def interleaved(
    runs: dict[str, Callable[[], None]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every repeat of every run, in turn, and of each one's first call (warm-up,
    compilation included).
    """
    first, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times, first


def peak_bytes() -> int:
    """Most bytes in use so far: of the accelerator, or of the process on a CPU."""
    import jax

    found = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return int(found) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _setting(settings: Settings, chains: int):
    import jax
    import jax.numpy as jnp

    from jaxloop.core.keys import chain_key
    from jaxloop.lm import Lora
    from jaxloop.lm.model import lora as adapters
    from jaxloop.lm.model.config import init

    spec, lora = spec_of(settings), Lora(rank=settings.rank, alpha=float(settings.rank))
    base = init(chain_key(settings.seed), spec, jnp.dtype(settings.dtype))
    tree = adapters.init(
        jax.random.split(chain_key((settings.seed + 1) % 2**32), chains), spec, lora
    )
    keys = iter(jax.random.split(chain_key((settings.seed + 2) % 2**32), 32))
    tree = {
        name: {"a": f["a"], "b": 0.02 * jax.random.normal(next(keys), f["b"].shape)}
        for name, f in tree.items()
    }
    return spec, lora, base, tree


def time_train(settings: Settings, chains: int) -> tuple[dict, "Work"]:
    """One number of chains in a program: steps/s (a step trains every chain on its batch),
    tokens/s, ratio to torch + peft; and what a second had to do.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxloop.lm.model.sizes import sizes_of
    from jaxloop.lm.target import target_of
    from jaxloop.lm.training import step as train_step
    from jaxloop.runtime.devices import platform_of, side_by_side
    from jaxloop.runtime.roofline import Work, training_flops

    programs, together = (
        settings.programs or 1,
        settings.together or (1 if platform_of() == "cpu" else chains),
    )
    if chains % together:
        raise ValueError(f"together = {together}: must divide chains = {chains}")
    spec, lora, base, tree = _setting(settings, chains)
    target = target_of(spec, base)
    fit = train_step.FitSettings(
        lora=lora,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        remat=settings.remat,
        steps_per_dispatch=settings.steps,
    )
    shape = (settings.steps, chains, settings.batch_size, settings.length)
    tokens = np.random.default_rng(settings.seed).integers(0, spec.vocab, shape).astype(np.int32)
    mask, weight = np.ones(shape, bool), np.ones(shape[:3], np.float32)
    held = [
        train_step.init_state(
            fit, jax.tree.map(jnp.copy, tree), jax.random.split(jax.random.key(3), chains)
        )
        for _ in range(programs)
    ]

    def start(i):
        count, total = np.int32(settings.steps), np.int32(10**6)
        held[i], log = train_step.train_steps(
            spec,
            fit,
            base,
            held[i],
            tokens,
            mask,
            weight,
            count,
            total,
            together=together,
            target=target,
        )
        return log

    def ours():
        side_by_side(start, lambda i, log: None, range(programs), programs)

    runs = {"jaxloop": ours}
    if settings.peer:
        from jaxloop.studies.bench import peers as bench_peers

        runs["torch + peft"] = bench_peers.train_one_chain(
            spec, lora, base, tree, tokens[:, :1], settings
        )
    times, first = interleaved(runs, settings.repeats)
    seconds = statistics.median(times["jaxloop"]) / settings.steps
    count = programs * chains * settings.batch_size * settings.length
    row = {
        "what": "train", "chains": programs * chains, "value": count / seconds, "unit": "tokens/s", "steps_per_s": 1 / seconds,
        "compile_s": first["jaxloop"] - seconds * settings.steps, "peak_bytes": peak_bytes(),
    }  # fmt: skip
    if settings.peer:
        ratios = [
            programs * chains * b / a for a, b in zip(times["jaxloop"], times["torch + peft"])
        ]
        row |= {
            "peer": "torch + peft, one chain at a time",
            "peer_ratio": statistics.median(ratios),
        }
    return row, Work(flops=training_flops(sizes_of(spec, lora), count, settings.length) / seconds)


def time_decode(settings: Settings, chains: int) -> tuple[dict, "Work"]:
    """One number of chains: useful sampled tokens/s, texts/s, occupancy, ratio to
    transformers.generate; and what a second of it had to do.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxloop.core.map_chains import chain_mesh
    from jaxloop.lm.generation import decode_loop, row_kernels
    from jaxloop.lm.generation.decode_rows import decode_rows
    from jaxloop.lm.generation.sampling import Sampler
    from jaxloop.lm.generation.scheduler import SampleSettings
    from jaxloop.lm.generation.slot_plan import engine_of
    from jaxloop.lm.model import lora as adapters
    from jaxloop.lm.model.sizes import sizes_of
    from jaxloop.lm.target import target_of
    from jaxloop.runtime.devices import platform_of, programs_at_once, side_by_side
    from jaxloop.runtime.roofline import Work, decoding_bytes, decoding_flops

    spec, lora, base, tree = _setting(settings, chains)
    if settings.devices > len(jax.devices()) or settings.texts % settings.devices:
        raise ValueError(
            f"devices = {settings.devices}: must be at most {len(jax.devices())} here, and "
            f"divide texts = {settings.texts}"
        )
    mesh = chain_mesh(jax.devices()[: settings.devices]) if settings.devices > 1 else None
    programs = settings.programs or (programs_at_once() if mesh is None else 1)
    if mesh is not None and programs > 1:
        raise ValueError(
            f"programs = {programs}: must be 1 where devices = {settings.devices} share the texts"
        )
    lengths = lengths_of(settings, settings.texts)
    lanes = 1 if chains == 1 else settings.slots // settings.lane_slots
    shape = decode_loop.Shape(
        lanes, settings.slots // lanes, settings.window, settings.longest, settings.prompt - 1
    )
    engine, how = engine_of(
        SampleSettings(engine=settings.engine, dtype=settings.dtype), spec, target_of(spec, base)
    )
    if engine == "rows":
        fused = row_kernels.pool(spec, tree, lora.scale, jnp.dtype(settings.dtype))
    else:
        fused = adapters.fuse(spec, tree, lora, jnp.dtype(settings.dtype), block_diagonal=True)
    params = decode_loop.unstack(base)
    prompt = (
        np.random.default_rng(settings.seed)
        .integers(0, spec.vocab, (1, settings.prompt))
        .astype(np.int32)
        .repeat(chains, 0)
    )
    # Slots with a cache row of their own share a chain's texts; lanes of blocks have a run of them
    # each.
    count = (
        -(-(chains if engine == "rows" else max(chains, lanes * programs)) // programs) * programs
    )
    runs = np.linspace(0, settings.texts // settings.devices, count + 1).astype(np.int32)
    owner = np.arange(len(runs) - 1, dtype=np.int32) % chains
    keys = jax.random.key_data(jax.random.split(jax.random.key(5), settings.texts))
    # Indices count inside a device's piece, and every device holds the same chains.
    fused, prompt, first, end, owner, of_prompt = jax.tree.map(
        lambda x: np.concatenate([x] * settings.devices),
        (fused, prompt, runs[:-1], runs[1:], owner, np.repeat(owner, np.diff(runs))),
    )
    requests = decode_loop.Requests(of_prompt, keys, lengths.astype(np.int32))
    shares = [
        decode_loop.Jobs(*(x[i::programs] for x in (first, end, owner))) for i in range(programs)
    ]
    sampler, made, cached = Sampler(temperature=1.5, min_p=0.2), [], []

    def write(jobs):
        args = (spec, sampler, shape, -1, params, fused, cached[0], requests, jobs, mesh)
        return (
            decode_rows(*args, how=how)
            if engine == "rows"
            else decode_loop.decode(*args, platform=platform_of(base))
        )

    def ours():
        # The first call has nothing to write: what it takes is compiling.
        warm, nothing = bool(cached), [decode_loop.Jobs(*map(np.zeros_like, shares[0]))]
        cached[:] = [
            decode_loop.prefill(
                spec,
                params,
                fused,
                prompt,
                np.full(len(prompt), settings.prompt, np.int32),
                mesh,
                target_of(spec, base, mesh),
            )
        ]
        made.clear()
        side_by_side(
            write, lambda _, written: made.append(written), shares if warm else nothing, programs
        )

    names = {"jaxloop": ours}
    if settings.peer:
        from jaxloop.studies.bench import peers as bench_peers

        wanted = lengths[: settings.peer_texts]
        for batch in settings.peer_batches:
            names[f"transformers, batch {batch}"] = bench_peers.generate(
                spec, lora, base, tree, prompt[0], wanted, batch, settings
            )
    times, first = interleaved(names, settings.repeats)
    seconds, useful, steps = (
        statistics.median(times["jaxloop"]),
        int(lengths.sum()),
        max(int(part.steps.max()) for part in made),
    )
    sizes, context = (
        sizes_of(spec, lora),
        float((lengths.astype(float) ** 2).sum() / lengths.sum() / 2 + settings.prompt),
    )
    width, rows = jnp.dtype(settings.dtype).itemsize, settings.slots * settings.devices * programs
    flops = decoding_flops(sizes, useful, context)
    read = decoding_bytes(
        sizes, -(-useful // rows), rows, context, chains=min(chains, lanes), width=width
    )
    row = {
        "what": "decode", "engine": engine, "chains": chains, "value": useful / seconds, "unit": "useful tokens/s", "texts_per_s": settings.texts / seconds,
        "occupancy": useful / (steps * rows), "ms_per_step": 1e3 * seconds / steps,
        "compile_s": first["jaxloop"], "peak_bytes": peak_bytes(),
    }  # fmt: skip
    if settings.peer:
        rates = {
            n: statistics.median(int(wanted.sum()) / t for t in times[n])
            for n in names
            if n != "jaxloop"
        }
        best = max(rates, key=rates.get)
        row |= {
            "peer": f"{best}, adapter merged",
            "peer_value": rates[best],
            "peer_ratio": statistics.median(
                useful / a * b / int(wanted.sum()) for a, b in zip(times["jaxloop"], times[best])
            ),
        }
    return row, Work(flops / seconds, read / seconds)


def measure(settings: Settings, say: Callable[[str], None] = print) -> dict:
    """Times everything the settings ask for; prints a table and, last, one JSON object, which it
    returns.
    """
    import jax
    import jax.numpy as jnp

    from jaxloop.runtime.roofline import measure_limits

    dtype = jnp.dtype(settings.dtype)
    device = jax.devices()[0]
    limits = first = measure_limits(dtype)
    told = lambda: (
        f"{limits.flops / 1e9:,.0f} GFLOP/s in a large product, {limits.bandwidth / 1e9:,.1f} "
        "GB/s in a large copy"
    )  # noqa: E731
    say(f"{device.device_kind} ({device.platform}), {settings.dtype}: {told()}")
    kinds = {"train": (time_train,), "decode": (time_decode,), "chains": (time_train, time_decode)}[
        settings.what
    ]
    rows = []
    say(
        f"{'what':<8}{'chains':>7}{'value':>12}  "
        f"{'unit':<16}{'of limit':>9}{'compile':>9}{'peak':>10}  peer"
    )
    for run in kinds:
        for chains in settings.chains:
            row, work = _traced(settings, lambda: run(settings, chains))  # noqa: B023
            limits = limits.or_better(
                measure_limits(dtype)
            )  # other work on the machine may have slowed the first measurement
            row["limit_share"] = work.share(limits)
            rows.append(row)
            peer = f"{row['peer_ratio']:.2f}x {row['peer']}" if "peer_ratio" in row else ""
            extra = (
                f"  occupancy {row['occupancy']:.2f}, {row['ms_per_step']:.2f} ms/step"
                if "occupancy" in row
                else f"  {row['steps_per_s']:.2f} steps/s"
            )
            say(
                f"{row['what']:<8}{chains:>7}{row['value']:>12,.0f}  "
                f"{row['unit']:<16}{row['limit_share']:>8.1%}{row['compile_s']:>8.1f}s"
                f"{row['peak_bytes'] / 2**20:>7,.0f} MB  {peer}{extra}"
            )
    if limits != first:
        say(f"measured again after each row: {told()}")
    best = max((r for r in rows if r["what"] == rows[0]["what"]), key=lambda r: r["value"])
    whole = {
        k: best.get(k)
        for k in ("value", "unit", "limit_share", "peer_ratio", "compile_s", "peak_bytes")
    }
    whole |= {
        "device": f"{device.device_kind}",
        "what": settings.what,
        "size": settings.size,
        "dtype": settings.dtype,
        "limits": {"flops": limits.flops, "bandwidth": limits.bandwidth},
        "rows": rows,
    }
    say(json.dumps(whole))
    return whole


def _traced(settings, run):
    if settings.profile is None:
        return run()
    import jax

    with jax.profiler.trace(settings.profile):
        return run()


def check(settings: Settings) -> list[str]:
    """Raises ValueError where the peers that are asked for are not installed."""
    if settings.peer:
        missing = [
            name
            for name in ("torch", "transformers", "peft")
            if importlib.util.find_spec(name) is None
        ]
        if missing:
            raise ValueError(
                f"config.peer = true: {', '.join(missing)} to compare with: not installed; "
                f"{how_to_install('peers')}"
            )
    return [
        f"benchmark {settings.what} of a {settings.size} model, chains "
        f"{', '.join(map(str, settings.chains))}"
    ]


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What would be timed."""
    return [("benchmark", check(settings)[0]), ("repeats", str(settings.repeats))]


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """Measure, print, and write bench.json in `workdir`."""
    check(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    found = measure(settings)
    (workdir / "bench.json").write_text(json.dumps(found, indent=2), encoding="utf8")
    return 0
