"""The page, the figures and the tables of every experiment, from files as a study writes them; and
what is said where something is missing.
"""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.reporting import figures
from jaxloop.runtime.tables import to_csv, write_parquet
from jaxloop.studies.recursive_loops.analysis import findings as rl
from jaxloop.studies.recursive_loops.analysis import (
    findings_political,
    findings_sweep,
    paper_figures,
    paper_figures_political,
    paper_figures_regression,
    paper_values,
    run_tables,
)
from jaxloop.studies.recursive_loops.analysis import relative as relative_values
from jaxloop.studies.recursive_loops.analysis.regression import PROPERTIES
from tests import drawings
from tests.studies.recursive_loops import planted
from tests.studies.recursive_loops import planted_sweeps as sweeps


def write(root, **tables):
    """Files of a run: `metrics_csv=table` becomes metrics.csv."""
    root.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = root / ".".join(name.rsplit("_", 1))
        columns = {
            c: table[c].to_numpy() if table[c].dtype.kind in "iuf" else table[c].tolist()
            for c in table
        }
        if path.suffix == ".csv":
            path.write_bytes(to_csv({k: list(v) for k, v in columns.items()}))
        else:
            write_parquet(path, columns)
    return root


def words(path):
    """The page without drawings and tags."""
    text = re.sub(
        r"<svg.*?</svg>|<style.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    metrics, chains, properties, members = planted.single(
        datasets=("100M_tweets", "wikipedia"),
        beta=[0.03, -0.03, 0, 0.02, 0, 0],
        shared=0.02,
        noise=0.02,
    )
    rng = np.random.default_rng(0)
    properties = properties.assign(
        negentropy=rng.random(len(properties)), toxicity=rng.random(len(properties))
    )
    chains.loc[len(chains)] = ["lost", "wikipedia", 0.25, 0, "c0"]
    root = tmp_path_factory.mktemp("clusters")
    return write(
        root,
        metrics_csv=metrics,
        chains_csv=chains,
        properties_csv=properties,
        members_parquet=members,
        ledger_parquet=sweeps.ledger(chains[:6]),
    )


@pytest.fixture(scope="module")
def cluster_page(clusters):
    with pytest.MonkeyPatch.context() as patch:
        drawings.sketch(patch)
        return rl.write_report(clusters, "clusters")


def test_cluster_study_leaves_tables_figures_and_a_page(clusters, cluster_page):
    tables = {p.name for p in (clusters / "tables").iterdir()}
    assert {
        "coefficients.csv",
        "fits.csv",
        "equivalence.csv",
        "power.csv",
        "skipped.csv",
        "outcomes.csv",
        "overlap.csv",
        "vif.csv",
    } <= tables
    assert {
        "table_1_relative_classical.tex",
        "table_1_ancova_overlap.tex",
        "table_1_negentropy_overlap.tex",
        "table_3.csv",
        "table_3.tex",
    } <= tables
    assert {p.name for p in (clusters / "figures").iterdir()} == {
        "figure_7a.png",
        "figure_7b.png",
        "figure_8.png",
        "figure_table_1.png",
    }
    coefficients = pd.read_csv(clusters / "tables/coefficients.csv")
    fits = coefficients.groupby(["dependent", "column"]).ngroups
    assert fits == 10
    counts = coefficients.groupby(["form", "errors"]).size()
    for form in ("relative", "difference", "ancova", "negentropy"):
        assert counts[form, "classical"] == counts[form, "overlap"] == 6 * fits
    table = pd.read_csv(clusters / "tables/table_3.csv").set_index("dependent")
    fit = pd.read_csv(clusters / "tables/fits.csv").query(
        "dependent == 'quality' and column == 'All'"
    )
    assert table.loc["quality", "All"] == fit["r2"].item()


