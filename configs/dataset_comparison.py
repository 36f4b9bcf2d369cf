"""The shift in five datasets against the synthetic share.

Figures 2 and 3 of arXiv 2504.03814. Scales: `:paper` (the default) and `:tiny`.

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "datasets",
        "The shift in several datasets",
        scale,
        paper=scales.PAPER,
        tiny=tuple(scales.TINY),
        keep=600,
    )
    c.chain.ratios = ("1/16", "1/8", "1/4", "1/2", "3/4", 1)
    if scale == "tiny":
        c.chain.update(ratios=("1/4", 1))
    return c
