"""The model family of the bias-amplification study (arXiv 2410.15234, section 4).

It is a family for `recursion.driver` whose texts are articles, continued block by block. Fitting
turns articles into the training examples of the chosen variant; generating turns an article's name
into the prompts of its blocks, and their continuations into one article. Both call the
language-model family of `lm` with token ids in place of texts, so that a block that ends inside a
word, or inside a character, is continued there.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxloop.config import FitConfig, SampleConfig
from jaxloop.lm import family as lm
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.training.batching import bucket
from jaxloop.lm.training.gradient_constraint import Brake, GradientConstraint
from jaxloop.recursion.family import FitResult, FitTask, GenerateResult, GenerateTask
from jaxloop.studies.bias_amplification.articles import Articles, article_text, blocks, examples
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.common import models as base_models

# Rows of one article in the random numbers of a generation: more than any article has blocks.
STRIDE = 1 << 16
# Bytes of prompts whose keys and values are held at once.
CACHE_BYTES = 2e9

Ids = tuple[int, ...]
Prompts = Mapping[str, list[Ids]]


class ChainFit(FitConfig):
    """How the models of a chain are trained: the `fit` section, and what setups add to it."""

    constraint: GradientConstraint | Brake | None = None


class TokenCodec(NamedTuple):
    """A model's tokens, without special ones.

    Attributes:
        tokenizer: the model's.
        start: ids that stand before every text.
        blank: the id that stands for a blank line.
    """

    tokenizer: Tokenizer
    start: Ids
    blank: int

    def encode(self, texts: Sequence[str], /) -> list[list[int]]:
        """Return the token ids of every text."""
        return self.tokenizer.encode(list(texts), special=False)

    def decode(self, rows: Sequence[Sequence[int]], /) -> list[str]:
        """Return the text of every row of token ids."""
        return self.tokenizer.decode(rows)


def token_codec(tokenizer: Tokenizer) -> TokenCodec:
    """Return the codec of a tokenizer."""
    return TokenCodec(tokenizer, start=tuple(tokenizer.encode([""])[0]), blank=tokenizer.pad)


@dataclasses.dataclass(frozen=True)
class IdTokenizer:
    """Stands in for a model's tokenizer where texts are token ids already."""

    eos: int | None
    ends: Ids
    bos: int | None
    pad: int

    def encode(self, rows: Iterable[Iterable[int]], *, special: bool = True) -> list[list[int]]:
        """Return the ids themselves."""
        return [list(map(int, row)) for row in rows]

    def decode(self, rows: Iterable[Iterable[int]]) -> list[list[int]]:
        """Return the ids themselves."""
        return [list(map(int, row)) for row in rows]

    def names_special(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Return False for every row: ids name no special token as text."""
        return [False] * len(rows)


def on_token_ids(model: Model, *, ends: bool) -> Model:
    """Return the model with token ids in place of texts.

    With `ends` sampling stops at EOS; without, training appends none, as the released code does.
    """
    tokenizer = model.tokenizer
    stand_in: Any = IdTokenizer(
        eos=tokenizer.eos if ends else None,
        ends=tokenizer.ends if ends else (),
        bos=tokenizer.bos,
        pad=tokenizer.pad,
    )
    return model._replace(tokenizer=stand_in)


def prompts_of(articles: Articles, codec: TokenCodec, size: int) -> dict[str, list[Ids]]:
    """Return the prompts of every chosen article, in blocks of `size` tokens, by its name."""
    titles = codec.encode([f"title: {title}" for title in articles.chosen["title"]])
    bodies = codec.encode(articles.chosen["body"].tolist())
    rows = zip(articles.chosen["id"], titles, bodies, strict=True)
    return {name: blocks(title, body, size, codec.start) for name, title, body in rows}


def training_examples(
    texts: Sequence[str], variant: str, codec: TokenCodec
) -> tuple[list[Ids], list[Ids]]:
    """Return the training examples of articles: (continuations, first tokens), as token ids.

    A first token is never predicted, so it is the prompt.
    """
    rows = [
        ids for text in texts for ids in examples(text, variant, codec, codec.start, codec.blank)
    ]
    return [ids[1:] for ids in rows], [ids[:1] for ids in rows]


def prompt_len(prompts: Prompts) -> int:
    """Return the padded length that the prompts of all generations share."""
    return bucket(max(len(block) for of_article in prompts.values() for block in of_article))


def block_count(prompts: Prompts) -> int:
    """Return how many prompts all articles have together."""
    return sum(len(of_article) for of_article in prompts.values())


def sample_settings(
    config: BiasConfig, model_config: ModelConfig, prompts: Prompts
) -> SampleConfig:
    """Return the `sample` section with the sizes of calls that all generations share: as many
    prompts in a call as memory holds.
    """
    # Setups may decode otherwise than the study's own section allows.
    sample = SampleConfig(**dict(config.sample))
    dtype_bytes = base_models.dtype_bytes(config.fit.dtype)
    prompt_bytes = prompt_len(prompts) * sizes_of(model_config).cache * dtype_bytes
    in_memory = 1 << max(0, int(CACHE_BYTES / prompt_bytes).bit_length() - 1)
    all_prompts = 1 << (block_count(prompts) - 1).bit_length()
    return sample.replace(
        texts_per_call=max(64, min(all_prompts, in_memory, sample.texts_per_call or 4096)),
        chains_per_call=1 if config.fit.mode == "full" else sample.chains_per_call,
    )


def base_weights(config: BiasConfig, model: Model) -> Any:
    """Return the base's weights as a chain has them; None where chains are adapters.

    They are on the host, so that one compiled program serves the base and the chains.
    """
    return jax.device_get(model.params) if config.fit.mode == "full" else None


class ArticleFamily:
    """Models that generate articles: a `recursion.family.Family`.

    Within generation 0 it trains what several setups train alike only once; the results are kept
    until the first fit that starts from a chain's own weights.
    """

    def __init__(
        self,
        config: BiasConfig,
        articles: Articles,
        prompts: Prompts,
        codec: TokenCodec,
        load: Callable[[str], Model],
        direction: Any = None,
    ):
        """Make the family of a study.

        Args:
            config: of the study.
            articles: those that every generation continues.
            prompts: of the articles, by name.
            codec: of the base.
            load: base model of a name.
            direction: bias direction of the setups `constrained` and `braked`, a tree like a
                chain's weights.
        """
        self._config = config
        self._prompts = prompts
        self._codec = codec
        self._load = load
        self._direction = direction
        self._titles = dict(zip(articles.chosen["id"], articles.chosen["title"], strict=True))
        self._train_options = base_models.train_options(config.run)
        self._generate_options = dataclasses.replace(
            base_models.generate_options(config.fit), prompt_len=prompt_len(prompts)
        )
        self._first_generation: dict[str, FitResult] = {}

    def load(self, base: str, /) -> Model:
        """Load a base model."""
        return self._load(base)

    def fit(self, model: Model, tasks: Sequence[FitTask], settings: ChainFit, /) -> list[FitResult]:
        """Train one model per task on the training examples of its articles."""
        if any(task.start is not None for task in tasks):
            self._first_generation.clear()
        names = [_fit_name(task, settings) for task in tasks]
        to_train = {
            name: task
            for name, task in zip(names, tasks, strict=True)
            if name not in self._first_generation
        }
        trained = self._train(model, to_train, settings)
        results = [trained.get(name) or self._first_generation[name] for name in names]
        for name, task, result in zip(names, tasks, results, strict=True):
            if task.start is None:
                self._first_generation[name] = result
        return results

    def _train(
        self, model: Model, tasks: Mapping[str, FitTask], settings: ChainFit
    ) -> dict[str, FitResult]:
        base = base_weights(self._config, model) if tasks else None
        id_tasks = []
        for task in tasks.values():
            bodies, heads = training_examples(task.texts, self._config.chain.variant, self._codec)
            start = base if task.start is None else task.start
            # The stand-in tokenizer of `on_token_ids` takes ids for texts.
            on_ids = lm.FitTask(task.key, bodies, heads, start=start)  # type: ignore[arg-type]
            id_tasks.append(on_ids)
        results = lm.fit(
            on_token_ids(model, ends=False),
            id_tasks,
            settings,
            dataclasses.replace(self._train_options, constraint=settings.constraint),
            direction=None if settings.constraint is None else self._direction,
        )
        return dict(zip(tasks, results, strict=True))

    def generate(
        self, model: Model, tasks: Sequence[GenerateTask], settings: SampleConfig, /
    ) -> list[GenerateResult]:
        """Generate the articles of every task; its prompts are names of articles."""
        # Equal weights with equal random numbers generate the same: in generation 0 the articles
        # of one chain are those of all that share its model.
        names = [_generate_name(task) for task in tasks]
        distinct: dict[tuple, GenerateTask] = {}
        for name, task in zip(names, tasks, strict=True):
            distinct.setdefault(name, task)
        results = lm.generate(
            on_token_ids(model, ends=True),
            [self._block_task(task) for task in distinct.values()],
            settings,
            self._generate_options,
        )
        articles = {
            name: self._join(task.prompts, result)
            for (name, task), result in zip(distinct.items(), results, strict=True)
        }
        return [articles[name] for name in names]

    def _block_task(self, task: GenerateTask) -> lm.GenerateTask:
        """The task with one prompt per block of every article."""
        rows, prompts = [], []
        for row, name in zip(task.rows, task.prompts, strict=True):
            for number, block in enumerate(self._prompts[name]):
                rows.append(int(row) * STRIDE + number)
                prompts.append(block)
        # The stand-in tokenizer of `on_token_ids` takes ids for texts.
        numbers = np.array(rows, np.int64)
        return lm.GenerateTask(task.key, task.weights, prompts, numbers)  # type: ignore[arg-type]

    def _join(self, names: Sequence[str], result: GenerateResult) -> GenerateResult:
        """Articles from the continuations of their blocks: the tokens one after the other, decoded
        at once, under the real title.
        """
        bodies, tokens, finished = [], [], []
        start = 0
        for name in names:
            end = start + len(self._prompts[name])
            bodies.append([int(token) for ids in result.texts[start:end] for token in ids])
            tokens.append(int(result.tokens[start:end].sum()))
            finished.append(bool(np.asarray(result.finished[start:end]).all()))
            start = end
        decoded = self._codec.decode(bodies)
        texts = [
            article_text(self._titles[name], body)
            for name, body in zip(names, decoded, strict=True)
        ]
        return GenerateResult(texts, np.array(tokens, np.int64), np.array(finished, bool))


def _key_bits(key: jax.Array) -> Ids:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def _generate_name(task: GenerateTask) -> tuple[int, Ids, tuple[str, ...]]:
    """What the texts of a task depend on."""
    return id(task.weights), _key_bits(task.key), tuple(task.prompts)


def _fit_name(task: FitTask, settings: ChainFit) -> str:
    """What a fit from the base depends on; a fit that starts from weights shares its name with no
    other.
    """
    if task.start is not None:
        return f"own {id(task)}"
    content = hashlib.sha256("\0".join(task.texts).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_key_bits(task.key)} {content} {settings}"
