"""Chains: steps/s and texts/s against the number of chains.

python scripts/bench_chains.py [--peer] [--size=llama-1b] [--dtype=bfloat16] [--chains=1,16] [...any
field of configs/bench.py]
"""

import sys

import _root  # noqa: F401
from _bench import main

if __name__ == "__main__":
    sys.exit(main("chains", __doc__))
