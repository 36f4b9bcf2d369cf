"""What a diversity study measures of sets and of models, and how the one explains the other.

Of sets: Distinct-5, lengths, distances to real data. Of models: test loss.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from jaxloop.lm import family
from jaxloop.lm.training import batching
from jaxloop.metrics import distances as measures
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.embed import embed as default
from jaxloop.metrics.lexical import distinct_n, distinct_n_by_context, distinct_n_size_matched
from jaxloop.metrics.umap import MapSettings, fit_map
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.run import Measure
from jaxloop.reporting.statistics import no_spread
from jaxloop.studies.diversity.cells import experiments
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.prepare import Prepared, prompts
from jaxloop.studies.diversity.sets import bodies, draw

DISTANCES = ("length_kl", "frechet_distance", "mmd2", "energy_distance", "sliced_wasserstein")
LOSSES = ("test_loss_answer", "test_loss_all")
N = 5
# Columns that loss and regressors depend on besides: regressions compare models that share them.
WITHIN = ("base", "records")
# How many groups of models that share records a regression needs at least.
MIN_GROUPS = 6
# Distinct-5 above which sets have next to nothing to differ in.
SATURATED = 0.98


# ---- models


def measure(settings: DiversityConfig, prepared: Prepared) -> Measure:
    """Return the driver's `measure`: token-mean test loss in nats on the real test set.

    Once over answer tokens (with EOS) and once over all tokens.
    """
    tests = {
        task: (list(t.test["text"]), prompts(settings, task, t.test))
        for task, t in prepared.tables.items()
    }
    everything = prepared.driver.fit.replace(completion_only=False)

    def evaluate(
        model: Any, generation: int, outcomes: Sequence[ModelOutput]
    ) -> dict[tuple[str, int], dict[str, float]]:
        chosen = [tests[str(dict(o.chain.factors)["task"])] for o in outcomes]
        results = family.loss(
            model,
            [family.LossTask(o.weights, *test) for o, test in zip(outcomes, chosen, strict=True)],
            everything,
        )
        losses: dict[tuple[str, int], dict[str, float]] = {}
        for o, (_, asked), result in zip(outcomes, chosen, results, strict=True):
            # The first token of a text is predicted from nothing and has no loss; a prompt that
            # fills the whole length leaves no answer.
            heads = [
                max(len(ids), 1) - 1 for ids in batching.encode_prompts(model.tokenizer, asked)
            ]
            answers = np.concatenate(
                [nats[head:] for nats, head in zip(result.token_nll, heads, strict=True)]
            )
            losses[o.chain.id, o.entity] = dict(
                zip(LOSSES, (_mean(answers), _mean(np.concatenate(result.token_nll))), strict=True)
            )
        return losses

    return evaluate


def _mean(nats: np.ndarray) -> float:
    return float(nats.mean()) if len(nats) else float("nan")


# ---- sets


def distinct(task: str, table: pd.DataFrame) -> float:
    """Return Distinct-5 by the task's definition.

    Question answering sums over contexts (equation 5), stories are one corpus (equation 6).
    """
    texts = bodies(table)
    if task == "qa":
        return float(distinct_n_by_context(texts, list(table["context"]), N))
    return float(distinct_n(texts, N))


def fingerprint(table: pd.DataFrame) -> str:
    """Return twelve hex digits that identify a set's records in any order."""
    return hashlib.sha256(
        "\n".join(sorted(bodies(table))).encode("utf-8", "surrogatepass")
    ).hexdigest()[:12]


def describe(sets: Mapping[str, tuple[str, pd.DataFrame]], count: Callable) -> pd.DataFrame:
    """Return one row per set {name: (task, table)}.

    Columns: set, task, records, contexts, distinct, distinct_mean (per context), grams,
    answer_tokens, print, distinct_matched.

    distinct_matched is the expected Distinct-5 of as many 5-grams as the smallest set of the task
    has, drawn without replacement: it can be compared between sizes, which `distinct` cannot (it
    falls with the size of a corpus, and a sum over contexts grows with their number).
    """
    rows = []
    for name, (task, table) in sets.items():
        value, number = distinct(task, table), table["context"].nunique()
        tokens = np.mean(count(list(table["text"])))
        grams = int(np.maximum(Corpus.of(bodies(table)).tokens.lengths - N + 1, 0).sum())
        rows.append(
            (
                name,
                task,
                len(table),
                number,
                value,
                value / number if task == "qa" else value,
                grams,
                float(tokens),
                fingerprint(table),
            )
        )
    summary = pd.DataFrame(
        rows,
        columns=[
            "set",
            "task",
            "records",
            "contexts",
            "distinct",
            "distinct_mean",
            "grams",
            "answer_tokens",
            "print",
        ],
    )
    smallest = summary[summary["grams"] > 0].groupby("task")["grams"].min().to_dict()
    summary["distinct_matched"] = [
        float(distinct_n_size_matched(bodies(sets[name][1]), N, int(smallest[task])))
        if grams
        else float("nan")
        for name, task, grams in zip(
            summary["set"].tolist(),
            summary["task"].tolist(),
            summary["grams"].tolist(),
            strict=True,
        )
    ]
    return summary


