"""Models that train on each other's text (arXiv 2505.21677).

OPT-350m on SciQ and GSM8K, alpha and beta in {0, 1/2, 1}. Arguments: `:three`, `:llama`,
`:tiny`, `:small`, and `:two_small`, `:three_small`, `:five_small`, `:ring_small`.
"""

from ml_collections import ConfigDict

SCALES = ("paper", "three", "llama", "tiny", "small")
# By number of entities, and who reads whom.
SIZES = {
    "two_small": (2, "complete"),
    "three_small": (3, "complete"),
    "five_small": (5, "complete"),
    "ring_small": (5, "ring"),
}


def get_config(scale: str = "paper"):
    """paper: K = 2, OPT-350m; three: K = 3 with ARC (figure 7); llama: K = 2, Llama 3.2 1B; tiny: K
    = 3 on two cores, from corpora in the box; small: the same on a grid of 25 settings with eight
    seeds (docs/results/expectations/multi_entity.toml); two_small to ring_small: one setting
    with K = 2, 3, 5, and 5 on a ring (docs/results/expectations/entities.toml).
    """
    if scale not in (*SCALES, *SIZES):
        raise ValueError(f"scale '{scale}' is none of {', '.join((*SCALES, *SIZES))}")
    if scale == "small":
        return small()
    if scale in SIZES:
        return of_size(*SIZES[scale])
    return tiny() if scale == "tiny" else paper(scale)


def paper(scale):
    c = ConfigDict()
    c.study = "multi_entity"
    c.title = "Models that train on each other"
    c.entities = ("sciq", "gsm8k", "arc") if scale == "three" else ("sciq", "gsm8k")
    # The prompts are questions, the texts answers: the paper states no format.
    c.tasks = ConfigDict(
        {
            name: ConfigDict(dict(prompt="Question: {question}\nAnswer:", text=" {answer}"))
            for name in c.entities
        }
    )

    c.public = ConfigDict()
    c.public.task = "bookcorpus"
    c.public.prompt_words = 16  # what a completion of the public set goes on from
    c.public.join_words = 128  # its rows are sentences
    c.public.limit = 100_000
    c.public.test_split = None

    c.exchange = ConfigDict()
    c.exchange.generations = 15
    c.exchange.size = 12_500
    c.exchange.alphas = (0.0, 0.5, 1.0)
    c.exchange.betas = (0.0, 0.5, 1.0)
    c.exchange.initial_beta = 1.0
    c.exchange.mixing = "complete"
    c.exchange.control = "self_only"  # None: only the paper's comparison with alpha = 0
    c.exchange.synthetic = 2500
    c.exchange.seeds = (0,)

    c.models = ConfigDict()
    if scale == "llama":
        c.models.pool = ("meta-llama/Llama-3.2-1B",)
    else:
        # Its main branch has no safetensors; a pull request has.
        c.models.pool, c.models.revisions = ("facebook/opt-350m",), ("refs/pr/24",)

    c.fit = ConfigDict()
    c.fit.mode = "full"
    c.fit.steps = 100
    c.fit.batch_size = 4  # 2, and gradients of two batches added
    c.fit.learning_rate = 8e-6
    c.fit.warmup_steps = 3
    c.fit.weight_decay = 0.0
    c.fit.max_length = 512
    c.fit.completion_only = False
    c.fit.dtype = "bfloat16"

    # 32 bits of every weight of a model lie in the host's memory, twice.
    c.together = 6 if scale == "llama" else None

    c.sample = ConfigDict()
    c.sample.temperature = 1.0
    c.sample.min_p = 0.0
    c.sample.max_new_tokens = 128
    c.sample.max_prompt = 256

    c.measure = ConfigDict()
    c.measure.test_texts = 1000
    c.measure.probes = 200
    return c


def tiny():
    """Three entities with adapters of one tiny base: problems, presidents' speeches, two novels;
    BookCorpus' place is taken by two other books.
    """
    c = paper("tiny")
    c.title = "Models that train on each other, small"
    c.entities = ("gsm8k", "speeches", "novels")
    # Prompts are the first words of a record, not whole questions: half of the time would go into
    # reading those.
    c.tasks = ConfigDict()
    c.tasks.gsm8k = ConfigDict(dict(source="jaxloop:gsm8k", prompt_words=8))
    c.tasks.speeches = ConfigDict(dict(task="text", source="jaxloop:speeches", prompt_words=8))
    c.tasks.novels = ConfigDict(dict(task="text", source="jaxloop:novels", prompt_words=8))
    c.public = ConfigDict(dict(task="text", source="jaxloop:adventures", prompt_words=8))

    c.exchange.generations = 6
    c.exchange.size = 256
    c.exchange.synthetic = 24  # with the probes 48 texts, which are written together
    c.exchange.seeds = (0, 1, 2)

    c.models.pool = ("jaxloop/assets/bases/llama",)

    c.fit.mode = "lora"
    c.fit.steps = 8
    c.fit.batch_size = 8
    c.fit.learning_rate = 4e-3
    c.fit.warmup_steps = 1
    c.fit.max_length = 48
    c.fit.length_buckets = 1
    c.fit.dtype = "float32"

    c.sample.temperature = (
        0.5  # at 1 what a tiny model writes is mostly chance, and no two completions are alike
    )
    c.sample.max_new_tokens = 24
    c.sample.max_prompt = 32
    c.sample.slots = 48

    c.measure.test_texts = 24
    c.measure.probes = 6
    c.measure.similarity_every = 3
    return c


def small():
    """`tiny` with as many settings and seeds as its claims need."""
    c = tiny()
    c.title = "Models that train on each other, with intervals"
    c.exchange.alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    c.exchange.betas = (0.0, 0.25, 0.5, 0.75, 1.0)
    c.exchange.generations = 8
    c.exchange.seeds = tuple(range(8))
    return c


def of_size(entities, mixing):
    """`tiny` at alpha = beta = 1/2 and without exchange, with so many entities and six seeds."""
    c = tiny()
    c.title = f"{entities} models that train on each other, {mixing} mixing"
    c.entities = ("gsm8k", "speeches", "novels", "emotions", "fables")[:entities]
    if entities == 2:
        del c.tasks.novels
    if entities == 5:
        for name in ("emotions", "fables"):
            c.tasks[name] = dict(task="text", source=f"jaxloop:{name}", prompt_words=8)
    c.exchange.mixing = mixing
    c.exchange.alphas, c.exchange.betas = (0.0, 0.5), (0.5,)
    c.exchange.seeds = tuple(range(6))
    if mixing == "ring":
        c.exchange.control = None  # that of five_small: the same chains
    c.measure.probes = (
        0  # completions of five corpora would be more than half of all that is written
    )
    return c
