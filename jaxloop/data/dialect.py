"""How the cells of csv and tsv files are separated, and hints for error messages about it."""

import re
from dataclasses import dataclass

OPTIONS = ("no_header", "quotes", "no_quotes", "backslash", "spaces", "short_rows")
# Delimiters by names that can be typed on a command line.
_NAMED = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
}


@dataclass(frozen=True)
class Dialect:
    """How cells are separated.

    Attributes:
        delimiter: one character; None: the only one that fits the file's lines, else a comma (.csv)
            or a tab (.tsv).
        options: names out of `OPTIONS`. `no_header`: the first line is a row, and columns are
            called 0, 1, …; `quotes`: quotation marks enclose cells; `no_quotes`: they are text
            (default: they are text if tabs separate the cells, else they enclose); `backslash`: a
            backslash escapes the next character; `spaces`: spaces after a delimiter are not part of
            the cell; `short_rows`: cells missing at the end of a row have no value.

    Raises:
        ValueError: an unknown delimiter or option.
    """

    delimiter: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", _NAMED.get(self.delimiter, self.delimiter))
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in '"\r\n\\\x1a' or ord(self.delimiter) > 127
        ):
            raise ValueError(
                f"data.delimiter = {self.delimiter!r} is not allowed: one ASCII character other "
                "than a quotation mark, or tab."
            )
        if unknown := [o for o in self.options if o not in OPTIONS]:
            raise ValueError(
                f"data.csv_options has {unknown[0]!r}, which is none of {', '.join(OPTIONS)}."
            )
        if {"quotes", "no_quotes"} <= set(self.options):
            raise ValueError("data.csv_options has both 'quotes' and 'no_quotes': one of them.")


def in_section(message: str, section: str) -> str:
    """Return an error message with the section's fields and flags in place of those of `data`."""
    message = re.sub(r"^data\.(delimiter|csv_options)\b", rf"config.{section}.\1", message)
    return message.replace("--config.data.", f"--config.{section}.")


def flag(option: str) -> str:
    """Return what to write on the command line for an option."""
    return f"--config.data.csv_options={option}"


def like_data(name: str) -> bool:
    """Return whether a name of a column looks like a value."""
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", name)) or len(name) > 60


def hint(columns: tuple[str, ...] | list[str]) -> str:
    """Return a likely reason why a header lacks the name asked for; "" if none is known."""
    names = list(map(str, columns))
    if len(names) == 1 and (marks := [m for m in ";\t|," if m in names[0]]):
        # By its name, since a shell takes ; and | for its own.
        named = next(name for name, mark in _NAMED.items() if mark == marks[0])
        return (
            f"; its first line looks as if a {named} parted the cells: "
            f"--config.data.delimiter={named}"
        )
    if any(n.startswith('"') and n.endswith('"') and len(n) > 1 for n in names):
        return f"; its names stand in quotation marks, which {flag('quotes')} takes off"
    if any(n != n.lstrip() for n in names):
        return f"; some begin with a space, which {flag('spaces')} takes off"
    if any(map(like_data, names)):
        return (
            f"; a file without a header is read with {flag('no_header')}, its columns are then "
            "called 0, 1, …"
        )
    return ""
