"""Makes the generated sets of every level.

They are written by a model of `jaxloop.lm` or by an OpenAI-compatible endpoint, or made by changing
real data without either (the control).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxloop.data.sentences import sentences
from jaxloop.data.stories import opening
from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import sha256
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop
from jaxloop.studies.diversity import sets
from jaxloop.studies.diversity.cells import needed
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.prepare import Prepared
from jaxloop.studies.diversity.records import Tables, TokenCounter
from jaxloop.studies.diversity.sets import COLUMNS, bodies, contexts, draw
from jaxloop.studies.diversity.topics import list_topics, real_records
from jaxloop.studies.diversity.writers import (
    FOLDER,
    ReplyStore,
    continues_openings,
    endpoint_writer,
    model_writer,
)

# The asterisks of a label that is set in bold, and its number, belong to no text: **Question:**,
# **Question**: and Question 1:
_COLON = r"(?:[ \t]*#?\d+)?(?:\*\*)?\s*:(?:\*\*)?"
_PAIR = re.compile(
    rf"question{_COLON}\s*(.+?)\s*\n"
    rf"\s*\W{{0,2}}answer{_COLON}\s*(.+?)"
    # An answer ends at the next question, at an empty line or with the reply.
    rf"(?=\n\s*\W{{0,3}}(?:\d+[.)]\s*)?\W{{0,2}}question{_COLON}|\n\s*\n|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def _stories(
    settings: DiversityConfig,
    data: Tables,
    root: Path,
    sizes: Mapping[int, int],
    stop: Stop,
    count: TokenCounter,
) -> dict[int, pd.DataFrame]:

    g, s, goes_on = settings.generator, settings.story, continues_openings(settings, "story")
    # Filled below: `pairs` runs when the writer is first needed.
    listed: dict[str, Any] = {}
    lengths = np.array(count(bodies(data.train)))

    def instruct(topic, rng):
        rows = (
            rng.choice(len(data.train), min(g.seeds, len(data.train)), replace=False)
            if g.seeds
            else np.zeros(0, int)
        )
        examples = "\n\n".join(bodies(data.train.iloc[rows]))
        tokens = round(float(lengths[rows].mean() if len(rows) else lengths.mean()))
        filled = {
            "topic": topic,
            "sentences": str(s.sentences),
            "tokens": str(tokens),
            "examples": examples,
        }
        return fill(g.story_prompt, filled)

    def pairs():
        real = real_records(data)
        if goes_on:
            parts = [part for text in bodies(real) if (part := opening(text, g.opening_words))[0]]
            chosen = [
                parts[i] for i in draw("adapt", "story").permutation(len(parts))[: g.adapt_texts]
            ]
            return [rest for _, rest in chosen], [
                instruct(start, draw("adapt", "story", i)) for i, (start, _) in enumerate(chosen)
            ]
        topic_rows = (
            [(i, listed["topics"][t]) for i, t in enumerate(listed["of"]) if t >= 0]
            if listed["of"]
            else list(enumerate(real["topic"]))
        )
        topic_rows = [
            topic_rows[i]
            for i in draw("adapt", "story").permutation(len(topic_rows))[: g.adapt_texts]
        ]
        whole = bodies(real)
        return [whole[i] for i, _ in topic_rows], [
            instruct(topic, draw("adapt", "story", i)) for i, topic in topic_rows
        ]

    store = _reply_store(settings, root, "story", pairs, stop)
    listed["topics"], listed["of"] = list_topics(
        settings, data, store, max(g.topic_sizes[level] for level in sizes)
    )
    order = draw("topics").permutation(len(listed["topics"]))
    set_of_level = {}
    for level, size in sizes.items():
        chosen = [listed["topics"][i] for i in order[: g.topic_sizes[level]]]
        picked: dict[int, str] = {}

        def prompt(i, missing, attempt, level=level, chosen=chosen, picked=picked):
            # A topic on which the writer has nothing fit to say would be asked for in vain for
            # ever.
            picked[i] = chosen[
                draw("story", level, i, *([attempt] if attempt else [])).integers(len(chosen))
            ]
            return instruct(picked[i], draw("story", level, i, attempt))

        def parse(i, reply, picked=picked):
            return story_in(picked[i] + reply if goes_on else reply, s.sentences)

        stories = store.collect(f"story-D{level}", [1] * size, prompt, parse)
        rows = [
            ("stories", "", head, text, picked[i], "generated")
            for i, [(head, text)] in enumerate(stories)
        ]
        set_of_level[level] = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return set_of_level


def story_in(reply: str, count: int) -> list[tuple[str, str]]:
    """Return [(beginning, ending)] of the first `count` sentences of a reply; [] for fewer."""
    parts = sentences(reply)[:count]
    return [(" ".join(parts[:-1]), parts[-1])] if len(parts) == count else []


def _control_stories(
    settings: DiversityConfig, data: Tables, sizes: Mapping[int, int]
) -> dict[int, pd.DataFrame]:
    g, c = settings.generator, settings.control
    most = max(g.topic_sizes[level] for level in sizes)
    if most > len(data.reserve):
        raise ValueError(
            f"config.generator.topic_sizes: |T| = {most} is asked for, {len(data.reserve):,} "
            "real stories are in reserve to find topics in"
        )
    topics = sets.clusters(bodies(data.reserve), most)
    repertoire = c.repertoire or -(-max(sizes.values()) // most)
    names = ("control", "story")
    return {
        level: sets.topical(
            data.reserve, topics, size, g.topic_sizes[level], repertoire, c.edit, *names
        )
        for level, size in sizes.items()
    }


def pairs_in(reply: str) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of a reply, white space collapsed.

    A reply says "Question: …" and "Answer: …" in turn, numbered or not.
    """
    return [
        (" ".join(q.split()), " ".join(a.split()))
        for q, a in _PAIR.findall(reply)
        if q.strip() and a.strip()
    ]


