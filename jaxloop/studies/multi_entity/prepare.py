"""Reads and checks what a multi-entity study needs, before anything is compiled or written.

That is the corpora, the models, the chains and the driver's settings.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxloop.data import qa_tasks
from jaxloop.data.dialect import Dialect, in_section
from jaxloop.lm.model.config import ModelConfig, count_parameters
from jaxloop.metrics import registry
from jaxloop.metrics.embed import check_embedder
from jaxloop.recursion import driver, ledger
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.driver import RunSettings
from jaxloop.recursion.family import FamilyFunctions
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import Exchange, exchange_weights
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.studies.common import calls
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as running
from jaxloop.studies.common.disk import text_bytes
from jaxloop.studies.multi_entity.chains import (
    PUBLIC,
    Mixing,
    Weight,
    controls,
    exchanges,
    label,
    make_chains,
    mixing_label,
    mixing_of,
    weights_of,
    workflow_of,
)
from jaxloop.studies.multi_entity.config import NO_DATA, EntitiesConfig

# Requests of a decoding program: every one has a prompt of its own, whose cache is held.
REQUESTS = 512


class Prepared(NamedTuple):
    """Everything that a run needs, read and checked; nothing is compiled or written.

    Attributes:
        chains: one for each alpha, beta and seed, then their controls (`is_control`).
        data: {name: training data} of the entities' corpora and of `public`.
        tests: {name: (texts, prompts)} on which losses are measured.
        data_lines: (name, line) descriptions of the data.
        models: {name: (model_config, tokenizer)}.
        driver: what `recursion.driver.run` is given.
        settings_of: {chain id: (alpha, beta)}, as `config.exchange` has them.
        mixing: the mixing matrix [K][K].
    """

    chains: list[ChainSpec]
    data: dict[str, Dataset]
    tests: dict[str, tuple[list[str], list[str]]]
    data_lines: list[tuple[str, str]]
    models: dict[str, tuple]
    driver: RunSettings
    settings_of: dict[str, tuple[Weight, Weight]]
    mixing: Mixing

    @property
    def private(self) -> list[str]:
        """Names of the private corpora that have data, in the order of the entities."""
        return [name for name in self.data if name != PUBLIC]


def prepare(settings: EntitiesConfig) -> Prepared:
    """Read the data and the models' descriptions. Raises ValueError if the run cannot succeed."""
    problems: list[ValueError] = []
    with noted(problems):
        _check_metrics(settings)
    mixing: Mixing = ()
    weights = weights_of(settings)
    reads_public = False
    with noted(problems):
        mixing = mixing_of(settings)
        reads_public = _check_reads(settings, weights, mixing)
    models: dict[str, tuple] = {}
    with noted(problems):
        select_devices(settings.run.platform, settings.run.devices)
    for name in settings.models.pool:
        with noted(problems), named("config.models.pool"):
            models[name] = _describe(settings, name)
    with noted(problems), named("config.measure.metrics"):
        registry.check(settings.measure.metrics)
    if settings.measure.probes and len(settings.entities) > 1:
        with noted(problems), named("config.measure.embedder"):
            check_embedder(settings.measure.embedder)
    # What is wrong with the data is said beside what is wrong with models.
    with noted(problems):
        data, tests, data_lines = _read(settings, models, reads_public)
    raise_all(problems)
    chains, settings_of = make_chains(settings, data, weights, mixing)
    texts_per_call = min(REQUESTS, settings.sample.texts_per_call or REQUESTS)
    common = driver.RunSettings(
        settings.exchange.generations,
        settings.fit,
        settings.sample.replace(texts_per_call=texts_per_call),
        evaluate=0,
        keep=settings.run.keep,
        study=settings.study,
        members_per_group=settings.together or settings.run.chains_per_call,
        seconds_per_call=calls.SECONDS,
        first_members=min(
            calls.chains_in_time(model_config, work_of_a_model(settings), settings.fit)
            for model_config, _ in models.values()
        ),
        overlap_eval=running.overlaps_eval(settings.run),
        resumable_fields=("sample.texts_per_call",),
    )
    driver.check(chains, data, common)
    return Prepared(chains, data, tests, data_lines, models, common, settings_of, mixing)


def _check_metrics(settings: EntitiesConfig) -> None:
    """Raise ValueError for metrics that need what this study does not give."""
    for name, (metric, _) in zip(
        settings.measure.metrics, registry.validate(settings.measure.metrics), strict=True
    ):
        if metric.needs == ("entity_embeddings",):
            if not settings.measure.probes or len(settings.entities) < 2:
                which = (
                    "config.measure.probes = 0"
                    if not settings.measure.probes
                    else "config.entities has 1 entry"
                )
                raise ValueError(
                    f"{which}: metric '{name}' needs at least two entities that complete the "
                    "same prompts"
                )
        elif metric.needs != ("texts",):
            raise ValueError(
                f"config.measure.metrics has '{name}', which needs {', '.join(metric.needs)}: "
                "this study gives texts only"
            )