def test_the_page_says_what_was_found_and_what_not(cluster_page):
    text = words(cluster_page)
    assert "Relative diversity (All, 96 chains): R2 = 0." in text
    assert re.search(r"Semantic diversity \+0\.03\d\d \[0\.0\d+, 0\.0\d+\]", text)
    assert "Counted as in the paper, " in text and "After Benjamini-Hochberg" in text
    assert (
        "What cannot be concluded Of 97 planned chains, those with a value and all properties "
        "are 96 for diversity and 96 for quality." in text
    )
    assert (
        "1 were skipped" in text
        and "lost metrics.csv has no value of cosine_diversity for it" in text
    )
    assert (
        "Gaussianity is the paper's name for the AIC of one Gaussian" in text
        and "regression to the mean" in text
    )
    assert re.search(
        r"Semantic diversity \d+ 0 10 \d+ 5 of 18", text
    )  # planted with a plus; 10 fits
    assert re.search(
        r"Diversity \(All, 96 chains\): found in four of five cases is an effect .*? one of "
        r"0\.01 would need [\d,]+ to [\d,]+ chains",
        text,
    )
    assert re.search(r"Clusters of a dataset share texts: \d\d % of pairs do", text)
    page = cluster_page.read_text(encoding="utf-8")
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!#)', page)


@pytest.mark.usefixtures("sketched")
def test_same_files_same_page(tmp_path):
    root = write(tmp_path, **small())
    page = rl.write_report(root, "clusters")
    before = {
        p: p.read_bytes()
        for p in [page, *(root / "tables").iterdir(), *(root / "figures").iterdir()]
    }
    rl.write_report(root, "clusters")
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.usefixtures("sketched")
def test_multi_domain(tmp_path):
    metrics, chains, properties, members = planted.multi(beta=0.02, count=24, noise=0.01)
    root = write(
        tmp_path,
        metrics_csv=metrics,
        chains_csv=chains,
        properties_csv=properties,
        members_parquet=members,
    )
    text = words(rl.write_report(root, "multi_domain", bound=0.03))
    assert re.search(
        r"\d+ of 36 coefficients of a domain's own properties and \d+ of 72 of other domains' "
        r"have p < .05; by chance 3.6",
        text,
    )
    assert re.search(r"tested jointly: diversity of reddit F\(12, 28\) = ", text)
    assert re.search(
        r"Effects from one domain's properties to another's text that can be excluded: \d+ of 72 "
        r"are shown to lie within ± 0.03",
        text,
    )
    assert (root / "figures/figure_4_classical.png").exists() and (
        root / "figures/figure_4_overlap.png"
    ).exists()
    assert (root / "tables/table_4.csv").exists()
    influence = pd.read_csv(root / "tables/influence.csv")
    for errors, rows in influence.groupby("errors"):
        by_kind = rows.groupby("influence")[["tests", "significant"]].sum()
        assert by_kind["tests"].to_dict() == {"other": 72, "own": 36}
        listed = pd.read_csv(root / "tables/coefficients.csv")
        listed = listed[(listed["form"] == "relative") & (listed["errors"] == errors)]
        assert by_kind["significant"].sum() == (listed["p"] < 0.05).sum()
    aware = influence[influence["errors"] == "overlap"].set_index(["outcome", "influence"])
    assert aware.loc[("diversity", "own"), "share"] > 3 * aware.loc[("diversity", "other"), "share"]
    equivalence = pd.read_csv(root / "tables/equivalence.csv")
    assert aware["largest"].max() == equivalence[equivalence["errors"] == "overlap"]["least"].max()
    assert (
        "ledger.parquet is missing, which this figure draws" in text
    )  # what could not be drawn is said


# ---- what is missing


def small(**changes):
    metrics, chains, properties, _ = planted.single(datasets=("web",), ratios=(0.25,), count=12)
    return {"metrics_csv": metrics, "chains_csv": chains, "properties_csv": properties} | changes


@pytest.mark.usefixtures("undrawn")
def test_fits_that_are_not_possible_are_said_so(tmp_path):
    tables = small()
    tables["properties_csv"]["quality"] = 50.0
    text = words(rl.write_report(write(tmp_path / "a", **tables), "clusters"))
    assert (
        "predictor 'quality' is 50 for all 12 chains of the fit of diversity (web 1/4), a "
        "predictor must vary" in text
    )
    assert "No regression could be fitted; the reasons are listed below." in text
    tables = small()
    few = tables["chains_csv"][:6]
    text = words(
        rl.write_report(write(tmp_path / "b", **(tables | {"chains_csv": few})), "clusters")
    )
    assert (
        "the fit of diversity (web 1/4) has 6 chains for 6 predictors and an intercept, at least "
        "8 are needed" in text
    )


