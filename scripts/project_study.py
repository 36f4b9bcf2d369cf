"""Device-hours of the paper-scale regression study (1,600 chains of 20 generations, r = 1/8 and
1/4, four 1-2B bases) from measured rates.

    # from the roofline of an assumed device
    python scripts/project_study.py
    # from the JSON lines of the two benchmarks
    python scripts/project_study.py --train=train.json --decode=decode.json

The rates that the benchmarks measured at Llama-3.2-1B's shapes are scaled to the other three bases
by their FLOPs (training) and by their time on the roofline (decoding). Prints hours by phase and
base and, as its last line, one JSON object.
"""

import argparse
import json
import pathlib

import _root  # noqa: F401
from _flags import positive, whole

from jaxloop.config import LoraConfig
from jaxloop.lm.io.config_json import parse_config
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.runtime.roofline import decoding_bytes, decoding_flops, training_flops
from jaxloop.studies.common.published_models import PUBLISHED

BASES = {
    name: parse_config(PUBLISHED[name].config)
    for name in ("Llama-3.2-1B", "Qwen2.5-1.5B", "SmolLM-1.7B", "Falcon3-1B-Base")
}
REFERENCE = "Llama-3.2-1B"


def rate(path: str | None, what: str) -> dict | None:
    """The last JSON line that a benchmark printed, or None where no file is given."""
    if path is None:
        return None
    lines = [
        line
        for line in pathlib.Path(path).read_text(encoding="utf8").splitlines()
        if line.startswith("{")
    ]
    if not lines:
        raise SystemExit(f"{path}: has no JSON line of bench_{what}.py")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", help="output of scripts/bench_train.py --size=llama-1b")
    parser.add_argument("--decode", help="output of scripts/bench_decode.py --size=llama-1b")
    parser.add_argument(
        "--flops",
        type=positive,
        default=790e12,
        help="FLOP/s of a large bf16 product, where nothing was measured",
    )
    parser.add_argument(
        "--bandwidth",
        type=positive,
        default=4.3e12,
        help="bytes/s of a large copy, where nothing was measured",
    )
    parser.add_argument(
        "--share",
        type=positive,
        default=0.4,
        help="share of the limit that is assumed, where nothing was measured",
    )
    parser.add_argument("--chains", type=whole(1), default=1600)
    parser.add_argument("--generations", type=whole(1), default=20)
    parser.add_argument(
        "--size", type=whole(1), default=4000, help="texts per generation and training set"
    )
    parser.add_argument(
        "--length", type=positive, default=90, help="tokens of a training text, template included"
    )
    parser.add_argument("--written", type=positive, default=60, help="tokens of a written text")
    parser.add_argument("--slots", type=whole(1), default=512)
    a = parser.parse_args()
    lora, trained, wrote = LoraConfig(), rate(a.train, "train"), rate(a.decode, "decode")

    def train_floor(sizes, tokens):
        return training_flops(sizes, tokens, a.length) / a.flops

    def decode_floor(sizes, tokens):
        flops = decoding_flops(sizes, tokens, a.written) / a.flops
        return max(
            flops,
            decoding_bytes(
                sizes, tokens / a.slots, a.slots, a.written, chains=a.slots // 8, width=2
            )
            / a.bandwidth,
        )

    reference = sizes_of(BASES[REFERENCE], lora)
    train_share = train_floor(reference, 10**6) / (10**6 / trained["value"]) if trained else a.share
    decode_share = decode_floor(reference, 10**6) / (10**6 / wrote["value"]) if wrote else a.share
    fits = a.chains * a.generations / len(BASES)
    # Half of the chains are at r = 1/8, half at 1/4.
    texts = a.size * (1 / 8 + 1 / 4) / 2
    rows, total = [], 0.0
    print(f"{'base':<16}{'train h':>10}{'sample h':>10}{'score h':>10}{'sum':>10}")
    for name, model_config in BASES.items():
        sizes = sizes_of(model_config, lora)
        train = fits * train_floor(sizes, int(a.size * a.length)) / train_share / 3600
        sample = fits * decode_floor(sizes, int(texts * a.written)) / decode_share / 3600
        # 250 texts of every generation through a 1.5 B encoder, forward only.
        score = fits * 250 * a.written * 2 * 1.5e9 / a.flops / train_share / 3600
        rows.append({"base": name, "train_h": train, "sample_h": sample, "score_h": score})
        total += train + sample + score
        print(
            f"{name:<16}{train:>10.1f}{sample:>10.1f}{score:>10.1f}{train + sample + score:>10.1f}"
        )
    source = (
        "measured"
        if trained and wrote
        else f"assumed at {a.share:.0%} of the limit where not measured"
    )
    shares = f"training {train_share:.0%}, decoding {decode_share:.0%} of the limit"
    print(
        f"{a.chains} chains x {a.generations} generations: {total:,.0f} device-hours ({source}; "
        f"{shares})"
    )
    found = {
        "value": total,
        "unit": "device-hours",
        "train_share": train_share,
        "decode_share": decode_share,
        "measured": bool(trained and wrote),
    }
    print(json.dumps(found | {"rows": rows}))


if __name__ == "__main__":
    main()
