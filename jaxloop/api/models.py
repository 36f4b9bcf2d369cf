"""Load a language model, train adapters of it, generate with them, and score texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxloop.config import FitConfig, LoraConfig, SampleConfig, Section
from jaxloop.config.messages import suggestion
from jaxloop.core.keys import chain_key, fold_in
from jaxloop.lm import family
from jaxloop.lm.family import LossResult, LossTask
from jaxloop.lm.generation.prompt import render
from jaxloop.lm.io import huggingface, peft_files
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.lora import Adapter
from jaxloop.recursion.family import FitTask, GenerateTask
from jaxloop.studies.common.models import model_path

S = TypeVar("S", bound=Section)

__all__ = [
    "Adapter",
    "FitConfig",
    "LoraConfig",
    "LossResult",
    "Model",
    "SampleConfig",
    "finetune",
    "finetune_many",
    "generate",
    "load",
    "load_adapter",
    "merge",
    "save",
    "save_adapter",
    "score",
]


def load(path_or_id: str, *, revision: str | None = None, dtype: str = "float32") -> Model:
    """Load a model and its tokenizer.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> model.config.architecture
        'gpt2'

    Args:
        path_or_id: a directory in Hugging Face format, the id of a repository on the hub, or one of
            the models in the box, such as "jaxloop/assets/bases/llama".
        revision: branch, tag or commit on the hub.
        dtype: of the weights, "float32" or "bfloat16".

    Raises:
        ValueError: there is no such model, or one of another architecture; weights are read from
            safetensors only.
    """
    return family.load(model_path(path_or_id), revision=revision, dtype=dtype)


def finetune(
    model: Model,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
    **changes: Any,
) -> Adapter | Model:
    """Train the model on texts.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> texts = ["Returns the sorted values.", "Raises an error for a missing key."] * 8
        >>> adapter = jaxloop.finetune(model, texts, learning_rate=2e-3, epochs=2)
        >>> adapter.config.rank
        16

    Args:
        model: what `load` returned.
        texts: [n] what it learns to write, each after its prompt and before an end of text.
        prompts: [n] what each text answers, as the model reads it; none: nothing. The loss counts
            the texts alone unless `completion_only` is false.
        adapter: an adapter to go on from.
        config: the settings; none: `FitConfig()`. A `dtype` that nobody names is that of the model.
        seed: of the batches' order and of a fresh adapter.
        changes: fields of the config, such as `learning_rate` or `lora=LoraConfig(rank=8)`.

    Returns:
        An adapter; with mode="full" or "scratch" a model.

    Raises:
        ValueError: no texts, texts that are not strings, prompts of another number, an unknown or
            wrong field, or an adapter of another model.
    """
    starts = None if adapter is None else [adapter]
    datasets = [texts]
    answered = None if prompts is None else [prompts]
    return _finetune(model, datasets, answered, starts, config, seed, changes, field="texts")[0]


def finetune_many(
    model: Model,
    datasets: Sequence[Sequence[str]],
    *,
    prompts: Sequence[Sequence[str]] | None = None,
    adapters: Sequence[Adapter] | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
    **changes: Any,
) -> list[Adapter] | list[Model]:
    """Train the model on each of several data sets, many adapters in one compiled program.

    The first result is that of `finetune` on the first data set.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> datasets = [["A list of numbers."] * 16, ["The name of a file."] * 16]
        >>> len(jaxloop.finetune_many(model, datasets, epochs=2))
        2

    Args:
        model: as of `finetune`, and so are `config`, `seed` and `changes`.
        datasets: lists of texts; they may differ in length.
        prompts: a list of prompts for each list of texts.
        adapters: one adapter per data set to go on from.

    Raises:
        ValueError: as `finetune`; the message says which data set it is about.
    """
    return _finetune(model, datasets, prompts, adapters, config, seed, changes, field="datasets")


def _finetune(
    model: Model,
    datasets: Sequence[Sequence[str]],
    prompts: Sequence[Sequence[str]] | None,
    starts: Sequence[Adapter] | None,
    config: FitConfig | None,
    seed: int,
    changes: dict[str, Any],
    *,
    field: str,
) -> list[Any]:
    settings = _changed(FitConfig() if config is None else config, changes)
    named = {*changes, *(() if config is None else config.model_fields_set)}
    if settings.mode == "lora" and "dtype" not in named:
        settings = settings.replace(dtype=_dtype(model))
    for name, given in (("prompts", prompts), ("adapters", starts)):
        if given is not None and len(given) != len(datasets):
            raise ValueError(f"{name}: there are {len(given)} for {len(datasets)} data sets")
    key = chain_key(seed)
    tasks = []
    for i, texts in enumerate(datasets):
        name = field if field == "texts" else f"{field}[{i}]"
        texts = check_texts(texts, name)
        if not texts:
            raise ValueError(f"{name}: is empty; at least one text is needed")
        answered = _check_prompts(
            None if prompts is None else prompts[i], texts, name.replace(field, "prompts"), name
        )
        start = None if starts is None else _checked_adapter(model, starts[i])
        tasks.append(FitTask(fold_in(key, i), texts, answered, None, start))
    results = family.fit(model, tasks, settings)
    for i, result in enumerate(results):
        if not result.finite:
            raise ValueError(
                f"learning_rate={settings.learning_rate}: the loss of data set {i} is not finite; "
                "lower it"
            )
    if settings.mode == "lora":
        return [result.weights for result in results]
    return [model._replace(params=jax.device_put(result.weights)) for result in results]


def generate(
    model: Model,
    prompts: Sequence[str] | int,
    *,
    adapter: Adapter | None = None,
    config: SampleConfig | None = None,
    seed: int = 0,
    **changes: Any,
) -> list[str]:
    """Generate one text for each prompt.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> texts = jaxloop.generate(model, ["Returns", "Raises"], max_new_tokens=8)
        >>> len(texts)
        2

    Args:
        model: what `load` returned.
        prompts: [n] what the texts continue, as the model reads it; or the number of texts that
            continue nothing.
        adapter: none: the model itself.
        config: the settings; none: `SampleConfig()`.
        seed: of the draws. Text i depends on the seed, i and its prompt alone.
        changes: fields of the config: `max_new_tokens`, `temperature`, `min_p`, `top_p`, …

    Returns:
        [n] texts without their prompts.

    Raises:
        ValueError: prompts that are not strings, prompts too long for the model's context, an
            unknown or wrong field, or an adapter of another model.
    """
    settings = _changed(SampleConfig() if config is None else config, changes)
    if isinstance(prompts, int | np.integer):
        if isinstance(prompts, bool) or prompts < 0:
            raise ValueError(f"prompts={prompts}: must be texts, or a number of at least 0")
        prompts = [""] * int(prompts)
    asked = check_texts(prompts, "prompts")
    task = GenerateTask(
        chain_key(seed), _checked_adapter(model, adapter), asked, np.arange(len(asked))
    )
    if not asked:
        return []
    options = family.GenerateOptions(dtype=_dtype(model))
    (result,) = family.generate(model, [task], settings, options)
    return result.texts


def score(
    model: Model,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    max_length: int = 256,
) -> LossResult:
    """Return the loss of each text and of each of its tokens.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> scores = jaxloop.score(model, ["Returns the sorted values."])
        >>> scores.nll.shape, scores.tokens.shape, len(scores.token_nll)
        ((1,), (1,), 1)

    Args:
        model: what `load` returned.
        texts: [n].
        prompts: [n] what stands before them, which is not scored; none: nothing.
        adapter: none: the model itself.
        max_length: tokens that are scored of a text with its prompt; longer ones are cut.

    Returns:
        `nll` [n] and `token_nll`, n arrays, -log p in nats; `tokens` [n], how many were scored, the
        end of the text included.

    Raises:
        ValueError: texts that are not strings, prompts of another number, or an adapter of another
            model.
    """
    texts = check_texts(texts, "texts")
    limit = min(max_length, model.config.max_seq_len)
    settings = _changed(FitConfig(), {"max_length": limit})
    if adapter is not None:
        settings = settings.replace(dtype=_dtype(model))
    answered = _check_prompts(prompts, texts, "prompts", "texts")
    task = LossTask(_checked_adapter(model, adapter), texts, answered)
    return family.loss(model, [task], settings)[0]


def merge(model: Model, adapter: Adapter) -> Model:
    """Return the model with the adapter added to its weights.

    Examples:
        >>> import jaxloop
        >>> model = jaxloop.load("jaxloop/assets/bases/gpt2")
        >>> adapter = jaxloop.finetune(model, ["A list of numbers."] * 16, epochs=2)
        >>> merged = jaxloop.merge(model, adapter)

    Raises:
        ValueError: the adapter is of another model.
    """
    lora.check_fits(model.config, adapter, model=model.name)
    return model._replace(params=lora.merge(model.config, model.params, adapter))


def save(model: Model, path: str | Path) -> None:
    """Write a model as a directory that `transformers` loads.

    Raises:
        ValueError: the directory holds something already.
    """
    huggingface.save(model, _empty(path))


def save_adapter(model: Model, adapter: Adapter, path: str | Path) -> None:
    """Write an adapter as a directory that `peft.PeftModel.from_pretrained` loads.

    Raises:
        ValueError: the directory holds something already, or the adapter is of another model.
    """
    lora.check_fits(model.config, adapter, model=model.name)
    peft_files.save_peft(
        _empty(path), model.config, adapter, base=model.name, revision=model.revision
    )


def load_adapter(model: Model, path: str | Path) -> Adapter:
    """Read an adapter that peft or `save_adapter` wrote.

    Raises:
        ValueError: it is pickled, of another model, or computes something that is not supported.
    """
    return peft_files.load_peft(path, model.config)


def instruction(text: str) -> str:
    """Return the prompt that studies make of an instruction.

    Examples:
        >>> import jaxloop
        >>> jaxloop.instruction("Write a paragraph.")
        '### User:\\nWrite a paragraph.\\n### Assistant:\\n'
    """
    return render(text)


def check_texts(texts: Sequence[str], name: str) -> list[str]:
    """Return texts as a list.

    Raises:
        ValueError: they are one string, or hold something that is no string.
    """
    if isinstance(texts, str):
        raise ValueError(f"{name}: is one string; a list of strings is needed")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}]: is of type {type(text).__name__}, must be a string")
    return list(texts)


def _check_prompts(
    prompts: Sequence[str] | None, texts: Sequence[str], field: str, name: str
) -> list[str]:
    if prompts is None:
        return [""] * len(texts)
    prompts = check_texts(prompts, field)
    if len(prompts) != len(texts):
        raise ValueError(f"{field}: there are {len(prompts)} prompts for {len(texts)} of {name}")
    return prompts


def _checked_adapter(model: Model, adapter: Adapter | None) -> Adapter | None:
    if adapter is None:
        return None
    if not isinstance(adapter, Adapter):
        raise ValueError(
            f"adapter: is of type {type(adapter).__name__}; must be what `finetune` or "
            "`load_adapter` returned"
        )
    lora.check_fits(model.config, adapter, model=model.name)
    return adapter


def _dtype(model: Model) -> str:
    return str(jax.tree.leaves(model.params)[0].dtype)


def _changed(section: S, changes: Mapping[str, Any]) -> S:
    """Settings with other values of some fields."""
    for name in changes:
        if name not in type(section).model_fields:
            raise ValueError(
                f"{name}: is no argument and no field of {type(section).__name__}; "
                f"{suggestion(name, type(section).model_fields)}"
            )
    return section.replace(**changes)


def _empty(path: str | Path) -> Path:
    """The path of a directory to write, refused where it holds something."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"path={path}: exists and is not an empty directory; choose another")
    return path
