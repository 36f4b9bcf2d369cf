"""Collapse in five minutes on two cores.

r in {1/8, 1}, two seeds, ten generations, a tiny base model, the embedded `docs` text. Arguments:
`:preserve`, `:window`, `:external` for other workflows, in a minute.
"""

from ml_collections import ConfigDict


def get_config(variant="collapse"):
    """`collapse`: synthetic and fresh human text (workflow fresh_human). `preserve`: synthetic text
    and a tenth of the first human text; `window`: the two newest generations; `external`: a quarter
    from an outside source. These three have one base and four generations.
    """
    variants = {
        "collapse": lambda c: c,
        "preserve": _preserve,
        "window": _window,
        "external": _external,
    }
    if variant not in variants:
        raise ValueError(f"variant {variant!r} is not allowed; choose one of {', '.join(variants)}")
    return variants[variant](_collapse())


def _collapse():
    c = ConfigDict()
    c.study = "chain"
    c.title = "Collapse in five minutes"

    c.data = ConfigDict()
    # or jaxloop:speeches; or a file: .jsonl, .csv, .parquet, .txt; or a Hugging Face dataset id
    c.data.source = "docs"
    c.data.instruction = "Write a paragraph of documentation."
    c.data.min_tokens = 16
    c.data.max_tokens = 96

    c.models = ConfigDict()
    c.models.pool = ("jaxloop/assets/bases/llama_longer",)  # or several: each model draws one

    c.chain = ConfigDict()
    c.chain.generations = 10
    c.chain.size = 256  # texts added in every generation, human and synthetic
    c.chain.ratios = ("1/8", 1)  # synthetic share of them
    c.chain.seeds = (0, 1)
    c.chain.eval_texts = 96
    c.chain.heldout_texts = 64

    c.fit = ConfigDict()
    c.fit.steps = 20
    c.fit.batch_size = 16
    c.fit.learning_rate = 8e-3  # tiny bases take, and need, a larger one than 1B models
    c.fit.max_length = 96
    c.fit.length_buckets = 2  # each is compiled for each base: fewer of them start sooner

    c.sample = ConfigDict()
    c.sample.max_new_tokens = 64

    c.metrics = (
        "cosine_diversity",
        "self_bleu",
        "distinct_n(n=1)",
        "distinct_n(n=2)",
        "held_out_loss",
        "text_length",
    )
    return c


def _small(c, workflow):
    c.title = f"Workflow {workflow}"
    c.models.pool = ("jaxloop/assets/bases/llama",)
    c.chain.workflow = workflow
    c.chain.generations = 4
    c.chain.size = 64
    c.chain.ratios = ("1/2", 1)
    c.chain.eval_texts = 32
    c.fit.steps = 8
    c.fit.learning_rate = 2e-3  # enough for this base
    c.fit.length_buckets = 1
    c.metrics = ("self_bleu", "distinct_n(n=1)", "distinct_n(n=2)", "held_out_loss", "text_length")
    return c


def _preserve(c):
    c = _small(c, "preserve")
    c.chain.share = 0.1  # of the first human texts, drawn afresh for every generation
    return c


def _window(c):
    c = _small(c, "window")
    c.chain.window = 2  # generations that are looked back
    return c


def _external(c):
    c = _small(c, "external")
    c.chain.share = 0.25  # of what a generation adds
    c.chain.external = "jaxloop:emotions"  # or a file of yours, such as texts of another model
    return c
