"""Which properties of human text predict the shift: chains on clusters (section 4).

Clusters of each dataset, r = 1/8 and 1/4. Scales: `:paper` (the default), `:tiny`, and `:small`,
with as many clusters and generations as the regressions need
(docs/results/expectations/cluster_study.toml).

webis_reddit is read from corpus-webis-tldr-17.zip (3.1 GB), which
`hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset` gets;
`--config.domains.webis_reddit.source=PATH` says where it is.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    datasets = ("webis_reddit", "100M_tweets", "reddit_submissions", "wikipedia")
    c = scales.config(
        "clusters",
        "Properties of human text and the shift",
        scale,
        small=True,
        paper=datasets,
        tiny=("emotions", "speeches") if scale == "small" else ("emotions", "speeches", "novels"),
        keep=3000 if scale == "small" else 1000,
    )
    c.chain.ratios = ("1/8", "1/4")
    c.chain.seeds = (0,)  # one chain per cluster and ratio, as in the released code
    c.quality_at = "ends"
    if scale == "tiny":
        c.chain.update(generations=8, size=48, eval_texts=64)
        scales.tiny_clusters(c)
        c.clusters.count = 8
    if scale == "small":
        c.title = "Properties of human text and the shift, with intervals"
        c.chain.update(generations=15, size=32, eval_texts=64)
        scales.tiny_clusters(c)
        # A chain at r = 1/8 reads 424 human texts.
        c.clusters.update(count=75, min_size=430, fit_rows=3000)
        c.properties.update(map_rows=3000)
    return c
