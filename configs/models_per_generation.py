"""One to twenty models per generation that share one pool (C.1, figure 9).

Scales: `:paper` (the default) and `:tiny`.

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "models_per_generation",
        "Models per generation",
        scale,
        paper=("webis_reddit",),
        tiny=("speeches",),
        keep=2000,
    )
    c.chain.ratios = ("1/8", "1/4", "1/2", "3/4", 1)
    c.chain.models = (1, 2, 4, 10, 20)
    c.fit.update(steps=250, epochs=None)  # whatever the size of the pool
    if scale == "paper":
        c.models.revisions = scales.OLDER_REVISIONS
        c.quality = scales.JUDGE_OF_LEVELS
    else:
        c.chain.update(ratios=("1/4", 1), models=(1, 2, 4), contribution=0.25)
        c.fit.update(steps=4)
    return c
