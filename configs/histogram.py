"""The U-shape of a biased histogram, in both variants of the paper.

The literal variant cannot have one; the other has it.
"""

from ml_collections import ConfigDict


def get_config():
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
