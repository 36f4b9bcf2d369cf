"""What an experiment that varies a factor found, and what it cannot tell with so many seeds, in
sentences and tables.

A cell is the chains of one level of the factor at one ratio; its chains are replicates. Intervals
are t intervals over chains.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from jaxloop.reporting import figures
from jaxloop.reporting.scores import LAST, share
from jaxloop.studies.recursive_loops.analysis import paper_figures_political, power
from jaxloop.studies.recursive_loops.analysis.findings_regression import chance, listed
from jaxloop.studies.recursive_loops.analysis.regression_honest import benjamini_hochberg
from jaxloop.studies.recursive_loops.analysis.relative import outcomes
from jaxloop.studies.recursive_loops.analysis.run_tables import Run


def cells(
    run: Run, metrics: Sequence[str], factors: Sequence[str], *, last: int = LAST
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cells, skipped chains). Cells: metric, factors, ratio, n, absolute, relative, se, low, high
    (95 % t interval of the relative value; nan for one chain), p (of no change: relative = 1) and q
    (Benjamini-Hochberg over all cells).
    """
    rows, skipped = [], []
    for metric in metrics:
        found = outcomes(run.metrics, run.chains, metric, last=last)
        skipped.append(found.skipped.assign(metric=metric))
        for key, own in found.table.groupby([*factors, "ratio"], sort=True, dropna=False):
            values = own["relative"].to_numpy(float)
            rows.append(
                (metric, *key, len(values), own["late"].mean(), values.mean(), *_interval(values))
            )
    names = ["metric", *factors, "ratio", "n", "absolute", "relative", "se", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=names)
    table["q"] = benjamini_hochberg(table["p"]) if len(table) else []
    return table, pd.concat(skipped, ignore_index=True) if skipped else pd.DataFrame(
        columns=["chain", "reason", "metric"]
    )


def _interval(values: np.ndarray, null: float = 1.0) -> tuple[float, float, float, float]:
    """(standard error, low, high, p of the mean being `null`); nan where there is one value; p is 0
    or 1 where there is no spread.
    """
    n = len(values)
    if n < 2:
        return (float("nan"),) * 4
    se = values.std(ddof=1) / np.sqrt(n)
    half = stats.t.isf(0.025, n - 1) * se
    p = (
        2 * stats.t.sf(abs(values.mean() - null) / se, n - 1)
        if se > 0
        else float(values.mean() == null)
    )
    return float(se), float(values.mean() - half), float(values.mean() + half), float(p)


def _name(factors: Sequence[str], key: Sequence) -> str:
    return (
        ", ".join(
            str(k) if f in ("dataset", "mix", "bases") else f"{f.replace('_', ' ')} {k}"
            for f, k in zip(factors, key, strict=True)
        )
        or "all chains"
    )


def found(
    run: Run,
    metrics: Sequence[str],
    factors: Sequence[str],
    table: pd.DataFrame,
    *,
    last: int = LAST,
) -> list[str]:
    """A sentence per metric and level: its relative value at the largest ratio, whether it falls
    with the ratio, whether it is U-shaped.
    """
    sentences = []
    for metric in metrics:
        chains = outcomes(run.metrics, run.chains, metric, last=last).table
        groups = (
            chains.groupby(list(factors), sort=True, dropna=False) if factors else [((), chains)]
        )
        for key, own in groups:
            level = table[table["metric"] == metric]
            for factor, value in zip(factors, key, strict=True):
                level = level[level[factor] == value]
            if len(level):
                sentences.append(
                    f"{figures.title(metric)[0]}, {_name(factors, key)}: {_level(own, level)}"
                )
    return sentences


def contrasts(
    run: Run, metrics: Sequence[str], factor: str, factors: Sequence[str], *, last: int = LAST
) -> pd.DataFrame:
    """Relative values of the levels of one factor against its first level (that of the first
    planned chain), at the same ratio and other factors.

    Columns: metric, other factors, ratio, level, against, n, n_against, difference, low, high (95
    %, Welch), p, q (Benjamini-Hochberg over all).
    """
    others, rows = [name for name in factors if name != factor], []
    reference = run.chains[factor].iloc[0]
    for metric in metrics:
        chains = outcomes(run.metrics, run.chains, metric, last=last).table
        for key, own in chains.groupby([*others, "ratio"], sort=True, dropna=False):
            base = own[own[factor] == reference]["relative"].to_numpy(float)
            for level, held in own[own[factor] != reference].groupby(factor, sort=True):
                values = held["relative"].to_numpy(float)
                difference = values.mean() - base.mean() if len(base) else np.nan
                low, high, p = _welch(values, base)
                rows.append(
                    (
                        metric,
                        *key,
                        level,
                        reference,
                        len(values),
                        len(base),
                        difference,
                        low,
                        high,
                        p,
                    )
                )
    names = [
        "metric",
        *others,
        "ratio",
        "level",
        "against",
        "n",
        "n_against",
        "difference",
        "low",
        "high",
        "p",
    ]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(q=benjamini_hochberg(table["p"]) if len(table) else [])


