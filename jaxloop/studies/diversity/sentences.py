"""What a diversity report says in words: every sentence is made from the run's tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# Of a regression on two things that move together: from this variance inflation on, their effects
# are said not to be told apart (a correlation of 0.89).
INFLATED = 5.0
MIXTURES = {
    "fixed": "Mixtures of one size (section 4.3)",
    "variable": "Generated data added to real data (section 4.3)",
}


def of_levels(pools: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Return of each task whether diversity, size matched, rises from level to level.

    pools: `measure.describe` of the sources, named TASK-D0 to TASK-D6; names: of the tasks.
    """
    said = []
    for task, name in names.items():
        rows = pools[pools["set"].str.match(rf"{task}-D\d")].sort_values("set")
        levels = [one.split("-")[1] for one in rows["set"]]
        values = rows["distinct_matched"].to_numpy(float)
        if len(values) < 2:
            continue
        falls = [
            f"{one} to {other}"
            for one, other, step in zip(levels[:-1], levels[1:], np.diff(values), strict=True)
            if not step > 0
        ]
        course = "rises at every step" if not falls else f"does not rise from {', '.join(falls)}"
        said.append(
            f"{name}: Distinct-5, size matched, {course}; {values[0]:.3f} at {levels[0]}, "
            f"{values[-1]:.3f} at {levels[-1]}."
        )
    return said


def mixture_titles(mixings: Mapping[str, str]) -> dict[str, str]:
    """Return the title of each experiment by how it mixes ("fixed" or "variable")."""
    titles = {name: MIXTURES[mixing] for name, mixing in mixings.items()}
    if len(set(titles.values())) == len(titles):
        return titles
    return {name: f"{title}: experiment {name}" for name, title in titles.items()}


def of_mixture(rows: pd.DataFrame, mixing: str) -> str:
    """Return what a grid of mixing ratios keeps, by the sets of its models (columns real,
    generated, rho).
    """
    text = "Test loss on answers by mixing ratio rho = generated / all records. "
    kept = rows["real"] + rows["generated"] if mixing == "fixed" else rows["real"]
    mixed = kept[rows["real"] > 0] if mixing == "variable" else kept
    what = "records" if mixing == "fixed" else "real records, to which generated ones are added"
    sizes = sorted(set(mixed.tolist()))
    return text + f"Sets have {_listed(sizes)} {what}."


def of_sizes(rows: pd.DataFrame) -> str:
    """Return how large the sets of a grid are, and whether they hold real records."""
    sizes = sorted(set((rows["real"] + rows["generated"]).tolist()))
    mixed = int((rows["real"] > 0).sum())
    what = "Generated data alone" if not mixed else f"Generated data, with real ones in {mixed}"
    return f"{what} of {len(rows)} sets, of {_listed(sizes)} records."


def of_bases(rows: pd.DataFrame) -> str:
    """Return whether the figures subtract the loss on real data, which every base needs for it."""
    bases = list(dict.fromkeys(rows["base"])) if len(rows) else []
    without = [b for b in bases if not (rows[rows["base"] == b]["level"] == "real").any()]
    if not without:
        return "Test loss on answers minus that of the same base fine-tuned on real data."
    return (
        f"Test loss on answers as it is: {', '.join(without)} "
        f"{'was' if len(without) == 1 else 'were'} not fine-tuned on real data alone."
    )


def of_lengths(task: str) -> str:
    """Return what the histogram of lengths counts."""
    of = " (the last sentence)" if task == "story" else ""
    return f"Tokens of the answer{of}, share of records; grey: real data."


def of_fits(fits: Sequence[Any], names: Mapping[str, str]) -> list[str]:
    """Return what each regression on diversity and a distance tells.

    fits: rows of `measure.regressions`; names: of the tasks.
    """
    return [said for fit in fits if (said := _of_fit(fit, names))]


def _of_fit(fit: Any, names: Mapping[str, str]) -> str:
    what = f"{names[fit.task]}, sets of {fit.kind}, {fit.shift}"
    if not np.isfinite(fit.correlation):
        return ""
    if not np.isfinite(fit.vif):
        return f"{what}: diversity and distance are the same (correlation {fit.correlation:+.2f})."
    if not np.isfinite(fit.diversity_together):
        return f"{what}: only one group of sets tells diversity from distance."
    if fit.vif >= INFLATED:
        return (
            f"{what}: diversity and distance move together (correlation {fit.correlation:+.2f}, "
            f"VIF {fit.vif:.1f}), so that the effect of neither is told from the other's."
        )
    return (
        f"{what}: correlation {fit.correlation:+.2f}, VIF {fit.vif:.1f}; with the distance held, "
        f"more diversity {_effect(fit.diversity_low, fit.diversity_high)}; with diversity held, "
        f"more distance {_effect(fit.shift_low, fit.shift_high)}."
    )


def _effect(low: float, high: float) -> str:
    if high < 0:
        return "goes with a lower loss"
    if low > 0:
        return "goes with a higher loss"
    return "goes with no change of the loss that the 95 % interval tells from 0"


def of_distances(distances: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Return of each task which sources lie closer to real training records than real test records
    do, by the Frechet distance.

    distances: rows of `measure.distances` of the sources and TASK-test.
    """
    said = []
    for task, name in names.items():
        rows = distances[distances["task"] == task].set_index("set")["frechet_distance"]
        if f"{task}-test" not in rows.index or not np.isfinite(rows[f"{task}-test"]):
            continue
        real = float(rows[f"{task}-test"])
        sources = rows[rows.index.str.match(rf"{task}-D\d")].dropna()
        if not len(sources):
            continue
        closer = [str(one).split("-")[1] for one, value in sources.items() if value <= real]
        which = ", ".join(closer) if closer else "none"
        said.append(
            f"{name}: real test records lie at a Fréchet distance of {real:.4g}; of "
            f"{len(sources)} sources {which} no further."
        )
    return said


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:,.0f}" for number in numbers) or "no"
