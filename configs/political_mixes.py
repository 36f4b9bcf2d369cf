"""Left and right texts in five mixes at r = 3/4: where does the political leaning go?

Scales: `:paper` (the default), `:tiny`, and `:small`, with as many chains as an effect needs to be
seen and training that moves the bases (docs/results/expectations/political_mixes.toml).
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.political("political", "Political lean in recursive loops", scale, small=True)
    c.political_leaning.homogeneous = scale != "small"
    if scale == "small":
        c.title = "Political lean in recursive loops, with intervals"
        c.chain.update(size=96, generations=7, seeds=tuple(range(10)), eval_texts=72)
        # 24 steps in the place of 3, at twice the rate: generation 0 takes on the lean of its mix.
        c.fit.update(epochs=2.0, batch_size=8, learning_rate=8e-3)
    return c
