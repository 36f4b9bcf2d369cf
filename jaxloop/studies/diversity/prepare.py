"""Reads and checks what a diversity study needs, before anything is compiled or written.

That is the data, the models, the cells (models to train) and the driver's settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.lm import family as lm
from jaxloop.lm.generation.prompt import render
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import ModelConfig
from jaxloop.metrics.embed import check_embedder
from jaxloop.recursion import driver
from jaxloop.recursion.chains import make_chain
from jaxloop.recursion.driver import RunSettings
from jaxloop.recursion.family import FamilyFunctions
from jaxloop.recursion.ledger import fingerprint
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import replace
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.studies.common import calls
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as running
from jaxloop.studies.diversity import topics, writers
from jaxloop.studies.diversity.cells import Cell, all_cells, chain_name, needed, pool_name
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.records import Tables, read


class Prepared(NamedTuple):
    """Everything that a run needs, read and checked; nothing is compiled or written.

    models: name -> (model_config, tokenizer).
    """

    tables: Mapping[str, Tables]
    cells: list[Cell]
    models: dict[str, tuple]
    driver: RunSettings


def prepare(settings: DiversityConfig) -> Prepared:
    """Read the data and the models' descriptions. Raises ValueError if the run cannot succeed."""
    problems: list[ValueError] = []
    models: dict[str, tuple] = {}
    with noted(problems):
        select_devices(settings.run.platform, settings.run.devices)
    for name in settings.models.pool:
        with noted(problems), named("config.models.pool"):
            models[name] = describe(settings, name)
    with noted(problems):
        _check_writers(settings)
    with noted(problems), named("config.distances.embedder"):
        check_embedder(settings.distances.embedder)
    for name, (model_config, _) in models.items():
        with noted(problems):
            _check_model(settings, name, model_config)
    # Texts are counted as the first model does; what is wrong with the data is said without it too.
    first = models.get(settings.models.pool[0])
    count = base_models.one_token if first is None else first[1].count
    cells = all_cells(settings)
    tables: dict[str, Tables] = {}
    for task in settings.tasks:
        with noted(problems):
            tables[task] = read(settings, task, count)
            _check_enough(settings, task, tables[task], cells)
            _check_length(settings, task, tables[task], models)
    with noted(problems):
        _check_openings(settings, tables)
    raise_all(problems)
    common = driver.RunSettings(
        1,
        settings.fit,
        writers.writer_sampling(settings),
        evaluate=0,
        keep=None,
        study="diversity",
        members_per_group=settings.together or settings.run.chains_per_call,
        seconds_per_call=calls.SECONDS,
        first_members={
            name: calls.chains_in_time(
                model_config, largest_work(settings, cells, name), settings.fit
            )
            for name, (model_config, _) in models.items()
        },
        overlap_eval=running.overlaps_eval(settings.run),
    )
    return Prepared(tables, cells, models, common)


def largest_work(settings: DiversityConfig, cells: Sequence[Cell], base: str) -> calls.Work:
    """Return what the largest cell of a base does, as far as its largest set goes."""
    fit = settings.fit
    records = max((sum(cell.counts) for cell in cells if cell.base == base), default=1)
    return calls.Work(
        read=calls.trained_tokens(fit, records), length=fit.max_length, frozen=fit.mode == "lora"
    )


def _check_model(settings: DiversityConfig, name: str, model_config: ModelConfig) -> None:
    """Raises ValueError where a model lacks the projections, or its context is too short."""
    if settings.fit.mode == "lora":
        lora.target_names(model_config, settings.fit.lora)
    if settings.fit.max_length > model_config.max_seq_len:
        raise ValueError(
            f"config.fit.max_length = {settings.fit.max_length}: exceeds the context of "
            f"{name}, which is {model_config.max_seq_len} tokens"
        )


def _check_writers(settings: DiversityConfig) -> None:
    """Raises ValueError for a writer without a model or address, or with too few topics."""
    g, kinds = settings.generator, {getattr(settings.generator, task) for task in settings.tasks}
    if "model" in kinds:
        describe(settings, g.model or "")
    if "endpoint" in kinds:
        writers.endpoint_writer(settings, Path())
    sizes = needed(all_cells(settings), "story") if "story" in settings.tasks else {}
    if sizes and g.story != "control" and g.topics not in (None, "data", "openings"):
        topics.topics_file(settings, max(g.topic_sizes[level] for level in sizes))


def _check_openings(settings: DiversityConfig, tables: Mapping[str, Tables]) -> None:
    """Raises ValueError where the real stories have too few openings for the topics of a writer."""
    g, sizes = (
        settings.generator,
        needed(all_cells(settings), "story") if "story" in settings.tasks else {},
    )
    if sizes and g.story != "control" and g.topics == "openings" and "story" in tables:
        topics.openings(settings, tables["story"], max(g.topic_sizes[level] for level in sizes))


def describe(settings: DiversityConfig, name: str) -> tuple:
    """Return (model_config, tokenizer) of a model without reading its weights."""
    return base_models.describe(settings.models, name)


