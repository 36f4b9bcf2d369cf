"""Tables of a bias-amplification study, made from the values of its articles.

They show amplification with intervals, transitions, real shares and distributions. There are two
kinds of standard errors, for two questions. Over replicates (seeds): would the setup amplify if it
was run again? Over articles, paired: would this chain's models change other articles in the same
way? The paper has one chain per setup and can only give the second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxloop.reporting.statistics import share_se, t_interval
from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies.bias_amplification.paths import articles_path

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ARTICLES = ["chain", "setup", "seed", "generation", "id", "label"]
CHANGES = ["setup", "seed", "chain", "generation", "first", "share", "change", "se", "n"]
AMPLIFICATION = [
    "setup",
    "generation",
    "replicates",
    "first",
    "share",
    "change",
    "low",
    "high",
    "p",
    "se_articles",
]
TRANSITIONS = ["setup", "before", "after", "articles", "share"]
DISTRIBUTIONS = [
    "setup",
    "generation",
    "measure",
    "n",
    "mean",
    *(f"q{round(100 * quantile):02d}" for quantile in QUANTILES),
]
CLASSIFIERS = [
    "encoder",
    "used",
    "trained_on",
    "tested_on",
    "validation_macro_f1",
    "macro_f1",
    "accuracy",
    "se",
    "majority_accuracy",
]
REFERENCES = ["of", "metric", "value"]
REAL_SHARES = ["setup", "generation", "real", "trained", "of_real", "of_mix"]

Row = dict[str, Any]


def read_articles(
    root: Path, chains: Sequence[tuple[str, str, int]], generations: int
) -> pd.DataFrame:
    """Read the values of all articles of the chains (id, setup, seed): columns `ARTICLES` and
    whatever was measured. A generation that a chain did not reach is absent.
    """
    parts = []
    for chain, setup, seed in chains:
        for generation in range(generations):
            path = root / articles_path(chain, generation)
            if path.exists():
                values = pd.DataFrame(tables.read_parquet(path))
                parts.append(
                    values.assign(chain=chain, setup=setup, seed=seed, generation=generation)
                )
    if not parts:
        return pd.DataFrame(columns=ARTICLES)
    table = pd.concat(parts, ignore_index=True)
    setups = list(dict.fromkeys(setup for _, setup, _ in chains))
    measured = [column for column in table.columns if column not in ARTICLES]
    order = pd.CategoricalDtype(setups, ordered=True)
    return table[ARTICLES + measured].astype({"setup": order})


def changes(articles: pd.DataFrame, target: str) -> pd.DataFrame:
    """Return the change of every chain and generation g >= 1: columns `CHANGES`.

    It is the share of articles labelled `target` minus that of generation 0 of the same chain. Its
    standard error over articles is paired: sd of the differences / sqrt(n). Unpaired, the variances
    of both shares would add; an article that keeps its label adds nothing here.
    """
    rows = []
    groups = articles.groupby(["setup", "seed", "chain"], observed=True, sort=True)
    for (setup, seed, chain), of_chain in groups:
        hits = (of_chain["label"] == target).astype(float)
        by_generation = of_chain.assign(hit=hits).pivot(
            index="id", columns="generation", values="hit"
        )
        generations = sorted(int(g) for g in of_chain["generation"].unique())
        if 0 not in generations:
            continue
        for generation in generations[1:]:
            row = _change(by_generation[[0, generation]].dropna().to_numpy())
            head = {"setup": setup, "seed": seed, "chain": chain, "generation": generation}
            rows.append(head | row)
    return pd.DataFrame(rows, columns=CHANGES)


def _change(hits: np.ndarray) -> Row:
    """The change between two generations. hits: [n, 2], 1 where an article has the target label."""
    first, last = hits[:, 0], hits[:, 1]
    difference = last - first
    n = len(difference)
    return {
        "first": float(first.mean()),
        "share": float(last.mean()),
        "change": float(difference.mean()),
        "se": float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan,
        "n": n,
    }


def amplification(change: pd.DataFrame) -> pd.DataFrame:
    """Return the mean change of every setup and generation over replicates: columns
    `AMPLIFICATION`.

    low and high: its 95 % t interval; p of no change; se_articles: the paired standard error of
    one chain (root mean square over replicates). Interval and p are NaN with one replicate, and p
    where replicates do not differ.
    """
    rows = []
    groups = change.groupby(["setup", "generation"], observed=True, sort=False)
    for (setup, _), replicates in groups:
        interval = t_interval(replicates["change"].to_numpy(float), 0.0)
        rows.append(
            {
                "setup": setup,
                "generation": int(replicates["generation"].iloc[0]),
                "replicates": len(replicates),
                "first": replicates["first"].mean(),
                "share": replicates["share"].mean(),
                "change": replicates["change"].mean(),
                "low": interval.low,
                "high": interval.high,
                "p": interval.p,
                "se_articles": float(np.sqrt(np.mean(np.square(replicates["se"])))),
            }
        )
    return pd.DataFrame(rows, columns=AMPLIFICATION)


def transitions(
    articles: pd.DataFrame, labels: Sequence[str], first: int = 0, last: int | None = None
) -> pd.DataFrame:
    """Return how many articles of each label had which label later; replicates are pooled.

    Columns `TRANSITIONS`; share is the share among the articles with label `before`. Only chains
    that have both generations count. last: the later generation; None: the newest.
    """
    if last is None:
        last = int(articles["generation"].max()) if len(articles) else 0
    keys = ["setup", "chain", "id"]
    before, after = (
        articles[articles["generation"] == generation].set_index(keys)["label"]
        for generation in (first, last)
    )
    pairs = (
        before.to_frame("before").join(after.rename("after"), how="inner").dropna().reset_index()
    )
    rows = []
    for setup, of_setup in pairs.groupby("setup", observed=True, sort=False):
        counts = (
            pd.crosstab(of_setup["before"], of_setup["after"])
            .reindex(index=list(labels), columns=list(labels), fill_value=0)
            .to_numpy()
        )
        for label, of_label in zip(labels, counts, strict=True):
            total = int(of_label.sum())
            for other, count in zip(labels, of_label, strict=True):
                rows.append(
                    {
                        "setup": setup,
                        "before": label,
                        "after": other,
                        "articles": int(count),
                        "share": count / total if total else np.nan,
                    }
                )
    return pd.DataFrame(rows, columns=TRANSITIONS)


def distributions(articles: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return quantiles of each measured column by setup and generation, replicates pooled: columns
    `DISTRIBUTIONS`.
    """
    rows = []
    for name in columns:
        if name not in articles:
            continue
        groups = articles.groupby(["setup", "generation"], observed=True, sort=True)
        for (setup, _), group in groups:
            generation = int(group["generation"].iloc[0])
            defined = group[name].dropna().to_numpy(float)
            mean, quantiles = np.nan, [np.nan] * len(QUANTILES)
            if len(defined):
                mean, quantiles = defined.mean(), list(np.quantile(defined, QUANTILES))
            numbers = [setup, generation, name, len(defined), mean, *quantiles]
            rows.append(dict(zip(DISTRIBUTIONS, numbers, strict=True)))
    return pd.DataFrame(rows, columns=DISTRIBUTIONS)


