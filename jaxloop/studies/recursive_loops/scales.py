"""The scales of the recursive-loops configs: `paper` and `tiny`, and of some `small`.

They differ only in the sizes of data, models, chains and tests. The tiny scale reads corpora that
come with jaxloop; flags such as `--config.domains.emotions.source=posts.jsonl` give it other text.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

SCALES = ("paper", "tiny")
SMALL = "small"  # `tiny` with as many chains as intervals need, of some configs
POOL = (
    "unsloth/Llama-3.2-1B",
    "unsloth/Qwen2.5-1.5B",
    "HuggingFaceTB/SmolLM-1.7B",
    "tiiuae/Falcon3-1B-Base",
)
# Whole commits: the hub knows no shorter form.
REVISIONS = (
    "8330ca72fe8cf1fc86a8b20b4835dc08fbbd2251",
    "2d0a015faee2c1af360a6725a30c4d7a258ac4d4",
    "d7449ff7241c863f3e8accc475155f0f97afa011",
    "cb37ef3559b157b5c9d9226296ba01a5162da1f7",
)
# Those of the political experiments and of several models per generation.
OLDER_REVISIONS = (
    "1d05b8ce9cd75f6baca1ccebf9653626ac261438",
    "8951671def651bbedbcdea3751f46cf35e78dfa9",
    "d7449ff7241c863f3e8accc475155f0f97afa011",
    "34183642457812e78b53466798c3a818485ac969",
)
# The paper's code asks for one token, and takes the first number among the 20 likeliest.
_AT = (
    "model='meta-llama/Llama-3.3-70B-Instruct', url='http://localhost:8000/v1', reply='first_token'"
)
JUDGE = f"judge_quality({_AT})"
# The older judge with three levels, of several models per generation.
JUDGE_OF_LEVELS = f"judge_quality_level({_AT})"
ENGLISH = f"judge_english({_AT})"
LEANING = f"judge_political_lean({_AT})"
ENCODER = "dunzhang/stella_en_1.5B_v5"

# The paper's datasets, where they are published (see studies/recursive_loops/data/recipes.py).
PAPER = ("100M_tweets", "senator_tweets", "reddit_submissions", "webis_reddit", "wikipedia")
# The datasets of the tiny scale: (source, instruction). Of `docs` only libraries are read that the
# tiny bases were not trained on.
TINY = {
    "emotions": ("jaxloop:emotions", "Generate a comment."),
    "speeches": ("jaxloop:speeches", "Generate a passage of a speech."),
    "novels": ("jaxloop:novels", "Generate a passage of a novel."),
    "docs": ("docs:scipy,statsmodels,networkx,nltk", "Generate a paragraph of documentation."),
}


def config(
    experiment: str,
    title: str,
    scale: str,
    *,
    paper: Sequence[str],
    tiny: Sequence[str],
    keep: int = 1000,
    small: bool = False,
) -> ConfigDict:
    """Return a config with everything that the experiments share.

    Args:
        experiment: as `config.experiment`.
        title: heading of the report.
        scale: "paper" or "tiny", or "small", which begins as "tiny".
        paper: names of the datasets at the paper's scale, out of `PAPER`.
        tiny: names of the datasets at the tiny scale, out of `TINY`.
        keep: texts of each dataset at the tiny scale.
        small: whether the config has a scale "small".

    Raises ValueError for an unknown scale.
    """
    scale = _known(scale, small)
    c = ConfigDict()
    c.study = "loops"
    c.experiment = experiment
    c.title = title
    c.domains = ConfigDict(
        {name: dict(recipe=name) for name in paper}
        if scale == "paper"
        else {name: _tiny_domain(name, keep) for name in tiny}
    )
    (_paper if scale == "paper" else _tiny)(c)
    return c


def political(experiment: str, title: str, scale: str, *, small: bool = False) -> ConfigDict:
    """Return a config of senators' tweets in five mixes at r = 3/4; small: as of `config`."""
    scale = _known(scale, small)
    c = config(experiment, title, scale, paper=("senator_tweets",), tiny=("speeches",), keep=3200)
    c.chain.ratios = ("3/4",)
    c.political_leaning = dict(mixes=(100, 75, 50, 25, 0), judge=LEANING)
    if scale == "tiny":
        c.chain.update(size=48, seeds=(0, 1, 2))
        # A classifier fitted on the party labels in the judge's place: its leanings are no round
        # scores, so neutral is a range.
        c.political_leaning.update(judge=None, fit_texts=2000, neutral=10.0)
    else:
        c.models.revisions = OLDER_REVISIONS
    return c


def _known(scale: str, small: bool) -> str:
    """The scale that a config begins with; one that it does not have is refused."""
    allowed = (*SCALES, SMALL) if small else SCALES
    if scale not in allowed:
        raise ValueError(f"scale '{scale}' is not one of {', '.join(allowed)}")
    return "tiny" if scale == SMALL else scale


def _tiny_domain(name: str, keep: int) -> dict:
    source, instruction = TINY[name]
    return dict(source=(source,), instruction=instruction, min_tokens=20, max_tokens=160, keep=keep)


def _paper(c: ConfigDict) -> None:
    c.models = ConfigDict(dict(pool=POOL, revisions=REVISIONS, dtype="bfloat16"))
    c.chain = ConfigDict(dict(generations=20, size=4000, seeds=(0, 1, 2, 3, 4), eval_texts=250))
    c.fit = ConfigDict(
        dict(
            epochs=1.0,
            batch_size=16,
            learning_rate=2e-4,
            max_length=256,
            dtype="bfloat16",
            remat=True,
        )
    )
    c.sample = ConfigDict(dict(max_new_tokens=300))
    c.embedder = ENCODER
    c.quality = JUDGE
    c.language = ENGLISH
    c.properties = ConfigDict(dict(toxicity="unitary/toxic-bert"))


def _tiny(c: ConfigDict) -> None:
    c.tokens = "model"
    c.models = ConfigDict(dict(pool=("jaxloop/assets/bases/llama", "jaxloop/assets/bases/qwen2")))
    c.chain = ConfigDict(dict(generations=5, size=32, seeds=(0, 1), eval_texts=32))
    # Tiny bases need a larger learning rate than 1B models. One padded length (length_buckets=1)
    # compiles faster than four.
    c.fit = ConfigDict(
        dict(epochs=1.0, batch_size=16, learning_rate=4e-3, max_length=64, length_buckets=1)
    )
    c.sample = ConfigDict(dict(max_new_tokens=40))


def tiny_clusters(c: ConfigDict) -> None:
    """Set the sizes of clusters and of their properties to the tiny scale."""
    c.clusters = ConfigDict(dict(count=12, min_size=350, fit_rows=1000, projections="shared"))
    c.properties = ConfigDict(dict(texts=300, lexical_texts=200, map_rows=1000))
