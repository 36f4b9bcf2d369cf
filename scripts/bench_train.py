"""Training: steps/s and tokens/s of many LoRA chains in one program.

python scripts/bench_train.py [--peer] [--size=llama-1b] [--dtype=bfloat16] [--chains=1,16] [...any
field of configs/bench.py]

python scripts/bench_train.py --peer=torch|torch-compile|trl [--make-peer]
[--size=small|15m|60m|124m] [--jobs=1x16,4x8]: beside two processes of one thread, whose
environment --make-peer makes.
"""

import sys

import _root  # noqa: F401
from _bench import main

if __name__ == "__main__":
    if any(word.startswith("--peer=") and word != "--peer=true" for word in sys.argv):
        from _train_peer import main as beside_peer  # argparse refuses fields of configs/bench.py

        sys.exit(beside_peer(sys.argv[1:]))
    sys.exit(main("train", __doc__))
