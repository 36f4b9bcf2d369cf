"""Takes instruction and text out of conversations and completions.

The columns `messages` (OpenAI, TRL), `conversations` (ShareGPT), and `prompt` with `completion` are
understood.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_TURNS = ("messages", "conversations")
_WRITERS = ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai")


def form_of(columns: Collection[str]) -> str | None:
    """Return which of the forms a data set with these columns has; None for none of them."""
    for name in _TURNS:
        if name in columns:
            return name
    return "completion" if {"prompt", "completion"} <= set(columns) else None


def pair(form: str, columns: Mapping[str, list[Any]]) -> tuple[list[Any], list[Any]]:
    """Return (texts, instructions) of some rows in one of the forms of `form_of`.

    In a conversation the text is the last answer, and the instruction is all turns before it,
    separated by empty lines; a row without an answer has no text (None). Turns may also be a JSON
    string, as in CSV files, or a dict of lists, as `datasets` gives them for a Sequence.
    """
    if form == "completion":
        texts = [_spoken(value) for value in columns["completion"]]
        return texts, [_spoken(value) or "" for value in columns["prompt"]]
    pairs = [_last_answer(turns) for turns in columns[form]]
    return [text for text, _ in pairs], [instruction for _, instruction in pairs]


def _last_answer(value: Any) -> tuple[Any, str]:
    turns = [turn for turn in _turns(value) if isinstance(turn, Mapping)]
    for i in reversed(range(len(turns))):
        role = turns[i].get("role", turns[i].get("from"))
        if str(role).lower() in _WRITERS:
            return _content(turns[i]), _joined(turns[:i])
    return None, ""


def _turns(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, Mapping) and _are_lists_by_key(value):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else []


def _are_lists_by_key(value: Mapping[str, Any]) -> bool:
    lists = list(value.values())
    if not lists or not all(isinstance(values, list) for values in lists):
        return False
    return len(set(map(len, lists))) == 1


def _spoken(value: Any) -> Any:
    """A text as it is, or the joined contents of a list of turns."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return _joined(value)
    return value


def _joined(turns: Sequence[Mapping[str, Any]]) -> str:
    contents = []
    for value in map(_content, turns):
        contents.append(value if value is None or isinstance(value, str) else str(value))
    return "\n\n".join(filter(None, contents))


def _content(turn: Mapping[str, Any]) -> Any:
    """The content of one turn: a string, or its text parts joined."""
    value = turn.get("content", turn.get("value"))
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str))
    return value
