"""Sentences and a table on how the political lean of chains changed, for each mix of texts."""

import numpy as np
import pandas as pd

from jaxloop.reporting.statistics import no_spread, t_interval
from jaxloop.studies.recursive_loops.analysis import paper_figures_political
from jaxloop.studies.recursive_loops.analysis.findings_regression import listed
from jaxloop.studies.recursive_loops.analysis.run_tables import Run

# The lean of a text that is neither left nor right.
_CENTRE = 50.0


def political(run: Run, *, neutral: tuple[float, float]) -> tuple[list[str], pd.DataFrame]:
    """Return sentences, and a table with a row for every mix and level of what else is varied.

    The table has the initial and the final lean, the shift with its t interval, and what became of
    the bias, by t tests over chains:

    reduced, amplified    |final - 50| is significantly smaller or larger than |initial - 50|
    reversed              the final lean is significantly on the other side of 50
    none at the start     the initial lean does not differ significantly from 50
    change not shown      none of these
    """
    by_chain = paper_figures_political.by_chain(paper_figures_political.leans(run), neutral)
    ends = paper_figures_political.initial_and_final(by_chain, "lean")
    keys = paper_figures_political.cells(run)
    rows = []
    for key, chains in ends.groupby(keys, sort=False):
        shift = (chains["final"] - chains["initial"]).to_numpy(float)
        interval = t_interval(shift, 0.0)
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "n": len(chains),
                "initial": chains["initial"].mean(),
                "final": chains["final"].mean(),
                "shift": shift.mean(),
                "low": interval.low,
                "high": interval.high,
                "p": interval.p,
                "bias": _bias(chains),
            }
        )
    names = [*keys, "n", "initial", "final", "shift", "low", "high", "p", "bias"]
    table = pd.DataFrame(rows, columns=names)
    sentences = _where_it_arose(by_chain, ends)
    for bias, mixes in table.sort_values("initial").groupby("bias", sort=False):
        which = [
            ", ".join(str(row[k]) for k in keys) + f" ({row['initial']:.1f} to {row['final']:.1f})"
            for _, row in mixes.iterrows()
        ]
        sentences.append(f"Bias {bias}: {listed(which)}.")
    return sentences, table


def _where_it_arose(by_chain: pd.DataFrame, ends: pd.DataFrame) -> list[str]:
    """Sentences on how much of the shift from human text is already there in generation 0.

    They also say how far the mixes are apart then and at the end.
    """
    if not (by_chain["generation"] == -1).any() or ends.empty:
        return []
    zero = by_chain[by_chain["generation"] == 0].set_index("chain")["lean"]
    leans = ends.assign(zero=zero.reindex(ends["chain"]).to_numpy()).dropna(subset="zero")
    if leans.empty:
        return []
    first = (leans["zero"] - leans["initial"]).to_numpy(float)
    later = (leans["final"] - leans["zero"]).to_numpy(float)
    means = leans.groupby("mix")[["initial", "zero", "final"]].mean()
    apart = means.max() - means.min()
    return [
        f"A chain's lean moves by {np.abs(first).mean():.1f} on average from its human text to "
        "the text of generation 0, which no synthetic text has entered, "
        f"and by {np.abs(later).mean():.1f} from there to the last generation: only the second "
        "can come of recursion. The means of the mixes lie "
        f"{apart['initial']:.1f} apart in human text, {apart['zero']:.1f} in generation 0 and "
        f"{apart['final']:.1f} in the last."
    ]


def _side(leans: pd.Series) -> int:
    """-1 for left, 1 for right, 0 where the mean does not differ significantly from the centre."""
    return _sign(leans.to_numpy(float) - _CENTRE)


def _sign(values: np.ndarray) -> int:
    """-1 or 1 where the mean of values [n] differs significantly from 0, else 0.

    Equal values of several chains, as those of one set of human texts are, need no test.
    """
    differs = t_interval(values, 0.0).p < 0.05 or (len(values) > 1 and no_spread(values))
    return int(np.sign(values.mean())) if differs else 0


def _bias(chains: pd.DataFrame) -> str:
    """What became of the bias of the chains of a mix, in words."""
    initial, final = _side(chains["initial"]), _side(chains["final"])
    if len(chains) < 2:
        return "of one chain, change not shown"
    if not initial:
        return "none at the start, some at the end" if final else "none at the start"
    if final == -initial:
        return "reversed"
    distance = (chains["final"] - _CENTRE).abs() - (chains["initial"] - _CENTRE).abs()
    change = _sign(distance.to_numpy(float))
    return {-1: "reduced", 0: "change not shown", 1: "amplified"}[change]
