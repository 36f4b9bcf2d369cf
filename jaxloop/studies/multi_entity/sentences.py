"""What a multi-entity report says in words: every sentence is made from the run's numbers.

Definitions of what is measured stand in `readings`; all else could come out otherwise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxloop.studies.multi_entity import effects
from jaxloop.studies.multi_entity.config import EntitiesConfig
from jaxloop.studies.multi_entity.linear_theory import Curves, Surface

NAMES = {
    "transfer": "Transfer",
    "damage": "Damage",
    "alike_losses": "Homogenisation of losses",
    "alike_outputs": "Homogenisation of outputs",
}
# Whose reading each is.
AGAINST = {
    effects.OWN_TEXT: "against own text (the control)",
    effects.NO_EXCHANGE: "against alpha = 0 (the paper's reading)",
}


def readings(settings: EntitiesConfig, final: int) -> str:
    """Return what the effects are, and which chains they compare."""
    text = (
        f"At generation {final}, paired within a seed. Transfer: how much lower the loss on the "
        "other entities' tasks is with exchange; its share of the gap: over how much higher that "
        "loss is than the one on the own task without it (none where it is not, in any seed). "
        "Damage: how much higher that on the own task is. "
        "Homogenisation of losses: how much less the models differ in their loss on one task; of "
        "outputs: how much larger output similarity is, and, since generation 0, how much larger "
        "than that of the same models then. Against alpha = 0, as the paper compares: with chains "
        "that read no synthetic text. "
    )
    if settings.exchange.control is None:
        text += "config.exchange.control = none: there are no controls that read their own text. "
    else:
        text += (
            "Against own text: with the setting's control, which reads as much synthetic text, "
            "all of it the entity's own. "
        )
    return text + "Bars are 95 % t-intervals over seeds, not adjusted for their number."


def of_effects(summary: pd.DataFrame) -> list[str]:
    """Return where the intervals of each effect lie, and in which settings its readings differ.

    summary: what `effects.summary` returns.
    """
    said = []
    for effect, name in NAMES.items():
        rows = summary[(summary["effect"] == effect) & np.isfinite(summary["mean"])]
        for against, words in AGAINST.items():
            part = rows[rows["against"] == against]
            if len(part):
                said.append(f"{name} {words}: {_where(part)}.")
        said += _readings_differ(name, rows)
    return said


def _side(low: float, high: float) -> int:
    """1 for an interval above 0, -1 for one below, 0 for one that holds 0."""
    return int(low > 0) - int(high < 0)


def _where(rows: pd.DataFrame) -> str:
    """Where the values of several settings lie."""
    known = rows[np.isfinite(rows["low"])]
    if not len(known):
        above, count = int((rows["mean"] > 0).sum()), len(rows)
        return f"no interval (one seed); above 0 in {above} of {count} settings"
    sides = [_side(r.low, r.high) for r in known.itertuples()]
    text = (
        f"of {len(known)} intervals {sides.count(1)} lie above 0, {sides.count(-1)} below and "
        f"{sides.count(0)} hold it; means from {known['mean'].min():+.3f} to "
        f"{known['mean'].max():+.3f}"
    )
    alone = len(rows) - len(known)
    return text + (f"; {alone} settings with one seed have none" if alone else "")


def _readings_differ(name: str, rows: pd.DataFrame) -> list[str]:
    """A sentence about settings whose two readings lie on different sides of 0."""
    sides: dict[tuple, dict[str, int]] = {}
    for r in rows[np.isfinite(rows["low"])].itertuples():
        sides.setdefault((r.alpha, r.beta), {})[str(r.against)] = _side(r.low, r.high)
    both = {
        at: (side[effects.NO_EXCHANGE], side[effects.OWN_TEXT])
        for at, side in sides.items()
        if len(side) == 2
    }
    if not both:
        return []
    apart = [at for at, (paper, control) in both.items() if paper != control]
    if not apart:
        held = sum(paper == 0 for paper, _ in both.values())
        if not held:
            return [
                f"{name}: both readings lie on the same side of 0 in all {len(both)} settings "
                "that have both."
            ]
        return [
            f"{name}: of {len(both)} settings that have both readings, both lie on the same side "
            f"of 0 in {len(both) - held}, and both intervals hold it in {held}."
        ]
    listed = ", ".join(f"(alpha {a}, beta {b})" for a, b in apart)
    return [
        f"{name}: the readings differ in {len(apart)} of {len(both)} settings, {listed}: there "
        "the intervals against alpha = 0 and against own text are not on the same side of 0."
    ]


# ---- the linear model


def of_grids(surface: Surface) -> str:
    """Return where the relative efficiency is largest on both grids, and whether they agree."""
    (a, b, best), (ca, cb, coarse) = surface.best, surface.coarse
    fine = (
        f"On the fine grid the relative efficiency is largest at alpha = {a:.2f}, beta = {b:.2f} "
        f"({best:.3f})"
    )
    if not np.isfinite(coarse):
        return f"{fine}; among 0, 1/2 and 1 no pair has a limit."
    apart = max(
        abs(a - ca) / float(np.diff(surface.alpha).max()),
        abs(b - cb) / float(np.diff(surface.beta).max()),
    )
    agree = (
        "which is the same pair, to a step of the fine grid"
        if apart <= 1
        else "which is another pair"
    )
    return f"{fine}; among 0, 1/2 and 1 at alpha = {ca:g}, beta = {cb:g} ({coarse:.3f}), {agree}."


def ranks_over(settings: EntitiesConfig, start: str) -> str:
    """Return over which settings ranks are compared."""
    if settings.exchange.initial_beta is None:
        return start
    return f"{start}; alpha = 1 is one setting, beta has no part in it"


def of_linear_transfer(
    exchanged: Mapping[tuple, Curves], controlled: Mapping[tuple, Curves]
) -> list[str]:
    """Return how transfer in the linear model's last generation lies by both readings."""
    said = []
    for against, values in linear_transfer(exchanged, controlled).items():
        known = {at: v for at, v in values.items() if np.isfinite(v)}
        if not known:
            continue
        above = sum(v > 0 for v in known.values())
        said.append(
            f"Transfer of the linear model {AGAINST[against]}: above 0 in {above} of "
            f"{len(known)} settings, from {min(known.values()):+.3g} to "
            f"{max(known.values()):+.3g} squared error per row."
        )
    return said


