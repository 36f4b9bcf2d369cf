"""The human texts of a chain study.

They are read, reduced to those that the models can learn from, and divided into texts that the
chains train on, held-out texts, and texts that are measured like a generation.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxloop.data import docs, load_texts
from jaxloop.data import duplicates as duplicate_texts
from jaxloop.data.dialect import Dialect
from jaxloop.lm.generation.prompt import render
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.training import batching
from jaxloop.recursion import ledger
from jaxloop.recursion.sources import Dataset
from jaxloop.studies.chain.config import ChainConfig
from jaxloop.studies.common.models import BaseModel


class Source(NamedTuple):
    """The texts of one data source.

    Attributes:
        dataset: the texts that chains train on, with their prompts.
        heldout: the texts that losses are computed on.
        human: the texts that are measured as generated ones are, for comparison.
        heldout_prompts: rendered prompts of `heldout`.
        line: a description with the numbers of texts, for the log and the report.
    """

    dataset: Dataset
    heldout: list[str]
    human: list[str]
    heldout_prompts: list[str]
    line: str


class Rows(NamedTuple):
    """Texts, and the instructions that they answer (None: the config's, for all)."""

    texts: list[str]
    prompts: list[str] | None

    def selected(self, chosen: Sequence[bool]) -> "Rows":
        """Return the rows for which `chosen` is true."""
        prompts = None if self.prompts is None else list(itertools.compress(self.prompts, chosen))
        return Rows(list(itertools.compress(self.texts, chosen)), prompts)

    def rendered(self, rows: Sequence[int], instruction: str) -> list[str]:
        """Return the rendered prompts of the rows with these indices.

        instruction: the instruction of every row, where rows have none of their own.
        """
        if self.prompts is None:
            return [render(instruction)] * len(rows)
        return [render(self.prompts[i]) for i in rows]


def first_row(config: ChainConfig, source: str) -> None:
    """Raise ValueError, one sentence, where a source cannot be read or lacks the columns."""
    data = config.data
    load_texts(
        source,
        text_column=data.text_column,
        prompt_column=data.prompt_column,
        domain_column=data.domain_column,
        domains=data.domains or docs.default_libraries(source),
        name=data.name,
        split=data.split,
        revision=data.revision,
        limit=1,
        dialect=Dialect(data.delimiter, data.csv_options),
    )


def read(
    config: ChainConfig, source: str, bases: Mapping[str, BaseModel], *, whole: bool = False
) -> Source:
    """Read the texts of a source and divide them.

    No held-out or measured text has the same content as a text that chains train on (see
    `data.duplicates`).

    Args:
        config: the study's config.
        source: a file, folder, corpus or hub id, as `config.data.source`.
        bases: models of the pool by name; the tokenizer of the first counts tokens.
        whole: give all texts to the chains and keep duplicates, for texts that models generated.

    Raises:
        ValueError: the data cannot be read, or leave nothing to learn or to train on.
    """
    data, chain = config.data, config.chain
    frame = load_texts(
        source,
        text_column=data.text_column,
        prompt_column=data.prompt_column,
        domain_column=data.domain_column,
        domains=data.domains or docs.default_libraries(source),
        name=data.name,
        split=data.split,
        revision=data.revision,
        limit=data.limit,
        min_tokens=data.min_tokens,
        max_tokens=data.max_tokens,
        count_tokens=next(iter(bases.values())).tokenizer.count,
        dialect=Dialect(data.delimiter, data.csv_options),
    )
    report = dict(frame.attrs["report"])
    report.pop("kept")
    rows = Rows(list(frame["text"]), list(frame["prompt"]) if "prompt" in frame else None)
    if rows.prompts is not None:
        rows = _answerable(config, source, bases, rows.texts, rows.prompts, report)
    rows, keys = _distinct("keep" if whole else data.duplicates, rows, report)
    heldout, measured = (0, 0) if whole else (chain.heldout_texts, chain.eval_texts)
    for field, number in (("heldout_texts", heldout), ("eval_texts", measured)):
        if number >= len(rows.texts):
            raise ValueError(
                f"config.chain.{field} = {number}: '{source}' has only {len(rows.texts)} usable "
                f"texts ({_counted(report)}), and the chains need some"
            )
    # Which texts are held out depends on the data alone, so that chains of different seeds are
    # measured on the same ones.
    order = np.random.default_rng(0).permutation(len(rows.texts))
    apart = order[: max(heldout, measured)].tolist()
    keys_apart = {keys[i] for i in apart}
    trained = [i for i in range(len(rows.texts)) if keys[i] not in keys_apart]
    copies = len(rows.texts) - len(trained) - len(apart)
    if copies > 0:
        report["copies of held-out or measured texts, left out"] = copies
    if not trained:
        raise ValueError(
            f"config.data.duplicates = '{data.duplicates}': every text of '{source}' is a copy of "
            "one that is held out or measured"
        )
    texts = [rows.texts[i] for i in trained]
    prompts: str | list[str] = render(data.instruction)
    if rows.prompts is not None:
        prompts = rows.rendered(trained, data.instruction)
    dataset = Dataset(
        texts,
        prompts,
        fingerprint=ledger.fingerprint(texts, prompts),
        held_out=ledger.fingerprint(
            [rows.texts[i] for i in apart], rows.rendered(apart, data.instruction)
        ),
    )
    more = f" and {measured - heldout} more measured as human text" if measured > heldout else ""
    line = f"{len(texts):,} human texts for the chains, {heldout} held out{more}"
    return Source(
        dataset=dataset,
        heldout=[rows.texts[i] for i in apart[:heldout]],
        human=[rows.texts[i] for i in apart[:measured]],
        heldout_prompts=rows.rendered(apart[:heldout], data.instruction),
        line=f"{line} ({_counted(report)})",
    )


def _counted(report: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {number:,}" for reason, number in report.items())


def _distinct(
    duplicates: str, rows: Rows, report: dict[str, int]
) -> tuple[Rows, Sequence[Hashable]]:
    """(rows, keys of their content), without duplicates if they are to be dropped.

    The number of duplicates is added to `report`.
    """
    keys = duplicate_texts.keys(rows.texts, rows.prompts)
    verb = "dropped" if duplicates == "drop" else "kept"
    for name, number in duplicate_texts.counted(rows.texts, keys, rows.prompts).items():
        report[f"{name}, {verb}"] = number
    if duplicates != "drop":
        return rows, keys
    first = duplicate_texts.firsts(keys)
    return rows.selected(first), list(itertools.compress(keys, first))


# ---- prompts that leave no room for an answer


def _answerable(
    config: ChainConfig,
    source: str,
    bases: Mapping[str, BaseModel],
    texts: list[str],
    prompts: list[str],
    report: dict[str, int],
) -> Rows:
    """Rows whose prompt leaves room for an answer, with every model of the pool.

    There must be room in training and in generation. What happens to the other rows is set by
    `config.data.long_prompts`.
    """
    rooms = {name: _room(config, base.config) for name, base in bases.items()}
    too_long = _too_long(bases, rooms, prompts)
    if not any(too_long):
        return Rows(texts, prompts)
    rule, number, first = config.data.long_prompts, sum(too_long), too_long.index(True)
    if rule == "refuse":
        name, room, length = _worst(bases, rooms, prompts[first])
        raise ValueError(
            f"config.data.long_prompts = 'refuse': {number:,} of the {len(prompts):,} prompts of "
            f"'{source}' leave no room for an answer, the first at "
            f"text {first + 1} with {length} tokens of {name} where {room} fit; raise "
            "config.fit.max_length as far as the context goes, or set "
            "drop or truncate_left"
        )
    if rule == "truncate_left":
        shortened = [
            _shortened(bases, rooms, prompt) if long else prompt
            for prompt, long in zip(prompts, too_long, strict=True)
        ]
        report["prompts cut at the left"] = number
        too_long = [prompt is None for prompt in shortened]
        prompts = [prompt or "" for prompt in shortened]
    dropped = sum(too_long)
    if dropped:
        report["prompts too long, dropped"] = dropped
    if dropped == len(texts):
        raise ValueError(
            f"config.data.long_prompts = '{rule}': no prompt of '{source}' leaves room for an "
            "answer; raise config.fit.max_length"
        )
    return Rows(texts, prompts).selected([not long for long in too_long])


def _room(config: ChainConfig, model_config: ModelConfig) -> int:
    """The most tokens that a prompt may have.

    At least one token of the answer must remain to be learned, and the longest answer must fit
    behind the prompt in generation.
    """
    factors = config.chain.factors
    shortest = min(factors.get("fit.max_length", (config.fit.max_length,)))
    longest = max(factors.get("sample.max_new_tokens", (config.sample.max_new_tokens,)))
    room = min(model_config.max_seq_len - longest, model_config.max_seq_len - 1)
    if config.fit.completion_only or True in factors.get("fit.completion_only", ()):
        room = min(room, shortest - 1)
    return room


def _lengths(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[int]:
    """The tokens of each rendered prompt."""
    rendered = [render(prompt) for prompt in prompts]
    return [len(ids) for ids in batching.encode_prompts(tokenizer, rendered)]


def _too_long(
    bases: Mapping[str, BaseModel], rooms: Mapping[str, int], prompts: Sequence[str]
) -> list[bool]:
    """Whether each prompt is too long for any of the models."""
    over = [
        [length > rooms[name] for length in _lengths(base.tokenizer, prompts)]
        for name, base in bases.items()
    ]
    return [any(of_models) for of_models in zip(*over, strict=True)]


def _worst(
    bases: Mapping[str, BaseModel], rooms: Mapping[str, int], prompt: str
) -> tuple[str, int, int]:
    """(model, its room, tokens of the prompt) of the model whose room the prompt exceeds most."""
    lengths = {name: _lengths(base.tokenizer, [prompt])[0] for name, base in bases.items()}
    worst = max(lengths, key=lambda name: lengths[name] - rooms[name])
    return worst, rooms[worst], lengths[worst]


def _shortened(bases: Mapping[str, BaseModel], rooms: Mapping[str, int], prompt: str) -> str | None:
    """The longest end of an instruction that fits every model, found by bisection over characters.

    None where not even an empty instruction fits.
    """

    def fits(length: int) -> bool:
        return not _too_long(bases, rooms, [prompt[len(prompt) - length :]])[0]

    low, high = 0, len(prompt)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    # Tokens do not grow steadily with characters, so the end that was found may not fit.
    while low and not fits(low):
        low -= 1
    return prompt[len(prompt) - low :] if low or fits(0) else None
