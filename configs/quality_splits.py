"""Chains on human text of one quality each (figures 10 and 11).

Scales: `:paper` (the default) and `:tiny`.

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    datasets = ("webis_reddit", "100M_tweets", "reddit_submissions", "senator_tweets")
    c = scales.config(
        "quality_splits",
        "Human text of low and high quality",
        scale,
        paper=datasets,
        tiny=("speeches", "emotions"),
    )
    c.chain.ratios = ("1/16", "1/8", "1/4", "1/2", "3/4", 1)
    # The splits of the released code, and the ratios for which they have enough texts.
    late = ("3/4", 1)
    c.splits = dict(
        levels=(20, 40, 60, 80),
        domains=dict(
            reddit_submissions=dict(ratios={"20": ("1/2", *late)}),
            # Their mean quality is 51 in the paper.
            senator_tweets=dict(
                levels=(80,), joined=dict(Q51=(40, 60)), ratios={"Q51": late, "80": late}
            ),
        ),
    )
    if scale == "tiny":
        c.chain.update(ratios=("1/4", 1))
        c.splits = dict(quantiles=2)  # the judge of this scale gives no round scores
    return c
