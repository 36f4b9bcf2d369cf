"""The closed forms of the literature against simulation.

Replace, accumulate, subsample, ridge, Gaussian, categorical and kernel chains. Arguments:
`:gaussian`, `:gmm`, `:tophat`, `:ngram` for chains of one model under seven workflows.
"""

from ml_collections import ConfigDict


def get_config(variant="library"):
    """`library`: every closed form. The others simulate one model under replace, preserve, window
    and external, and more, with its formula where there is one: `gaussian` in three dimensions,
    `gmm`, a mixture fitted by EM, `tophat`, a kernel density, `ngram`, characters of a text.
    """
    variants = {
        "library": _library,
        "gaussian": _gaussian,
        "gmm": _gmm,
        "tophat": _tophat,
        "ngram": _ngram,
    }
    if variant not in variants:
        raise ValueError(f"variant {variant!r} is not allowed; choose one of {', '.join(variants)}")
    return variants[variant]()


def _library():
    c = ConfigDict()
    c.study = "theory"
    c.what = "library"
    c.title = "Closed forms of recursive training"

    c.library = ConfigDict()
    c.library.n = 20  # points of a fit
    c.library.fits = 8
    c.library.dim = 3
    return c


def _chains(model, title):
    c = ConfigDict()
    c.study = "theory"
    c.what = "chains"
    c.title = title
    c.replicates = 2000  # of what has a formula; none: until an error of 0.5 % would be found

    c.chains = ConfigDict()
    c.chains.model = model
    c.chains.workflows = (
        "replace",
        "accumulate",
        "accumulate_subsample",
        "fresh_human",
        "preserve",
        "window",
        "external",
    )
    c.chains.size = 50  # items that a generation brings
    c.chains.ratio = "3/4"  # synthetic share of them in fresh_human, window and external
    c.chains.share = 0.1  # real share that preserve keeps, external share of external
    c.chains.window = 2
    c.chains.generations = 20
    c.chains.replicates = c.chains.batch = 500
    return c


def _gaussian():
    c = _chains("gaussian", "Gaussian chains in three dimensions")
    c.chains.dim = 3
    c.chains.unbiased = False  # by maximum likelihood, as the formulas of accumulate have it
    return c


def _gmm():
    c = _chains("gmm", "Gaussian mixtures fitted by EM")
    c.chains.centres = (-2, 2)  # of the components, on the first axis
    c.chains.replicates = c.chains.batch = 100
    return c


def _tophat():
    c = _chains("kernel_density", "Kernel densities with a tophat kernel")
    c.chains.kernel = "tophat"
    c.chains.bandwidth = "scott"
    c.chains.replicates = c.chains.batch = 100
    return c


def _ngram():
    c = _chains("ngram", "Characters two by two")
    c.chains.text = "jaxloop:fables"
    c.chains.external_text = "jaxloop:novels"
    c.chains.order = 2
    c.chains.length = 64  # symbols of an item
    c.chains.generations = 10
    c.chains.replicates = c.chains.batch = 50
    return c