@pytest.mark.usefixtures("undrawn")
def test_a_stand_in_for_quality_is_named(tmp_path):
    tables = small()
    tables["metrics_csv"]["metric"] = tables["metrics_csv"]["metric"].replace(
        "judge_quality", "type_token_ratio(characters=200)"
    )
    text = words(rl.write_report(write(tmp_path, **tables), "clusters", quality="type_token_ratio"))
    assert "Quality is type_token_ratio(characters=200) here, not a judge's score" in text
    assert "Relative quality (web 1/4, 12 chains)" in text


@pytest.mark.usefixtures("undrawn")
def test_a_quality_on_both_sides_of_zero_is_not_regressed(tmp_path):
    tables = small()
    metrics = tables["metrics_csv"]
    rows = metrics["metric"] == "judge_quality"
    metrics.loc[rows, "value"] -= metrics[rows & (metrics["generation"] == 0)]["value"].median()
    text = words(rl.write_report(write(tmp_path, **tables), "clusters"))
    assert "Relative diversity (web 1/4, 12 chains)" in text and "Relative quality (" not in text
    assert "judge_quality lies on both sides of 0 in generation 0: no relative value" in text


@pytest.mark.usefixtures("undrawn")
def test_without_overlap_the_page_says_that_errors_are_too_short(tmp_path):
    text = words(rl.write_report(write(tmp_path, **small()), "clusters"))
    assert "The run does not say which texts its clusters share" in text
    assert "quality judge_quality diversity cosine_diversity" in text
    assert "Every cluster and ratio has one chain" in text
    assert "2 of 2 fits have fewer than ten degrees of freedom" in text


@pytest.mark.parametrize(
    ("remove", "change", "message"),
    [
        ("metrics_csv", {}, "metrics.csv is missing, the analysis of a study needs it"),
        ("chains_csv", {}, "chains.csv is missing, the analysis of a study needs it"),
        (
            "properties_csv",
            {},
            "properties.csv is missing, the regressions need the properties of the clusters",
        ),
        (
            None,
            {"metrics_csv": pd.DataFrame({"chain": ["a"], "metric": ["m"]})},
            "has no column 'generation', which the analysis needs beside chain, generation",
        ),
        (
            None,
            {"members_parquet": pd.DataFrame({"dataset": ["web"], "row": [1]})},
            "has no column 'cluster', which the analysis needs beside dataset",
        ),
        (
            None,
            {"chains_csv": pd.DataFrame({"chain": ["a"], "ratio": ["an eighth"]})},
            "has the ratio 'an eighth', a number is needed",
        ),
    ],
)
def test_refused(tmp_path, remove, change, message):
    tables = {k: v for k, v in (small() | change).items() if k != remove}
    with pytest.raises(ValueError) as error:
        rl.write_report(write(tmp_path, **tables), "clusters")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_experiment(tmp_path):
    with pytest.raises(
        ValueError,
        match="^experiment 'cluster' is not one of ratio_sweep, datasets, clusters, multi_domain,",
    ):
        rl.write_report(tmp_path, "cluster")


# ---- sweeps


def run_of(root, metrics, chains, **others):
    return run_tables.read(write(root, metrics_csv=metrics, chains_csv=chains, **others))


