"""What a diversity study stands on, read and checked before anything is compiled or written: data,
models, cells, the driver's settings.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxloop.studies.chain import prepare as chain_setup
from jaxloop.studies.common import run as running
from jaxloop.studies.diversity.config import EXPERIMENTS
from jaxloop.studies.diversity.sets import Counts, mixture

if TYPE_CHECKING:
    import pandas as pd

    from jaxloop.studies.diversity.config import Settings


class Tables(NamedTuple):
    """One task's records (see diversity_sets.COLUMNS): real ones to train on, to test on and in
    reserve, those from elsewhere, a line about them.
    """

    train: "pd.DataFrame"
    test: "pd.DataFrame"
    reserve: "pd.DataFrame"
    outside: "pd.DataFrame"
    found: str


class Cell(NamedTuple):
    """One model that is trained: its task, base and seed, and what its set is made of.

    level: 0 to 6 of the generated records, None where there are none; duplicates, shift: of a
    crossed set of the control, else None.
    """

    task: str
    base: str
    seed: int
    counts: Counts
    level: int | None = None
    duplicates: float | None = None
    shift: float | None = None

    @property
    def set_name(self) -> str:
        """Name of its training set, which models share: "story-D3-r0-g60-s1"."""
        if self.duplicates is not None:
            return f"{self.task}-crossed-n{self.counts.generated}-d{self.duplicates:g}-o{self.shift:g}-s{self.seed}"
        level = "real" if self.level is None else f"D{self.level}"
        return f"{self.task}-{level}-r{self.counts.real}-g{self.counts.generated}-s{self.seed}"

    @property
    def factors(self) -> dict[str, object]:
        """Columns that tell it apart in metrics.csv."""
        total = sum(self.counts)
        level = (
            "crossed"
            if self.duplicates is not None
            else "real"
            if self.level is None
            else f"D{self.level}"
        )
        crossed = {
            "duplicates": -1.0 if self.duplicates is None else self.duplicates,
            "shift": -1.0 if self.shift is None else self.shift,
        }
        named = {
            "task": self.task,
            "base": short(self.base),
            "level": level,
            "real": self.counts.real,
            "generated": self.counts.generated,
        }
        return named | {"rho": self.counts.generated / total} | crossed | {"seed": self.seed}


class Prepared(NamedTuple):
    """Everything that can be refused, read and checked; nothing compiled or written. models: name
    -> (spec, tokenizer).
    """

    tables: dict[str, Tables]
    cells: list[Cell]
    models: dict[str, tuple]
    driver: Any


def short(name: str) -> str:
    """The last part of a model's path or id."""
    return name.rstrip("/").split("/")[-1]


def experiments(settings: "Settings") -> dict[str, list[Cell]]:
    """The cells of every experiment that is on; one cell may serve several."""
    found: dict[str, list[Cell]] = {}
    for name in EXPERIMENTS:
        grid = getattr(settings, name)
        cells = [
            Cell(task, base, seed, counts, level if counts.generated else None)
            for task in settings.tasks
            for size in (getattr(grid, task) if grid.levels else ())
            for counts in (mixture(rho, grid.mixing, size) for rho in grid.ratios)
            for level in grid.levels
            for base in (grid.models or settings.models.pool)
            for seed in settings.seeds
        ]
        if cells:
            found[name] = list(dict.fromkeys(cells))
    c = settings.control
    crossed = [
        Cell(
            task,
            settings.models.pool[0],
            seed,
            Counts(0, getattr(c, task)),
            None,
            duplicates,
            shift,
        )
        for task in settings.tasks
        if getattr(c, task)
        for duplicates in c.duplicates
        for shift in c.shifts
        for seed in settings.seeds
    ]
    return found | ({"crossed": crossed} if crossed else {})


def all_cells(settings: "Settings") -> list[Cell]:
    """Every cell once, in the order of the experiments."""
    return list(dict.fromkeys(cell for cells in experiments(settings).values() for cell in cells))


def needed(cells: Sequence[Cell], task: str) -> dict[int, int]:
    """Generated records that the cells of a task take of each level."""
    counts: dict[int, int] = {}
    for cell in cells:
        if cell.task == task and cell.level is not None:
            counts[cell.level] = max(counts.get(cell.level, 0), cell.counts.generated)
    return dict(sorted(counts.items()))


