"""Diversity of generated data (arXiv 2506.19262): levels, mixtures, sizes, architectures.

Seven levels of diversity, three model sizes. Arguments: `:tiny` for two cores, and `:small`, with
as many seeds and mixtures as its claims need (docs/results/expectations/diversity.toml).

facebook/opt-1.3b has no safetensors on its main branch: convert it with
`python scripts/convert_weights.py facebook/opt-1.3b DIRECTORY` and name the directory in
`models.pool` and where the config names the model, or a revision that has them in
`models.revisions`.
"""

from ml_collections import ConfigDict

GPT2, LLAMA_1B, LLAMA_8B = (
    "openai-community/gpt2",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.1-8B",
)
OPT, GPT2_XL = "facebook/opt-1.3b", "openai-community/gpt2-xl"


def get_config(scale="paper"):
    scales = {"paper": _paper, "tiny": _tiny, "small": _small}
    if scale not in scales:
        raise ValueError(f"scale {scale!r}: must be one of {', '.join(scales)}")
    c = ConfigDict()
    c.study = "diversity"
    c.title = "Diversity of generated data"
    return scales[scale](c)


def _paper(c):
    c.models = ConfigDict(dict(pool=(GPT2, LLAMA_1B, LLAMA_8B, OPT, GPT2_XL), dtype="bfloat16"))
    sizes = (GPT2, LLAMA_1B, LLAMA_8B)
    c.generator = ConfigDict(
        dict(url="https://api.openai.com/v1", served="gpt-4o", temperature=0.7)
    )
    every = tuple(range(7))
    c.generated = ConfigDict(
        dict(levels=every, ratios=(0.0, 1.0), qa=(32_291,), story=(30_000,), models=sizes)
    )
    c.fixed = ConfigDict(
        dict(
            levels=(6,),
            ratios=(0.0, 0.1, 0.2, 0.4, 0.6, 0.8),
            qa=(22_040,),
            story=(20_000,),
            models=sizes,
        )
    )
    # 551, 1,469, 3,306 and 8,816 generated records beside 2,204 real ones.
    c.variable = ConfigDict(
        dict(
            levels=(1, 3, 5),
            ratios=(0.0, 0.2, 0.4, 0.6, 0.8),
            mixing="variable",
            qa=(2_204,),
            story=(2_000,),
            models=sizes,
        )
    )
    c.sizes = ConfigDict(
        dict(
            levels=every,
            qa=(5_510, 11_020, 16_530, 22_040, 27_550),
            story=(5_000, 10_000, 15_000, 20_000, 25_000),
            models=(GPT2, LLAMA_1B),
        )
    )
    c.architectures = ConfigDict(
        dict(
            levels=every,
            ratios=(0.0, 1.0),
            qa=(32_291,),
            story=(30_000,),
            models=(OPT, LLAMA_1B, GPT2_XL),
        )
    )
    # The base model's own dropout stays on below adapters under a trainer of transformers.
    c.fit = ConfigDict(dict(dtype="bfloat16", remat=True, dropout="model", warmup_steps=0))
    c.fit.lora = ConfigDict(dict(rank=8, alpha=16.0))
    c.fit.learning_rate = 1e-4
    c.fit.weight_decay = 1e-4
    c.fit.epochs = 3.0
    c.fit.max_length = 1024
    c.distances = ConfigDict(dict(points=1000, embedder="sentence-transformers/all-mpnet-base-v2"))
    return c


