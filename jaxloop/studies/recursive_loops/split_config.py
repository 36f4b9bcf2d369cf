"""The section of a config that says how human text is cut by quality or by length."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from jaxloop.config import Section, Share, Text, suggestion
from jaxloop.studies.common.config import check_distinct

Score = Annotated[float, Field(ge=0, le=100)]
Quantiles = Annotated[int, Field(ge=2)]


class DomainSplits(Section):
    """Subsets of one domain, where they are not those of all domains."""

    levels: tuple[Score, ...] | None = Field(
        None, description="scores that make a subset each; none: `splits.levels`"
    )
    joined: dict[str, Annotated[tuple[Score, ...], Field(min_length=1)]] = Field(
        {}, description="further subsets: name -> the scores that its texts have"
    )
    quantiles: Quantiles | None = Field(
        None, description="cut at so many quantiles; none: `splits.quantiles`"
    )
    without: tuple[Score, ...] = Field(
        (), description="quality scores whose texts are in no subset by length"
    )
    ratios: dict[str, Annotated[tuple[Share, ...], Field(min_length=1)]] = Field(
        {},
        description="name of a subset -> ratios of its chains, out of `chain.ratios`; a subset "
        "without an entry has all of them",
    )


class Splits(Section):
    """Subsets by quality or length."""

    levels: tuple[Score, ...] = Field(
        (20, 40, 60, 80), description="quality scores; a subset has exactly the score"
    )
    quantiles: Quantiles | None = Field(
        None,
        description="cut at quantiles instead, for scores that are not round; length: 3 unless "
        "given",
    )
    domains: dict[Text, DomainSplits] = Field(
        {},
        description="domain -> what is otherwise there: levels, joined, quantiles, without, ratios",
    )


def quantiles(splits: Splits, domain: str, kind: Literal["quality", "length"]) -> int | None:
    """Return at how many quantiles a domain is cut; None: by its scores."""
    own = splits.domains.get(domain)
    count = own.quantiles if own is not None and own.quantiles else splits.quantiles
    return count or (3 if kind == "length" else None)


def scores(splits: Splits, domain: str) -> dict[str | int | float, tuple[float, ...]]:
    """Return {name of a subset: scores of its texts} of a domain that is cut by scores.

    The lowest scores come first.
    """
    own = splits.domains.get(domain) or DomainSplits()
    levels = splits.levels if own.levels is None else own.levels
    named: dict[str | int | float, tuple[float, ...]] = {
        (int(level) if level == int(level) else level): (level,) for level in levels
    }
    named.update({name: tuple(chosen) for name, chosen in own.joined.items()})
    return dict(sorted(named.items(), key=lambda item: min(item[1])))


def labels(
    splits: Splits, domain: str, kind: Literal["quality", "length"]
) -> list[str | int | float]:
    """Return the names of a domain's subsets in the tables, the lowest first."""
    count = quantiles(splits, domain, kind)
    if count is None:
        return list(scores(splits, domain))
    if kind == "length" and count <= 3:
        return ["short", "medium", "long"] if count == 3 else ["short", "long"]
    letter = "Q" if kind == "quality" else "L"
    return [f"{letter}{i + 1}" for i in range(count)]


def ratios(splits: Splits, domain: str, label: str | float) -> tuple[float, ...] | None:
    """Return the ratios of the chains of a subset; None: all of the experiment."""
    own = splits.domains.get(domain)
    return None if own is None else own.ratios.get(str(label))


def check_splits(
    splits: Splits,
    domains: Collection[str],
    kind: Literal["quality", "length"],
    chain_ratios: Collection[float],
) -> None:
    """Raise ValueError for splits that name what is not there, or leave nothing to cut."""
    check_distinct({"splits.levels": splits.levels})
    for name, own in splits.domains.items():
        where = f"config.splits.domains.{name}"
        if name not in domains:
            raise ValueError(
                f"{where}: config.domains has no such name; {suggestion(name, domains)}"
            )
        if own.without and kind != "length":
            raise ValueError(
                f"{where}.without = {own.without} is not allowed here: only subsets by length can "
                "leave out texts by their quality"
            )
        known = [str(label) for label in labels(splits, name, kind)]
        for label, chosen in own.ratios.items():
            if other := [ratio for ratio in chosen if ratio not in chain_ratios]:
                raise ValueError(
                    f"{where}.ratios.{label} has {other[0]:g}, which config.chain.ratios has not"
                )
            if label not in known:
                raise ValueError(
                    f"{where}.ratios has '{label}', which is no subset; {suggestion(label, known)}"
                )
        named = [score for chosen in scores(splits, name).values() for score in chosen]
        if kind == "quality" and len(set(named)) < len(named):
            raise ValueError(f"{where}: a score stands in two subsets; must be in one at most")
    for name in domains:
        if kind == "quality" and not labels(splits, name, kind):
            raise ValueError(
                "config.splits.levels is empty and config.splits.quantiles none: one of them says "
                "how quality is cut"
            )
