"""The human texts of a chain study: read, cut to what the models can learn, and parted into
held-out, measured and training texts.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxloop.studies.chain.run import Settings


class Source(NamedTuple):
    """One source: the texts of the chains, the held-out ones with their prompts, those measured
    like a generation, and a line about it.
    """

    dataset: object
    heldout: list[str]
    human: list[str]
    heldout_prompts: list[str]
    line: str


def read(
    settings: "Settings", source: str, models: Mapping[str, tuple], *, whole: bool = False
) -> Source:
    """The texts of a source. Held-out and measured ones share no content with those of the chains
    (`data.duplicates`).

    models: name -> (spec, tokenizer); the first counts tokens. whole: all texts are the chains',
    which models wrote and may repeat. Raises ValueError, one sentence, for data that cannot be read
    or leaves nothing to learn or to train on.
    """
    import numpy as np

    from jaxloop.data import docs, load_texts
    from jaxloop.data.delimited import Dialect
    from jaxloop.lm.generation.prompt import render
    from jaxloop.recursion import ledger
    from jaxloop.recursion.sources import Dataset

    d, count = settings.data, next(iter(models.values()))[1].count
    frame = load_texts(
        source,
        text_column=d.text_column,
        prompt_column=d.prompt_column,
        domain_column=d.domain_column,
        domains=d.domains or docs.default_libraries(source),
        name=d.name,
        split=d.split,
        revision=d.revision,
        limit=d.limit,
        min_tokens=d.min_tokens,
        max_tokens=d.max_tokens,
        count_tokens=count,
        dialect=Dialect(d.delimiter, d.csv_options),
    )
    report = dict(frame.attrs["report"])
    report.pop("kept")
    texts, asked = list(frame["text"]), list(frame["prompt"]) if "prompt" in frame else None
    if asked is not None:
        texts, asked = _answerable(settings, source, models, texts, asked, report)
    texts, asked, found = _distinct("keep" if whole else d.duplicates, texts, asked, report)
    held, measured = (0, 0) if whole else (settings.chain.heldout_texts, settings.chain.eval_texts)
    for field, number in (("heldout_texts", held), ("eval_texts", measured)):
        if number >= len(texts):
            raise ValueError(
                f"config.chain.{field} = {number}: '{source}' has only {len(texts)} usable "
                "texts, and the chains need some"
            )
    # Which texts are held out depends on the data alone, so that chains of different seeds are
    # measured on the same ones.
    order = np.random.default_rng(0).permutation(len(texts))
    apart = order[: max(held, measured)].tolist()
    taken = {found[i] for i in apart}
    kept = [i for i in range(len(texts)) if found[i] not in taken]
    if (copies := len(texts) - len(kept) - len(apart)) > 0:
        report["copies of held-out or measured texts, left out"] = copies
    if not kept:
        raise ValueError(
            f"config.data.duplicates = '{d.duplicates}': every text of '{source}' is a copy of "
            "one that is held out or measured"
        )
    prompts = render(d.instruction) if asked is None else [render(asked[i]) for i in kept]
    of_held = [render(d.instruction if asked is None else asked[i]) for i in apart[:held]]
    mine = [texts[i] for i in kept]
    dataset = Dataset(mine, prompts, fingerprint=ledger.fingerprint(mine, prompts))
    said = ", ".join(f"{reason}: {number:,}" for reason, number in report.items())
    more = f" and {measured - held} more measured as human text" if measured > held else ""
    line = f"{len(mine):,} human texts for the chains, {held} held out{more} ({said})"
    return Source(
        dataset,
        [texts[i] for i in apart[:held]],
        [texts[i] for i in apart[:measured]],
        of_held,
        line,
    )


def _distinct(duplicates, texts, asked, report):
    """(texts, prompts, keys of content), each text once where duplicates are dropped; the report
    says how many there are.
    """
    from jaxloop.data import duplicates as same

    found = same.keys(texts, asked)
    verb = "dropped" if duplicates == "drop" else "kept"
    report |= {
        f"{name}, {verb}": number for name, number in same.counted(texts, found, asked).items()
    }
    if duplicates == "drop":
        first = same.firsts(found)
        texts, asked, found = (
            None if x is None else list(itertools.compress(x, first)) for x in (texts, asked, found)
        )
    return texts, asked, found


# ---- prompts that leave nothing to learn
# ------------------------------------------------------------------------------


def _answerable(settings, source, models, texts, asked, report) -> tuple[list[str], list[str]]:
    """Rows whose prompt leaves room for an answer, in training and in generation, of every model of
    the pool; see `data.long_prompts`.
    """
    rooms = {name: _room(settings, spec) for name, (spec, _) in models.items()}
    long = _too_long(models, rooms, asked)
    if not any(long):
        return texts, asked
    rule, number, first = settings.data.long_prompts, sum(long), long.index(True)
    if rule == "refuse":
        name, room, length = _worst(models, rooms, asked[first])
        raise ValueError(
            f"config.data.long_prompts = 'refuse': {number:,} of the {len(asked):,} prompts of "
            f"'{source}' leave no room for an answer, the first at "
            f"text {first + 1} with {length} tokens of {name} where {room} fit; raise "
            "config.fit.max_length as far as the context goes, or set "
            "drop or truncate_left"
        )
    if rule == "truncate_left":
        asked = [
            _shortened(models, rooms, prompt) if bad else prompt
            for prompt, bad in zip(asked, long, strict=True)
        ]
        report["prompts cut at the left"] = number
        long = [prompt is None for prompt in asked]
    dropped = sum(long)
    if dropped:
        report["prompts too long, dropped"] = dropped
    if dropped == len(texts):
        raise ValueError(
            f"config.data.long_prompts = '{rule}': no prompt of '{source}' leaves room for an "
            "answer; raise config.fit.max_length"
        )
    short = [not bad for bad in long]
    return list(itertools.compress(texts, short)), list(itertools.compress(asked, short))


def _room(settings, spec) -> int:
    """The most tokens that a prompt may have: one of the answer must be learned, and the longest
    answer must be written after it.
    """
    factors = settings.chain.factors
    shortest = min(factors.get("fit.max_length", (settings.fit.max_length,)))
    longest = max(factors.get("sample.max_new_tokens", (settings.sample.max_new_tokens,)))
    counted = {settings.fit.loss_on, *factors.get("fit.loss_on", ())}
    return min(
        spec.context - longest, *([shortest - 1] if "response" in counted else []), spec.context - 1
    )


def _lengths(tokenizer, asked) -> list[int]:
    from jaxloop.lm.generation.prompt import render
    from jaxloop.lm.training import batching

    return [
        len(ids) for ids in batching.encode_prompts(tokenizer, [render(prompt) for prompt in asked])
    ]


def _too_long(models, rooms, asked) -> list[bool]:
    over = [
        [n > rooms[name] for n in _lengths(tokenizer, asked)]
        for name, (_, tokenizer) in models.items()
    ]
    return [any(row) for row in zip(*over, strict=True)]


def _worst(models, rooms, prompt) -> tuple[str, int, int]:
    """(model, its room, tokens of the prompt) where most tokens are too many."""
    each = [
        (name, rooms[name], _lengths(tokenizer, [prompt])[0])
        for name, (_, tokenizer) in models.items()
    ]
    return max(each, key=lambda found: found[2] - found[1])


def _shortened(models, rooms, prompt: str) -> str | None:
    """The longest end of an instruction that fits every model (to the character, found by
    bisection); None where not even an empty one does.
    """
    low, high = 0, len(prompt)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (low, middle - 1)
            if _too_long(models, rooms, [prompt[len(prompt) - middle :]])[0]
            else (middle, high)
        )
    while low and _too_long(models, rooms, [prompt[len(prompt) - low :]])[0]:
        low -= 1
    return None if not low and _too_long(models, rooms, [""])[0] else prompt[len(prompt) - low :]
