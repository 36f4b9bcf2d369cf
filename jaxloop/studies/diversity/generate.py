"""The generated sets of every level: by a language model of ours, by an OpenAI-compatible endpoint,
or imposed on real data without either.

Requests are answered in blocks, each sealed on the disk as soon as it is answered, so that a run
that was killed asks for nothing twice.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.runtime import checkpoint, tables
from jaxloop.runtime.atomic_io import sha256
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.chain import prepare
from jaxloop.studies.diversity import sets
from jaxloop.studies.diversity.prepare import needed
from jaxloop.studies.diversity.sets import COLUMNS, bodies, contexts, draw

if TYPE_CHECKING:
    from jaxloop.runtime.signals import Stop
    from jaxloop.studies.diversity.config import Settings
    from jaxloop.studies.diversity.prepare import Prepared, Tables

FOLDER = "generated"
_PAIR = re.compile(
    r"question\s*:\s*(.+?)\s*\n\s*\W{0,2}answer\s*:\s*(.+?)(?=\n\s*\W{0,3}(?:\d+[.)]\s*)?\W{0,2}question\s*:|\n\s*\n|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])?\s*[\"']?(.*?)[\"'.,;]?\s*$")


class Writer(NamedTuple):
    """Who answers: a name for messages, and a function from (request numbers [n], prompts [n]) to
    replies [n].
    """

    name: str
    write: Callable[[Sequence[int], Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True)
class Desk:
    """Where requests of one task are answered and kept."""

    root: Path
    writer: Writer
    block: int
    attempts: int
    stop: "Stop"

    def ask(self, name: str, prompts: Sequence[str]) -> list[str]:
        """The reply to each prompt; blocks that are sealed already are read."""
        replies: list[str] = []
        for number, at in enumerate(range(0, len(prompts), self.block)):
            part = list(prompts[at : at + self.block])
            stem = f"{FOLDER}/{name}/block={number:05d}"
            about = {"requests": zlib.crc32(repr(part).encode("utf-8", "backslashreplace"))}
            found = kept(self.root, stem, about)
            if found is None:
                numbers = [zlib.crc32(f"{name} {at + i}".encode()) for i in range(len(part))]
                found = self.writer.write(numbers, part)
                (self.root / stem).parent.mkdir(parents=True, exist_ok=True)
                tables.write_parquet(
                    self.root / f"{stem}.parquet", {"prompt": part, "reply": found}
                )
                checkpoint.seal(self.root, f"{stem}.json", [f"{stem}.parquet"], about)
                LOGGER.info(
                    "%s: %s of %s replies", name, f"{at + len(part):,}", f"{len(prompts):,}"
                )
                self.stop.check()
            replies += found
        return replies

    def collect(
        self, name: str, wanted: Sequence[int], prompt: Callable, parse: Callable
    ) -> list[list]:
        """`wanted[i]` results for every item i. prompt(item, missing, attempt) -> text; parse(item,
        reply) -> results; what is lacking is asked for again.

        Raises ValueError where something is lacking after all attempts, naming the writer and what
        it said last.
        """
        results: list[list] = [[] for _ in wanted]
        last = ""
        for attempt in range(self.attempts):
            open_ = [i for i, count in enumerate(wanted) if len(results[i]) < count]
            if not open_:
                return results
            replies = self.ask(
                f"{name}/attempt={attempt}",
                [prompt(i, wanted[i] - len(results[i]), attempt) for i in open_],
            )
            for i, reply in zip(open_, replies, strict=True):
                results[i] += parse(i, reply)[: wanted[i] - len(results[i])]
                last = reply or last
        lacking = sum(count - len(found) for count, found in zip(wanted, results, strict=True))
        if lacking:
            said = (
                f"the last reply was {' '.join(last.split())[:80]!r}"
                if last.strip()
                else "every reply was empty"
            )
            raise ValueError(
                f"generator: {self.writer.name} gave {lacking} of {sum(wanted)} results of "
                f"{name} not in {self.attempts} tries; {said}"
            )
        return results


def kept(root: Path, stem: str, about: Mapping) -> list[str] | None:
    """Replies of a sealed block, None where there is none, or one of other requests."""
    if not (root / f"{stem}.json").exists():
        return None
    try:
        found = checkpoint.verify(root, f"{stem}.json")
    except checkpoint.Damaged as error:
        LOGGER.warning("%s; its requests are made again", error)
        return None
    return (
        list(tables.read_parquet(root / f"{stem}.parquet")["reply"])
        if found["about"] == about
        else None
    )


# ---- writers
# ----------------------------------------------------------------------------------------------------------


def endpoint_writer(settings: "Settings", root: Path) -> Writer:
    """Chat completions; every single reply is in `replies.sqlite` of the run directory as soon as
    it has come.
    """
    from jaxloop.metrics.endpoint import Endpoint, Unreachable, complete

    g = settings.generator
    endpoint = Endpoint(
        g.url or "", g.served, key=g.key, concurrency=g.concurrency, timeout=g.timeout, retries=g.retries, temperature=g.temperature,
        max_tokens=g.max_tokens, top_logprobs=0, cache=str(root / "replies.sqlite"),
    )  # fmt: skip

    def write(numbers, prompts):
        # Equal requests are answered once: the number keeps two draws of the same prompt apart.
        asked = [
            [
                {"role": "system", "content": f"Request {number}."},
                {"role": "user", "content": prompt},
            ]
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        try:
            return [reply.text for reply in complete(endpoint, asked)]
        except Unreachable as error:
            raise ValueError(
                f"generator: {str(error).rstrip('.')}; what it answered is kept, the same "
                "command goes on"
            ) from None

    return Writer(f"{g.served} at {g.url}", write)


def model_writer(
    settings: "Settings", root: Path, task: str, pairs: Callable[[], tuple[list[str], list[str]]]
) -> Writer:
    """A model of jaxloop.lm, trained on `pairs()` (texts, instructions) first where the config says
    so. It is loaded when it is first needed.
    """
    from jaxloop.lm import family
    from jaxloop.lm.generation.prompt import render

    g = settings.generator
    name, asked = g.model or "", _continued if _goes_on(settings, task) else render
    held: list = []

    def load():
        if not held:
            model = prepare.load_model(settings, name)
            held.extend(
                (model, _adapted(settings, root, task, model, pairs, asked) if g.adapt else None)
            )
        return held

    # A program holds the caches of as many prompts as it has places for: no more of them than a
    # block asks for.
    sampling = family.SampleSettings(
        temperature=g.temperature,
        min_p=0.0,
        top_p=g.top_p,
        max_new_tokens=g.max_tokens,
        texts_per_call=g.block,
        chains_per_call=1,
    )

    def write(numbers, prompts):
        from jaxloop.core.keys import chain_key

        model, weights = load()
        job = family.SampleTask(
            chain_key(zlib.crc32(task.encode())),
            weights,
            [asked(p) for p in prompts],
            np.asarray(numbers, np.uint32),
        )
        return list(
            family.sample(model, [job], dataclasses.replace(sampling, dtype=settings.fit.dtype))[
                0
            ].texts
        )

    return Writer(name, write)


def _goes_on(settings, task) -> bool:
    """Whether replies are the rest of texts whose openings were the topics."""
    return task == "story" and settings.generator.topics == "openings"


def _continued(prompt: str) -> str:
    """The prompt as it is: what a model that follows no instruction goes on from."""
    return prompt


def _adapted(settings, root, task, model, pairs, asked):
    """All weights of the writer after training on real records; kept, sealed, in the run directory."""
    from jaxloop.core.keys import chain_key
    from jaxloop.lm import family
    from jaxloop.runtime import weights_io

    stem = f"{FOLDER}/writer-{task}"
    about = {"model": settings.generator.model, "epochs": settings.generator.adapt}
    try:
        if (root / f"{stem}.json").exists() and checkpoint.verify(root, f"{stem}.json")[
            "about"
        ] == about:
            return weights_io.load_tree(root, stem)
    except checkpoint.Damaged as error:
        LOGGER.warning("%s; the writer is trained again", error)
    g, f = settings.generator, settings.fit
    texts, asks = pairs()
    fit = family.FitSettings(
        mode="full", epochs=g.adapt, batch_size=f.batch_size, learning_rate=g.adapt_rate, max_length=min(f.max_length, model.spec.context),
        dtype=f.dtype, length_classes=f.length_classes,
    )  # fmt: skip
    job = family.FitTask(chain_key(zlib.crc32(b"writer")), texts, [asked(a) for a in asks])
    weights = family.fit(model, [job], fit)[0].weights
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    checkpoint.seal(root, f"{stem}.json", weights_io.save_tree(root, stem, weights), about)
    return weights


# ---- topics
# -----------------------------------------------------------------------------------------------------------


def topics_file(settings: "Settings", most: int) -> list[str]:
    """The topics of a file, one a line, each once. Raises ValueError where it is not there or has
    fewer than the largest |T| that is used.
    """
    path = Path(settings.generator.topics or "")
    if not path.is_file():
        raise ValueError(
            f"config.generator.topics = {settings.generator.topics!r}: there is no such file; "
            "give one, `data`, `openings` or none"
        )
    found = list(
        dict.fromkeys(
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        )
    )
    if len(found) < most:
        raise ValueError(
            f"config.generator.topics = '{path}': has {len(found)} topics, |T| = {most} is asked "
            "for in generator.topic_sizes"
        )
    return found


def openings(settings: "Settings", data: "Tables", most: int) -> list[str]:
    """The first words of so many real stories, each once. Raises ValueError where there are fewer."""
    from jaxloop.data.stories import opening

    words = settings.generator.opening_words
    known = dict.fromkeys(
        start for text in bodies(data.reserve) if (start := opening(text, words)[0])
    )
    if len(known) < most:
        raise ValueError(
            f"config.generator.topics = 'openings': {len(known)} stories in reserve open with "
            f"{words} words and go on, "
            f"|T| = {most} is asked for in generator.topic_sizes"
        )
    return list(known)[:most]


def _topics(settings, data: "Tables", desk: Desk, most: int) -> tuple[list[str], list[int] | None]:
    """(topics, topic of each real story where that is known)."""
    from jaxloop.data.stories import word_topics

    if settings.generator.topics == "data":
        return word_topics(bodies(_real(data)), most)
    if settings.generator.topics == "openings":
        return openings(settings, data, most), None
    if settings.generator.topics is not None:
        return topics_file(settings, most), None

    def parse(reply):
        return [
            m[1]
            for line in reply.splitlines()
            if (m := _LISTED.match(line)) and m[1] and len(m[1]) <= 60
        ]

    found: dict[str, None] = {}
    for attempt in range(desk.attempts):
        missing = most - len(found)
        if missing <= 0:
            break
        count = min(100, missing)
        prompt = settings.generator.topic_prompt.replace("{count}", str(count))
        replies = desk.ask(f"topics/attempt={attempt}", [prompt] * -(-2 * missing // count))
        found |= dict.fromkeys(topic for reply in replies for topic in parse(reply))
    if len(found) < most:
        raise ValueError(
            f"generator: {desk.writer.name} listed {len(found)} topics, |T| = {most} is asked "
            "for in generator.topic_sizes"
        )
    return list(found)[:most], None


def _real(data: "Tables") -> pd.DataFrame:
    return pd.concat([data.train, data.reserve], ignore_index=True)


# ---- stories
# ----------------------------------------------------------------------------------------------------------


def _stories(
    settings: "Settings", data: "Tables", root: Path, sizes: Mapping[int, int], stop, count
) -> dict[int, pd.DataFrame]:
    from jaxloop.data.stories import opening

    g, s, goes_on = settings.generator, settings.story, _goes_on(settings, "story")
    known: dict = {}
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
        real = _real(data)
        if goes_on:
            parts = [part for text in bodies(real) if (part := opening(text, g.opening_words))[0]]
            chosen = [
                parts[i] for i in draw("adapt", "story").permutation(len(parts))[: g.adapt_texts]
            ]
            return [rest for _, rest in chosen], [
                instruct(start, draw("adapt", "story", i)) for i, (start, _) in enumerate(chosen)
            ]
        told = (
            [(i, known["topics"][t]) for i, t in enumerate(known["of"]) if t >= 0]
            if known["of"]
            else list(enumerate(real["topic"]))
        )
        told = [told[i] for i in draw("adapt", "story").permutation(len(told))[: g.adapt_texts]]
        whole = bodies(real)
        return [whole[i] for i, _ in told], [
            instruct(topic, draw("adapt", "story", i)) for i, topic in told
        ]

    desk = _desk(settings, root, "story", pairs, stop)
    known["topics"], known["of"] = _topics(
        settings, data, desk, max(g.topic_sizes[level] for level in sizes)
    )
    order = draw("topics").permutation(len(known["topics"]))
    made = {}
    for level, size in sizes.items():
        chosen = [known["topics"][i] for i in order[: g.topic_sizes[level]]]
        picked: dict[int, str] = {}

        def prompt(i, missing, attempt, level=level, chosen=chosen, picked=picked):
            # A topic on which the writer has nothing fit to say would be asked for in vain for
            # ever.
            picked[i] = chosen[
                draw("story", level, i, *([attempt] if attempt else [])).integers(len(chosen))
            ]
            return instruct(picked[i], draw("story", level, i, attempt))

        def parse(i, reply, picked=picked):
            return _story(picked[i] + reply if goes_on else reply, s.sentences)

        found = desk.collect(f"story-D{level}", [1] * size, prompt, parse)
        rows = [
            ("stories", "", head, text, picked[i], "generated")
            for i, [(head, text)] in enumerate(found)
        ]
        made[level] = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return made


def _story(reply: str, count: int) -> list[tuple[str, str]]:
    """[(beginning, ending)] of the first `count` sentences of a reply, [] where it has only one."""
    from jaxloop.data.stories import sentences

    parts = sentences(reply)[:count]
    return [(" ".join(parts[:-1]), parts[-1])] if len(parts) > 1 else []


def _control_stories(
    settings: "Settings", data: "Tables", sizes: Mapping[int, int]
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


# ---- question answering
# -----------------------------------------------------------------------------------------------


def pairs_in(reply: str) -> list[tuple[str, str]]:
    """The question-answer records of a reply, white space collapsed: "Question: …" and "Answer: …"
    in turn.
    """
    return [
        (" ".join(q.split()), " ".join(a.split()))
        for q, a in _PAIR.findall(reply)
        if q.strip() and a.strip()
    ]


def _pairs(item: int, reply: str) -> list[tuple[str, str]]:
    return pairs_in(reply)


def _qa(
    settings: "Settings", data: "Tables", root: Path, sizes: Mapping[int, int], stop
) -> dict[int, pd.DataFrame]:
    g, k = settings.generator, settings.qa.per_context
    documents = contexts(data.train)
    names = list(documents)[: -(-max(sizes.values()) // k)]
    passages = {name: data.train["passage"].iat[documents[name][0]] for name in names}

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

    desk = _desk(settings, root, "qa", pairs, stop)
    found = desk.collect(
        "qa",
        [k] * len(names),
        lambda i, missing, attempt: ask_for(names[i], missing, draw("qa", i, attempt)),
        _pairs,
    )
    rows = [
        (name, passages[name], q, a, "", "generated")
        for name, mine in zip(names, found, strict=True)
        for q, a in mine
    ]
    base = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    asked = sets.sources(
        base, max(g.replaced[level] for level in sizes), g.versions, "qa", "replaced"
    )
    wanted: dict[int, int] = {}
    for row, version in asked:
        wanted[row] = max(wanted.get(row, 0), version + 1)
    order = list(wanted)
    said = {row: _source(base, data.train, documents, row, g.paraphrase_of, k) for row in order}

    def reword(i, missing, attempt):
        question, answer = said[order[i]]
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
            desk.collect("qa-paraphrases", [wanted[row] for row in order], reword, _pairs),
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


def _source(base, real, documents, row, of, k) -> tuple[str, str]:
    """The record that is paraphrased for a row: itself, or a real one of the same document."""
    if of == "generated":
        return base["head"].iat[row], base["text"].iat[row]
    mine = documents[base["context"].iat[row]]
    place = mine[(row % k) % len(mine)]
    return real["head"].iat[place], real["text"].iat[place]


def _control_qa(
    settings: "Settings", data: "Tables", sizes: Mapping[int, int]
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


# ---- all of it
# --------------------------------------------------------------------------------------------------------


def _desk(settings, root, task, pairs, stop) -> Desk:
    g = settings.generator
    writer = (
        endpoint_writer(settings, root)
        if getattr(g, task) == "endpoint"
        else model_writer(settings, root, task, pairs)
    )
    return Desk(root, writer, g.block, g.attempts, stop)


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its {names} replaced, in one pass, so that braces in texts stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template).strip()


def pools(
    settings: "Settings", prepared: "Prepared", root: Path, stop: "Stop"
) -> dict[str, pd.DataFrame]:
    """The generated sets that the cells need, by name ("story-D3"), written or read back; each is
    also `generated/<name>.parquet`.

    Raises ValueError where a writer cannot be reached, or does not give what it is asked for.
    """
    count = next(iter(prepared.models.values()))[1].count
    made: dict[str, pd.DataFrame] = {}
    for task in settings.tasks:
        sizes = needed(prepared.cells, task)
        if not sizes:
            continue
        stop.doing = f"the generation of {task}"
        data, control = prepared.tables[task], getattr(settings.generator, task) == "control"
        if task == "story":
            found = (
                _control_stories(settings, data, sizes)
                if control
                else _stories(settings, data, root, sizes, stop, count)
            )
        else:
            found = (
                _control_qa(settings, data, sizes)
                if control
                else _qa(settings, data, root, sizes, stop)
            )
        made |= {f"{task}-D{level}": table for level, table in found.items()}
    return made


def save(root: Path, made: Mapping[str, pd.DataFrame]) -> None:
    """generated/<name>.parquet of every set, where it is not there already."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, table in made.items():
        path = root / FOLDER / f"{name}.parquet"
        data = {column: list(table[column]) for column in table}
        before = sha256(path) if path.exists() else None
        tables.write_parquet(path, data)
        if before is not None and sha256(path) != before:
            LOGGER.warning("%s differs from what an earlier run of this directory made", path.name)


def training_sets(
    settings: "Settings", prepared: "Prepared", made: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """The training set of every cell, by `Cell.set_name`."""
    found: dict[str, pd.DataFrame] = {}
    c, m = settings.control, settings.generator.versions
    for cell in prepared.cells:
        if cell.set_name in found:
            continue
        data = prepared.tables[cell.task]
        if cell.duplicates is not None and cell.shift is not None:
            size = cell.counts.generated
            found[cell.set_name] = sets.crossed(
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
                data.train.iloc[:0] if cell.level is None else made[f"{cell.task}-D{cell.level}"]
            )
            found[cell.set_name] = sets.mix(
                data.train, generated, cell.counts, cell.task, cell.seed
            )
    return found