def prepare(settings: "Settings") -> Prepared:
    """Reads the data and the models' descriptions. Raises ValueError, one sentence, for anything
    with which a run could not succeed.
    """
    from jaxloop.lm import Lora
    from jaxloop.lm.model import lora
    from jaxloop.metrics.embed import load_embedder
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import select_devices

    select_devices(settings.run.platform, settings.run.devices)
    load_embedder(settings.distances.embedder)
    models = {name: describe(settings, name) for name in settings.models.pool}
    for name, (spec, _) in models.items():
        if settings.fit.mode == "lora":
            lora.target_names(spec, Lora(**settings.fit.lora.model_dump()))
        if settings.fit.max_length > spec.context:
            raise ValueError(
                f"config.fit.max_length = {settings.fit.max_length}: exceeds the context of "
                f"{name}, which is {spec.context} tokens"
            )
    _check_writers(settings)
    count = next(iter(models.values()))[1].count
    tables = {task: read(settings, task, count) for task in settings.tasks}
    cells = all_cells(settings)
    for task in settings.tasks:
        _check_enough(settings, task, tables[task], cells)
        _check_length(settings, task, tables[task], models)
    _check_openings(settings, tables)
    fit, sample = family_settings(settings)
    common = driver.Settings(
        1, fit, sample, evaluate=0, keep=None, study="diversity", members_per_call=settings.together, free=("fit.chains_at_once",),
        measure_beside=running.measures_beside(settings.run),
    )  # fmt: skip
    return Prepared(tables, cells, models, common)


def _check_writers(settings: "Settings") -> None:
    """Raises ValueError for a writer that cannot be: a model that is not there, no address, a file
    of too few topics.
    """
    from pathlib import Path

    from jaxloop.studies.diversity import generate

    g, kinds = settings.generator, {getattr(settings.generator, task) for task in settings.tasks}
    if "model" in kinds:
        describe(settings, g.model or "")
    if "endpoint" in kinds:
        generate.endpoint_writer(settings, Path())
    sizes = needed(all_cells(settings), "story") if "story" in settings.tasks else {}
    if sizes and g.story != "control" and g.topics not in (None, "data", "openings"):
        generate.topics_file(settings, max(g.topic_sizes[level] for level in sizes))


def _check_openings(settings: "Settings", tables) -> None:
    """Raises ValueError where the real stories have too few openings for the topics of a writer."""
    from jaxloop.studies.diversity import generate

    g, sizes = (
        settings.generator,
        needed(all_cells(settings), "story") if "story" in settings.tasks else {},
    )
    if sizes and g.story != "control" and g.topics == "openings":
        generate.openings(settings, tables["story"], max(g.topic_sizes[level] for level in sizes))


def family_settings(settings: "Settings") -> tuple:
    """The family's FitSettings and SampleSettings (the latter: how a local writer samples)."""
    from jaxloop.config import Sample

    g = settings.generator
    sample = Sample(
        temperature=g.temperature, min_p=0.0, top_p=g.top_p, max_new_tokens=g.max_tokens
    )
    return chain_setup.family_settings(
        SimpleNamespace(fit=settings.fit, sample=sample, run=settings.run)
    )


def describe(settings: "Settings", name: str) -> tuple:
    """(spec, tokenizer) of a model, its weights unread."""
    from jaxloop.lm.io import huggingface

    revision = dict(zip(settings.models.pool, settings.models.revisions, strict=False)).get(name)
    return huggingface.describe(huggingface.locate(chain_setup.model_path(name), revision))


# ---- data
# -------------------------------------------------------------------------------------------------------------


def read(settings: "Settings", task: str, count) -> Tables:
    """The records of a task, split. Raises ValueError as `data.stories` does, and where there are
    too few.
    """
    from jaxloop.data.delimited import in_section

    try:
        return _read_story(settings, count) if task == "story" else _read_qa(settings, count)
    except ValueError as error:
        raise ValueError(in_section(str(error), task)) from None


def _read_story(settings: "Settings", count) -> Tables:
    from jaxloop.data.delimited import Dialect
    from jaxloop.data.stories import concatenate, read_stories
    from jaxloop.studies.diversity.sets import draw

    s = settings.story
    options: dict[str, Any] = {
        "text_column": s.text_column,
        "count": s.sentences,
        "windows": s.windows,
        "dialect": Dialect(s.delimiter, s.csv_options),
    }

    def table(sources, split, **more):
        whole = concatenate(
            read_stories(source, split=split, **options, **more) for source in sources
        )
        named = whole.rename(columns={"beginning": "head", "ending": "text"}).assign(
            context="stories", passage="", topic=whole["title"], origin="real"
        )
        return _short_enough(named, s.max_tokens, count, "story"), whole.attrs["report"]

    column = {"split_column": s.split_column}
    everything, report = table(s.sources, s.split, **column)
    everything = everything.iloc[draw("story", "order").permutation(len(everything))].reset_index(
        drop=True
    )
    if s.test_split is None:
        test, everything = _held_out(everything, s.test, "story")
    else:
        test = table(s.sources, s.test_split, **column)[0]
        test = test.iloc[draw("story", "test").permutation(len(test))[: s.test]].reset_index(
            drop=True
        )
    outside = table(s.outside, "train")[0] if s.outside else everything.iloc[:0]
    return _tables(everything, test, outside, s.train, "story", report)