def _has_data(settings: EntitiesConfig, name: str) -> bool:

    return settings.task(name).task != NO_DATA


def _check_reads(
    settings: EntitiesConfig, weights: Sequence[tuple[Weight, Weight]], mixing: Mixing
) -> bool:
    """Return whether any entity ever reads the public corpus.

    Raises ValueError for an entity that is to read private data and has none.
    """
    public = False
    for alpha, beta in weights:
        sets = workflow_of(settings, alpha, beta, [1] * len(settings.entities), 1, mixing).exchange
        # `_flow` makes workflows of exchange only.
        _, real = exchange_weights(cast(Exchange, sets), len(settings.entities))
        public |= bool(real[:, :, 1].any())
        for k, name in enumerate(settings.entities):
            if real[:, k, 0].any() and not _has_data(settings, name):
                generation = int(real[:, k, 0].nonzero()[0][0])
                what = (
                    f"beta = {label(beta)}"
                    if generation
                    else f"initial_beta = {label(settings.exchange.initial_beta)}"
                )
                raise ValueError(
                    f"config.tasks.{name}.task = 'none': entity {name} has no private data, so "
                    f"its beta must be 0 throughout, but {what}"
                )
        for name, length in (("alphas", alpha), ("betas", beta)):
            if isinstance(length, tuple) and len(length) not in (1, settings.exchange.generations):
                raise ValueError(
                    f"config.exchange.{name} has a list of {len(length)} generations: must be "
                    f"one number, or {settings.exchange.generations} of them"
                )
    return public


def work_of_a_model(settings: EntitiesConfig) -> calls.Work:
    """Return what a model does in a generation."""
    e, fit, sample = settings.exchange, settings.fit, settings.sample
    # It completes probes of every private corpus and of the public one.
    texts = e.synthetic + (len(settings.entities) + 1) * settings.measure.probes
    return calls.Work(
        read=calls.trained_tokens(fit, e.size),
        length=fit.max_length,
        written=texts * sample.max_new_tokens,
        context=sample.max_prompt + sample.max_new_tokens / 2,
        frozen=fit.mode == "lora",
    )


def _describe(settings: EntitiesConfig, name: str) -> tuple:
    """(model_config, tokenizer) of a model, its weights unread."""
    model_config, tokenizer = base_models.describe(settings.models, name)
    s = settings.sample
    for field, tokens, what in (
        (
            "sample.max_new_tokens",
            s.max_prompt + s.max_new_tokens,
            f"a prompt of {s.max_prompt} and a text of {s.max_new_tokens}",
        ),
        ("fit.max_length", settings.fit.max_length, f"training texts of {settings.fit.max_length}"),
    ):
        if tokens > model_config.max_seq_len:
            raise ValueError(
                f"config.{field}: {what} tokens do not fit the context of {name}, which is "
                f"{model_config.max_seq_len} tokens"
            )
    return model_config, tokenizer


def _read(
    settings: EntitiesConfig, models: Mapping[str, tuple], reads_public: bool
) -> tuple[dict[str, Dataset], dict[str, tuple[list[str], list[str]]], list[tuple[str, str]]]:
    """(data, tests, lines about them) of all corpora."""
    tokenizers = list({id(t.backend): t for _, t in models.values()}.values())

    def count(texts: list[str]) -> Sequence[int]:
        if not tokenizers:
            return base_models.one_token(texts)
        counts = (tokenizer.count(texts) for tokenizer in tokenizers)
        return [max(of_text) for of_text in zip(*counts, strict=True)]

    data: dict[str, Dataset] = {}
    tests: dict[str, tuple[list[str], list[str]]] = {}
    lines: list[tuple[str, str]] = []
    names = [name for name in settings.entities if _has_data(settings, name)]
    problems: list[ValueError] = []
    for name in [*names, PUBLIC]:
        t = settings.public if name == PUBLIC else settings.task(name)
        if t.task == "none":
            if reads_public:
                raise ValueError(
                    "config.public.task = 'none': the public corpus has weight 1 - beta, so "
                    "every beta must be 1 where alpha is below 1"
                )
            continue
        try:
            train, test = qa_tasks.load(
                # `settings.task` gives every section of an entity its task's name.
                str(t.task),
                source=t.source,
                dialect=Dialect(t.delimiter, t.csv_options),
                name=t.name,
                revision=t.revision,
                test_source=t.test_source,
                splits=(t.train_split, t.test_split),
                prompt=t.prompt,
                text=t.text,
                prompt_words=t.prompt_words,
                join_words=t.join_words,
                held_out=settings.measure.test_texts,
                limit=t.limit,
                count_tokens=count,
                # A beginning-of-text token is not in the count.
                max_prompt_tokens=min(settings.sample.max_prompt, settings.fit.max_length) - 2,
            )
        except ValueError as error:
            section = "public" if name == PUBLIC else f"tasks.{name}"
            message = in_section(str(error), section)
            named_field = message.startswith("config.")
            problems.append(ValueError(message if named_field else f"config.{section}: {message}"))
            continue
        texts, prompts = list(train["text"]), list(train["prompt"])
        tests[name] = (list(test["text"]), list(test["prompt"]))
        data[name] = Dataset(
            texts,
            prompts,
            fingerprint=ledger.fingerprint(texts, prompts),
            held_out=ledger.fingerprint(*tests[name]),
        )
        report = ", ".join(
            f"{reason}: {number:,}"
            for reason, number in train.attrs["report"].items()
            if reason != "kept"
        )
        lines.append(
            (
                name,
                f"{len(texts):,} training rows, {len(test):,} test rows ({report}), fingerprint "
                f"{data[name].fingerprint[:12]}",
            )
        )
    raise_all(problems)
    return data, tests, lines


