"""The political mixes on chains of one base model each, without mixed ones (figure 15).

Scales: `:paper` (the default) and `:tiny`.
"""

from jaxloop.studies.recursive_loops import scales


def get_config(scale="paper"):
    return scales.political("political_bases", "Political lean by base model", scale)
