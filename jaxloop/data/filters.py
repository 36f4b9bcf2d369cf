"""Filters over batches of texts; a report counts the rows that they drop."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxloop.data.batches import (
    ROWS_OF_A_BATCH,
    Columns,
    Report,
    counted,
    described,
    selected,
)

CountTokens = Callable[[list[str]], Sequence[int]]


def with_texts(
    stream: Iterable[Columns], source: str, column: str, report: Report
) -> Iterator[Columns]:
    """Yield the rows that have a text.

    Numbers are taken for texts, and the report counts them.

    Args:
        column: the name of the column in the source, for error messages.

    Raises:
        ValueError: a value is neither a text nor a number nor null.
    """
    for batch in stream:
        texts = batch["text"]
        report["rows"] += len(texts)
        if set(map(type, texts)) <= {str}:
            yield batch
            continue
        for place, value in enumerate(texts):
            if value is None or isinstance(value, str):
                continue
            if isinstance(value, float) and value != value:
                texts[place] = None
            elif isinstance(value, int | float) and not isinstance(value, bool):
                texts[place] = str(value)
                counted(report, "numbers read as texts", 1)
            else:
                number = report["rows"] - len(texts) + place + 1
                raise ValueError(
                    f"data.text_column = {column!r}: row {number} of '{source}' has "
                    f"{described(value)} there; a text must be a string."
                )
        has_text = [text is not None for text in texts]
        report["no text"] += has_text.count(False)
        yield selected(batch, has_text)


def check_prompts(values: Iterable[object], source: str, column: str) -> None:
    """Check that all prompts are strings.

    Raises:
        ValueError: one is not; the message shows the first.
    """
    for value in values:
        if not isinstance(value, str):
            raise ValueError(
                f"data.prompt_column = {column!r}: '{source}' has {described(value)} there; a "
                "prompt must be a string."
            )


@dataclass(frozen=True)
class Domains:
    """Where the domain of a row is found, and which domains are kept.

    Attributes:
        column: the column of the source; None: every row has the domain `default`.
        default: the domain of rows if there is no column.
        kept: the domains that are kept; empty: all.
    """

    column: str | None
    default: str
    kept: frozenset[str]


def with_domains(
    stream: Iterable[Columns], source: str, domains: Domains, report: Report
) -> Iterator[Columns]:
    """Yield the rows of the kept domains, with a column `domain`.

    Columns of the source come first, without the underscore in front of their names.

    Raises:
        ValueError: at the end of the stream, if a domain never occurred (a typing error would
            otherwise go unnoticed).
    """
    seen: dict[str, None] = {}
    asked_for = {_plain_name(domain): domain for domain in domains.kept}
    for batch in stream:
        if domains.column is None:
            values = [domains.default] * len(batch["text"])
        else:
            values = list(map(_domain, batch[f"_{domains.column}"]))
        of_source = {name[1:]: column for name, column in batch.items() if name.startswith("_")}
        named = {name: column for name, column in batch.items() if not name.startswith("_")}
        batch = of_source | named | {"domain": values}
        if domains.kept:
            # A number or a truth value may be written in several ways: 1 is 1.0, and true is True.
            values = [
                value if value in domains.kept else asked_for.get(_plain_name(value), value)
                for value in values
            ]
            batch["domain"] = values
            seen |= dict.fromkeys(values)
            mask = [value in domains.kept for value in values]
            report["other domains"] += mask.count(False)
            batch = selected(batch, mask)
        yield batch
    if seen:
        _check_seen(source, domains.kept, list(seen))


def _check_seen(source: str, domains: Collection[str], seen: Sequence[str]) -> None:
    absent = sorted(set(domains) - set(seen))
    if not absent:
        return
    if close := difflib.get_close_matches(absent[0], seen, 1, 0.5):
        hint = f"did you mean {close[0]!r}"
    else:
        more = ", ..." if len(seen) > 10 else ""
        hint = f"it has {', '.join(map(repr, sorted(seen)[:10]))}{more}"
    raise ValueError(f"data.domains: '{source}' has no row of the domain {absent[0]!r}; {hint}.")


def _domain(value: Any) -> str:
    """A domain as text: whole numbers without decimals, truth values in lower case, as in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _plain_name(name: str) -> str:
    lower = name.lower()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", lower if lower in ("true", "false") else name)


@dataclass(frozen=True)
class Lengths:
    """Bounds on the tokens of a text, both strict as in arXiv 2504.03814; None: no bound."""

    least: int | None
    most: int | None
    count_tokens: CountTokens

    @property
    def reasons(self) -> tuple[str, str]:
        """The report's names for texts that are too short, and too long."""
        return f"at most {self.least} tokens", f"at least {self.most} tokens"

    def start(self, report: Report) -> None:
        """Put the reasons that can occur into a report."""
        for reason, bound in zip(self.reasons, (self.least, self.most), strict=True):
            if bound is not None:
                report[reason] = 0


def in_length(stream: Iterable[Columns], lengths: Lengths, report: Report) -> Iterator[Columns]:
    """Yield the texts with least < tokens < most."""
    too_short, too_long = lengths.reasons
    for whole in stream:
        for start in range(0, len(whole["text"]), ROWS_OF_A_BATCH):
            rows = slice(start, start + ROWS_OF_A_BATCH)
            batch = {column: values[rows] for column, values in whole.items()}
            mask = []
            for count in count_safely(lengths.count_tokens, batch["text"]):
                short = lengths.least is not None and count <= lengths.least
                long = lengths.most is not None and count >= lengths.most
                if short or long:
                    report[too_short if short else too_long] += 1
                mask.append(not short and not long)
            yield selected(batch, mask)


def count_safely(count_tokens: CountTokens, texts: Iterable[str]) -> Sequence[int]:
    """Return `count_tokens` of texts that may hold lone surrogates, which tokenizers refuse.

    Each of them is counted as U+FFFD.

    Raises:
        ValueError: the function does not return one number per text.
    """
    clean = [
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts
    ]
    counts = count_tokens(clean)
    if len(counts) != len(clean):
        raise ValueError(
            f"count_tokens: gave {len(counts)} numbers for {len(clean)} texts; it must give one "
            "per text."
        )
    return counts