def line(settings: EntitiesConfig, prepared: Prepared) -> str:
    """Return the study in one line."""
    e, k = settings.exchange, len(settings.entities)
    count, beside = len(exchanges(prepared.chains)), len(controls(prepared.chains))
    control = f" and {beside // len(e.seeds)} controls that read their own text" if beside else ""
    return (
        f"{count + beside} chains of {k} entit{'ies' if k > 1 else 'y'}: "
        f"{count // len(e.seeds)} settings of alpha and beta, mixing {mixing_label(settings)}"
        f"{control}, "
        f"{len(e.seeds)} seed{'s' if len(e.seeds) > 1 else ''}, {e.generations} generations"
    )


def weights_bytes(settings: EntitiesConfig, model_config: ModelConfig) -> int:
    """Return the bytes of one model's own weights on disk."""
    return 4 * (
        count_parameters(model_config)
        if settings.fit.mode == "full"
        else base_models.sizes(settings.fit, model_config).adapter
    )


def disk(settings: EntitiesConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that the run leaves on the disk."""
    sample = settings.sample
    return driver.disk_needed(
        prepared.chains,
        prepared.driver,
        max(weights_bytes(settings, model_config) for model_config, _ in prepared.models.values()),
        text_bytes=text_bytes(sample.max_prompt + sample.max_new_tokens),
    )


# ---- the family


def family(settings: EntitiesConfig) -> FamilyFunctions:
    """Return the language-model family. Tasks that are equal in everything are done once.

    Settings of one seed share generation 0, and where alpha is 1 beta changes nothing: a third of
    the paper's grid is the same arithmetic.
    """
    models = base_models.family(settings.models, settings.fit, settings.run)
    options = dataclasses.replace(models.generate_options, prompt_len=settings.sample.max_prompt)
    models = dataclasses.replace(models, generate_options=options)

    def fit(model, tasks, config):
        return once(lambda distinct: models.fit(model, distinct, config), tasks)

    def generate(model, tasks, config):
        return once(lambda distinct: models.generate(model, distinct, config), tasks)

    return FamilyFunctions(load=models.load, fit=fit, generate=generate)


def once(work: Callable, tasks: Sequence) -> list:
    """Return the result of `work` for each task, with equal tasks handed over once."""
    prints = [fingerprint(task) for task in tasks]
    place = {mark: i for i, mark in enumerate(dict.fromkeys(prints))}
    first = {mark: task for mark, task in zip(reversed(prints), reversed(tasks), strict=True)}
    results = work([first[mark] for mark in place]) if tasks else []
    return [results[place[mark]] for mark in prints]


def fingerprint(thing: Any) -> bytes:
    """Return a checksum of a task: nested tuples, lists, dicts of arrays, keys, texts, numbers."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, thing)
    return digest.digest()


def _feed(digest: "hashlib.blake2b", thing: Any) -> None:
    if isinstance(thing, Mapping):
        thing = [item for name in sorted(thing) for item in (name, thing[name])]
    if isinstance(thing, list | tuple):
        digest.update(f"[{len(thing)}".encode())
        for item in thing:
            _feed(digest, item)
    elif isinstance(thing, str):
        data = thing.encode("utf-8", "surrogatepass")
        digest.update(f"s{len(data)}:".encode() + data)
    elif hasattr(thing, "dtype"):
        array = np.ascontiguousarray(
            jax.random.key_data(thing)
            if jax.dtypes.issubdtype(thing.dtype, jax.dtypes.prng_key)
            else thing
        )
        digest.update(f"a{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    else:
        digest.update(f"o{thing!r}".encode())
