"""What a multi-entity study stands on, read and checked before anything is compiled or written:
corpora, models, chains, the driver's settings.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxloop.studies.chain import prepare as chain_setup
from jaxloop.studies.common import run as running

if TYPE_CHECKING:
    from jaxloop.studies.multi_entity.run import Settings

PUBLIC = "public"
# Requests of a decoding program: every one has a prompt of its own, whose cache is held.
REQUESTS = 512


class Prepared(NamedTuple):
    """Everything that can be refused, read and checked; nothing compiled or written.

    chains: alpha by beta by seed; data: name -> recursion Dataset, the entities' and `public`;
    tests: name -> (texts, prompts) on which losses are measured; found: lines about the data;
    models: name -> (spec, tokenizer); settings_of: chain id -> (alpha, beta) as `exchange` takes
    them; mixing [K][K].
    """

    chains: list
    data: dict
    tests: dict[str, tuple[list[str], list[str]]]
    found: list[tuple[str, str]]
    models: dict[str, tuple]
    driver: Any
    settings_of: dict[str, tuple]
    mixing: tuple

    @property
    def private(self) -> list[str]:
        """Names of the private corpora that have data, in the order of the entities."""
        return [name for name in self.data if name != PUBLIC]


def prepare(settings: "Settings") -> Prepared:
    """Reads the data and the models' descriptions. Raises ValueError, one sentence, for anything
    with which a run could not succeed.
    """
    from jaxloop.metrics import registry
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import select_devices

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
    mixing = mixing_of(settings)
    weights = weights_of(settings)
    reads_public = _check_reads(settings, weights, mixing)
    select_devices(settings.run.platform, settings.run.devices)
    if settings.measure.probes and len(settings.entities) > 1:
        from jaxloop.metrics.embed import load_embedder

        load_embedder(settings.measure.embedder)
    models = {name: _describe(settings, name) for name in settings.models.pool}
    data, tests, found = _read(settings, models, reads_public)
    chains, settings_of = make_chains(settings, data, weights, mixing)
    fit, sample = chain_setup.family_settings(settings)
    sample = dataclasses.replace(
        sample, texts_per_call=min(REQUESTS, sample.texts_per_call or REQUESTS)
    )
    common = driver.Settings(
        settings.exchange.generations,
        fit,
        sample,
        evaluate=0,
        keep=settings.run.keep,
        study=settings.study,
        members_per_call=settings.together,
        measure_beside=running.measures_beside(settings.run),
        free=("fit.chains_at_once", "sample.texts_per_call"),
    )
    driver.check(chains, data, common)
    return Prepared(chains, data, tests, found, models, common, settings_of, mixing)


def mixing_of(settings: "Settings") -> tuple:
    """The mixing matrix [K][K]. Raises ValueError for a name that is none, a wrong shape, or a row
    that does not sum to one.
    """
    from jaxloop.core import mixing

    chosen, k = settings.exchange.mixing, len(settings.entities)
    try:
        matrix = (
            mixing.named(chosen, k) if isinstance(chosen, str) else mixing.check_mixing(chosen, k)
        )
    except ValueError as error:
        raise ValueError(f"config.exchange.{error}") from None
    return tuple(tuple(row) for row in matrix.tolist())


def weights_of(settings: "Settings") -> list[tuple]:
    """(alpha, beta) of every setting, in order."""
    e = settings.exchange
    if e.weights:
        return [(w[2], w[0] / (w[0] + w[1]) if w[0] + w[1] else 0.0) for w in e.weights]
    return [(alpha, beta) for alpha in e.alphas for beta in e.betas]


def _has_data(settings: "Settings", name: str) -> bool:
    from jaxloop.studies.multi_entity.run import NO_DATA

    return settings.task(name).task != NO_DATA


def _flow(settings: "Settings", alpha, beta, private: Sequence[int], public: int, mixing):
    from jaxloop.recursion.workflow import exchange

    e = settings.exchange
    try:
        return exchange(
            e.size,
            alpha=alpha,
            beta=beta,
            initial_beta=e.initial_beta,
            private=private,
            public=public,
            synthetic=e.synthetic,
            past=e.past,
            mixing=mixing,
            start=e.start,
        )
    except ValueError as error:
        raise ValueError(f"config.exchange: {error}") from None


def _check_reads(settings: "Settings", weights: Sequence[tuple], mixing) -> bool:
    """Refuses an entity without private data that is to read some; whether anybody ever reads the
    public corpus.
    """
    from jaxloop.recursion.workflow import exchange_weights

    public = False
    for alpha, beta in weights:
        sets = _flow(settings, alpha, beta, [1] * len(settings.entities), 1, mixing).exchange
        _, real = exchange_weights(sets, len(settings.entities))
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


def _describe(settings: "Settings", name: str) -> tuple:
    """(spec, tokenizer) of a model, its weights unread."""
    from jaxloop.lm.io import huggingface

    revision = dict(zip(settings.models.pool, settings.models.revisions, strict=False)).get(name)
    path = huggingface.locate(chain_setup.model_path(name), revision)
    spec, tokenizer = huggingface.describe(path)
    s = settings.sample
    for field, tokens, what in (
        (
            "sample.max_new_tokens",
            s.max_prompt + s.max_new_tokens,
            f"a prompt of {s.max_prompt} and a text of {s.max_new_tokens}",
        ),
        ("fit.max_length", settings.fit.max_length, f"training texts of {settings.fit.max_length}"),
    ):
        if tokens > spec.context:
            raise ValueError(
                f"config.{field}: {what} tokens do not fit the context of {name}, which is "
                f"{spec.context} tokens"
            )
    return spec, tokenizer


def _read(settings: "Settings", models, reads_public: bool) -> tuple:
    """(data, tests, lines about them) of all corpora."""
    from jaxloop.data import qa_tasks as tasks
    from jaxloop.data.delimited import Dialect, in_section
    from jaxloop.recursion import ledger
    from jaxloop.recursion.sources import Dataset

    tokenizers = {id(t.backend): t for _, t in models.values()}.values()
    data, tests, found = {}, {}, []
    names = [name for name in settings.entities if _has_data(settings, name)]
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
            train, test = tasks.load(
                t.task,
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
                count_tokens=lambda texts: [
                    max(counts)
                    for counts in zip(*(tok.count(texts) for tok in tokenizers), strict=True)
                ],
                # A beginning-of-text token is not in the count.
                max_prompt_tokens=min(settings.sample.max_prompt, settings.fit.max_length) - 2,
            )
        except ValueError as error:
            section = "public" if name == PUBLIC else f"tasks.{name}"
            said = in_section(str(error), section)
            raise ValueError(
                said if said.startswith("config.") else f"config.{section}: {said}"
            ) from None
        texts, prompts = list(train["text"]), list(train["prompt"])
        data[name] = Dataset(texts, prompts, fingerprint=ledger.fingerprint(texts, prompts))
        tests[name] = (list(test["text"]), list(test["prompt"]))
        report = ", ".join(
            f"{reason}: {number:,}"
            for reason, number in train.attrs["report"].items()
            if reason != "kept"
        )
        found.append(
            (
                name,
                f"{len(texts):,} training rows, {len(test):,} test rows ({report}), fingerprint "
                f"{data[name].fingerprint[:12]}",
            )
        )
    return data, tests, found


def label(weight) -> float | str:
    """A weight as a factor of tables: a number, or text where it changes."""
    return float(weight) if isinstance(weight, int | float) else json.dumps(weight)


def make_chains(settings: "Settings", data, weights: Sequence[tuple], mixing) -> tuple[list, dict]:
    """One ChainSpec per setting and seed, and each one's alpha and beta."""
    from jaxloop.recursion.chains import ChainSpec, chain_id

    public = len(data[PUBLIC].texts) if PUBLIC in data else 0
    private = [len(data[name].texts) if name in data else 0 for name in settings.entities]
    n = settings.measure.probes
    probes = (
        tuple((name, min(n, len(d.texts))) for name, d in data.items())
        if n and len(settings.entities) > 1
        else ()
    )
    chains, settings_of = [], {}
    for alpha, beta in weights:
        flow = _flow(settings, alpha, beta, private, public, mixing)
        for seed in settings.exchange.seeds:
            factors = {"alpha": label(alpha), "beta": label(beta), "seed": seed}
            chain = ChainSpec(
                id=chain_id(factors),
                workflow=flow,
                dataset=tuple(name if name in data else PUBLIC for name in settings.entities),
                seed=seed,
                bases=settings.models.pool,
                draw_base=False,
                factors=tuple(sorted(factors.items())),
                public=PUBLIC if PUBLIC in data else None,
                probes=probes,
            )
            chains.append(chain)
            settings_of[chain.id] = (alpha, beta)
    return chains, settings_of


