"""The judge of quality against people's scores of stories (table 2).

Needs mans_roc.json of the data set Jiann/OpenMEVA beside it, and a judge.
"""

from ml_collections import ConfigDict

from jaxloop.studies.recursive_loops import scales


def get_config():
    c = ConfigDict()
    c.study = "loops"
    c.experiment = "judge_validation"
    c.title = "The judge of quality against people"
    c.quality = scales.JUDGE
    c.validation = ConfigDict(dict(source="mans_roc.json"))
    return c
