"""Left and right texts in five mixes at r = 3/4: where does the political leaning go?

Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.config(
        "political",
        "Political lean in recursive loops",
        scale,
        paper=("senator_tweets",),
        tiny=("speeches",),
        keep=3200,
    )
    c.chain.ratios = ("3/4",)
    c.political_leaning = dict(mixes=(100, 75, 50, 25, 0), homogeneous=True, judge=scales.LEANING)
    if scale == "tiny":
        c.chain.update(size=48, seeds=(0, 1, 2))
        # A classifier fitted on the party labels in the judge's place: its leanings are no round
        # scores, so neutral is a range.
        c.political_leaning.update(judge=None, fit_texts=2000, neutral=10.0)
    return c
