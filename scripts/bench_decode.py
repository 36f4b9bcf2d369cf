"""Decoding: useful sampled tokens/s on a mix of lengths with a long tail.

python scripts/bench_decode.py [--size=llama-1b] [--dtype=bfloat16] [--chains=1,16] [...any field of
configs/bench.py]

python scripts/bench_decode.py --peer=openvino|transformers|transformers-continuous [--make-peer]
[--size=small|15m|60m|124m] [--jobs=4x250,1x2048] [--threads=1,2]: beside another engine, whose
environment --make-peer makes.
"""

import sys

import _root  # noqa: F401
from _bench import main

if __name__ == "__main__":
    if any(word.startswith("--peer=") and word != "--peer=true" for word in sys.argv):
        from _decode_peer import main as beside_peer  # argparse refuses fields of configs/bench.py

        sys.exit(beside_peer(sys.argv[1:]))
    sys.exit(main("decode", __doc__))
