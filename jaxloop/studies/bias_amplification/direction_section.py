"""The page's section on the bias direction: what the setups that train along it do, and how far."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.studies.bias_amplification.config import BiasConfig

NOTE = (
    "How far the weights have moved from the base along the bias direction u, and c = u' grad L on "
    "what the next generation trains on: below 0, a step of training adds to the component. Means "
    "over seeds."
)
# Of each setup that trains along the direction, what it does by its formula.
ABOUT = {
    "constrained": (
        "Setup constrained trains on the paper's L_new = L - lam sum max(0, c)^2 + gam sum min(0, "
        "c)^2. It penalises the slope, not the component: what it adds to a step goes along +Hu, "
        "to where the loss is flat along u, which mostly lies further along u. It is no brake."
    ),
    "braked": (
        "Setup braked adds w/2 max(0, b)^2 of the component b itself, as a decoupled step that "
        "divides b by 1 + rate w: after every step less of it is left, the larger w."
    ),
}


def section(config: BiasConfig, metrics: pd.DataFrame) -> report.Section | None:
    """Return the section, or None where a study has no direction or nothing was measured of it."""
    table = metrics[metrics["metric"].isin(["bias_component", "projection"])]
    if config.gradient_constraint.direction is None or table.empty:
        return None
    values = table.pivot_table(
        index=["setup", "generation"], columns="metric", values="value", observed=True
    )
    if "bias_component" not in values:
        return None
    last = int(table["generation"].max())
    setups = [setup for setup in config.chain.setups if (setup, last) in values.index]
    about = [ABOUT[setup] for setup in setups if setup in ABOUT]
    rows = [_row(values.loc[setup], last, setup) for setup in setups]
    header = ["setup", "component, generation 0", f"generation {last}", "c, generation 0", "last"]
    table_of_setups = report.Table("Setups", "", header, rows)
    said = [*about, *_compared(values, setups, last)]
    return report.Section("Bias direction", NOTE, tables=[table_of_setups], paragraphs=said)


def _row(values: pd.DataFrame, last: int, setup: str) -> list[str]:
    cells = [setup]
    for name in ("bias_component", "projection"):
        for generation in (0, last):
            found = name in values and generation in values.index
            value = float(values.loc[generation, name]) if found else np.nan
            cells.append("–" if np.isnan(value) else f"{value:.4g}")
    return cells


def _compared(values: pd.DataFrame, setups: Sequence[str], last: int) -> list[str]:
    """What the run's own numbers say of the setups beside `greedy`."""
    if "greedy" not in setups:
        return []
    plain = float(values.loc[("greedy", last), "bias_component"])
    said = []
    for setup in (name for name in setups if name in ABOUT):
        own = float(values.loc[(setup, last), "bias_component"])
        side = "further along it than" if own > plain else "less far along it than"
        side = "as far along it as" if own == plain else side
        said.append(f"Here {setup} ends {side} greedy: {own:.4g} against {plain:.4g}.")
    return said
