"""Tables of a bias-amplification study from the values of its articles: amplification with
intervals, transitions, real shares, distributions.

Two errors answer two questions. Over replicates (seeds): would the setup, run again, amplify? Over
articles, paired: would this chain's models move other articles the same way? The paper has one
chain per setup and can only give the second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.stats.weightstats import DescrStatsW

from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def read_articles(
    root: Path, chains: Sequence[tuple[str, str, int]], generations: int
) -> pd.DataFrame:
    """The values of all articles: columns chain, setup, seed, generation, id, label and whatever
    was measured. chains: (id, setup, seed) each; a generation that a chain did not reach is absent.
    """
    from jaxloop.studies.bias_amplification.measure import articles_path

    parts = []
    for chain, setup, seed in chains:
        for generation in range(generations):
            path = root / articles_path(chain, generation)
            if path.exists():
                parts.append(
                    pd.DataFrame(tables.read_parquet(path)).assign(
                        chain=chain, setup=setup, seed=seed, generation=generation
                    )
                )
    columns = ["chain", "setup", "seed", "generation", "id", "label"]
    if not parts:
        return pd.DataFrame(columns=columns)
    table = pd.concat(parts, ignore_index=True)
    order = pd.CategoricalDtype(list(dict.fromkeys(setup for _, setup, _ in chains)), ordered=True)
    return table[columns + [c for c in table.columns if c not in columns]].astype({"setup": order})


def changes(articles: pd.DataFrame, target: str) -> pd.DataFrame:
    """Of every chain and generation g >= 1: share of articles labelled `target` minus that of
    generation 0 of the same chain, and its standard error over articles, paired: sd of the
    differences / sqrt(n). Columns setup, seed, chain, generation, first, share, change, se, n.

    Unpaired, the variances of both shares would add; an article that keeps its label adds nothing
    here.
    """
    rows = []
    for (setup, seed, chain), mine in articles.groupby(
        ["setup", "seed", "chain"], observed=True, sort=True
    ):
        hits = (mine["label"] == target).astype(float)
        wide = mine.assign(hit=hits).pivot(index="id", columns="generation", values="hit")
        if 0 not in wide:
            continue
        for generation in wide.columns[wide.columns > 0]:
            pair = wide[[0, generation]].dropna()
            d = (pair[generation] - pair[0]).to_numpy()
            se = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else np.nan
            rows.append(
                (
                    setup,
                    seed,
                    chain,
                    int(generation),
                    float(pair[0].mean()),
                    float(pair[generation].mean()),
                    float(d.mean()),
                    se,
                    len(d),
                )
            )
    return pd.DataFrame(
        rows,
        columns=["setup", "seed", "chain", "generation", "first", "share", "change", "se", "n"],
    )


def amplification(change: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Per setup and generation: mean change over replicates with its t interval at 1 - alpha, the p
    of no change, and the paired standard error of one chain (root mean square over replicates).
    Columns setup, generation, replicates, first, share, change, low, high, p, se_articles.

    Interval and p are NaN with one replicate, and p where replicates do not differ.
    """
    rows = []
    for (setup, generation), mine in change.groupby(
        ["setup", "generation"], observed=True, sort=False
    ):
        values = DescrStatsW(mine["change"].to_numpy())
        low = high = p = np.nan
        if len(mine) > 1:
            low, high = values.tconfint_mean(alpha)
            p = float(values.ttest_mean(0)[1]) if values.std > 0 else np.nan
        error = float(np.sqrt(np.mean(np.square(mine["se"]))))
        rows.append(
            (
                setup,
                int(generation),
                len(mine),
                mine["first"].mean(),
                mine["share"].mean(),
                mine["change"].mean(),
                low,
                high,
                p,
                error,
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
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
        ],
    )


def transitions(
    articles: pd.DataFrame, labels: Sequence[str], first: int = 0, last: int | None = None
) -> pd.DataFrame:
    """What became of the articles of each label: columns setup, before, after, articles, share (of
    those with `before`), replicates pooled.

    Only articles of chains that have both generations (last: the newest) count.
    """
    if last is None:
        last = int(articles["generation"].max()) if len(articles) else 0
    keys = ["setup", "chain", "id"]
    before, after = (
        articles[articles["generation"] == g].set_index(keys)["label"] for g in (first, last)
    )
    pairs = (
        before.to_frame("before").join(after.rename("after"), how="inner").dropna().reset_index()
    )
    rows = []
    for setup, mine in pairs.groupby("setup", observed=True, sort=False):
        counts = pd.crosstab(mine["before"], mine["after"]).reindex(
            index=labels, columns=labels, fill_value=0
        )
        for a in labels:
            for b in labels:
                total = int(counts.loc[a].sum())
                rows.append(
                    (
                        setup,
                        a,
                        b,
                        int(counts.loc[a, b]),
                        counts.loc[a, b] / total if total else np.nan,
                    )
                )
    return pd.DataFrame(rows, columns=["setup", "before", "after", "articles", "share"])


def distributions(articles: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Quantiles of each measured column by setup and generation, replicates pooled: columns setup,
    generation, measure, n, mean, q05 … q95.
    """
    rows = []
    for name in (c for c in columns if c in articles):
        for (setup, generation), mine in articles.groupby(
            ["setup", "generation"], observed=True, sort=True
        )[name]:
            known = mine.dropna().to_numpy(float)
            marks = np.quantile(known, QUANTILES) if len(known) else [np.nan] * len(QUANTILES)
            rows.append(
                (
                    setup,
                    int(generation),
                    name,
                    len(known),
                    known.mean() if len(known) else np.nan,
                    *marks,
                )
            )
    return pd.DataFrame(
        rows,
        columns=[
            "setup",
            "generation",
            "measure",
            "n",
            "mean",
            *(f"q{round(100 * q):02d}" for q in QUANTILES),
        ],
    )


def real_shares(ledger: pd.DataFrame, setups: Mapping[str, str], size: int) -> pd.DataFrame:
    """Real articles in every generation's training set, by both definitions: their number over that
    of all real articles (the paper's "10 %"), and over the training set (9.1 % of the same 152
    articles). setups: chain -> setup. Columns setup, generation, real, trained, of_real, of_mix.
    """
    rows = []
    table = ledger.assign(setup=ledger["chain"].map(setups))
    for (setup, generation), mine in table.groupby(["setup", "generation"], sort=False):
        one = mine[mine["chain"] == mine["chain"].iloc[0]]
        real, trained = (
            int(one.loc[one["source"] == "human", "count"].sum()),
            int(one["count"].sum()),
        )
        rows.append(
            (
                setup,
                int(generation),
                real,
                trained,
                real / size,
                real / trained if trained else np.nan,
            )
        )
    return pd.DataFrame(
        rows, columns=["setup", "generation", "real", "trained", "of_real", "of_mix"]
    )


def write(folder: Path, **named: pd.DataFrame) -> None:
    """`folder`/<name>.csv of every table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in named.items():
        columns = {
            c: table[c].astype(str).tolist()
            if isinstance(table[c].dtype, pd.CategoricalDtype)
            else table[c].tolist()
            for c in table
        }
        write_atomic(folder / f"{name}.csv", tables.to_csv(columns), durable=False)
