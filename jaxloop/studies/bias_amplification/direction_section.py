"""The page's section on the bias direction: what the setups that train along it do, and how far."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from jaxloop.reporting import report
from jaxloop.reporting.statistics import t_interval
from jaxloop.studies.bias_amplification.config import BiasConfig

# {(setup, generation, metric): mean over seeds}
Values = Mapping[tuple[str, int, str], float]

NOTE = (
    "How far the weights have moved from the base along the bias direction u, and c = u' grad L on "
    "what the next generation trains on: below 0, a small step against the gradient adds to the "
    "component (first order of Taylor's theorem). Means over seeds; in brackets: 95 % t intervals."
)
# Of each setup that trains along the direction, what follows from its formula alone. What it did in
# a run is said of the run's numbers, see `_compared`.
ABOUT = {
    "constrained": (
        "Setup constrained trains on the paper's L_new = L - lam sum max(0, c)^2 + gam sum min(0, "
        "c)^2. By the chain rule, with H the Hessian of L, what it adds to a step is a multiple of "
        "Hu. It penalises the slope, not the component, and is no brake on the component."
    ),
    "braked": (
        "Setup braked adds w/2 max(0, b)^2 of the component b itself, as a decoupled step that "
        "divides b by 1 + rate w (its proximal map): the larger w, the less of b is left by that "
        "step."
    ),
}


def section(config: BiasConfig, metrics: pd.DataFrame) -> report.Section | None:
    """Return the section, or None where a study has no direction or nothing was measured of it."""
    table = metrics[metrics["metric"].isin(["bias_component", "projection"])]
    if config.gradient_constraint.direction is None or table.empty:
        return None
    means = table.groupby(["setup", "generation", "metric"], observed=True)["value"].mean()
    frame = means.reset_index()
    keys = zip(frame["setup"], frame["generation"], frame["metric"], strict=True)
    values = dict(zip(keys, frame["value"].tolist(), strict=True))
    last = int(table["generation"].max())
    setups = [s for s in config.chain.setups if (s, last, "bias_component") in values]
    rows = [_row(values, last, setup) for setup in setups]
    header = ["setup", "component, generation 0", f"generation {last}", "c, generation 0", "last"]
    ends = table[(table["generation"] == last) & (table["metric"] == "bias_component")]
    said = [ABOUT[setup] for setup in setups if setup in ABOUT] + _compared(ends, setups)
    table_of_setups = report.Table("Setups", "", header, rows)
    return report.Section("Bias direction", NOTE, tables=[table_of_setups], paragraphs=said)


def _row(values: Values, last: int, setup: str) -> list[str]:
    cells = [setup]
    for metric in ("bias_component", "projection"):
        for generation in (0, last):
            value = values.get((setup, generation, metric), math.nan)
            cells.append("–" if math.isnan(value) else f"{value:.4g}")
    return cells


def _compared(ends: pd.DataFrame, setups: Sequence[str]) -> list[str]:
    """What the run's own numbers say of the setups beside `greedy`, seed by seed.

    ends: the components of the last generation.
    """
    if "greedy" not in setups:
        return []
    by_seed = ends.pivot_table(index="seed", columns="setup", values="value", observed=True)
    said = []
    for setup in (name for name in setups if name in ABOUT):
        # A seed whose chain stopped in one setup is in neither mean.
        both = by_seed[[setup, "greedy"]].dropna()
        if both.empty:
            continue
        own, plain = both.mean()
        side = "further along it than" if own > plain else "less far along it than"
        side = "as far along it as" if own == plain else side
        text = f"Here {setup} ends {side} greedy: {own:.4g} against {plain:.4g}"
        found = t_interval((both[setup] - both["greedy"]).to_numpy(float), 0.0)
        if math.isfinite(found.low):
            text += (
                f", a difference of {own - plain:+.4g} [{found.low:.4g}, {found.high:.4g}] over "
                f"{len(both)} seeds"
            )
        said.append(f"{text}.")
    return said
