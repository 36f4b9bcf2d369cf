"""Chains on short, medium and long human text.

Splits of the released code that the paper does not show.
Scales: `:paper` (the default) and `:tiny`.

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "length_splits",
        "Short, medium and long human text",
        scale,
        paper=("webis_reddit", "100M_tweets", "senator_tweets"),
        tiny=("docs", "emotions"),
    )
    c.chain.ratios = ("1/16", "1/8", "1/4", "1/2", "3/4", 1)
    late = ("3/4", 1)
    c.splits = {
        "domains": {
            "100M_tweets": dict(without=(20,)),
            "senator_tweets": dict(quantiles=2, ratios=dict(short=late, long=late)),
        }
    }
    if scale == "tiny":
        c.splits = dict(quantiles=3)
        c.chain.update(ratios=("1/4", 1))
    return c