def _read_qa(settings: "Settings", count) -> Tables:
    import pandas as pd

    from jaxloop.data.delimited import Dialect
    from jaxloop.data.stories import read_qa
    from jaxloop.studies.diversity.sets import contexts, draw

    s = settings.qa
    options: dict[str, Any] = {
        "question_column": s.question_column,
        "passage": s.passage,
        "dialect": Dialect(s.delimiter, s.csv_options),
    }
    options |= {
        "context_column": s.context_column,
        "passage_column": s.passage_column,
        "answer_column": s.answer_column,
    }

    def table(source, split, most=s.max_tokens, **more):
        frame = read_qa(source, split=split, **(options | more))
        shown = {
            text: _first_tokens(text, s.passage_tokens, count)
            for text in dict.fromkeys(frame["passage"])
            if text
        }
        named = frame.rename(columns={"question": "head", "answer": "text"}).assign(
            topic="", origin="real", passage=[shown.get(p, "") for p in frame["passage"]]
        )
        return _short_enough(named, most, count, "qa"), frame.attrs["report"]

    def blocks(frame):
        """Records without a document in blocks of `per_context`; every other context keeps its
        first records.
        """
        if (frame["context"] == "").all():
            return frame.assign(
                context=[f"block-{i // s.per_context:05d}" for i in range(len(frame))]
            )
        return frame[frame.groupby("context", sort=False).cumcount() < s.per_context].reset_index(
            drop=True
        )

    whole, report = table(s.source, s.split, split_column=s.split_column)
    shuffled = whole.iloc[draw("qa", "order").permutation(len(whole))].reset_index(drop=True)
    if s.test_split is None and (shuffled["context"] == "").all():
        test, shuffled = _held_out(shuffled, s.test, "qa")
        everything = blocks(shuffled)
    else:
        everything = blocks(shuffled)
        everything = everything.iloc[
            [row for rows in contexts(everything).values() for row in rows]
        ].reset_index(drop=True)
        if s.test_split is None:
            test, everything = _held_out(everything, s.test, "qa")
            # A document is either trained on or tested on.
            everything = everything[~everything["context"].isin(set(test["context"]))].reset_index(
                drop=True
            )
        else:
            test = table(s.source, s.test_split, split_column=s.split_column)[0]
            test = test.iloc[draw("qa", "test").permutation(len(test))[: s.test]].reset_index(
                drop=True
            )
    outside = whole.iloc[:0]
    if s.outside is not None:
        plain = {
            "question_column": s.outside_question_column,
            "answer_column": s.outside_answer_column,
        }
        plain |= {"passage": "none", "context_column": None, "passage_column": None}
        outside = table(s.outside, "train", s.outside_max_tokens, **plain)[0]
    return _tables(everything, test, pd.DataFrame(outside), s.train, "qa", report)


def _short_enough(frame, most, count, task):
    if most is None or not len(frame):
        return frame
    kept = [
        n <= most
        for n in count([f"{h} {t}" for h, t in zip(frame["head"], frame["text"], strict=True)])
    ]
    if not any(kept):
        raise ValueError(
            f"config.{task}.max_tokens = {most}: leaves none of {len(frame):,} records"
        )
    return frame[kept].reset_index(drop=True)