def drawn(axes):
    """{label: (x, y)} of the lines of a panel."""
    return {
        line.get_label(): line.get_xydata()
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_figures_2_and_3_show_means_and_standard_errors(tmp_path):
    metrics, chains = sweeps.sweep()
    run = run_of(tmp_path, metrics, chains)
    picture = paper_figures.figure_2(run)
    assert len(picture.axes) == 4  # two datasets, two metrics
    line = drawn(picture.axes[0])["r = 1/4"]
    rows = metrics[
        (metrics["dataset"] == "100M_tweets")
        & (metrics["ratio"] == 0.25)
        & (metrics["metric"] == "judge_quality")
    ]
    np.testing.assert_allclose(line[:, 1], rows.groupby("generation")["value"].mean(), rtol=1e-12)
    band = picture.axes[0].collections[2].get_paths()[0].vertices
    last = rows[rows["generation"] == 7]["value"]
    edges = last.mean() + np.array([-1, 1]) * scipy.stats.sem(last)
    for edge in edges:
        assert np.isclose(band[band[:, 0] == 7][:, 1], edge, rtol=1e-9).any()

    picture = paper_figures.figure_3(run)
    absolute, relative = drawn(picture.axes[0])["wikipedia"], drawn(picture.axes[2])["wikipedia"]
    assert absolute[:, 0].tolist() == [0.0, *sweeps.RATIOS]
    ones = metrics[
        (metrics["dataset"] == "wikipedia")
        & (metrics["ratio"] == 1)
        & (metrics["metric"] == "judge_quality")
        & (metrics["generation"] == 0)
    ]
    assert absolute[0, 1] == pytest.approx(
        ones["value"].mean(), rel=1e-12
    )  # the point at r = 0 is generation 0 of the chains at r = 1
    assert relative[0, 1] == 1
    np.testing.assert_allclose(
        relative[1:, 1], [sweeps.loss(r, 1) for r in sweeps.RATIOS], atol=0.03
    )


def test_figure_10_has_the_digits_of_the_paper(tmp_path):
    run = run_of(tmp_path, *sweeps.sweep(factor="quality_level", levels=(40, 60, 80)))
    axes = paper_figures.figure_10(run).axes
    hollow = [line.get_xydata() for line in axes[1].get_lines() if line.get_label() == "paper"]
    assert len(hollow) == 3 and hollow[0][:, 1].tolist() == [
        0.872,
        0.727,
        0.700,
        0.625,
        0.529,
        0.590,
    ]
    assert hollow[0][:, 0].tolist() == list(sweeps.RATIOS)
    assert not [
        line
        for line in paper_figures.figure_11(run).axes[1].get_lines()
        if line.get_label() == "paper"
    ]


def test_figure_8_shows_the_shares_of_the_design(tmp_path):
    metrics, chains = sweeps.sweep(seeds=1, levels=("web",), ratios=(0.25, 0.75))
    run = run_of(tmp_path, metrics, chains, ledger_parquet=sweeps.ledger(chains))
    axes = paper_figures.figure_8(run).axes
    human = axes[0].collections[0].get_paths()[0].vertices
    assert human[:, 1].max() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match="ledger.parquet is missing, which this figure draws$"):
        paper_figures.figure_8(run._replace(ledger=None))


@pytest.mark.parametrize(
    ("experiment", "options", "names"),
    [
        ("ratio_sweep", {"levels": ("100M_tweets",)}, {"figure_2", "figure_3"}),
        ("datasets", {}, {"figure_2", "figure_3"}),
        (
            "quality_splits",
            {"factor": "quality_level", "levels": (40, 80), "ratios": (0.25, 1.0)},
            {"figure_10", "figure_11"},
        ),
        (
            "length_splits",
            {"factor": "length_level", "levels": ("short", "long"), "ratios": (0.25, 1.0)},
            {"figure_10", "figure_11"},
        ),
        (
            "models_per_generation",
            {"factor": "models", "levels": (1, 4, 20), "ratios": (0.25, 1.0)},
            {"figure_9"},
        ),
        (
            "gen0_size",
            {"factor": "gen0_size", "levels": (4000, 8000), "ratios": (0.25, 1.0)},
            {"figure_2", "figure_3"},
        ),
        (
            "fit_modes",
            {"factor": "fit.mode", "levels": ("lora", "full"), "ratios": (0.25, 1.0)},
            {"figure_2"},
        ),
        (
            "interventions",
            {"factor": "selection", "levels": ("random", "quality"), "ratios": (0.25, 1.0)},
            {"figure_2"},
        ),
    ],
)
def test_sweeps_have_their_figures_and_words(request, tmp_path, experiment, options, names):
    # The others have the same figures.
    drawn_here = experiment in ("datasets", "quality_splits", "models_per_generation")
    request.getfixturevalue("sketched" if drawn_here else "undrawn")
    metrics, chains = sweeps.sweep(seeds=3, **options)
    root = write(
        tmp_path,
        metrics_csv=metrics[metrics["chain"] != chains["chain"][0]],
        chains_csv=chains,
        ledger_parquet=sweeps.ledger(chains),
    )
    text = words(rl.write_report(root, experiment))
    assert {p.stem for p in (root / "figures").iterdir()} == names | {"figure_8"}
    assert "What could not be drawn" not in text
    assert re.search(r"Semantic diversity, .*?: at r = 1: 0\.\d+ of generation 0 \[", text)
    assert (
        "1 gave no value of one metric or more" in text
        and f"{chains['chain'][0]} metrics.csv has no value of" in text
    )
    cells = pd.read_csv(root / "tables/cells.csv")
    assert cells["n"].min() == 2 and set(cells["metric"]) == {"judge_quality", "cosine_diversity"}


