"""Three domains in one chain: does the text of one shift another? (figure 4)

Scales: `:paper` (the default) and `:tiny`.

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    datasets = ("wikipedia", "webis_reddit", "100M_tweets")
    c = scales.config(
        "multi_domain",
        "Three domains in one chain",
        scale,
        paper=datasets,
        tiny=("novels", "emotions", "speeches"),
    )
    c.chain.ratios = ("1/8", "1/4")
    c.chain.seeds = (0,)
    c.chain.eval_texts = 480  # 160 of each domain
    c.quality_at = "ends"
    if scale == "tiny":
        c.chain.update(generations=4, eval_texts=48)
        scales.tiny_clusters(c)
        c.clusters.count = (
            24  # 18 properties are told apart by more clusters, not by more chains of each
        )
    return c
