"""Generation 0 on 4,000 (the released code) or 8,000 human texts (the paper).

Relative scores divide by it. Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "gen0_size", "The size of generation 0", scale, paper=("100M_tweets",), tiny=("emotions",)
    )
    c.chain.ratios = ("1/8", "1/2", 1)
    c.chain.gen0_sizes = (4000, 8000)
    if scale == "tiny":
        c.chain.update(ratios=("1/8", 1), gen0_sizes=(32, 64), seeds=(0, 1, 2))
    return c
