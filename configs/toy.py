"""The histogram toy as the paper draws it (figure 12): 20 generations, 50 chains of each kind."""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.study = "loops"
    c.experiment = "toy"
    c.title = "The histogram toy"
    c.chain = ConfigDict(dict(generations=20, seeds=tuple(range(50))))
    c.chain.ratios = (0, "1/16", "1/8", "1/4", "1/2", "3/4", 1)
    return c
