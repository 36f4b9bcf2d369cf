"""Commands as words, and the flags they stand for: `jaxloop run quickstart --chain.size=5`."""

import difflib
from collections.abc import Sequence

# Commands that stand for a flag, and whether a config follows them.
OF_FLAGS = {
    "run": True,
    "validate": True,
    "plan": True,
    "fields": True,
    "quickstart": False,
    "list": False,
    "env": False,
    "help": False,
}
# Commands with words of their own.
WITH_WORDS = ("cache", "compare", "completion", "export", "results")
COMMANDS = (*OF_FLAGS, *WITH_WORDS)
# What follows a command and is no field of the config.
FLAGS = ("workdir", "for", "debug", "timings", "help")


def to_flags(words: Sequence[str]) -> list[str]:
    """Return the flags that a command with its words stands for.

    `run CONFIG --chain.size=5` is `--config=CONFIG --config.chain.size=5`. Words that begin with a
    flag are returned as they are.

    Raises:
        ValueError: there is no such command, or its config is missing.
    """
    if not words or words[0].startswith("-"):
        return list(words)
    command, rest = words[0], list(words[1:])
    if command not in OF_FLAGS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        raise ValueError(f"'{command}' was not understood; {hint}")
    if command == "quickstart":
        named = any(word.split("=")[0] in ("--workdir", "-workdir") for word in rest)
        default = [] if named else ["--workdir=runs/quickstart"]
        return ["--config=quickstart", *default, *map(_field, rest)]
    flags = [] if command == "run" else [f"--{command}"]
    if not OF_FLAGS[command]:
        return [*flags, *rest]
    if not rest or rest[0].startswith("-"):
        raise ValueError(
            f"{command}: the config is missing, such as `jaxloop {command} quickstart` (all of "
            "them: jaxloop list)"
        )
    return [*flags, f"--config={rest[0]}", *map(_field, rest[1:])]


def _field(word: str) -> str:
    """`--chain.size=5` as `--config.chain.size=5`; any other word as it is."""
    name = word.lstrip("-").split("=")[0]
    if not word.startswith("-") or name.startswith("config.") or word == "-h":
        return word
    if "." not in name and (name in FLAGS or difflib.get_close_matches(name, FLAGS, 1)):
        return word
    return f"--config.{word.lstrip('-')}"
