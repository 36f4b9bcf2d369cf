"""Parts a run's chains by the factors that a figure or a table does not show itself.

So nothing is averaged over a factor without saying so: a figure is drawn, and a table has its rows,
for each combination of those factors.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import share
from jaxloop.studies.recursive_loops.analysis.run_tables import Run, factors

# A figure is drawn for so many combinations at most.
MOST = 24
# Levels of factors that are words, in the paper's order.
_WORDS = ("short", "medium", "long", "100l0r", "75l25r", "50l50r", "25l75r", "0l100r", "mixed")


class Setting(NamedTuple):
    """Chains of a run that are alike in some factors.

    Attributes:
        run: the run with these chains alone.
        factors: the factors in which settings differ.
        label: their values as text; "" where there is one setting.
    """

    run: Run
    factors: tuple[str, ...]
    label: str


def settings(run: Run, shown: Sequence[str]) -> list[Setting]:
    """Return the settings of the factors that a figure does not show itself.

    shown: factors whose values are lines, panels or places on an axis of the figure. Within a
    setting, chains of equal `shown` differ in seeds (and in clusters, which are replicates) alone,
    so that means over them are means over no factor.
    """
    names = tuple(name for name in (*factors(run), "ratio") if name not in shown)
    names = tuple(name for name in names if run.chains[name].astype(str).nunique() > 1)
    if not names:
        return [Setting(run, (), "")]
    values = run.chains[list(names)].astype(str)
    kept = list(dict.fromkeys(values.itertuples(index=False, name=None)))
    if len(kept) > MOST:
        raise ValueError(
            f"there are {len(kept)} combinations of {', '.join(names)}, each of which would be "
            f"drawn by itself: {MOST} are at most"
        )
    levels = [ordered(run.chains[name]) for name in names]
    found = []
    for row in itertools.product(*levels):
        if row in kept:
            chains = run.chains[(values == list(row)).all(axis=1)]
            label = ", ".join(map(_level_name, names, row))
            found.append(Setting(run._replace(chains=chains), names, label))
    return found


def _level_name(factor: str, level: str) -> str:
    if factor == "ratio":
        return f"r = {share(float(level))}"
    return level if factor == "dataset" else f"{factor.replace('_', ' ')} {level}"


def ordered(levels: pd.Series) -> list[str]:
    """Return the distinct values of a factor as text, sorted.

    The paper's words come first, in its order, then numbers by size, then the others by name.
    """
    names = list(dict.fromkeys(levels.astype(str)))
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").replace([np.inf, -np.inf], np.nan)
    number_of = dict(zip(names, numbers.fillna(0.0), strict=True))
    place_of = {word: place for place, word in enumerate(_WORDS)}
    return sorted(names, key=lambda name: (place_of.get(name, len(_WORDS)), number_of[name], name))
