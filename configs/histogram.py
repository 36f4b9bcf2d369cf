"""The U-shape of a biased histogram, in both variants of the paper.

The literal variant cannot have one; the other has it. `:vector` has a bias per number.
"""

from ml_collections import ConfigDict


def get_config(variant="paper"):
    """`paper`: one factor on even numbers. `vector`: one per number, stronger on small ones."""
    variants = {"paper": lambda c: c, "vector": _vector}
    if variant not in variants:
        raise ValueError(f"variant {variant!r} is not allowed; choose one of {', '.join(variants)}")
    return variants[variant](_paper())


def _paper():
    c = ConfigDict()
    c.study = "theory"
    c.what = "histogram"
    c.title = "The U-shape of a biased histogram"

    c.histogram = ConfigDict()
    c.histogram.size = 100
    c.histogram.bias = 100
    c.histogram.smoothing = 1e-3
    c.histogram.generations = 19
    c.histogram.replicates = 200  # 50 in the paper
    return c


def _vector(c):
    c.title = "A histogram with a bias of its own on every number"
    c.replicates = 200
    c.histogram.size = 40
    c.histogram.ratios = (0, "1/4", 1)
    c.histogram.generations = 9
    c.histogram.replicates = c.histogram.batch = 100
    del c.histogram.bias  # a field of a ConfigDict keeps its type
    # Even numbers from 0 to 40: the first 202 times, the last 2 times.
    c.histogram.bias = tuple(1 if i % 2 else 202 - 5 * i for i in range(41))
    return c
