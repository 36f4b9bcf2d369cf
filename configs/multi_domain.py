"""Three domains in one chain: does the text of one shift another? (figure 4)

Scales: `:paper` (the default), `:tiny`, and `:small`, with as many mixtures and generations as the
regressions need (docs/results/expectations/multi_domain.toml).

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
        small=True,
        paper=datasets,
        tiny=("novels", "emotions", "speeches"),
        keep=3000 if scale == "small" else 1000,
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
    if scale == "small":
        c.title = "Three domains in one chain, with intervals"
        c.chain.update(generations=8, size=48, eval_texts=96)
        scales.tiny_clusters(c)
        c.clusters.update(count=100, fit_rows=3000)
        c.properties.update(map_rows=3000)
    return c
