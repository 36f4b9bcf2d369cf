"""The closed forms of the literature against simulation.

Replace, accumulate, subsample, ridge, Gaussian, categorical and kernel chains.
"""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.study = "theory"
    c.what = "library"
    c.title = "Closed forms of recursive training"

    c.library = ConfigDict()
    c.library.n = 20  # points of a fit
    c.library.fits = 8
    c.library.dim = 3
    return c