def normalised(values: pd.Series) -> pd.Series:
    """Return values divided by the group's maximum, as the paper displays them."""
    return values / values.max()


def sample(table: pd.DataFrame, points: int, *names: object) -> pd.DataFrame:
    """Return at most `points` records of a table, drawn by these names."""
    return table.iloc[draw("points", *names).permutation(len(table))[:points]]


def distances(
    sets: Mapping[str, tuple[str, pd.DataFrame]],
    real: Mapping[str, pd.DataFrame],
    settings: DiversityConfig,
    embed: Callable | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return a table of distances to the task's real data, and the embeddings.

    The table has one row per set with the columns of DISTANCES. Embeddings [n, d] are by set name
    and as "<task>-real".

    length_kl compares lengths of answers, the others embeddings of `bodies`, at most
    `distances.points` of each side. Sets with equal records are measured once. The paper's Table 2
    names neither distance nor space: none of these is claimed to be its own.
    """
    embed = embed or (lambda texts: default(texts, model=settings.distances.embedder))
    drawn = {
        f"{task}-real": sample(table, settings.distances.points, task, "real")
        for task, table in real.items()
    }
    prints: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for name, (_, table) in sets.items():
        prints[name] = fingerprint(table)
        chosen.setdefault(prints[name], name)
    drawn |= {
        name: sample(sets[name][1], settings.distances.points, prints[name])
        for name in chosen.values()
    }
    texts = list(dict.fromkeys(text for table in drawn.values() for text in bodies(table)))
    points = dict(zip(texts, np.asarray(embed(texts)), strict=True))
    clouds = {
        name: np.stack([points[text] for text in bodies(table)]) for name, table in drawn.items()
    }
    rows = {}
    for name in chosen.values():
        task = sets[name][0]
        here, there = clouds[name], clouds[f"{task}-real"]
        values = {
            "length_kl": float(
                measures.length_kl(list(sets[name][1]["text"]), list(real[task]["text"]))
            )
        }
        for measure_name in DISTANCES[1:]:
            values[measure_name] = (
                float(getattr(measures, measure_name)(here, there))
                if min(len(here), len(there)) > 1
                else float("nan")
            )
        rows[prints[name]] = values
    table = pd.DataFrame(
        [
            {
                "set": name,
                "task": sets[name][0],
                "points": len(drawn[chosen[prints[name]]]),
                **rows[prints[name]],
            }
            for name in sets
        ]
    )
    return table, clouds | {name: clouds[chosen[prints[name]]] for name in sets}


def flat(clouds: Mapping[str, np.ndarray], names: Sequence[str], how: str) -> dict[str, np.ndarray]:
    """Return positions [n, 2] of the clouds on one common plane.

    The plane is that of the principal components, or of UMAP, of all clouds together.
    """
    whole = np.concatenate([clouds[name] for name in names])
    if how == "umap":
        places = fit_map(
            whole, MapSettings(neighbours=min(15, len(whole) - 2), min_dist=0.1)
        ).positions
    else:
        # scikit-learn takes seconds to import, which other commands do without.
        from sklearn.decomposition import PCA

        places = PCA(2, random_state=0).fit_transform(whole)
    return dict(
        zip(
            names,
            np.split(places, np.cumsum([len(clouds[name]) for name in names])[:-1]),
            strict=True,
        )
    )


# ---- diversity against shift


def groups(cells: pd.DataFrame) -> pd.Series:
    """Return of each model the name of its group: those whose training sets share records.

    cells: one row per model with kind, level, seed and print. A set of the levels is drawn from the
    one generated set of its level. Crossed sets of one seed begin with the same records: with
    `MIN_GROUPS` seeds these are the groups; with fewer, sets are taken as independent.
    """
    crossed = cells[cells["kind"] == "crossed"]
    enough = crossed["seed"].nunique() >= MIN_GROUPS
    own = "seed " + cells["seed"].astype(str) if enough else cells["print"]
    return own.where(cells["kind"] == "crossed", cells["level"])


def regressions(
    cells: pd.DataFrame,
    *,
    outcome: str = "test_loss_answer",
    diversity: str = "distinct_matched",
    group: str = "group",
) -> pd.DataFrame:
    """Regress test loss on diversity and on each distance, alone and together.

    Over models that were trained on generated data only. Where these have several bases or sizes
    (columns `WITHIN`, where the table has them), each base and size has an intercept of its own:
    larger sets are trained on for more steps, which is no effect of their diversity.

    cells: one row per model with task, kind ("levels" or "crossed"), the outcome, the diversity,
    the five distances, print (of its training set) and `group`, the name of its group (`groups`).
    Both regressors in standard deviations of the fitted rows from the means of their base and size.
    Columns task, kind, shift (the distance), models, sets, clusters (groups), correlation of both
    regressors, vif; and for each of diversity and shift: alone, together (nats per standard
    deviation), low, high (95 %), p. Errors are a jackknife over the groups (CV3 of MacKinnon,
    Nielsen and Webb, 2023), with t quantiles of groups - 1 degrees of freedom: of seven groups, the
    usual clustered errors give intervals that hold the coefficient in 82 % of all studies. A fit
    needs `MIN_GROUPS` groups, two different values of the outcome and of either regressor, and
    regressors that are not the same, also without any one group; where it lacks these the row says
    so with NaN.
    """
    rows = []
    kinds = {"levels": ("levels",), "crossed": ("crossed",), "all": ("levels", "crossed")}
    for task in dict.fromkeys(cells["task"]):
        for kind, parts in kinds.items():
            chosen = cells[(cells["task"] == task) & cells["kind"].isin(parts)]
            if kind == "all" and chosen["kind"].nunique() < 2 or not len(chosen):
                continue
            for shift in DISTANCES:
                rows.append(
                    {"task": task, "kind": kind, "shift": shift}
                    | _fit(chosen, outcome, diversity, shift, group)
                )
    return pd.DataFrame(rows)


def _fit(
    cells: pd.DataFrame, outcome: str, diversity: str, shift: str, group: str
) -> dict[str, Any]:
    within = [column for column in WITHIN if column in cells]
    used = cells[list(dict.fromkeys([outcome, diversity, shift, "print", group, *within]))]
    used = used.replace([np.inf, -np.inf], np.nan).dropna()
    members, names = pd.factorize(used[group])
    alike = used.groupby(within, sort=False).ngroup() if within else pd.Series(0, used.index)
    out: dict[str, Any] = {
        "models": len(used),
        "sets": used["print"].nunique(),
        "clusters": len(names),
        "correlation": np.nan,
        "vif": np.nan,
    }
    centred = used[[diversity, shift]] - used[[diversity, shift]].groupby(alike).transform("mean")
    spread = centred.std(ddof=1)
    losses = used[outcome].to_numpy(float)
    if len(names) < MIN_GROUPS or not (spread > 1e-12).all() or no_spread(losses):
        return out
    x = (centred / spread).to_numpy(float)
    r = float(np.corrcoef(x.T)[0, 1])
    out["correlation"] = r
    if abs(r) > 1 - 1e-9:
        return out
    out["vif"] = 1 / (1 - r**2)

    intercepts = pd.get_dummies(alike, dtype=float).to_numpy()
    both, errors = _jackknife(x, intercepts, losses, members)
    if not np.isfinite(errors).all():
        return out
    t = scipy.stats.t(len(names) - 1)
    for place, name in enumerate(("diversity", "shift")):
        out[f"{name}_alone"] = float(_slopes(x[:, [place]], intercepts, losses)[0])
        out[f"{name}_together"] = float(both[place])
        wide = float(t.ppf(0.975)) * errors[place]
        out[f"{name}_low"], out[f"{name}_high"] = both[place] - wide, both[place] + wide
        out[f"{name}_p"] = float(2 * t.sf(abs(both[place]) / errors[place]))
    return out


def _jackknife(
    x: np.ndarray, intercepts: np.ndarray, losses: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of x and their standard errors, leaving out one group at a time.

    x [n, k], intercepts [n, m], losses [n]; members [n]: which group a row is of, from 0 on. NaN
    where a coefficient is not identified, also without any one group.
    """
    count = members.max() + 1
    whole = _slopes(x, intercepts, losses)
    without = np.array(
        [
            _slopes(x[kept], intercepts[kept], losses[kept])
            for kept in (members != group for group in range(count))
        ]
    )
    return whole, np.sqrt((count - 1) / count * ((without - whole) ** 2).sum(0))


def _slopes(x: np.ndarray, intercepts: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the least-squares coefficients of x beside the intercepts; NaN if not identified."""
    intercepts = intercepts[:, intercepts.any(0)]
    design = np.column_stack([x, intercepts])
    slopes, _, rank, _ = np.linalg.lstsq(design, losses, rcond=None)
    return slopes[: x.shape[1]] if rank == design.shape[1] else np.full(x.shape[1], np.nan)


# ---- checks of the paper's claims

# (what, what the sets show, whether it holds)
Check = tuple[str, str, bool]
# Name of a set -> (task, table).
Pools = Mapping[str, tuple[str, pd.DataFrame]]


def checks(settings: DiversityConfig, pools: Pools, about: pd.DataFrame) -> list[Check]:
    """Return the checks of what arXiv 2506.19262 claims, on the sets of this run.

    Args:
        pools: the generated sets.
        about: their `describe`.
    """
    return [
        *level_checks(settings, pools, about),
        *_size_checks(settings),
        *_context_checks(pools),
        *_maximum_checks(settings, about),
    ]


def level_checks(settings: DiversityConfig, pools: Pools, about: pd.DataFrame) -> list[Check]:
    """Return checks (a) and (b): Distinct-5 rises where the control of diversity says so.

    settings, pools, about: as `checks` takes them.
    """
    distinct_of = dict(zip(about["set"].tolist(), about["distinct_matched"].tolist(), strict=True))
    rows: list[Check] = []
    for task, control, what in (
        (
            "qa",
            [settings.generator.replaced[level] for level in range(7)],
            "(a) Distinct-5 falls with the share of near-duplicates m_r / K",
        ),
        (
            "story",
            [-size for size in settings.generator.topic_sizes],
            "(b) story Distinct-5 rises with the number of topics |T|",
        ),
    ):
        levels = [level for level in range(7) if f"{task}-D{level}" in pools]
        if len(levels) < 2:
            continue
        values = np.array([distinct_of[f"{task}-D{level}"] for level in levels], float)
        # Only between levels whose control differs is anything expected.
        steps = np.diff(values)[np.diff([control[level] for level in levels]) < 0]
        rises = int((steps > 0).sum())
        result = f"{rises} of {len(steps)} steps; {values[0]:.3f} to {values[-1]:.3f}"
        if rises < len(steps) and values.min() > SATURATED:
            result += (
                "; hardly five words in a row come twice in sets of this size, so it cannot "
                "be told: larger sets or a colder writer are needed"
            )
        elif rises < len(steps):
            result += f"; the largest fall is {-min(steps):.3f}"
        generator = getattr(settings.generator, task)
        rows.append((f"{what} ({generator})", result, rises == len(steps)))
    return rows


def _size_checks(settings: DiversityConfig) -> list[Check]:
    """Check (c): mixtures of an experiment keep the size that the config gives."""
    rows: list[Check] = []
    for name, cells in experiments(settings).items():
        if name not in ("fixed", "variable"):
            continue
        is_fixed = settings_mixing(settings, name) == "fixed"
        sizes: dict[str, set[int]] = {}
        for cell in cells:
            size = sum(cell.counts) if is_fixed else cell.counts.real
            sizes.setdefault(cell.task, set()).add(size)
        expected = {task: set(getattr(getattr(settings, name), task)) for task in sizes}
        part = "all records" if is_fixed else "real records"
        result = "; ".join(f"{task}: {', '.join(map(str, sorted(n)))}" for task, n in sizes.items())
        rows.append((f"(c) {name} size keeps {part}", result, sizes == expected))
    return rows


def _context_checks(pools: Pools) -> list[Check]:
    """Check (d), on the most diverse question-answer set: its Distinct-5 is a sum over contexts."""
    name = next((f"qa-D{level}" for level in reversed(range(7)) if f"qa-D{level}" in pools), None)
    if name is None:
        return []
    table = pools[name][1]
    order = list(dict.fromkeys(table["context"]))
    sums = [distinct("qa", table[table["context"].isin(order[: k + 1])]) for k in range(len(order))]
    per_context = sums[-1] / len(order)
    error = max(abs(value / (k + 1) / per_context - 1) for k, value in enumerate(sums))
    what = "(d) equation 5 grows in proportion to the contexts"
    return [(what, f"{len(order)} contexts, off by at most {100 * error:.1f} %", error < 0.25)]


def _maximum_checks(settings: DiversityConfig, about: pd.DataFrame) -> list[Check]:
    """Check (e): values divided by the group's maximum have the maximum 1."""
    rows: list[Check] = []
    for task in settings.tasks:
        group = about[about["set"].isin([f"{task}-D{level}" for level in range(7)])]
        if len(group):
            top = float(normalised(group["distinct"]).max())
            what = f"(e) {task}: divided by the group's maximum, the maximum is 1"
            rows.append((what, f"{top:g}", top == 1.0))
    return rows


def settings_mixing(settings: DiversityConfig, name: str) -> str:
    """Return how an experiment mixes, "fixed" or "variable"."""
    return getattr(settings, name).mixing
