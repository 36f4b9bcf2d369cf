"""No figure and no table averages over a factor that a study varies: every curve is of chains that
differ in their seed alone.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from jaxloop.studies.recursive_loops.analysis import (
    findings,
    paper_figures,
    paper_figures_political,
    run_tables,
)
from tests.studies.recursive_loops import planted_sweeps as sweeps
from tests.studies.recursive_loops.test_findings import drawn, run_of, words, write

RATIOS = (0.25, 1.0)


def crossed(factor, levels, *, datasets=("100M_tweets",), ratios=RATIOS):
    """(metrics, chains) of datasets x levels x ratios x three seeds; each differs from all others
    by what a mean over them would hide.
    """
    tables = []
    for number, dataset in enumerate(datasets):
        metrics, chains = sweeps.sweep(
            number,
            factor=factor,
            levels=levels,
            ratios=ratios,
            seeds=3,
            dataset=dataset,
            shape=lambda ratio, level, number=number: 1 - 0.2 * ratio - 0.1 * level - 0.05 * number,
        )
        for table in (metrics, chains):
            table["chain"] = f"{dataset}-" + table["chain"]
            table["dataset"] = dataset
        tables.append((metrics, chains))
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))


@pytest.mark.parametrize("factor", ["selection", "fit.mode", "gen0_size"])
def test_figure_2_has_a_curve_for_every_ratio_of_every_level(tmp_path, factor):
    levels = (4000, 8000) if factor == "gen0_size" else ("quality", "random")
    datasets = ("100M_tweets", "webis_reddit")
    metrics, chains = crossed(factor, levels, datasets=datasets)
    axes = paper_figures.figure_2(run_of(tmp_path, metrics, chains)).axes
    rows = list(itertools.product(datasets, levels))
    assert len(axes) == 2 * len(rows)
    for (dataset, level), quality in zip(rows, axes[::2], strict=True):
        assert dataset in quality.get_title("left") and str(level) in quality.get_title("left")
        lines = quality.get_title("left").split("\n")
        assert max(map(len, lines)) <= 36, "it would run into the next panel"
        assert set(drawn(quality)) == {"r = 1/4", "r = 1"}
        for ratio, name in zip(RATIOS, ("r = 1/4", "r = 1"), strict=True):
            of_curve = metrics[
                (metrics["dataset"] == dataset)
                & (metrics[factor] == level)
                & (metrics["ratio"] == ratio)
                & (metrics["metric"] == "judge_quality")
            ]
            assert of_curve["chain"].nunique() == 3
            expected = of_curve.groupby("generation")["value"].mean()
            np.testing.assert_allclose(drawn(quality)[name][:, 1], expected, rtol=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_a_figure_that_would_need_too_many_panels_says_so(tmp_path):
    metrics, chains = crossed("selection", tuple(f"p{i}" for i in range(25)), ratios=(1.0,))
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains)
    text = words(findings.write_report(root, "interventions"))
    assert "25 combinations of selection" in text and "24 are at most" in text


@pytest.mark.parametrize(
    "experiment",
    [
        "gen0_size",
        pytest.param("models_per_generation", marks=pytest.mark.slow),
        pytest.param("quality_splits", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_other_figures_part_what_they_do_not_show(tmp_path, experiment):
    """Two datasets and a factor that nobody foresaw."""
    factor = {"gen0_size": "gen0_size", "models_per_generation": "models"}.get(
        experiment, "quality_level"
    )
    metrics, chains = crossed(factor, (1, 4), datasets=("100M_tweets", "webis_reddit"))
    other = []
    for rate, change in ((0.1, 1.0), (0.2, 0.5)):
        m, c = metrics.copy(), chains.copy()
        for table in (m, c):
            table["chain"] += f"-{rate}"
            table["fit.learning_rate"] = rate
        m["value"] *= np.where(m["generation"] > 0, change, 1.0)
        other.append((m, c))
    metrics, chains = (pd.concat(parts, ignore_index=True) for parts in zip(*other, strict=True))
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains)
    if experiment == "gen0_size":
        figure = paper_figures.figure_3(
            run_tables.read(root), paper_figures.FigureOptions(factor="gen0_size")
        )
        halves = [drawn(axes)["1"][-1, 1] for axes in figure.axes[:8]]
        assert len({round(value, 6) for value in halves}) == 8
        return
    findings.write_report(root, experiment)
    names = {path.stem for path in (root / "figures").iterdir()}
    if experiment == "models_per_generation":
        rates = ("fit_learning_rate_0_1", "fit_learning_rate_0_2")
        assert names == {
            f"figure_9.{dataset}_{rate}"
            for dataset in ("100m_tweets", "webis_reddit")
            for rate in rates
        }
    else:
        assert names == {
            f"figure_{number}.fit_learning_rate_0_{i}" for number in (10, 11) for i in (1, 2)
        }


@pytest.mark.usefixtures("undrawn")
def test_political_tables_and_figures_part_ratios(tmp_path):
    parts = []
    for ratio, ends in ((0.75, None), (1.0, {"100l0r": 50.0, "0l100r": 50.0})):
        metrics, chains, scores = sweeps.political(mixes=("100l0r", "0l100r"), seeds=3, ends=ends)
        for table in (metrics, chains, scores):
            table["chain"] += f"-r{ratio:g}"
        metrics["ratio"] = chains["ratio"] = ratio
        parts.append((metrics, chains, scores))
    metrics, chains, scores = (
        pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)
    )
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains, text_scores_parquet=scores)
    findings.write_report(root, "political")
    lean = pd.read_csv(root / "tables/lean.csv")
    assert len(lean) == 4 and set(lean["n"]) == {3}
    assert set(pd.read_csv(root / "tables/lean_bins.csv")["ratio"]) == {0.75, 1.0}
    names = {path.stem for path in (root / "figures").iterdir()}
    assert {"figure_5.r_3_4", "figure_5.r_1", "figure_6.r_1"} <= names
    assert paper_figures_political.cells(run_tables.read(root)) == ["mix", "ratio"]


def test_pages_say_what_their_curves_are_means_of(tmp_path):
    metrics, chains = crossed("selection", ("a", "b"), datasets=tuple("vwxyz"))
    _, note = findings._few_lines(run_of(tmp_path, metrics, chains))
    assert note == "; curves are means over dataset, selection"
