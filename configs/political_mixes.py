"""Left and right texts in five mixes at r = 3/4: where does the political leaning go?

Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    c = scales.political("political", "Political lean in recursive loops", scale)
    c.political_leaning.homogeneous = True
    return c
