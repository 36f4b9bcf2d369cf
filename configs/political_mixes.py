"""Left and right tweets in five mixes at r = 3/4: where does the lean of generated text go? (figures 5, 6, 13-15); argument paper or tiny."""

from jaxloop.studies import loops_scales as scales


def get_config(scale="paper"):
    c = scales.config("political", "Political lean in recursive loops", scale, paper=("senator_tweets",), tiny=("senate_tweets",), keep=2500)
    c.chain.ratios = ("3/4",)
    c.lean = dict(mixes=(100, 75, 50, 25, 0), homogeneous=True)
    if scale == "tiny":
        c.chain.update(generations=6, eval_texts=50)
    c.lean.update(fit_texts=1000)
    return c
