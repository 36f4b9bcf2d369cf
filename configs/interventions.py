"""Choosing which synthetic texts enter the pool: best, most diverse, random control.

Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "interventions",
        "Selection of synthetic text",
        scale,
        paper=("100M_tweets", "webis_reddit"),
        tiny=("emotions",),
    )
    c.chain.ratios = ("1/4", "1/2", 1)
    c.chain.seeding = "paired"  # with the control: the same human texts, bases and draws
    c.interventions = dict(policies=("random", "quality", "diversity"), written=2.0)
    if scale == "tiny":
        c.chain.update(ratios=("1/2", 1), seeds=(0, 1, 2, 3, 4))
    return c