def _first_tokens(text: str, most: int, count) -> str:
    """The first words of a text that have at most so many tokens."""
    words = text.split()
    # A word has one token at least, so more words than tokens never fit.
    kept = min(len(words), most)
    while kept > 1 and (tokens := count([" ".join(words[:kept])])[0]) > most:
        kept = max(1, min(kept - 1, kept * most // tokens))
    return " ".join(words[:kept])


def _held_out(frame, count, task):
    if len(frame) <= count:
        raise ValueError(
            f"config.{task}.test = {count}: the data have only {len(frame):,} records, and "
            "training needs some"
        )
    return frame.iloc[:count].reset_index(drop=True), frame.iloc[count:].reset_index(drop=True)


def _tables(everything, test, outside, train, task, report) -> Tables:
    from jaxloop.studies.diversity.sets import COLUMNS

    columns = list(COLUMNS)
    if not len(everything) or not len(test):
        raise ValueError(
            f"config.{task}: there are {len(everything):,} records to train on and {len(test):,} "
            "to test on, some of both are needed"
        )
    parts = [
        f[columns].reset_index(drop=True)
        for f in (everything.iloc[:train], test, everything.iloc[train:], outside)
    ]
    told = ", ".join(f"{reason}: {number:,}" for reason, number in report.items())
    found = (
        f"{len(parts[0]):,} real records to train on, {len(parts[1]):,} to test on, "
        f"{len(parts[2]):,} in reserve, {len(parts[3]):,} from elsewhere ({told})"
    )
    return Tables(*parts, found)


def _check_enough(settings: "Settings", task: str, tables: Tables, cells: Sequence[Cell]) -> None:
    mine = [cell for cell in cells if cell.task == task]
    real = max((cell.counts.real for cell in mine), default=0)
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
    if any(cell.duplicates is not None for cell in mine):
        away = max(settings.control.shifts, default=0)
        if round(away * size) > len(tables.outside) or size > len(tables.reserve):
            raise ValueError(
                f"config.control.{task} = {size}: needs as many records in reserve, there are "
                f"{len(tables.reserve):,}, and "
                f"{round(away * size)} from elsewhere ({task}.outside), there are "
                f"{len(tables.outside):,}"
            )


def _check_length(
    settings: "Settings", task: str, tables: Tables, models: Mapping[str, tuple]
) -> None:
    """Raises ValueError where a test record's prompt fills the whole length, so that its answer
    would not be scored.
    """
    asked, limit = prompts(settings, task, tables.test), settings.fit.max_length
    for name, (_, tokenizer) in models.items():
        longest = max(map(len, tokenizer.encode(asked)))
        if longest >= limit:
            lower = "qa.passage_tokens or qa.max_tokens" if task == "qa" else "story.max_tokens"
            raise ValueError(
                f"config.fit.max_length = {limit}: a {task} prompt of {longest} tokens of {name} "
                f"leaves no room for its answer; lower {lower}"
            )


# ---- sets and chains
# --------------------------------------------------------------------------------------------------


def prompts(settings: "Settings", task: str, table: "pd.DataFrame") -> list[str]:
    """The rendered prompts of a table's records."""
    from jaxloop.lm.generation.prompt import render

    template = getattr(settings, task).prompt
    filled = [
        template.replace("{passage}", p).replace("{head}", h).strip()
        for p, h in zip(table["passage"], table["head"], strict=True)
    ]
    return [render(text) for text in filled]


def chains(settings: "Settings", cells: Sequence[Cell]) -> list:
    """A chain of one generation for every cell, which trains on the whole data set `set_name`."""
    from jaxloop.recursion.chains import chain_id, make_chain
    from jaxloop.recursion.workflow import replace

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
        name = chain_id({"base": short(cell.base)}) + "_" if "base" in several else ""
        out.append(
            make_chain({**values, "seed": cell.seed}, factors=cell.factors, id=name + cell.set_name)
        )
    return out


def pool_name(cell: Cell) -> str:
    """Name of the generated set that a cell draws from; a crossed set is its own."""
    return (
        f"{cell.set_name}-generated"
        if cell.duplicates is not None
        else f"{cell.task}-D{cell.level}"
    )


def datasets(
    settings: "Settings",
    cells: Sequence[Cell],
    sets: Mapping[str, "pd.DataFrame"],
    pools: Mapping[str, "pd.DataFrame"],
) -> dict:
    """recursion Datasets by name: the training sets and, for the ledger, the generated sets that
    they draw from.
    """
    from jaxloop.recursion.ledger import fingerprint
    from jaxloop.recursion.sources import Dataset

    found: dict[str, Dataset] = {}
    for cell in cells:
        table = sets[cell.set_name]
        for name, rows in (
            (cell.set_name, table),
            (pool_name(cell), pools.get(pool_name(cell), table))
            if cell.counts.generated
            else (None, None),
        ):
            if name is None or name in found:
                continue
            texts, asks = list(rows["text"]), prompts(settings, cell.task, rows)
            made = (
                frozenset(i for i, part in enumerate(rows["part"]) if part == "generated")
                if "part" in rows
                else frozenset()
            )
            found[name] = Dataset(texts, asks, ("",), fingerprint(texts, asks), made)
    return found


def family(settings: "Settings") -> SimpleNamespace:
    """The language-model family, loaded as the config says; nothing is sampled from the models that
    are trained.
    """
    import numpy as np

    from jaxloop.lm import family as lm

    def sample(model, tasks, sampling):
        return [lm.SampleResult([], np.zeros(0, np.int64), np.zeros(0, bool)) for _ in tasks]

    return SimpleNamespace(
        load=lambda name: chain_setup.load_model(settings, name),
        FitTask=lm.FitTask,
        fit=lm.fit,
        SampleTask=lm.SampleTask,
        sample=sample,
    )