def test_cells_are_t_tests(tmp_path):
    run = run_of(tmp_path, *sweeps.sweep(levels=("web",), ratios=(0.25, 1.0), noise=0.05))
    table, _ = findings_sweep.cells(run, ["cosine_diversity"], ["dataset"])
    relative = relative_values.outcomes(run.metrics, run.chains, "cosine_diversity").table.query(
        "ratio == 0.25"
    )["relative"]
    expected = scipy.stats.ttest_1samp(relative, 1)
    row = table.iloc[0]
    assert row["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    np.testing.assert_allclose(
        (row["low"], row["high"]), expected.confidence_interval(0.95), rtol=1e-9
    )


def test_a_metric_on_both_sides_of_zero_has_no_relative_value(tmp_path):
    metrics, chains = sweeps.sweep(levels=("web",), ratios=(0.25, 1.0), noise=0.05)
    own = metrics[metrics["metric"] == "cosine_diversity"]
    sign = own["chain"].map({chain: (-1) ** i for i, chain in enumerate(chains["chain"])})
    odd = own.assign(metric="positivity", value=own["value"].astype(float) * sign)
    run = run_of(tmp_path, pd.concat([metrics, odd]), chains)
    names = ["cosine_diversity", "positivity"]
    table = findings_sweep.cells(run, names, ["dataset"])[0].set_index("metric")
    without = table.loc["positivity"]
    assert without[["relative", "se", "low", "high", "p", "q"]].isna().all(axis=None)
    assert without["absolute"].notna().all() and (without["n"] > 1).all()
    alone = findings_sweep.cells(run, names[:1], ["dataset"])[0]
    np.testing.assert_array_equal(table.loc["cosine_diversity", "q"], alone["q"])
    said = findings_sweep.conclusions(run, names, ["dataset"], table.reset_index())
    top = without[without["ratio"] == 1]["absolute"].item()
    assert said[1] == (
        f"Positivity, web: {top:.3f} at r = 1; generation 0 lies on both sides of 0, so there is "
        "no relative value."
    )
    assert findings_sweep.contrasts(run, names[1:], "seed", ["seed"]).empty
    assert paper_figures.sweep(run, "positivity", ["dataset"])["relative"].isna().all()


def test_pairs_that_do_not_differ_are_pairs():
    """They have an interval and no p, as a policy that changes nothing has."""
    columns = ["metric", "dataset", "ratio", "selection", "n", "difference", "low", "high", "p"]
    alike = ("cosine_diversity", "web", 1.0, "quality", 3, 0.0, 0.0, 0.0, np.nan)
    one = ("cosine_diversity", "web", 1.0, "quality", 1, 0.1, np.nan, np.nan, np.nan)
    two = ("cosine_diversity", "wiki", 1.0, "quality", 2, 0.1, 0.05, 0.15, 0.03)

    def said(*rows):
        table = pd.DataFrame(rows, columns=columns)
        return findings_sweep.against_control(table, ["cosine_diversity"])[0]

    assert said(alike).endswith(": +0.000 [0.000, 0.000] at r = 1 (3 pairs, all alike).")
    assert said(one).startswith("No policy has two pairs")
    assert said(alike, two).endswith(
        "at web, r = 1 (3 pairs, all alike) and +0.100 [0.050, 0.150] at wiki, r = 1 (2 pairs, "
        "p = .030)."
    )


def test_differences_of_levels_are_named_by_all_factors_in_which_cells_differ():
    columns = ["metric", "dataset", "ratio", "level", "against", "difference", "low", "high", "p"]
    rows = [
        ("cosine_diversity", dataset, 1.0, 4, 1, 0.1, 0.05, 0.15, p)
        for dataset, p in (("web", 0.01), ("wiki", 0.02))
    ]
    table = pd.DataFrame(rows, columns=columns).assign(q=0.02)
    assert "of 4 at web, r = 1 +0.100" in findings_sweep.differ(table, "models")[0]
    assert "of 4 at r = 1 +0.100" in findings_sweep.differ(table[:1], "models")[0]