def _welch(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    if min(len(values), len(base)) < 2 or values.std() + base.std() == 0:
        return (float("nan"),) * 3
    test = stats.ttest_ind(values, base, equal_var=False)
    interval = test.confidence_interval()
    return float(interval.low), float(interval.high), float(test.pvalue)


def differ(table: pd.DataFrame, factor: str) -> list[str]:
    """Whether the levels of a factor differ, in a sentence."""
    known = table.dropna(subset="p")
    what = (
        f"Levels of {factor.replace('_', ' ')} against {table['against'].iloc[0]}, at the same "
        "ratio"
        if len(table)
        else ""
    )
    if known.empty:
        return [f"{what}: too few chains of a cell for a test."] if what else []
    clear = known[known["q"] < 0.05].sort_values("p")
    said = (
        f"{what}: {len(clear)} of {len(known)} differences of relative values have q < .05 "
        "(Welch, Benjamini-Hochberg)"
    )
    shown = [
        f"{figures.title(row['metric'])[0].lower()} of {row['level']} at r = "
        f"{share(float(row['ratio']))} "
        f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for _, row in clear.head(6).iterrows()
    ]
    return [said + (f": {listed(shown)}." if shown else ".")]


def against_control(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """What interventions.csv says of the policies of selection: paired differences of relative
    values from the random control.
    """
    known = table[table["metric"].isin(metrics)].dropna(subset="p")
    if known.empty:
        return ["No policy has two pairs with its random control, so none has an interval."]
    out = []
    for (metric, policy), own in known.groupby(["metric", "selection"], sort=False):
        parts = [
            f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}] at r = "
            f"{share(float(row['ratio']))} ({int(row['n'])} pairs, {chance(row['p'])})"
            for _, row in own.iterrows()
        ]
        out.append(
            f"{figures.title(str(metric))[0]}, selection by {policy} minus the matched random "
            f"control, relative to generation 0: {listed(parts)}."
        )
    return out


def _level(chains: pd.DataFrame, level: pd.DataFrame) -> str:
    top = level.sort_values("ratio").iloc[-1]
    text = f"at r = {share(float(top['ratio']))} {top['relative']:.3f} of generation 0"
    if top["n"] > 1:
        text += f" [{top['low']:.3f}, {top['high']:.3f}; {int(top['n'])} chains]"
    else:
        text += " (one chain)"
    if level["ratio"].nunique() > 2:
        rho, p = stats.spearmanr(chains["ratio"], chains["relative"])
        if np.isfinite(p):
            direction = "falls" if rho < 0 else "rises"
            text += (
                f"; {direction} with the ratio (rho = {rho:.2f}, {chance(p)})"
                if p < 0.05
                else f"; no trend over ratios is shown ({chance(p)})"
            )
        text += _u_shape(chains, level)
    return text + "."


def _u_shape(chains: pd.DataFrame, level: pd.DataFrame) -> str:
    """Whether the lowest mean lies at a ratio between the ends, below both by more than chance
    (Welch, the larger p, Bonferroni over inner ratios).
    """
    ordered = level.sort_values("ratio")
    low = ordered["relative"].to_numpy().argmin()
    if low in (0, len(ordered) - 1):
        return ""
    at = ordered["ratio"].to_numpy()
    samples = [
        chains[chains["ratio"] == r]["relative"].to_numpy(float) for r in (at[0], at[low], at[-1])
    ]
    if min(map(len, samples)) < 2 or any(s.std() == 0 for s in samples):
        return f"; lowest at r = {share(float(at[low]))}"
    p = max(
        stats.ttest_ind(samples[1], end, equal_var=False, alternative="less").pvalue
        for end in (samples[0], samples[2])
    )
    p = min(1.0, p * (len(at) - 2))
    shown = "below both ends" if p < 0.05 else "which is not shown to be below both ends"
    return f"; lowest at r = {share(float(at[low]))}, {shown} ({chance(p)})"


