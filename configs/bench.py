"""Microbenchmarks of training and decoding against the number of chains.

Steps/s, useful tokens/s and texts/s. Arguments: `:train`, `:decode`, `:chains`.
"""

from ml_collections import ConfigDict


def get_config(what="train"):
    c = ConfigDict()
    c.study = "bench"
    c.what = what
    c.size = "small"
    c.chains = (1, 2, 4, 8, 16) if what == "chains" else (1, 64) if what == "decode" else (1, 16)
    return c
