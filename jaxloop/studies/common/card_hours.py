"""Hours that a study's arithmetic takes on named cards, for plans of more than this machine can do.

They are rooflines of whole parts of a study: the larger of its FLOPs over a card's peak and its
bytes over the card's bandwidth, as `accelerators.cards` has them. A run takes longer.
"""

from typing import NamedTuple

from jaxloop.accelerators import cards
from jaxloop.recursion.progress import duration
from jaxloop.studies.common.config import PlanAssumptions

# The cards that every plan names; --for takes others too.
NAMED = ("h100", "h200", "a100")
# A time on this machine is said up to so many seconds; what takes longer is a matter of cards.
LONGEST_HERE = 100 * 3600.0


class Arithmetic(NamedTuple):
    """What a study computes and reads.

    Attributes:
        train_flops, score_flops: of training, of measuring losses.
        decode_flops, decode_bytes: of generating.
        dtype: of the computation, "bfloat16" or "float32".
    """

    train_flops: float
    score_flops: float = 0.0
    decode_flops: float = 0.0
    decode_bytes: float = 0.0
    dtype: str = "bfloat16"


class Hours(NamedTuple):
    """Hours of all devices of a card at its limits."""

    train: float
    write: float
    score: float


def hours(work: Arithmetic, card: cards.Card) -> Hours:
    """Return the least hours that a study's arithmetic takes on a card."""
    peak = card.devices * (card.peak if work.dtype == "bfloat16" else card.peak32)
    write = max(work.decode_flops / peak, work.decode_bytes / (card.devices * card.bandwidth))
    return Hours(work.train_flops / peak / 3600, write / 3600, work.score_flops / peak / 3600)


def rows(work: Arithmetic, target: str | None = None) -> list[tuple[str, str]]:
    """Return a (what, amount) row for every named card, or for the target alone.

    Raises ValueError for a target that does not exist.
    """
    chosen = NAMED if target is None else (target,)
    found = [card for name in chosen if (card := cards.find(name)) is not None]
    return [(f"time on {_place(card)}", _line(hours(work, card))) for card in found]


def _place(card: cards.Card) -> str:
    return f"one {card.name}" if card.devices == 1 else f"{card.name}, all {card.devices} devices"


def _line(least: Hours) -> str:
    whole, share = sum(least), PlanAssumptions().train_share
    if whole * 3600 < share * 60:
        return "less than a minute"
    names = ("to train", "to write", "to score")
    parts = [f"{_words(part)} {name}" for part, name in zip(least, names, strict=True) if part]
    return (
        f"at least {_words(whole)} by its limits ({', '.join(parts)}), about "
        f"{_words(whole / share)} at {share:.0%} of them"
    )


def _words(value: float) -> str:
    return f"{value:,.0f} h" if value >= 10 else duration(value * 3600)