def _tiny(c):
    """36 to 96 records a set, 1.7 M parameters, stories by a tiny writer, question answering by the
    control; books and GSM8K.
    """
    c.title = "Diversity of generated data, on two cores"
    c.models = ConfigDict(
        dict(pool=tuple(f"jaxloop/assets/bases/{name}" for name in ("gpt2", "llama")))
    )
    gpt2, llama = c.models.pool
    c.story = ConfigDict(
        dict(
            sentences=2,
            windows=True,
            max_tokens=50,
            train=96,
            test=32,
            test_split=None,
            prompt="{head}",
        )
    )
    c.story.sources = ("jaxloop:fables", "jaxloop:novels", "jaxloop:adventures")
    c.story.outside = ("jaxloop:speeches",)
    c.qa = ConfigDict(
        dict(
            source="jaxloop:gsm8k",
            passage="none",
            split_column="split",
            max_tokens=112,
            per_context=18,
            train=36,
            test=32,
        )
    )
    c.qa.prompt = "{head}"
    # Which emotion does this comment show?
    c.qa.outside, c.qa.outside_max_tokens = "jaxloop:emotions", 100
    c.qa.outside_question_column, c.qa.outside_answer_column = "text", "emotion"
    c.generator = ConfigDict(
        dict(
            qa="control",
            story="model",
            model=llama,
            adapt=2.0,
            adapt_rate=2e-3,
            adapt_texts=800,
            block=128,
        )
    )
    # 1.7 M parameters follow no instruction, but go on from what they read: a topic is the first
    # words of a story. At 0.7 what they write is mostly chance and no two stories share five words;
    # one or two topics make a set as diverse as these happen to be.
    c.generator.update(
        dict(
            temperature=0.3,
            max_tokens=48,
            seeds=0,
            attempts=8,
            topics="openings",
            story_prompt="{topic}",
        )
    )
    c.generator.topic_sizes = (4, 8, 16, 32, 64, 128, 256)
    c.generator.update(dict(versions=3, replaced=(18, 15, 12, 9, 6, 3, 0)))
    every = tuple(range(7))
    c.generated = ConfigDict(
        dict(levels=every, ratios=(0.0, 1.0), qa=(36,), story=(96,), models=(gpt2,))
    )
    c.fixed = ConfigDict(
        dict(levels=every, ratios=(0.25, 0.5, 0.75, 1.0), qa=(36,), story=(48,), models=(gpt2,))
    )
    c.variable = ConfigDict(
        dict(
            levels=(1, 5),
            ratios=(0.0, 0.4, 0.8),
            mixing="variable",
            qa=(12,),
            story=(12,),
            models=(gpt2,),
        )
    )
    c.sizes = ConfigDict(dict(levels=(0, 6), qa=(18, 36), story=(48, 96), models=(gpt2,)))
    c.architectures = ConfigDict(dict(levels=(0, 6), ratios=(0.0, 1.0), qa=(36,), story=(48,)))
    c.control = ConfigDict(dict(qa=36, story=48, duplicates=(0.0, 0.5, 1.0), shifts=(0.0, 1.0)))
    c.fit = ConfigDict(dict(batch_size=8, max_length=128, length_buckets=2))
    c.fit.learning_rate = (
        2e-3  # 1.7 M parameters take, and need, a larger one than the paper's models
    )
    c.distances = ConfigDict(dict(points=96))
    return c


def _small(c):
    """`_tiny` with mixtures of every level and as many seeds as its claims need."""
    c = _tiny(c)
    c.title = "Diversity of generated data, with intervals"
    c.seeds = tuple(range(12))
    every, (gpt2, llama) = tuple(range(7)), c.models.pool
    c.qa.update(train=72, test=64)
    c.story.test = 64
    c.generated = ConfigDict(
        dict(levels=every, ratios=(0.0, 1.0), qa=(72,), story=(96,), models=(gpt2,))
    )
    c.fixed = ConfigDict(
        dict(levels=every, ratios=(0.0, 0.1, 0.5, 1.0), qa=(36,), story=(48,), models=(gpt2,))
    )
    c.variable = ConfigDict(
        dict(
            levels=(1, 3, 5),
            ratios=(0.0, 0.4, 0.8),
            mixing="variable",
            qa=(12,),
            story=(12,),
            models=(gpt2,),
        )
    )
    # Both sizes are there already: 36 and 72 records, 48 and 96 stories.
    c.sizes = ConfigDict(dict(levels=(0, 6), qa=(36, 72), story=(48, 96), models=(gpt2,)))
    c.architectures = ConfigDict(
        dict(levels=(0, 6), ratios=(0.0, 1.0), qa=(36,), story=(48,), models=(llama,))
    )
    return c