def test_one_chain_per_ratio_is_too_few_for_a_trend(tmp_path):
    for ratios, p in (((0.25, 0.5, 1.0), ".333"), ((0.125, 0.25, 0.5, 0.75, 1.0), ".017")):
        tables = sweeps.sweep(
            levels=("web",), ratios=ratios, seeds=1, noise=0, shape=lambda r, _: 1 - r / 2
        )
        run = run_of(tmp_path / str(len(ratios)), *tables)
        cells, _ = findings_sweep.cells(run, ["cosine_diversity"], [])
        (said,) = findings_sweep.conclusions(run, ["cosine_diversity"], [], cells)
        shown = "no trend over ratios is shown (" if len(ratios) == 3 else "falls with the ratio ("
        assert shown in said and f"p = {p})" in said


def test_levels_are_set_against_the_first_at_the_same_ratio(tmp_path):
    metrics, chains = sweeps.sweep(factor="models", levels=(1, 4, 20), ratios=(0.25, 1.0), seeds=4)
    run = run_of(tmp_path, metrics, chains)
    table = findings_sweep.contrasts(run, ["cosine_diversity"], "models", ["models"])
    assert table[["ratio", "level"]].to_numpy().tolist() == [
        [0.25, 4],
        [0.25, 20],
        [1, 4],
        [1, 20],
    ] and set(table["against"]) == {1}
    relative = (
        relative_values.outcomes(run.metrics, run.chains, "cosine_diversity")
        .table.query("ratio == 0.25")
        .groupby("models")["relative"]
    )
    four, one = (relative.get_group(level).to_numpy() for level in (4, 1))
    expected = scipy.stats.ttest_ind(four, one, equal_var=False)
    row = table.iloc[0]
    assert (row["difference"], row["p"]) == pytest.approx(
        (four.mean() - one.mean(), expected.pvalue), rel=1e-9
    )
    assert (row["low"], row["high"]) == pytest.approx(
        tuple(expected.confidence_interval()), rel=1e-9
    )
    (said,) = findings_sweep.differ(table, "models")
    assert said.startswith(
        "Levels of models against 1, at the same ratio: 4 of 4 differences of relative values "
        "have q < .05"
    )


def test_u_shape_is_told_from_a_plateau(tmp_path):
    deep = sweeps.sweep(levels=("web",), shape=lambda r, _: 1 - 1.2 * r * (1.3 - r), noise=0.005)
    flat = sweeps.sweep(levels=("web",), shape=lambda r, _: 0.8, noise=0.02)
    found = []
    for name, tables in (("deep", deep), ("flat", flat)):
        run = run_of(tmp_path / name, *tables)
        cells, _ = findings_sweep.cells(run, ["cosine_diversity"], [])
        found += findings_sweep.conclusions(run, ["cosine_diversity"], [], cells)
    assert "lowest at r = 3/4, below both ends (p < .001)" in found[0]
    assert (
        "below both ends (" not in found[1].replace("not shown to be below both ends", "")
        and "no trend over ratios is shown" in found[1]
    )


@pytest.mark.usefixtures("sketched")
def test_toy(tmp_path):
    metrics, chains = sweeps.toy()
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains)
    text = words(rl.write_report(root, "toy"))
    assert (
        "Entropy, accumulate True, bias True, overlap False: at r = 1" in text
        and "lowest at r = 1/2, below both ends (p < .001)" in text
    )
    axes = paper_figures.figure_12(run_tables.read(root)).axes
    assert len(axes) == 6
    np.testing.assert_allclose(
        drawn(axes[2])["biased, no overlap"][:, 1], [1, 0.755, 0.56, 0.32, 0.44], atol=0.01
    )


# ---- politics


@pytest.fixture(scope="module")
def politics(tmp_path_factory):
    metrics, chains, texts = sweeps.political()
    chains.loc[len(chains)] = ["lost", "senator_tweets", 0.75, 9, "50l50r", "mixed"]
    return write(
        tmp_path_factory.mktemp("politics"),
        metrics_csv=metrics,
        chains_csv=chains,
        text_scores_parquet=texts,
    )