def real_shares(ledger: pd.DataFrame, setups: Mapping[str, str], size: int) -> pd.DataFrame:
    """Return the share of real articles in every generation's training set: columns `REAL_SHARES`.

    There are two definitions: their number over that of all real articles (of_real, the paper's
    "10 %"), and over the training set (of_mix, 9.1 % of the same 152 articles).

    Args:
        ledger: of the run.
        setups: {chain: setup}.
        size: number of real articles.
    """
    rows = []
    table = ledger.assign(setup=ledger["chain"].map(setups))
    for (setup, _), of_setup in table.groupby(["setup", "generation"], sort=False):
        one_chain = of_setup[of_setup["chain"] == of_setup["chain"].iloc[0]]
        real = int(one_chain.loc[one_chain["source"] == "human", "count"].sum())
        trained = int(one_chain["count"].sum())
        rows.append(
            {
                "setup": setup,
                "generation": int(of_setup["generation"].iloc[0]),
                "real": real,
                "trained": trained,
                "of_real": real / size,
                "of_mix": real / trained if trained else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=REAL_SHARES)


def classifiers(fits: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return what the classifiers that were fitted reach on texts they never saw: columns
    `CLASSIFIERS`, the one that is used first.

    se: `share_se` of the accuracy.

    Args:
        fits: reports of `metrics.classifier_training`, the chosen one first.
    """
    rows = []
    for number, fit in enumerate(fits):
        training, _, test = fit["split"]
        accuracy = fit["test"]["accuracy"]
        rows.append(
            {
                "encoder": fit["encoder"],
                "used": number == 0,
                "trained_on": training,
                "tested_on": test,
                "validation_macro_f1": fit["validation"],
                "macro_f1": fit["test"]["macro_f1"],
                "accuracy": accuracy,
                "se": share_se(accuracy, test),
                "majority_accuracy": fit["majority"]["accuracy"],
            }
        )
    return pd.DataFrame(rows, columns=CLASSIFIERS)


def references(real: Mapping[str, float], base: Mapping[str, float]) -> pd.DataFrame:
    """Return what generations are compared with, columns `REFERENCES`: means of the real articles
    and of what the base generates before any fine-tuning.
    """
    rows = [
        {"of": of, "metric": metric, "value": value}
        for of, means in (("real articles", real), ("base", base))
        for metric, value in means.items()
    ]
    return pd.DataFrame(rows, columns=REFERENCES)


def write(folder: Path, **named: pd.DataFrame) -> None:
    """Write every table as `folder`/<name>.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in named.items():
        columns = {str(column): _plain(values) for column, values in table.items()}
        write_atomic(folder / f"{name}.csv", tables.to_csv(columns), durable=False)


def _plain(values: pd.Series) -> list:
    is_category = isinstance(values.dtype, pd.CategoricalDtype)
    return (values.astype(str) if is_category else values).tolist()
