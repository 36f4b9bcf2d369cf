"""Loading a model against reading its bytes once: seconds, side by side and in turn, and the most
memory against what stays.

    python scripts/bench_load.py [--gigabytes 1] [--dtype bfloat16] [--repeats 5] [--folder DIR]
    [--cold]

Makes (or takes, with --folder, from a run before) a sharded Llama directory of random bfloat16
weights. Each measurement is a process of its own: `load` is `jaxloop.lm.load`, `read` reads all
bytes of the same files into memory that it keeps. Warm: the files are in the system's cache; with
--cold they are dropped from it before each measurement. Prints a table and, as its last line, one
JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import ml_dtypes
import numpy as np
from _flags import positive, whole
from safetensors.numpy import save_file

SHARD = 256_000_000  # bytes
VOCAB, WIDTH, MLP, HEADS, KV = 49152, 2048, 5632, 32, 8


def make(folder: Path, gigabytes: float) -> None:
    """A Llama of about that many bytes in bfloat16, in shards with an index, with a tokenizer of
    bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from jaxloop.lm.io.config_json import config_fields
    from jaxloop.lm.model.config import ModelConfig, count_parameters, table

    shape: dict[str, Any] = dict(
        vocab_size=VOCAB,
        d_model=WIDTH,
        num_heads=HEADS,
        num_kv_heads=KV,
        head_dim=WIDTH // HEADS,
        d_ff=MLP,
        max_seq_len=2048,
    )
    one, two = (count_parameters(ModelConfig("llama", num_layers=n, **shape)) for n in (1, 2))
    model_config = ModelConfig(
        "llama", num_layers=max(1, round((gigabytes * 5e8 - one) / (two - one)) + 1), **shape
    )
    rng, number = np.random.default_rng(0), 0
    where: dict[str, str] = {}
    held: dict[str, np.ndarray] = {}

    def close() -> None:
        nonlocal held, number
        number += 1
        save_file(held, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        where.update({name: f"model-{number:05d}.safetensors" for name in held})
        held = {}

    for p in table(model_config):
        for i in range(model_config.num_layers if p.path[0] == "layers" else 1):
            for source in p.sources:
                rows = (*p.shape[:-1], source.width)
                values = rng.integers(
                    0x3C00, 0x3D00, rows[::-1] if p.transposed else rows, np.uint16
                )
                held[source.name.format(i=i)] = values.view(ml_dtypes.bfloat16)
                if sum(v.nbytes for v in held.values()) > SHARD:
                    close()
    if held:
        close()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    (folder / "config.json").write_text(
        json.dumps(config_fields(model_config) | {"eos_token_id": 0})
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(
        models.BPE({"<end>": 0} | {letter: i for i, letter in enumerate(sorted(letters), 1)}, [])
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    backend.save(str(folder / "tokenizer.json"))


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most, RssAnon its own now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only")


def child(what: str, folder: Path, dtype: str) -> dict:
    """One measurement."""
    import jax

    from jaxloop import lm

    jax.device_put(np.zeros(8)).block_until_ready()  # the device is started before the clock
    lm.load(
        Path(__file__).resolve().parents[1] / "jaxloop" / "assets" / "bases" / "llama"
    )  # so is what loading imports
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    if what == "load":
        model = lm.load(folder, dtype=jax.numpy.dtype(dtype))
        jax.block_until_ready(model.params)
        stays = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    else:
        kept = [np.fromfile(file, np.uint8) for file in sorted(folder.glob("*.safetensors"))]
        stays = sum(part.nbytes for part in kept)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "stays": stays,
        "peak": resident("VmHWM") - before,
    }


def drop(folder: Path) -> None:
    """Takes the files out of the system's cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(what: str, folder: Path, args: argparse.Namespace) -> dict:
    """One measurement, in a process of its own."""
    if args.cold:
        drop(folder)
    command = [
        sys.executable,
        __file__,
        f"--child={what}",
        f"--folder={folder}",
        f"--dtype={args.dtype}",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes", type=positive, default=1.0, help="bytes of the weights in bfloat16"
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of the weights in memory",
    )
    parser.add_argument("--repeats", type=whole(1), default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the model is, or is made; none: a temporary folder"
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="drop the files from the system's cache before each measurement",
    )
    parser.add_argument("--child", choices=("load", "read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.repeats < 1 or args.gigabytes <= 0:
        parser.error(f"--repeats {args.repeats} and --gigabytes {args.gigabytes:g} must be above 0")
    if args.child:
        print(json.dumps(child(args.child, args.folder, args.dtype)))
        return
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (folder / "config.json").exists():
            make(folder, args.gigabytes)
        rows: dict[str, list] = {"read": [], "load": []}
        for number in range(args.repeats + 1):
            for what in ("read", "load") if number % 2 else ("load", "read"):
                found = measure(what, folder, args)
                if number:  # the first round warms up
                    rows[what].append(found)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    middle = {
        what: {key: statistics.median(r[key] for r in found) for key in found[0]}
        for what, found in rows.items()
    }
    for what, row in middle.items():
        print(
            f"{what}: {row['seconds']:.2f} s, {row['cpu_seconds']:.2f} s of processor, "
            f"{row['stays'] / 1e9:.2f} GB stay, at most {row['peak'] / 1e9:.2f} GB"
        )
    ratio = statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(rows["load"], rows["read"], strict=True)
    )
    memory = statistics.median(r["peak"] / r["stays"] for r in rows["load"])
    print(f"load / read: {ratio:.2f}x the time, {memory:.2f}x of what stays at most")
    print(
        json.dumps(
            {
                "cold": args.cold,
                "dtype": args.dtype,
                "time_ratio": ratio,
                "memory_ratio": memory,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
