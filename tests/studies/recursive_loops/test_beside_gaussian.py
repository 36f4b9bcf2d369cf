"""The loss of diversity beside the formula of a refitted Gaussian: planted chains that follow it,
chains that lose more, and runs that cannot be compared.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.simulators.gaussian_mixed import mixed_chain
from jaxloop.studies.common import beside_gaussian as beside
from jaxloop.studies.recursive_loops.analysis import findings
from tests.studies.recursive_loops.test_findings import words, write

GENERATIONS, N, SEEDS, RATIOS = 6, 20, 8, (0.25, 1.0)


def tables(*, extra_loss=0.0, pooled=False):
    """(metrics, chains, ledger) of chains whose diversity is the formula's, but for 1 % of noise
    and a further relative loss in every generation.
    """
    rng = np.random.default_rng(1)
    metrics, chains, ledger = [], [], []
    for ratio, seed in itertools.product(RATIOS, range(SEEDS)):
        name, made = f"r{ratio:g}-s{seed}", round(N * ratio)
        chains.append({"chain": name, "dataset": "a", "ratio": ratio, "seed": seed})
        exact = mixed_chain(GENERATIONS, n=N, synthetic=made, pooled=pooled).variance
        for g, value in enumerate(0.7 * exact * (1 - extra_loss) ** np.arange(GENERATIONS)):
            noisy = value * (1 + 0.01 * rng.normal())
            about = {"study": "loops", "chain": name, "ratio": ratio, "seed": seed}
            metrics.append(about | {"metric": "cosine_diversity", "generation": g, "value": noisy})
            metrics.append(about | {"metric": "judge_quality", "generation": g, "value": 50.0})
            ledger += trained_on(name, g, made, pooled)
    return pd.DataFrame(metrics), pd.DataFrame(chains), pd.DataFrame(ledger)


def trained_on(chain, generation, made, pooled):
    """Lines of the ledger of one generation."""
    ages = [("human", generation, N if generation == 0 else N - made)]
    if generation and pooled and generation > 1:
        ages += [("synthetic", 0, made // 2), ("synthetic", generation - 1, made - made // 2)]
    elif generation:
        ages += [("synthetic", generation - 1, made)]
    names = ("source", "from_generation", "count")
    return [
        {"chain": chain, "generation": generation} | dict(zip(names, line, strict=True))
        for line in ages
    ]


def run_of(root, metrics, chains, ledger):
    return write(root, metrics_csv=metrics, chains_csv=chains, ledger_parquet=ledger)


@pytest.mark.usefixtures("undrawn_pages")
@pytest.mark.parametrize("pooled", [False, True])
def test_chains_that_follow_the_formula(tmp_path, pooled):
    metrics, *others = tables(pooled=pooled)
    root = run_of(tmp_path, metrics, *others)
    text = words(findings.write_report(root, "ratio_sweep"))
    assert "the formula lies in the 95 % interval of 2 of 2 ratios" in text
    assert (root / "figures/beside_gaussian.png").stat().st_size > 5000
    found = pd.read_csv(root / "tables/beside_gaussian.csv")
    assert found["generation"].tolist() == ["1", "2", "3", "4", "5", "late"] * 2
    exact = mixed_chain(GENERATIONS, n=N, synthetic=N, pooled=pooled).variance
    ours = found[found["ratio"] == 1]
    np.testing.assert_allclose(ours["formula"][:-1], exact[1:] / exact[0] - 1, rtol=1e-12)
    assert ours["formula"].iloc[-1] == pytest.approx((exact[1:] / exact[0] - 1).mean())
    # The interval is the t interval of the chains, here by scipy.
    of_chain = metrics[(metrics["ratio"] == 1) & (metrics["metric"] == "cosine_diversity")]
    table = of_chain.pivot(index="chain", columns="generation", values="value")
    change = table[3] / table[0] - 1
    low, high = scipy.stats.t.interval(0.95, SEEDS - 1, change.mean(), scipy.stats.sem(change))
    third = ours.iloc[2]
    assert (third["measured"], third["low"], third["high"]) == pytest.approx(
        (change.mean(), low, high), rel=1e-9
    )


def test_chains_that_lose_more(tmp_path):
    root = run_of(tmp_path, *tables(extra_loss=0.05))
    text = words(findings.write_report(root, "ratio_sweep"))
    assert "the formula lies in the 95 % interval of 0 of 2 ratios" in text
    assert "At r = 1/4 the models lose more: -0.1" in text
    assert "At r = 1 the models lose more: -0.2" in text


def test_one_chain_is_not_said_to_lie_outside(tmp_path):
    metrics, chains, ledger = tables()
    one = chains["chain"][chains["seed"] == 0]
    found = beside.table(*(t[t["chain"].isin(one)] for t in (of_diversity(metrics), ledger)))
    assert found["low"].isna().all() and found["inside"].isna().all()
    assert beside.sentences(found) == []


def of_diversity(metrics):
    return metrics[metrics["metric"] == "cosine_diversity"]


def test_generations_that_are_not_measured():
    metrics, _, ledger = tables()
    values = of_diversity(metrics)
    whole = beside.table(values, ledger)
    found = beside.table(values[values["generation"].isin((0, 3, 5))], ledger)
    assert found["generation"].tolist() == [3, 5, "late"] * 2
    kept = whole[whole["generation"].isin((3, 5))]
    columns = ["measured", "low", "high", "formula"]
    ours = found[found["generation"] != "late"][columns].to_numpy(float)
    np.testing.assert_allclose(ours, kept[columns].to_numpy(float), rtol=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_compared_is_said(tmp_path):
    metrics, chains, ledger = tables()
    values = of_diversity(metrics)
    for given, trained, sentence in (
        (values, None, "ledger.parquet is missing, which counts the texts"),
        (values[:0], ledger, "the run has no metric cosine_diversity, which the formula is about"),
        (
            values,
            ledger.assign(count=ledger["count"] + ledger["generation"]),
            "the number of texts of later generations differs between chains or generations",
        ),
        (
            values[values["generation"] != 0],
            ledger,
            "generation 0 and a later one must be measured",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            beside.table(given, trained)
    root = run_of(tmp_path, metrics, chains, ledger.assign(count=range(len(ledger))))
    text = words(findings.write_report(root, "ratio_sweep"))
    assert "Not compared: the number of texts of" in text
