"""Sets of texts that have collapsed: what their entropies are, how a report shows them, and
outcomes that are no numbers.
"""

import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from jaxloop.metrics import semantic
from jaxloop.reporting import figures, report, scores
from jaxloop.studies.recursive_loops.analysis.regression import check_outcome, fit_ols
from jaxloop.studies.recursive_loops.analysis.regression_tasks import Task

K = 3
SPREAD = np.random.default_rng(0).normal(size=(40, 2))
SETS = {
    "spread": (SPREAD, True, True),
    "some copies": (np.concatenate([SPREAD, np.zeros((K + 1, 2))]), -np.inf, np.inf),
    "all copies": (np.zeros((40, 2)), -np.inf, np.nan),
    "a line": (np.stack([SPREAD[:, 0], SPREAD[:, 0]], 1), True, np.nan),
}


@pytest.mark.parametrize("name", SETS)
def test_entropies_of_collapsed_sets_are_what_their_docstrings_say(name):
    points, entropy, negentropy = SETS[name]
    for value, expected in (
        (semantic.kl_entropy(points, K), entropy),
        (semantic.negentropy(points, K), negentropy),
    ):
        assert (
            np.isfinite(value)
            if expected is True
            else np.array_equal(value, expected, equal_nan=True)
        )
    for function, words in (
        (semantic.kl_entropy, ("-inf", "collapsed")),
        (semantic.negentropy, ("inf", "nan", "collapsed")),
    ):
        assert all(word in function.__doc__ for word in words)


def metrics(values, name="kl_entropy"):
    """One line of chains; values: seed -> a value per generation."""
    rows = [
        {
            "study": "chain",
            "chain": f"c{s}",
            "ratio": 1.0,
            "seed": s,
            "generation": g,
            "metric": name,
            "value": v,
        }
        for s, each in values.items()
        for g, v in enumerate(each)
    ]
    return pd.DataFrame(rows)


def page(table):
    return report.render(
        title="t",
        subtitle="s",
        metrics=table,
        samples=[],
        failures=[],
        run_info=[],
        config={},
        versions=[],
    )


@pytest.mark.parametrize("name", ["kl_entropy", "kl_entropy(k=5)", "negentropy"])
@pytest.mark.parametrize("gone", [-np.inf, np.inf, np.nan])
def test_a_collapsed_generation_is_shown_as_collapsed(name, gone):
    table = metrics({0: [1.0, 0.5, gone], 1: [1.1, 0.4, gone]}, name)
    summary = scores.by_generation(table).set_index("generation")
    assert summary["collapsed"].tolist() == [0, 0, 2] and np.isnan(summary.loc[2, "mean"])
    cells = [c.strip() for c in re.findall(r"<td[^>]*>([^<]*)", page(table))]
    assert cells.count("collapsed") == 2, (
        "in the table of generations and in that of relative scores"
    )
    texts = [
        t.get_text()
        for axes in figures.curve(scores.by_generation(table), name).axes
        for t in axes.texts
    ]
    assert "x: collapsed" in texts


def test_some_collapsed_replicates_are_counted_beside_the_mean_of_the_others():
    table = metrics({0: [1.0, 0.5], 1: [1.1, -np.inf]})
    assert scores.by_generation(table)["collapsed"].tolist() == [0, 1]
    assert "(1 more collapsed)" in page(table)


def test_every_replicate_without_a_relative_score_is_counted_whenever_it_collapsed():
    gone = -np.inf
    table = metrics({0: [1.0, 0.5, 0.5], 1: [1.1, gone, 0.4], 2: [1.0, 0.6, gone], 3: [gone, 1, 1]})
    assert scores.by_generation(table)["collapsed"].tolist() == [1, 1, 1]
    assert scores.relative(table)["n"].tolist() == [1]
    assert "(3 more collapsed)" in page(table)


def test_a_gap_stays_a_gap():
    """A judge that was down leaves no value; that is no collapse."""
    table = metrics({0: [1.0, np.nan], 1: [1.1, np.nan]}, "quality")
    assert scores.by_generation(table)["collapsed"].tolist() == [0, 0]
    assert "collapsed" not in page(table)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_outcome_that_is_no_number_names_its_chains(bad):
    """statsmodels refuses with no name of a row, or gives NaN everywhere."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame(
        {"a": rng.normal(size=30), "b": rng.normal(size=30)},
        index=[f"chain-{i}" for i in range(30)],
    )
    y = pd.Series(rng.normal(size=30), x.index)
    y.iloc[[4, 9]] = bad
    try:
        theirs = sm.OLS(y.to_numpy(), sm.add_constant(x.to_numpy())).fit().params
    except Exception as error:
        theirs, said = None, str(error)
    assert (theirs is None and "chain-4" not in said) or not np.isfinite(theirs).any()
    with pytest.raises(
        ValueError,
        match=r"^the fit: the outcome is no finite number for 2 of 30 chains, chain-4 \(.*\), "
        r"chain-9 \(.*\); leave them out",
    ):
        fit_ols(y, x)
    with pytest.raises(ValueError, match="30 chains, 4 .*, 9 "):
        fit_ols(y.to_numpy(), x.reset_index(drop=True))


def test_a_task_names_its_chains():
    rows = pd.DataFrame(
        {
            "chain": ["a", "b", "c"],
            "first": [1.0, 1.0, 1.0],
            "late": [1.0, 2.0, np.inf],
            "relative": [1.0, 2.0, np.inf],
        }
    )
    rows["difference"] = rows["late"] - rows["first"]
    task = Task(
        "diversity", "all", rows, pd.DataFrame({"p": [1.0, 2.0, 4.0]}), ("p",), (), np.arange(3)
    )
    with pytest.raises(
        ValueError,
        match=r"the fit of diversity \(all\), relative: the outcome is no finite number for 1 of "
        r"3 chains, c \(inf\)",
    ):
        task.data("relative")


def test_many_chains_are_not_all_listed():
    with pytest.raises(ValueError, match=r"for 9 of 9 chains, 0 \(nan\), .*4 \(nan\), \.\.\.;"):
        check_outcome([np.nan] * 9, "it")
