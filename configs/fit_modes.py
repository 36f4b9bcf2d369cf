"""Adapters, full fine-tuning and training from scratch, at one learning rate.

In the same chains. Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "fit_modes",
        "Adapters, full fine-tuning, from scratch",
        scale,
        paper=("100M_tweets",),
        tiny=("emotions",),
    )
    c.chain.ratios = ("1/8", "1/2", 1)
    c.chain.factors = {"fit": {"mode": ("lora", "full", "scratch")}}
    if scale == "tiny":
        c.chain.update(ratios=("1/8", 1))
    return c
