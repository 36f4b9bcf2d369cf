"""How much of the shift comes from the base model, and how much from the learning rate.

Not in arXiv 2504.03814, which mixes its four bases and has one rate. Scales: `:paper` (the
default), `:tiny`, and `:small`, two bases that write differently well, with as many chains as an
effect needs to be seen (docs/results/expectations/base_and_rate.toml).
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "ratio_sweep",
        "The shift by base model and learning rate",
        scale,
        small=True,
        paper=("100M_tweets",),
        tiny=("emotions",),
        keep=1200,
    )
    c.chain.ratios = ("1/8", 1)
    c.chain.seeding = "paired"  # bases and rates are compared on the same texts
    rates = (1e-4, 2e-4, 4e-4)
    if scale != "paper":
        c.models.pool = ("jaxloop/assets/bases/llama", "jaxloop/assets/bases/llama_longer")
        c.chain.update(generations=8, size=48, eval_texts=64)
        rates = (2e-3, 8e-3)
    if scale == "small":
        c.title = "The shift by base model and learning rate, with intervals"
        c.chain.update(generations=10, seeds=tuple(range(10)))
    c.chain.factors = {"bases": tuple(c.models.pool), "fit": {"learning_rate": rates}}
    return c