def _check_enough(
    settings: DiversityConfig, task: str, tables: Tables, cells: Sequence[Cell]
) -> None:
    task_cells = [cell for cell in cells if cell.task == task]
    real = max((cell.counts.real for cell in task_cells), default=0)
    if real > len(tables.train):
        raise ValueError(
            f"config.{task}.train: an experiment takes {real:,} real records, the data give "
            f"{len(tables.train):,}; lower its {task} sizes"
        )
    kind, most = getattr(settings.generator, task), max(needed(cells, task).values(), default=0)
    k = settings.qa.per_context
    if task == "qa" and most:
        pool = tables.reserve if kind == "control" else tables.train
        sizes = pool["context"].value_counts()
        whole = int((sizes >= k).sum()) if kind == "control" else len(sizes)
        if whole * k < most:
            which = (
                f"documents with {k} records in reserve"
                if kind == "control"
                else "documents to train on"
            )
            raise ValueError(
                f"config.qa: an experiment takes {most:,} generated records, {whole:,} {which} "
                f"give {whole * k:,}; lower its qa sizes"
            )
    if task == "story" and kind == "control" and most > len(tables.reserve):
        raise ValueError(
            f"config.story: an experiment takes {most:,} stories of the control, "
            f"{len(tables.reserve):,} are in reserve; lower story.train"
        )
    size = getattr(settings.control, task)
    if any(cell.duplicates is not None for cell in task_cells):
        outside_share = max(settings.control.shifts, default=0)
        if round(outside_share * size) > len(tables.outside) or size > len(tables.reserve):
            raise ValueError(
                f"config.control.{task} = {size}: needs as many records in reserve, there are "
                f"{len(tables.reserve):,}, and "
                f"{round(outside_share * size)} from elsewhere ({task}.outside), there are "
                f"{len(tables.outside):,}"
            )


def _check_length(
    settings: DiversityConfig, task: str, tables: Tables, models: Mapping[str, tuple]
) -> None:
    """Raises ValueError where a test record's prompt leaves no room for its answer."""
    rendered, limit = prompts(settings, task, tables.test), settings.fit.max_length
    for name, (_, tokenizer) in models.items():
        longest = max(map(len, tokenizer.encode(rendered)))
        if longest >= limit:
            lower = "qa.passage_tokens or qa.max_tokens" if task == "qa" else "story.max_tokens"
            raise ValueError(
                f"config.fit.max_length = {limit}: a {task} prompt of {longest} tokens of {name} "
                f"leaves no room for its answer; lower {lower}"
            )


def prompts(settings: DiversityConfig, task: str, table: pd.DataFrame) -> list[str]:
    """Return the rendered prompts of a table's records."""
    template = getattr(settings, task).prompt
    filled = [
        template.replace("{passage}", p).replace("{head}", h).strip()
        for p, h in zip(table["passage"], table["head"], strict=True)
    ]
    return [render(text) for text in filled]


def chains(settings: DiversityConfig, cells: Sequence[Cell]) -> list:
    """Return a chain of one generation for every cell, trained on its whole data set `set_name`."""
    several = [name for name in ("task", "base") if len({cell.factors[name] for cell in cells}) > 1]
    out = []
    for cell in cells:
        values: dict[str, Any] = {
            "workflow": replace(sum(cell.counts), synthetic=0, human=1),
            "dataset": cell.set_name,
            "bases": (cell.base,),
        }
        if cell.counts.generated:
            values["external"] = pool_name(cell)
        name = chain_name(cell, several_bases="base" in several)
        out.append(make_chain({**values, "seed": cell.seed}, factors=cell.factors, id=name))
    return out


def datasets(
    settings: DiversityConfig,
    cells: Sequence[Cell],
    sets: Mapping[str, pd.DataFrame],
    pools: Mapping[str, pd.DataFrame],
) -> dict:
    """Return Datasets by name: the training sets and the generated sets that they draw from.

    The generated sets are named for the ledger only.
    """
    by_name: dict[str, Dataset] = {}
    for cell in cells:
        table = sets[cell.set_name]
        sources = {cell.set_name: table}
        if cell.counts.generated:
            sources[pool_name(cell)] = pools.get(pool_name(cell), table)
        for name, rows in sources.items():
            if name not in by_name:
                by_name[name] = _dataset(settings, cell.task, rows)
    return by_name


def _dataset(settings: DiversityConfig, task: str, rows: pd.DataFrame) -> Dataset:
    texts, asks = list(rows["text"]), prompts(settings, task, rows)
    parts = rows["part"].tolist() if "part" in rows else []
    generated = frozenset(i for i, part in enumerate(parts) if part == "generated")
    return Dataset(
        texts,
        asks,
        sample_prompts=("",),
        fingerprint=fingerprint(texts, asks),
        outside=generated,
    )


def family(settings: DiversityConfig) -> FamilyFunctions:
    """Return the language-model family. Nothing is sampled from the models that are trained."""

    def generate(model, tasks, sampling):
        return [lm.GenerateResult([], np.zeros(0, np.int64), np.zeros(0, bool)) for _ in tasks]

    models = base_models.family(settings.models, settings.fit, settings.run)
    return FamilyFunctions(load=models.load, fit=models.fit, generate=generate)