def cannot(
    table: pd.DataFrame, planned: int, skipped: pd.DataFrame, factors: Sequence[str]
) -> list[str]:
    """What so many seeds leave open."""
    lost = skipped["chain"].nunique()
    out = [
        f"{planned} chains were planned; "
        + (
            f"{lost} gave no value of one metric or more and are listed with the reason."
            if lost
            else "all gave values."
        )
    ]
    single = int((table["n"] < 2).sum())
    if single:
        out.append(
            f"{single} of {len(table)} cells have one chain: there is no standard error, and a "
            "difference between such cells may be chance."
        )
    for metric, own in table[table["n"] > 1].groupby("metric", sort=False):
        variance = ((own["se"] ** 2 * own["n"]) * (own["n"] - 1)).sum() / (own["n"] - 1).sum()
        n = float(own["n"].median())
        if variance > 0:
            # Two cells of n chains are a regression of 2n chains on one predictor whose values are
            # 1 and -1.
            least = 2 * power.least_effect(int(2 * n), 1, float(np.sqrt(variance)))
            out.append(
                f"{figures.title(str(metric))[0]}: chains of one cell differ by a standard "
                f"deviation of {np.sqrt(variance):.3f}; between two cells of "
                f"{n:g} chains a difference of {least:.3f} is found in four of five cases, "
                "smaller ones mostly not."
            )
    if "dataset" in factors and table["dataset"].nunique() > 1:
        out.append(
            "Datasets differ in many ways at once: that one shifts more than another does not "
            "say by which property."
        )
    if "accumulate" not in factors:
        out.append(
            "The seeds vary bases, draws of data and of training; the human dataset is one, so "
            "intervals do not speak of other datasets."
        )
    return out


# ---- politics
# ---------------------------------------------------------------------------------------------------------


def political(
    run: Run, *, neutral: tuple[float, float], factor: str | None = None
) -> tuple[list[str], pd.DataFrame]:
    """(sentences, table): initial and final lean of every mix (and value of `factor`) with a t
    interval of the shift and what became of the bias.

    reduced, amplified: |final - 50| is smaller or larger than |initial - 50| by more than chance (t
    tests over chains); reversed: the final lean lies on the other side of 50 by more than chance;
    none at the start: the initial lean is not told from 50; change not shown: none of these.
    """
    by_chain = paper_figures_political.by_chain(paper_figures_political.leans(run), neutral)
    table = paper_figures_political.initial_and_final(by_chain, "lean")
    rows, sentences = [], []
    keys = ["mix", *([factor] if factor else [])]
    for key, own in table.groupby(keys, sort=False):
        shift, change = (
            (own["final"] - own["initial"]).to_numpy(float),
            (abs(own["final"] - 50) - abs(own["initial"] - 50)).to_numpy(float),
        )
        _, low, high, p = _interval(shift, 0.0)
        verdict = _verdict(own, change)
        rows.append(
            (
                *key,
                len(own),
                own["initial"].mean(),
                own["final"].mean(),
                shift.mean(),
                low,
                high,
                p,
                verdict,
            )
        )
    names = [*keys, "n", "initial", "final", "shift", "low", "high", "p", "bias"]
    found = pd.DataFrame(rows, columns=names)
    for bias, own in found.sort_values("initial").groupby("bias", sort=False):
        which = listed(
            [
                ", ".join(str(row[k]) for k in keys)
                + f" ({row['initial']:.1f} to {row['final']:.1f})"
                for _, row in own.iterrows()
            ]
        )
        sentences.append(f"Bias {bias}: {which}.")
    return _where_it_arose(by_chain, table) + sentences, found


def _where_it_arose(by_chain: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """How much of the shift from human text is there in generation 0 already, and how far the mixes
    lie apart then and at the end.
    """
    if not (by_chain["generation"] == -1).any() or table.empty:
        return []
    zero = by_chain[by_chain["generation"] == 0].set_index("chain")["lean"]
    held = table.assign(zero=zero.reindex(table["chain"]).to_numpy()).dropna(subset="zero")
    if held.empty:
        return []
    first, later = (
        (held["zero"] - held["initial"]).to_numpy(float),
        (held["final"] - held["zero"]).to_numpy(float),
    )
    means = held.groupby("mix")[["initial", "zero", "final"]].mean()
    apart = means.max() - means.min()
    return [
        f"A chain's lean moves by {np.abs(first).mean():.1f} on average from its human text to "
        "the text of generation 0, which no synthetic text has entered, "
        f"and by {np.abs(later).mean():.1f} from there to the last generation: only the second "
        "can come of recursion. The means of the mixes lie "
        f"{apart['initial']:.1f} apart in human text, {apart['zero']:.1f} in generation 0 and "
        f"{apart['final']:.1f} in the last."
    ]


def _verdict(own: pd.DataFrame, change: np.ndarray) -> str:
    sides = []
    for when in ("initial", "final"):
        values = own[when].to_numpy(float)
        p = _interval(values, 50.0)[3]
        sides.append(np.sign(values.mean() - 50) if p < 0.05 else 0)
    if len(own) < 2:
        return "of one chain, change not shown"
    if not sides[0]:
        return "none at the start" if not sides[1] else "none at the start, some at the end"
    if sides[1] == -sides[0]:
        return "reversed"
    p = _interval(change, 0.0)[3]
    return "change not shown" if not p < 0.05 else "reduced" if change.mean() < 0 else "amplified"
