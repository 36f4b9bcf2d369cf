"""Which neurons move with a model's bias, and which would if nothing were there (arXiv 2410.15234,
section 5.4 and appendix K).

A neuron is one number per layer and coordinate of a model version: a weight or a mean activation
(`jaxloop.studies.bias_amplification.neurons` reads both). Every neuron is regressed on by every outcome (share of a label,
text quality) over all versions of all setups. The paper differences both sides; its released script
does not, and then unrelated neurons that merely drift pass by the thousand. Beside the nominal
counts therefore stand those of a null in which outcomes are shuffled inside each setup.

Dimensions: V versions, L layers, D coordinates, J = L D neurons, n rows of a regression, R
outcomes, B permutations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

MODES = ("differences", "levels")
LEAST = 3  # differences in all
RULES = ("p<alpha", "bonferroni", "bh")
OWN_NULL = (
    "permutation",
    "familywise",
)  # rules whose p values come from the permutations themselves


class Design(NamedTuple):
    """Rows of the regressions: `order` [V] sorts versions by setup and generation, `series` [V]
    numbers the uninterrupted series they form, `steps` are the positions (in that order) at which a
    difference to the row before exists.
    """

    order: np.ndarray
    series: np.ndarray
    steps: np.ndarray


class NeuronStudy(NamedTuple):
    """Tables (see `neuron_study`) and the settings that made them."""

    tests: pd.DataFrame
    counts: pd.DataFrame
    overlap: pd.DataFrame
    layers: pd.DataFrame
    settings: dict


def usable(setups: Sequence[str], generations: Sequence[int], *, lags: int = 1) -> np.ndarray:
    """[V] True for versions of setups with enough generations in a row for `lags`: what is left of
    a study in which chains have stopped.

    All False where less than `neuron_study` needs is left.
    """
    kept = ~np.isin(np.asarray(setups, str), list(_short(setups, generations, lags)))
    rows = sorted(
        zip(np.asarray(setups, str)[kept].tolist(), np.asarray(generations)[kept].tolist())
    )
    differences = sum(a == c and d - b == 1 for (a, b), (c, d) in zip(rows, rows[1:]))
    return kept & (differences >= LEAST)


def check_design(setups: Sequence[str], generations: Sequence[int], *, lags: int = 1) -> Design:
    """The rows that V versions give. A setup is one chain; a missing generation ends a series, so
    that no difference jumps over it.

    Raises ValueError, one sentence, where setups and generations are not one per version, a version
    stands twice, a setup has too few generations in a row for `lags`, or fewer than 3 differences
    are left in all.
    """
    setups, generations = np.asarray(setups, str), np.asarray(generations)
    if setups.ndim != 1 or setups.shape != generations.shape:
        raise ValueError(
            f"setups and generations have shapes {setups.shape} and {generations.shape}; one of "
            "each per version is needed"
        )
    if generations.dtype.kind not in "iu":
        raise ValueError(f"generations are of type {generations.dtype}; integers are needed")
    if isinstance(lags, bool) or not isinstance(lags, int | np.integer) or lags < 0:
        raise ValueError(f"lags={lags!r}: must be an integer of at least 0")
    names = list(dict.fromkeys(setups.tolist()))
    number = np.array([names.index(s) for s in setups], np.int64)
    order = np.lexsort((generations, number))
    same, step = np.diff(number[order]) == 0, np.diff(generations[order])
    if (same & (step == 0)).any():
        at = order[1:][same & (step == 0)][0]
        raise ValueError(
            f"versions: generation {generations[at]} of setup {str(setups[at])!r} stands twice; "
            "every version is needed once"
        )
    short = _short(setups, generations, lags)
    if short:
        name, rows = next(iter(short.items()))
        raise ValueError(
            f"lags={lags}: setup {name!r} has {rows} generation{'s' * (rows != 1)} in a row, "
            f"that is {rows - 1} differences; more than lags are needed"
        )
    joined = same & (step == 1)
    series = np.concatenate([[0], np.cumsum(~joined)])
    steps = np.flatnonzero(joined) + 1
    if len(steps) < LEAST:
        raise ValueError(
            f"versions: {len(steps)} differences in all; a slope and a constant need at least "
            f"{LEAST}"
        )
    return Design(order, series, steps)


def _short(setups, generations, lags) -> dict[str, int]:
    """Setups whose longest row of generations gives no more differences than `lags` (at least one
    is needed), and that length.
    """
    setups, found = np.asarray(setups, str), {}
    for name in dict.fromkeys(setups.tolist()):
        mine = np.sort(np.asarray(generations)[setups == name])
        rows = max(len(run) for run in np.split(mine, np.flatnonzero(np.diff(mine) != 1) + 1))
        if rows - 1 <= lags:
            found[name] = rows
    return found


def neuron_study(
    neurons: Mapping[str, np.ndarray],
    outcomes: Mapping[str, np.ndarray],
    setups: Sequence[str],
    generations: Sequence[int],
    *,
    lags: int = 1,
    alpha: float = 0.05,
    modes: Sequence[str] = MODES,
    permutations: int = 999,
    scheme: str = "permute",
    lags_cross: bool = False,
    seed: int = 0,
) -> NeuronStudy:
    """Tests every neuron against every outcome, corrects, counts, and holds the counts against
    chance.

    neurons: name -> [V, L, D] or [V, J], such as {"weight": ..., "activation": ...}; outcomes: name
    -> [V]. setups [V] name the chain of each version (give replicates names of their own),
    generations [V] its generation. modes: "differences" (equation 3 of the paper) and "levels" (its
    released script). lags: of the Newey-West errors (released code: 1). lags_cross: lag products
    across setups too, as the released script takes them. permutations: shuffles of the outcomes
    inside setups (0: none), `scheme` as in `neurons_regression.shuffled`; in levels the increments
    are shuffled and summed again, since levels are not exchangeable.

    Tables of the result, m = tests of one mode, all relations together (4 x 9,216 in the paper):
      tests    mode, relation, neurons, outcome, layer, unit, r, slope, se, t, p, flat, bonferroni (p < alpha / m), bh (Benjamini-Hochberg at
               alpha within a relation), p_permutation (two-sided, of the neuron), p_familywise (of
               the largest |t| among the m; Westfall and Young 1993)
      counts   mode, relation, rule, tests, flat, observed, nominal, null_mean, null_high (95th percentile), p (share of permutations with
               as many). nominal: expected if p were uniform. Rules "permutation" and "familywise"
               count p_permutation and p_familywise < alpha.
      overlap  mode, rule, first, second, size_first, size_second, neurons, observed, expected and
      p_more, p_fewer (hypergeometric: neurons
               drawn independently), null_mean and null_p (share of permutations, outcomes of a
               version kept together, that overlap as much)
      layers   mode, relation, rule, layer (from 1), significant, positive (slope above 0)
    A neuron without variance has p = 1 and is counted as flat; so is every test of an outcome that
    is constant. It still counts in m. Raises ValueError, one sentence, as `check_design` does and
    for shapes that do not agree, values that are not finite, alpha outside (0, 1), an unknown mode
    or scheme, and a negative number of permutations.
    """
    import jax

    from jaxloop.studies.bias_amplification import neuron_regression as regression

    design = check_design(setups, generations, lags=lags)
    kinds = {name: _table(name, x, len(design.order)) for name, x in neurons.items()}
    if not kinds or not outcomes:
        raise ValueError(
            f"neurons and outcomes: {len(kinds)} and {len(outcomes)} are given, at least one of "
            "each is needed"
        )
    ys = np.stack([_outcome(name, y, len(design.order)) for name, y in outcomes.items()], 1)[
        design.order
    ]
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"modes={list(modes)}: allowed are {', '.join(MODES)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must be between 0 and 1")
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 0:
        raise ValueError(f"permutations={permutations!r}: must be an integer of at least 0")
    if scheme not in regression.SCHEMES:
        raise ValueError(f"scheme={scheme!r}: allowed are {', '.join(regression.SCHEMES)}")
    shapes = {name: x.shape[1:] for name, x in kinds.items()}
    x = np.concatenate([x[design.order].reshape(len(x), -1) for x in kinds.values()], 1)
    names = [(kind, outcome) for kind in kinds for outcome in outcomes]
    sizes = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
    columns = {kind: slice(int(a), int(b)) for kind, a, b in zip(kinds, sizes[:-1], sizes[1:])}
    plan = _Plan(names, columns, shapes, list(outcomes), alpha)
    tables = [[], [], [], []]
    for mode in modes:
        if mode == "differences":
            rows, out, series = (
                np.diff(x, axis=0)[design.steps - 1],
                np.diff(ys, axis=0)[design.steps - 1],
                design.series[design.steps],
            )
        else:
            rows, out, series = x, ys, design.series
        runs = np.zeros_like(series) if lags_cross else series
        fit = regression.newey_west(
            rows, out, runs, lags=lags, size_J=np.abs(x).max(0), size_R=np.abs(ys).max(0)
        )
        null = None
        if permutations:
            drawn = _null_outcomes(mode, ys, design, scheme, permutations, lags, seed)
            null = _Null(
                plan,
                fit,
                regression.null_statistics(rows, drawn, runs, lags=lags, flat=fit.flat),
                permutations,
            )
        for table, part in zip(tables, _tables(plan, mode, fit, null), strict=True):
            table.append(part)
    settings = dict(
        lags=lags, alpha=alpha, modes=list(modes), permutations=permutations, scheme=scheme, lags_cross=lags_cross, seed=seed, versions=len(ys),
        setups=len(set(np.asarray(setups, str).tolist())), differences=len(design.steps), neurons={k: int(np.prod(s)) for k, s in shapes.items()},
        backend=jax.default_backend(),
    )  # fmt: skip
    return NeuronStudy(*(pd.concat(parts, ignore_index=True) for parts in tables), settings)


def _table(name, x, versions):
    x = np.asarray(x, np.float64)
    if x.ndim not in (2, 3) or len(x) != versions or 0 in x.shape:
        raise ValueError(
            f"neurons {name!r} have shape {x.shape}; [{versions}, layers, coordinates] or "
            f"[{versions}, neurons] is needed"
        )
    broken = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    if len(broken):
        raise ValueError(
            f"neurons {name!r}: version {broken[0]} holds values that are not finite; leave out "
            "versions of chains that failed"
        )
    return x if x.ndim == 3 else x[:, None]


def _outcome(name, y, versions):
    y = np.asarray(y, np.float64)
    if y.shape != (versions,):
        raise ValueError(
            f"outcome {name!r} has shape {y.shape}; one value for each of the {versions} "
            "versions is needed"
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"outcome {name!r}: version {int(np.flatnonzero(~np.isfinite(y))[0])} is not finite; "
            "leave out versions of chains that failed"
        )
    return y


def _null_outcomes(mode, ys, design, scheme, permutations, lags, seed):
    """Outcomes [B, n, R] with increments shuffled inside series; in levels every series starts
    where it did.
    """
    from jaxloop.studies.bias_amplification.neuron_regression import shuffled

    increments = np.diff(ys, axis=0)[design.steps - 1]
    drawn = shuffled(
        increments,
        design.series[design.steps],
        scheme=scheme,
        permutations=permutations,
        block=lags + 1,
        seed=seed,
    )
    if mode == "differences":
        return drawn
    levels = np.repeat(ys[None], permutations, 0)
    for name in np.unique(design.series):
        rows, made = np.flatnonzero(design.series == name), design.series[design.steps] == name
        levels[:, rows[1:]] = ys[rows[0]] + np.cumsum(drawn[:, made], 1)
    return levels


class _Plan(NamedTuple):
    """Relations in order, the columns of x that each kind of neuron has, shapes of the kinds,
    outcomes, level.
    """

    relations: list[tuple[str, str]]
    columns: dict[str, slice]
    shapes: dict[str, tuple[int, int]]
    outcomes: list[str]
    alpha: float

    @property
    def tests(self) -> int:
        return sum(s.stop - s.start for s in self.columns.values()) * len(self.outcomes)

    def of(self, values_RJ, relation):
        """The part of [..., R, J] that belongs to a relation."""
        kind, outcome = relation
        return values_RJ[..., self.outcomes.index(outcome), self.columns[kind]]

    def pairs(self):
        """Pairs of relations over the same grid of neurons."""
        r = self.relations
        return [
            (a, b)
            for i, a in enumerate(r)
            for b in r[i + 1 :]
            if self.shapes[a[0]] == self.shapes[b[0]]
        ]


class _Null:
    """What the permutations say, gathered piece by piece: counts [B] by relation and rule, overlaps
    [B], and how often each t is exceeded.
    """

    def __init__(self, plan: _Plan, fit, pieces, permutations: int):
        from scipy.stats import norm

        m, tie = plan.tests, 1 - 1e-9
        single = norm.isf(plan.alpha / 2) ** 2
        corrected = norm.isf(plan.alpha / 2 / m) ** 2
        # Benjamini-Hochberg: the k-th largest t2 of a relation against the k-th step.
        steps = {
            n: norm.isf(np.arange(1, n + 1) * plan.alpha / 2 / n) ** 2
            for n in {s.stop - s.start for s in plan.columns.values()}
        }
        seen = fit.t**2 * tie
        exceed, largest = np.zeros(fit.t.shape, np.int64), []
        self.counts = {(relation, rule): [] for relation in plan.relations for rule in RULES}
        self.overlaps = {(*pair, rule): [] for pair in plan.pairs() for rule in RULES}
        for t2_BRJ in pieces:
            exceed += (t2_BRJ >= seen[None]).sum(0)
            largest.append(t2_BRJ.max((1, 2)))
            for t2_RJ in t2_BRJ:
                each = {relation: plan.of(t2_RJ, relation) for relation in plan.relations}
                stepped = {
                    relation: _step_up(t2, steps[t2.size], single) for relation, t2 in each.items()
                }
                for rule in RULES:
                    limit = {"p<alpha": single, "bonferroni": corrected}.get(rule)
                    hits = {
                        relation: t2 >= (stepped[relation] if limit is None else limit)
                        for relation, t2 in each.items()
                    }
                    for relation, hit in hits.items():
                        self.counts[relation, rule].append(int(hit.sum()))
                    for a, b in plan.pairs():
                        self.overlaps[a, b, rule].append(int((hits[a] & hits[b]).sum()))
        largest = np.sort(np.concatenate(largest))
        self.p = (1 + exceed) / (1 + permutations)
        self.familywise = (1 + permutations - np.searchsorted(largest, seen)) / (1 + permutations)


def _step_up(t2_J, steps_J, single: float) -> float:
    """The t2 from which on Benjamini and Hochberg reject."""
    high = t2_J[t2_J > single]
    passed = np.flatnonzero(-np.sort(-high) >= steps_J[: len(high)])
    return steps_J[passed[-1]] if len(passed) else np.inf


def _tables(plan: _Plan, mode: str, fit, null: _Null | None):
    from statsmodels.stats.multitest import multipletests

    m = plan.tests
    bh = np.zeros(fit.p.shape, bool)
    for kind, outcome in plan.relations:
        place = plan.outcomes.index(outcome), plan.columns[kind]
        bh[place] = multipletests(fit.p[place], plan.alpha, method="fdr_bh")[0]
    chosen = {"p<alpha": fit.p < plan.alpha, "bonferroni": fit.p < plan.alpha / m, "bh": bh}
    blank = np.full(fit.p.shape, np.nan)
    own = {
        "permutation": blank if null is None else null.p,
        "familywise": blank if null is None else null.familywise,
    }
    tests, counts, layers = [], [], []
    for relation in plan.relations:
        of = lambda values, relation=relation: plan.of(values, relation)
        kind, outcome = relation
        depth, width = plan.shapes[kind]
        flat = of(fit.flat)
        head = {"mode": mode, "relation": f"{kind}-{outcome}"}
        tests.append(
            pd.DataFrame(
                head | {"neurons": kind, "outcome": outcome, "layer": np.repeat(np.arange(1, depth + 1), width), "unit": np.tile(np.arange(width), depth)}
                | {name: of(getattr(fit, name)) for name in ("r", "slope", "se", "t", "p")} | {"flat": flat}
                | {rule: of(chosen[rule]) for rule in RULES[1:]} | {f"p_{rule}": of(own[rule]) for rule in OWN_NULL}
            )
        )  # fmt: skip
        significant = {rule: of(chosen[rule]) for rule in RULES} | {
            rule: of(own[rule]) < plan.alpha for rule in OWN_NULL if null is not None
        }
        for rule, hit in significant.items():
            drawn = null.counts[relation, rule] if null is not None and rule in RULES else None
            counts.append(
                head
                | {
                    "rule": rule,
                    "tests": depth * width,
                    "flat": int(flat.sum()),
                    "observed": int(hit.sum()),
                }
                # fmt: skip
                | {"nominal": _nominal(rule, plan.alpha, depth * width, m)}
                | _against(int(hit.sum()), drawn)
            )
            by_layer, positive = (
                values.reshape(depth, width).sum(1) for values in (hit, hit & (of(fit.slope) > 0))
            )
            layers.append(
                pd.DataFrame(
                    head
                    | {
                        "rule": rule,
                        "layer": np.arange(1, depth + 1),
                        "significant": by_layer,
                        "positive": positive,
                    }
                )
            )
    overlap = [
        _overlap(plan, mode, rule, a, b, hits, null)
        for rule, hits in chosen.items()
        for a, b in plan.pairs()
    ]
    return (
        pd.concat(tests),
        pd.DataFrame(counts),
        pd.DataFrame(overlap, columns=list(OVERLAP)),
        pd.concat(layers),
    )


OVERLAP = (
    "mode",
    "rule",
    "first",
    "second",
    "neurons",
    "size_first",
    "size_second",
    "observed",
    "expected",
    "p_more",
    "p_fewer",
    "null_mean",
    "null_p",
)


def _nominal(rule, alpha, tests, m):
    """Tests that pass by chance if every p is uniform; no fixed number for Benjamini-Hochberg and
    the familywise rule.
    """
    return {
        "p<alpha": alpha * tests,
        "permutation": alpha * tests,
        "bonferroni": alpha * tests / m,
    }.get(rule, np.nan)


def _against(observed, drawn):
    if drawn is None:
        return {"null_mean": np.nan, "null_high": np.nan, "p": np.nan}
    drawn = np.asarray(drawn)
    return {
        "null_mean": drawn.mean(),
        "null_high": np.quantile(drawn, 0.95),
        "p": (1 + (drawn >= observed).sum()) / (1 + len(drawn)),
    }


def _overlap(plan, mode, rule, a, b, hits, null):
    first, second = plan.of(hits, a), plan.of(hits, b)
    shared = int((first & second).sum())
    drawn = _against(shared, None if null is None else null.overlaps[a, b, rule])
    chance = hypergeometric(first.size, int(first.sum()), int(second.sum()), shared)
    return {"mode": mode, "rule": rule, "first": "-".join(a), "second": "-".join(b), "neurons": first.size} | chance._asdict() | {
        "null_mean": drawn["null_mean"], "null_p": drawn["p"]}  # fmt: skip


class Overlap(NamedTuple):
    """Two sets of neurons: sizes, how many they share, how many they would if drawn independently,
    and P(at least, at most as many).
    """

    size_first: int
    size_second: int
    observed: int
    expected: float
    p_more: float
    p_fewer: float


def hypergeometric(neurons: int, first: int, second: int, shared: int) -> Overlap:
    """The overlap of two sets of `first` and `second` out of `neurons` neurons against independent
    draws without replacement.

    Neurons of one model are not independent of each other, so p is a description; `neuron_study`
    gives the permutation null beside it. Raises ValueError for numbers that no two sets can have.
    """
    from scipy.stats import hypergeom

    if (
        not 0 <= shared <= min(first, second)
        or max(first, second) > neurons
        or first + second - shared > neurons
    ):
        raise ValueError(
            f"overlap: sets of {first} and {second} out of {neurons} neurons cannot share {shared}"
        )
    law = neurons, first, second
    return Overlap(
        first,
        second,
        shared,
        first * second / neurons,
        float(hypergeom.sf(shared - 1, *law)),
        float(hypergeom.cdf(shared, *law)),
    )


def write(study: NeuronStudy, folder: Path) -> list[Path]:
    """neurons_tests.parquet, neurons_counts.csv, neurons_overlap.csv and neurons_layers.csv in
    `folder` (made if missing).
    """
    from jaxloop.runtime import tables
    from jaxloop.runtime.atomic_io import write_atomic

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = lambda table: {
        name: table[name].tolist() if table[name].dtype == object else table[name].to_numpy()
        for name in table.columns
    }
    facts = {name: str(value) for name, value in study.settings.items()}
    tables.write_parquet(folder / "neurons_tests.parquet", columns(study.tests), facts)
    paths = [folder / "neurons_tests.parquet"]
    for name in ("counts", "overlap", "layers"):
        paths.append(folder / f"neurons_{name}.csv")
        write_atomic(paths[-1], tables.to_csv(columns(getattr(study, name))), durable=False)
    return paths


def sentences(study: NeuronStudy, modes: Sequence[str] = MODES) -> list[str]:
    """What the study found in these modes and what it cannot say, one sentence each, for a report."""
    s, out = study.settings, []
    counts, overlap = (table[table["mode"].isin(modes)] for table in (study.counts, study.overlap))
    lags = f"{s['lags']} lag{'s' * (s['lags'] != 1)}"
    shuffles = (
        f"; shuffled: mean and 95th percentile of {s['permutations']} shuffles of the outcomes "
        "inside setups" * (s["permutations"] > 0)
    )
    out.append(
        f"{s['versions']} versions of {s['setups']} setups give {s['differences']} differences; "
        f"Newey-West errors with {lags}{shuffles}."
    )
    for (mode, relation), rows in counts.groupby(["mode", "relation"], sort=False):
        rows = rows.set_index("rule")
        parts = [
            f"{_count(rows.loc[rule])} {words.format(alpha=s['alpha'])}{_chance(rows.loc[rule])}"
            for rule, words in _RULE_WORDS.items()
        ]
        first = rows.iloc[0]
        text = f"{relation}, {mode}, {first.tests:,} neurons: {'; '.join(parts)}"
        if first.p == first.p:
            told = "beyond" if first.p < s["alpha"] else "not told apart from"
            text += (
                f"; {told} what shuffled outcomes give (p = {first.p:.2g} for the count at p < "
                f"{s['alpha']:g})"
            )
        out.append(text + (f"; {first.flat:,} do not vary and have p = 1." if first.flat else "."))
    for row in overlap[overlap["rule"] == "p<alpha"].itertuples():
        more = row.p_more < s["alpha"]
        side = (
            "more than"
            if more
            else "fewer than"
            if row.p_fewer < s["alpha"]
            else "about as many as"
        )
        text = (
            f"{row.first} and {row.second}, {row.mode}: {row.observed:,} neurons in both sets (p "
            f"< {s['alpha']:g}), {side} independent sets would share"
        )
        text += f" ({_number(row.expected)}; p = {min(row.p_more, row.p_fewer):.2g})"
        if row.null_mean == row.null_mean:
            text += f"; shuffled outcomes share {_number(row.null_mean)}"
        out.append(text + ".")
    if "levels" in s["modes"]:
        out.append(
            "Tests in levels compare two things that both drift with generation and pass far too "
            "often; only differences carry evidence."
        )
    if s["permutations"]:
        out.append(
            f"No permutation p can be below {1 / (1 + s['permutations']):.2g}: a single neuron "
            "is singled out only by its familywise p."
        )
    out.append(
        "Neurons of one model move together, so counts say how often an association appears, not "
        "how many independent ones there are."
    )
    return out


_RULE_WORDS = {
    "p<alpha": "at p < {alpha:g}",
    "bonferroni": "after Bonferroni",
    "bh": "after Benjamini-Hochberg",
}


def _count(row) -> str:
    return f"{row.observed:,} pass" if row.observed != 1 else "1 passes"


def _chance(row) -> str:
    said = [f"nominally {_number(row.nominal)}"] if row.nominal == row.nominal else []
    if row.null_mean == row.null_mean:
        said.append(f"shuffled {_number(row.null_mean)} and {_number(row.null_high)}")
    return f" ({', '.join(said)})" if said else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