@pytest.mark.usefixtures("sketched")
def test_political_page(politics):
    text = words(rl.write_report(politics, "political"))
    assert re.search(
        r"Bias reduced: 100l0r \(20\.\d to 4\d\.\d\) and 0l100r \(80\.\d to 59\.\d\)\.", text
    )
    assert re.search("Bias none at the start(, some at the end)?: 50l50r", text)
    # By hand: the mean over chains of what their human texts, generation 0 and the last generation
    # differ by.
    lean = paper_figures_political.by_chain(
        paper_figures_political.leans(run_tables.read(politics))
    ).pivot(index="chain", columns="generation", values="lean")
    first, later = (lean[0] - lean[-1]).abs().mean(), (lean[7] - lean[0]).abs().mean()
    assert (
        f"moves by {first:.1f} on average from its human text" in text
        and f"and by {later:.1f} from there to the last generation" in text
    )
    assert "16 chains were planned; 1 have no scored text in the last generation: lost." in text
    assert {"figure_5.png", "figure_6.png", "figure_13.png", "figure_14.png"} <= {
        p.name for p in (politics / "figures").iterdir()
    }


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_how_well_the_classifier_of_lean_does(tmp_path):
    metrics, chains, texts = sweeps.political()
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains, text_scores_parquet=texts)
    report = {
        "test": {"accuracy": 0.7, "by_class": {"left": {"texts": 60}, "right": {"texts": 40}}},
        "majority": {"accuracy": 0.6},
    }
    (root / "lean_classifier.json").write_text(json.dumps(report))
    assert (
        "Of 100 human texts that it never saw the classifier names the side of 70 % (60 % by "
        "always naming the larger)" in words(rl.write_report(root, "political"))
    )


def test_lean_of_chains_by_hand(politics):
    run = run_tables.read(politics)
    table = paper_figures_political.by_chain(paper_figures_political.leans(run)).set_index(
        ["chain", "generation"]
    )
    own = run.scores[(run.scores["chain"] == "100l0r-mixed-s0") & (run.scores["generation"] == 7)][
        "value"
    ]
    row = table.loc[("100l0r-mixed-s0", 7)]
    known = own[own >= 0]
    assert row["lean"] == pytest.approx(known.mean()) and row["non_political"] == pytest.approx(
        (own == -1).mean()
    )
    assert 0 < row["non_political"] < 1 and row["no_score"] == 0
    assert row["neutral"] == pytest.approx((known == 50).mean()) and row[
        "lean_without_neutral"
    ] == pytest.approx(known[known != 50].mean())
    shares = paper_figures_political.bins(paper_figures_political.leans(run))
    np.testing.assert_allclose(shares[list(range(8))].sum(axis=1), 1)
    mix = run.scores[
        run.scores["chain"].str.startswith("100l0r") & (run.scores["generation"] == 3)
    ]["value"]
    mix = mix[mix >= 0]
    expected = np.histogram(mix, np.linspace(0, 100, 9))[0] / len(mix)
    np.testing.assert_allclose(
        shares[(shares["mix"] == "100l0r") & (shares["generation"] == 3)][list(range(8))].iloc[0],
        expected,
    )


def test_replies_that_are_no_score_are_not_taken_for_not_political(tmp_path):
    metrics, chains, texts = sweeps.political(seeds=2)
    prose = (texts["generation"] == 7) & (texts["value"] != -1)
    texts.loc[prose, "value"] = np.nan  # of the last generation only "-1" could be read
    run = run_of(tmp_path, metrics, chains, text_scores_parquet=texts)
    table = paper_figures_political.by_chain(paper_figures_political.leans(run))
    last = table[table["generation"] == 7]
    share = prose.sum() / (texts["generation"] == 7).sum()
    assert last["no_score"].mean() == pytest.approx(share) and share > 0.8
    assert last["lean"].isna().all() and (last["non_political"] == 1).all()
    texts.loc[texts["generation"] == 7, "value"] = np.nan  # nothing could be read
    run = run_of(tmp_path / "none", metrics, chains, text_scores_parquet=texts)
    table = paper_figures_political.by_chain(paper_figures_political.leans(run))
    assert table[table["generation"] == 7]["non_political"].isna().all()
    titles = [a.get_title(loc="left") for a in paper_figures_political.figure_13(run).axes]
    assert titles == ["(a) Neutral", "(b) Not political", "(c) No score"]


