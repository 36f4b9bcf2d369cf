"""Weighted maximum likelihood of Beta distributions, in both variants of the paper.

Pure sharpening, exactly and in chains of fits.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.study = "theory"
    c.what = "wmle"
    c.title = "Weighted maximum likelihood, generation after generation"

    c.wmle = ConfigDict()
    c.wmle.n = 10_000
    c.wmle.real = (2, 2)  # alpha, beta
    c.wmle.pretrained = (3, 2)
    c.wmle.generations = 10
    c.wmle.weightings = ("model", "pretrained", "none")
    return c
