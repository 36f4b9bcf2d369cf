"""Bias amplification (arXiv 2410.15234): GPT-2 continues labelled articles.

1,518 articles, eleven generations. Arguments: `:tiny` for two cores, `:small`, with replicates for
intervals (docs/results/expectations/bias_amplification.toml), `:classifier`, `:constrained`.
"""

from ml_collections import ConfigDict


def get_config(variant="paper"):
    """`paper`: the study as published. `classifier`: its classifier fitted here instead of loaded.
    `center`: chains that see centre articles alone (the setup of its later version). `constrained`:
    greedy beside the paper's constrained loss and beside a brake along the direction. `tiny`: all
    six setups with a tiny base on presidents' speeches, four replicates each, in minutes. `small`:
    the same with passages of two novels and as many replicates as its claims need.
    """
    variants = {
        "paper": lambda c: c,
        "classifier": _classifier,
        "center": _center,
        "constrained": _constrained,
        "tiny": _tiny,
        "small": _small,
    }
    if variant not in variants:
        raise ValueError(f"variant {variant!r} is not allowed; choose one of {', '.join(variants)}")
    return variants[variant](_paper())


def _paper():
    c = ConfigDict()
    c.study = "bias"
    c.title = "Bias amplification in GPT-2"

    c.data = ConfigDict()
    # Webis-Bias-Flipper-18 (zenodo.org/records/3271061): bias, original_title, original_body
    c.data.source = "data_public.csv"
    c.data.labels = ("From the Right", "From the Left", "From the Center")
    c.data.per_label = 506
    c.data.short = "keep"  # the last block of an article is shorter anyway

    c.models = ConfigDict(dict(pool=("gpt2",)))
    c.chain = ConfigDict()
    c.chain.generations = 11
    c.chain.setups = ("greedy", "beam", "nucleus", "overfit", "preserve", "accumulate")
    c.chain.seeds = (42, 43, 44, 45)  # the paper has one chain per setup, so no interval
    c.chain.variant = "released"  # one training example per line; `paper`: whole articles

    c.classifier = ConfigDict()
    c.classifier.model = "wu981526092/bias_classifier_roberta"
    c.classifier.labels = (
        "From the Right",
        "From the Left",
        "From the Center",
    )  # LABEL_0, LABEL_1, LABEL_2
    c.classifier.target = "From the Right"
    c.classifier.max_length = 500

    c.measure = ConfigDict()
    c.measure.detector = "madhurjindal/autonlp-Gibberish-Detector-492513457"
    c.neurons = ConfigDict(dict(tensor="down_norm", average="tokens"))
    c.run = ConfigDict(dict(chains_per_program=4))
    return c


def _classifier(c):
    """The recipe of section 4.3, with its four encoders."""
    c.classifier.model = None
    c.classifier.labels = ()
    c.classifier.encoders = (
        "distilbert-base-uncased",
        "bert-base-uncased",
        "albert/albert-base-v2",
        "roberta-base",
    )
    c.classifier.train = "all"
    c.classifier.max_length = 512
    return c


def _center(c):
    c.title = "Bias amplification from centre articles"
    c.data.only, c.data.per_label = "From the Center", None
    c.chain.setups = ("greedy", "preserve")
    c.classifier.target = "From the Center"
    return c


def _constrained(c):
    """The paper's loss penalises the slope along the direction, which leads further along it; the
    brake penalises how far the weights have moved.
    """
    c.title = "A constraint on the bias projection"
    c.chain.setups = ("greedy", "constrained", "braked")
    c.gradient_constraint = ConfigDict(
        dict(
            direction="fit",
            toward="From the Right",
            away="From the Left",
            gam=1e4,
            per="direction",
            brake=1e3,
        )
    )
    return c


def _tiny(c):
    """Passages of presidents' speeches, the first sentence as title; the label is the party, the
    classifier is fitted on other passages.
    """
    c.title = "Bias amplification, tiny"
    c.data = ConfigDict()
    c.data.source = "jaxloop:speeches"
    c.data.title_column, c.data.body_column, c.data.label_column = None, "text", "party"
    c.data.labels = ("D", "R")
    c.data.per_label = 12
    c.data.short = "drop"
    c.data.title_tokens = 24
    c.data.body_tokens = 64

    c.models.pool = ("jaxloop/assets/bases/gpt2",)
    c.adapt = ConfigDict(
        dict(articles=600, epochs=2.0, batch_size=16, learning_rate=2e-3)
    )  # the tiny bases know no politics
    c.chain.generations = 5
    c.chain.seeds = (0, 1, 2, 3)
    c.chain.variant = "paper"
    c.chain.block = 32
    c.chain.overfit_epochs = 5.0  # five times as many as the others, as in the paper

    c.fit = ConfigDict(dict(epochs=1.0, batch_size=4, learning_rate=1e-3, max_length=96))
    c.sample = ConfigDict(dict(max_new_tokens=32, slots=72))  # as many as there are prompts

    c.classifier = ConfigDict()
    c.classifier.target = "R"
    c.classifier.encoders = (
        None,
        "jaxloop/assets/bases/llama",
        "jaxloop/assets/bases/gpt2",
        "jaxloop/assets/bases/qwen2",
    )
    c.classifier.train = "head"
    c.classifier.texts = 900
    c.classifier.max_length = 128

    c.run = ConfigDict()
    c.measure = ConfigDict(dict(quality_articles=12))
    c.gradient_constraint = ConfigDict(dict(direction="fit", toward="R", away="D", texts=16))
    c.neurons = ConfigDict(dict(texts=16, max_length=96))
    return c


def _small(c):
    """Passages of two novels; the label is the author, whom a small classifier can tell."""
    c = _tiny(c)
    c.title = "Bias amplification, with intervals"
    c.data.source, c.data.label_column = "jaxloop:novels", "author"
    c.data.labels = ("Jane Austen", "Mary Shelley")
    c.data.per_label = 16
    c.data.title_tokens, c.data.body_tokens = 12, 32
    c.adapt.articles = 300
    c.chain.generations = 7
    c.chain.seeds = tuple(range(16))
    c.chain.block = 16
    c.sample.update(max_new_tokens=24, slots=96)
    c.classifier.target = "Jane Austen"
    c.classifier.update(texts=200, encoders=(None,))
    c.gradient_constraint = ConfigDict(dict(direction=None))
    return c