def line(settings: "Settings", prepared: Prepared) -> str:
    """The study in one line."""
    e, k = settings.exchange, len(settings.entities)
    mixing = e.mixing if isinstance(e.mixing, str) else "given"
    count = len(prepared.chains)
    return (
        f"{count} chains of {k} entit{'ies' if k > 1 else 'y'}: {count // len(e.seeds)} settings "
        f"of alpha and beta, mixing {mixing}, "
        f"{len(e.seeds)} seed{'s' if len(e.seeds) > 1 else ''}, {e.generations} generations"
    )


def weights_bytes(settings: "Settings", spec) -> int:
    """Bytes of one model's own weights on the disk."""
    from jaxloop.lm.model.config import count_parameters

    return 4 * (
        count_parameters(spec)
        if settings.fit.mode == "full"
        else chain_setup.sizes(settings.fit, spec).adapter
    )


def disk(settings: "Settings", prepared: Prepared) -> int:
    """Bytes that the run leaves at most."""
    from jaxloop.recursion import driver

    return driver.disk_needed(
        prepared.chains,
        prepared.driver,
        max(weights_bytes(settings, spec) for spec, _ in prepared.models.values()),
        text_bytes=800,
    )


# ---- the family
# -------------------------------------------------------------------------------------------------------


def family(settings: "Settings") -> SimpleNamespace:
    """The language-model family; tasks that are equal in everything are done once.

    Settings of one seed share generation 0, and where alpha is 1 beta changes nothing: a third of
    the paper's grid is the same arithmetic.
    """
    from jaxloop.lm import family as lm

    return SimpleNamespace(
        load=lambda name: chain_setup.load_model(settings, name),
        FitTask=lm.FitTask,
        SampleTask=lm.SampleTask,
        fit=lambda model, tasks, given: once(lambda some: lm.fit(model, some, given), tasks),
        sample=lambda model, tasks, given: once(lambda some: lm.sample(model, some, given), tasks),
    )


def once(work: Callable, tasks: Sequence) -> list:
    """`work(tasks)`, a result per task, with equal tasks handed over once."""
    prints = [fingerprint(task) for task in tasks]
    place = {mark: i for i, mark in enumerate(dict.fromkeys(prints))}
    first = {mark: task for mark, task in zip(reversed(prints), reversed(tasks), strict=True)}
    results = work([first[mark] for mark in place]) if tasks else []
    return [results[place[mark]] for mark in prints]


def fingerprint(thing: Any) -> bytes:
    """Checksum of a task: nested tuples, lists and dicts of arrays, keys, texts and numbers."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, thing)
    return digest.digest()


def _feed(digest, thing) -> None:
    import jax
    import numpy as np

    if isinstance(thing, dict):
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