def _pairs(item: int, reply: str) -> list[tuple[str, str]]:
    return pairs_in(reply)


def _qa(
    settings: DiversityConfig, data: Tables, root: Path, sizes: Mapping[int, int], stop: Stop
) -> dict[int, pd.DataFrame]:
    g, k = settings.generator, settings.qa.per_context
    documents = contexts(data.train)
    names = list(documents)[: -(-max(sizes.values()) // k)]
    passage_of = data.train["passage"].tolist()
    passages: dict[str, str] = {name: passage_of[documents[name][0]] for name in names}

    def examples(rng, count):
        rows = (
            rng.choice(len(data.train), min(count, len(data.train)), replace=False) if count else ()
        )
        return "\n\n".join(
            f"Question: {data.train['head'].iat[i]}\nAnswer: {data.train['text'].iat[i]}"
            for i in rows
        )

    def ask_for(name, missing, rng):
        return fill(
            g.qa_prompt,
            {
                "passage": passages.get(name, ""),
                "examples": examples(rng, g.seeds),
                "count": str(missing),
            },
        )

    def pairs():
        rows = draw("adapt", "qa").permutation(len(data.train))[: g.adapt_texts]
        texts = [
            f"Question: {data.train['head'].iat[i]}\nAnswer: {data.train['text'].iat[i]}"
            for i in rows
        ]
        return texts, [
            ask_for(data.train["context"].iat[i], 1, draw("adapt", "qa", int(i))) for i in rows
        ]

    store = _reply_store(settings, root, "qa", pairs, stop)
    answers = store.collect(
        "qa",
        [k] * len(names),
        lambda i, missing, attempt: ask_for(names[i], missing, draw("qa", i, attempt)),
        _pairs,
    )
    rows = [
        (name, passages[name], q, a, "", "generated")
        for name, pairs_of_document in zip(names, answers, strict=True)
        for q, a in pairs_of_document
    ]
    base = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    paraphrases = sets.sources(
        base, max(g.replaced[level] for level in sizes), g.versions, "qa", "replaced"
    )
    versions_of: dict[int, int] = {}
    for row, version in paraphrases:
        versions_of[row] = max(versions_of.get(row, 0), version + 1)
    order = list(versions_of)
    source_of = {
        row: _source(base, data.train, documents, row, g.paraphrase_of, k) for row in order
    }

    def reword(i, missing, attempt):
        question, answer = source_of[order[i]]
        filled = {
            "examples": examples(draw("paraphrase", i, attempt), 1),
            "count": str(missing),
            "question": question,
            "answer": answer,
        }
        return fill(g.paraphrase_prompt, filled)

    reworded = dict(
        zip(
            order,
            store.collect("qa-paraphrases", [versions_of[row] for row in order], reword, _pairs),
            strict=True,
        )
    )
    return {
        level: sets.paraphrased(
            base,
            g.replaced[level],
            g.versions,
            lambda row, version: reworded[row][version],
            "qa",
            "replaced",
        )
        for level in sizes
    }


def _source(
    base: pd.DataFrame,
    real: pd.DataFrame,
    documents: Mapping[str, np.ndarray],
    row: int,
    of: str,
    k: int,
) -> tuple[str, str]:
    """The record that is paraphrased for a row: the row itself, or a real one of its document."""
    if of == "generated":
        return str(base["head"].iat[row]), str(base["text"].iat[row])
    document = documents[str(base["context"].iat[row])]
    place = document[(row % k) % len(document)]
    return str(real["head"].iat[place]), str(real["text"].iat[place])


def _control_qa(
    settings: DiversityConfig, data: Tables, sizes: Mapping[int, int]
) -> dict[int, pd.DataFrame]:
    g, c, k = settings.generator, settings.control, settings.qa.per_context
    whole = [rows[:k] for rows in contexts(data.reserve).values() if len(rows) >= k][
        : -(-max(sizes.values()) // k)
    ]
    base = data.reserve.iloc[np.concatenate(whole)].reset_index(drop=True)
    names = ("control", "qa")
    reword = sets.edited(base, c.edit, *names)
    return {
        level: sets.paraphrased(base, g.replaced[level], g.versions, reword, *names)
        for level in sizes
    }


def _reply_store(
    settings: DiversityConfig,
    root: Path,
    task: str,
    pairs: Callable[[], tuple[list[str], list[str]]],
    stop: Stop,
) -> ReplyStore:
    g = settings.generator
    if getattr(g, task) == "endpoint":
        writer = endpoint_writer(settings, root)
    else:
        writer = model_writer(settings, root, task, pairs)
    return ReplyStore(root, writer, g.block, g.attempts, stop)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its {names} replaced in one pass: braces in texts stay."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template).strip()


def pools(
    settings: DiversityConfig, prepared: Prepared, root: Path, stop: Stop
) -> dict[str, pd.DataFrame]:
    """Return the generated sets that the cells need, by name ("story-D3").

    Replies that an earlier run stored are read back.

    Raises ValueError where a writer cannot be reached, or does not give what it is asked for.
    """
    count = next(iter(prepared.models.values()))[1].count
    generated_sets: dict[str, pd.DataFrame] = {}
    for task in settings.tasks:
        sizes = needed(prepared.cells, task)
        if not sizes:
            continue
        stop.doing = f"the generation of {task}"
        data, control = prepared.tables[task], getattr(settings.generator, task) == "control"
        if task == "story":
            set_of_level = (
                _control_stories(settings, data, sizes)
                if control
                else _stories(settings, data, root, sizes, stop, count)
            )
        else:
            set_of_level = (
                _control_qa(settings, data, sizes)
                if control
                else _qa(settings, data, root, sizes, stop)
            )
        generated_sets |= {f"{task}-D{level}": table for level, table in set_of_level.items()}
    return generated_sets


def save(root: Path, generated_sets: Mapping[str, pd.DataFrame]) -> None:
    """Write generated/<name>.parquet of every set; log where an earlier run wrote another one."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, table in generated_sets.items():
        path = root / FOLDER / f"{name}.parquet"
        data = {str(column): list(table[column]) for column in table}
        before = sha256(path) if path.exists() else None
        tables.write_parquet(path, data)
        if before is not None and sha256(path) != before:
            LOGGER.warning("%s differs from what an earlier run of this directory made", path.name)


def training_sets(
    settings: DiversityConfig, prepared: Prepared, generated_sets: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Return the training set of every cell, by `Cell.set_name`."""
    training: dict[str, pd.DataFrame] = {}
    c, m = settings.control, settings.generator.versions
    for cell in prepared.cells:
        if cell.set_name in training:
            continue
        data = prepared.tables[cell.task]
        if cell.duplicates is not None and cell.shift is not None:
            size = cell.counts.generated
            training[cell.set_name] = sets.crossed(
                data.reserve,
                data.outside,
                size,
                cell.duplicates,
                cell.shift,
                m,
                c.edit,
                "crossed",
                cell.seed,
            )
        else:
            generated = (
                data.train.iloc[:0]
                if cell.level is None
                else generated_sets[f"{cell.task}-D{cell.level}"]
            )
            training[cell.set_name] = sets.mix(
                data.train, generated, cell.counts, cell.task, cell.seed
            )
    return training
