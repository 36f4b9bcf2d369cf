"""Choosing which synthetic texts enter the pool: best, most diverse, random control.

Scales: `:paper` (the default), `:tiny`, and `:small`, `:tiny` with as many chains as an effect
needs to be seen (docs/results/expectations/interventions.toml).

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "interventions",
        "Selection of synthetic text",
        scale,
        small=True,
        paper=("100M_tweets", "webis_reddit"),
        tiny=("emotions",),
        keep=1200 if scale == "small" else 1000,
    )
    c.chain.ratios = ("1/4", "1/2", 1)
    c.chain.seeding = "paired"  # with the control: the same human texts, bases and draws
    c.interventions = dict(policies=("random", "quality", "diversity"), written=2.0)
    if scale == "tiny":
        c.chain.update(ratios=("1/2", 1), seeds=(0, 1, 2, 3, 4))
    if scale == "small":
        c.title = "Selection of synthetic text, with intervals"
        c.chain.update(ratios=("1/2", 1), generations=10, size=48, eval_texts=64)
        c.chain.seeds = tuple(range(16))
    return c
