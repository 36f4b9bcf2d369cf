"""Quality and diversity against the share of synthetic text (figures 2 and 3).

Of arXiv 2504.03814. Scales: `:paper` (the default), `:tiny`, and `:small`, `:tiny` with as many
chains as an effect needs to be seen (docs/results/expectations/ratio_sweep.toml).
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "ratio_sweep",
        "The shift against the synthetic share",
        scale,
        small=True,
        paper=("100M_tweets",),
        tiny=("emotions",),
        keep=1200,
    )
    c.chain.ratios = ("1/16", "1/8", "1/4", "1/2", "3/4", 1)
    if scale == "tiny":
        c.chain.update(generations=8, size=48, eval_texts=64)
    if scale == "small":
        c.title = "The shift against the synthetic share, with intervals"
        c.chain.update(generations=15, size=48, eval_texts=64, seeds=tuple(range(12)))
    return c
