"""Instruction and text out of conversations: the columns `messages` (OpenAI, TRL), `conversations`
(ShareGPT), `prompt` with `completion`.
"""

import json
from collections.abc import Collection, Mapping

_TURNS = ("messages", "conversations")
_WRITERS = ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai")


def form_of(columns: Collection[str]) -> str | None:
    """Which of the forms a data set with these columns has; None for none of them."""
    found = next((name for name in _TURNS if name in columns), None)
    return found or ("completion" if {"prompt", "completion"} <= set(columns) else None)


def pair(form: str, columns: Mapping[str, list]) -> tuple[list[str | None], list[str]]:
    """(texts, instructions) of some rows. Of turns, the text is the last answer and the instruction
    all that was said before it, with an empty line between; a row without an answer has no text
    (None). Turns may be a JSON text, as CSV files hold them, or lists by key, as `datasets` has
    them in a Sequence.
    """
    if form == "completion":
        return [_said(value) for value in columns["completion"]], [
            _said(value) or "" for value in columns["prompt"]
        ]
    pairs = [_last(turns) for turns in columns[form]]
    return [text for text, _ in pairs], [asked for _, asked in pairs]


def _last(turns):
    turns = [turn for turn in _turns(turns) if isinstance(turn, Mapping)]
    answers = [
        i
        for i, turn in enumerate(turns)
        if str(turn.get("role", turn.get("from"))).lower() in _WRITERS
    ]
    if not answers:
        return None, ""
    return _content(turns[answers[-1]]), _joined(turns[: answers[-1]])


def _turns(value):
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if (
        isinstance(value, Mapping)
        and value
        and all(
            isinstance(v, list) and len(v) == len(next(iter(value.values())))
            for v in value.values()
        )
    ):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else []


def _said(value):
    """A text, or the contents of a list of turns."""
    return (
        _joined(value)
        if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)
        else value
    )


def _joined(turns):
    said = [
        value if value is None or isinstance(value, str) else str(value)
        for value in map(_content, turns)
    ]
    return "\n\n".join(filter(None, said))


def _content(turn):
    """What one turn says: a string, or the parts of it that are text."""
    value = turn.get("content", turn.get("value"))
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str))
    return value