def test_what_became_of_a_bias(tmp_path):
    ends = {"100l0r": 10.0, "50l50r": 50.0, "0l100r": 44.0}
    metrics, chains, texts = sweeps.political(ends=ends, neutral=0)
    _, table = findings_political.political(
        run_of(tmp_path, metrics, chains, text_scores_parquet=texts), neutral=(50, 50)
    )
    bias = table.set_index("mix")["bias"]
    assert (bias["100l0r"], bias["0l100r"]) == ("amplified", "reversed") and bias[
        "50l50r"
    ].startswith("none at the start")


@pytest.mark.usefixtures("sketched")
def test_homogeneous_chains(tmp_path):
    metrics, chains, texts = sweeps.political(bases=("llama", "falcon"), seeds=3)
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains, text_scores_parquet=texts)
    assert "falcon" in words(rl.write_report(root, "political_bases"))
    handles, labels = (
        paper_figures_political.figure_15(run_tables.read(root)).axes[0].get_legend_handles_labels()
    )
    assert labels == ["falcon", "llama"]


@pytest.mark.usefixtures("undrawn_pages")
def test_mixed_and_homogeneous_chains_in_one_experiment(tmp_path):
    metrics, chains, texts = sweeps.political(bases=("mixed", "llama"), seeds=2)
    texts.loc[texts["chain"].str.contains("llama"), "value"] = 90.0
    root = write(tmp_path, metrics_csv=metrics, chains_csv=chains, text_scores_parquet=texts)
    rl.write_report(root, "political")
    assert {p.name for p in (root / "figures").iterdir()} >= {"figure_5.png", "figure_15.png"}
    alone = write(
        tmp_path / "alone",
        metrics_csv=metrics,
        chains_csv=chains[chains["bases"] == "mixed"],
        text_scores_parquet=texts,
    )
    rl.write_report(alone, "political")
    assert (alone / "figures/figure_5.png").read_bytes() == (
        root / "figures/figure_5.png"
    ).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.assign(value=120.0),
            "holds a political_lean of 120: must lie between 0 and 100",
        ),
        (lambda t: t.assign(metric="lean"), "has no rows of the metric 'political_lean'"),
    ],
)
def test_refused_leans(tmp_path, change, message):
    metrics, chains, texts = sweeps.political(seeds=1)
    run = run_of(tmp_path, metrics, chains, text_scores_parquet=change(texts))
    with pytest.raises(ValueError, match=re.escape(message)):
        paper_figures_political.figure_5(run)


# ---- the paper's numbers


def test_paper_values():
    assert paper_values.values("table_3", dataset="All", metric="quality")["value"].tolist() == [
        0.737
    ]
    assert len(paper_values.values("table_3")) == 18 and len(paper_values.values("table_4")) == 6
    assert paper_values.values("figure_10", dataset="senator_tweets", level="Q51")[
        "value"
    ].tolist() == [
        0.741,
        0.801,
    ]
    table = paper_values.values("table_1")
    assert set(table["level"]) <= set(PROPERTIES) and table["value"].abs().max() < 0.06
    assert paper_values.values(
        "table_1", level="lexical_diversity"
    ).empty  # which column they stand in is not known
    assert "plateau" in paper_values.note("figure_2") and paper_values.note("figure_99") == ""


def test_paper_r2_agrees_with_its_own_significance():
    """F from R2, n and p of Table 3: only the fit of diversity on 100M_tweets at 1/8 is not
    significant.
    """
    cells = paper_values.values("table_3")
    cells = cells[cells["dataset"] != "All"]
    f = cells["value"] / 6 / ((1 - cells["value"]) / (200 - 7))
    weak = cells[scipy.stats.f.sf(f, 6, 193) > 0.05]
    assert weak[["dataset", "metric", "ratio"]].values.tolist() == [
        ["100M_tweets", "diversity", "1/8"]
    ]


def test_table_1_drawing_has_the_papers_diamonds(clusters, cluster_page):
    coefficients = pd.read_csv(clusters / "tables/coefficients.csv")
    picture = paper_figures_regression.figure_table_1(coefficients)
    titles = {axes.get_title(loc="left"): axes for axes in picture.axes}
    diamonds = [
        line.get_xdata()[0]
        for line in titles["Diversity · wikipedia 1/8"].get_lines()
        if line.get_marker() == "D"
    ]
    assert sorted(diamonds) == sorted([0.0152, -0.0325, 0.0410, -0.0356])
    assert figures.png(picture)[:4] == b"\x89PNG"
