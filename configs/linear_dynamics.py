"""Linear models of four entities that read each other: closed form and simulation.

Drawn labels, relative efficiency and its optimum.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.study = "theory"
    c.what = "linear"
    c.title = "Linear dynamics of four entities"

    # the setting that reproduces the relative-efficiency figure of arXiv 2505.21677 (inferred: the
    # paper states K, d and rank)
    c.linear = ConfigDict()
    c.linear.entities = 4
    c.linear.dim = 15
    c.linear.rank = 5
    c.linear.public = 13
    c.linear.scale = 1.25
    c.linear.alpha = 0.4
    c.linear.beta = 0.7
    c.linear.generations = 20
    return c