def linear_transfer(
    exchanged: Mapping[tuple, Curves], controlled: Mapping[tuple, Curves]
) -> dict[str, dict[tuple, float]]:
    """Return {reading: {(alpha, beta): transfer}} in the last generation of the linear model.

    Error on the other entities' tasks without exchange, or of the control, minus with exchange; NaN
    where there is nothing to compare with.
    """
    nothing = float("nan")
    return {
        against: {
            at: nothing if base is None else float(base.cross[-1] - exchanged[at].cross[-1])
            for at, base in bases.items()
        }
        for against, bases in _bases(exchanged, controlled).items()
    }


def linear_shares(
    exchanged: Mapping[tuple, Curves], controlled: Mapping[tuple, Curves]
) -> dict[tuple[str, str], dict[tuple, float]]:
    """Return {(effect, reading): {(alpha, beta): share}} in the linear model's last generation.

    The effects are `transfer_share` and, where entities do not read all others, those of the tasks
    that are read and that are not; see `effects`.
    """
    nothing = float("nan")
    out = {}
    for against, bases in _bases(exchanged, controlled).items():
        for suffix, column in effects.TASKS_OF.items():
            if any(getattr(curve, column) is None for curve in exchanged.values()):
                continue
            out[f"transfer_share{suffix}", against] = {
                at: nothing
                if base is None
                else effects.share(
                    *(
                        float(getattr(curve, name)[-1])
                        for curve, name in ((base, column), (base, "own"), (exchanged[at], column))
                    )
                )
                for at, base in bases.items()
            }
    return out


def _bases(
    exchanged: Mapping[tuple, Curves], controlled: Mapping[tuple, Curves]
) -> dict[str, dict[tuple, Curves | None]]:
    """{reading: {(alpha, beta) with alpha above 0: what it is compared with, if there is any}}."""
    without = {b: curve for (a, b), curve in exchanged.items() if a == 0}
    read = [at for at in exchanged if at[0] != 0]
    return {
        effects.NO_EXCHANGE: {at: without.get(at[1]) for at in read},
        effects.OWN_TEXT: {at: controlled.get(at) for at in read},
    }


# ---- the paper


def of_papers_setting(settings: EntitiesConfig, generations: int) -> str:
    """Return whether this run is one of the settings of the paper's tables, or what differs."""
    ours = set(settings.entities)
    bases = [name.rstrip("/").rsplit("/", 1)[-1] for name in settings.models.pool]
    for name, table in effects.PAPER.items():
        base, length = effects.PAPER_RUNS[name]
        if ours == {task for _, task in table} and set(bases) == {base}:
            if generations == length:
                return f"This run has the entities, the model and the generations of {name}."
            return (
                f"This run has the entities and the model of {name}, and {generations} "
                f"generations where the paper has {length}."
            )
    return (
        f"No table of the paper is of this run's entities ({_list(settings.entities)}) and models "
        f"({_list(bases)})."
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
