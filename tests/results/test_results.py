"""Results pages: expectations, measures against scipy, verdicts that can come out every way."""

import json
import math
import os
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.power import TTestPower

from jaxloop import results
from jaxloop.api.runs import load_config
from jaxloop.config import catalogue
from jaxloop.recursion.progress import duration
from jaxloop.results import expectations, history, measures, page, verdict
from jaxloop.results.expectations import Claim
from jaxloop.results.verdict import Estimate, Interval
from jaxloop.studies.bias_amplification.chains import make_chains
from jaxloop.studies.common import spent
from jaxloop.studies.diversity import cells
from jaxloop.studies.recursive_loops import subsets
from jaxloop.studies.recursive_loops.analysis.regression import PROPERTIES
from jaxloop.studies.recursive_loops.analysis.regression_robust import FORMS

SHIPPED = catalogue.shipped().parent / "docs/results/expectations"
CLAIM = """
[[claim]]
name = "more"
says = "B is above A"
where = "table 1"
number = "2"
expect = "above"
by = 0.5
measure = {metric = "m", at = {setup = "b", generation = "last"}, minus = {setup = "a"}}
"""
HEAD = """
title = "Two setups"
paper = "arXiv 0000.00000"
config = "bias_amplification"
limits = ["Two setups are not the world."]
tables = ["metrics.csv"]
figures = {"figures/m.png" = "The metric."}
"""


def _claim(**fields):
    base = dict(name="c", says="It is so", where="1", expect="above", measure={})
    return Claim(**{**base, **fields})


@pytest.fixture
def run(tmp_path):
    """A run directory with two setups, six seeds and four generations of one metric."""
    root = tmp_path / "run"
    (root / "figures").mkdir(parents=True)
    (root / ".jaxloop").write_text('{"format": 1}')
    (root / "config.json").write_text('{"study": "bias"}')
    (root / "figures/m.png").write_bytes(b"a picture")
    draw = np.random.default_rng(0)
    rows = [
        dict(
            chain=f"{setup}-{seed}",
            seed=seed,
            setup=setup,
            generation=t,
            metric="m",
            value=(t * (setup == "b") + draw.normal()),
        )
        for setup in "ab"
        for seed in range(6)
        for t in range(4)
    ]
    pd.DataFrame(rows).to_csv(root / "metrics.csv", index=False)
    return root


def _expect(folder, text=HEAD + CLAIM):
    path = folder / "two_setups.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("fields", "low", "high", "word"),
    [
        (dict(), 0.1, 2.0, verdict.REPLICATED),
        (dict(by=0.5), 0.1, 2.0, verdict.REPLICATED),
        (dict(by=0.5), 0.1, 0.4, verdict.SMALLER),
        (dict(by=0.5), -0.1, 0.4, verdict.NOT_REPLICATED),
        (dict(by=0.5), -0.1, 0.6, verdict.UNDECIDED),
        (dict(), -0.2, -0.1, verdict.NOT_REPLICATED),
        (dict(), -0.2, 0.1, verdict.UNDECIDED),
        (dict(expect="below"), -2.0, -0.1, verdict.REPLICATED),
        (dict(expect="below", by=0.5), -0.4, -0.1, verdict.SMALLER),
        (dict(expect="below"), 0.1, 0.2, verdict.NOT_REPLICATED),
        (dict(expect="near", by=0.5), -0.4, 0.4, verdict.REPLICATED),
        (dict(expect="near", by=0.5), -0.4, 0.6, verdict.UNDECIDED),
        (dict(expect="near", by=0.5), 0.6, 0.7, verdict.NOT_REPLICATED),
        (dict(), math.nan, math.nan, verdict.UNDECIDED),
    ],
)
def test_a_verdict_follows_from_the_interval(fields, low, high, word):
    claim = _claim(**fields)
    assert verdict.judge(claim, Interval(low, high), 0.0) == word
    assert verdict.judge(claim, Interval(low + 7, high + 7), 7.0) == word


@pytest.mark.parametrize(
    ("share", "value", "by"), [(1.0, 0.8, 0.2), (3 / 20, 0.05, 0.1), (11 / 20, 0.5, 0.05)]
)
def test_a_share_that_is_as_large_as_was_expected_is_not_short_of_it_by_rounding(share, value, by):
    assert share - value < by or share - value > by
    for expect, end in (("above", share), ("below", 2 * value - share), ("near", share)):
        claim = _claim(expect=expect, value=value, by=by)
        assert verdict.judge(claim, Interval(end, end), value) == verdict.REPLICATED
    at_the_number = Interval(0.1 + 0.2, 1.0)
    assert verdict.judge(_claim(), at_the_number, 0.3) == verdict.UNDECIDED


def test_a_difference_has_the_interval_of_a_paired_t_test(run):
    table = pd.read_csv(run / "metrics.csv")
    last = table[table.generation == 3].pivot(index="seed", columns="setup", values="value")
    test = scipy.stats.ttest_rel(last["b"], last["a"]).confidence_interval(0.9)
    asked = dict(metric="m", at=dict(setup="b", generation="last"), minus=dict(setup="a"))
    found = measures.measure(run, asked)
    assert found.n == 6 and found.unit == "seeds"
    np.testing.assert_allclose(verdict.interval(found, 0.9), [test.low, test.high], rtol=1e-12)
    per_cent = measures.measure(run, asked | {"scale": -100})
    np.testing.assert_allclose([per_cent.value, per_cent.se], [-100 * found.value, 100 * found.se])


def test_ratios_slopes_and_late_generations_are_taken_seed_by_seed(run):
    table = pd.read_csv(run / "metrics.csv")
    b = table[table.setup == "b"]
    slopes = [np.polyfit(p.generation, p.value, 1)[0] for _, p in b.groupby("seed")]
    found = measures.measure(run, dict(metric="m", at=dict(setup="b"), slope="generation"))
    np.testing.assert_allclose(found.value, np.mean(slopes), rtol=1e-12)
    np.testing.assert_allclose(found.se, scipy.stats.sem(slopes), rtol=1e-12)
    table.assign(value=table.value + 5).to_csv(run / "metrics.csv", index=False)
    wide = b.pivot(index="seed", columns="generation", values="value") + 5
    ratios = wide[[1, 2, 3]].mean(axis=1) / wide[0] - 1
    asked = dict(metric="m", at=dict(setup="b", generation="late"), over=dict(generation=0))
    np.testing.assert_allclose(measures.measure(run, asked).value, ratios.mean(), rtol=1e-12)


def test_an_interval_of_a_table_gives_its_standard_error(run):
    values = np.random.default_rng(2).normal(3, 1, 9)
    test = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    row = dict(effect="e", mean=values.mean(), low=test.low, high=test.high, n=9)
    pd.DataFrame([row]).to_csv(run / "effects.csv", index=False)
    asked = dict(
        file="effects.csv", where=dict(effect="e"), value="mean", low="low", high="high", count="n"
    )
    found = measures.measure(run, asked)
    np.testing.assert_allclose(found.se, scipy.stats.sem(values), rtol=1e-12)
    assert (found.n, found.value) == (9, values.mean())


def test_an_interval_that_is_not_around_its_estimate_is_no_t_interval(run):
    """One of a posterior, or of a bootstrap, would be shown as another."""
    (run / "effects.csv").write_text("mean,low,high,n\n0.1,-0.1,0.5,9\n")
    asked = dict(file="effects.csv", where={}, value="mean", low="low", high="high", count="n")
    with pytest.raises(ValueError, match=r"\[-0.1, 0.5\] is no t-interval of 0.1"):
        measures.measure(run, asked)


def test_a_row_of_a_table_may_be_called_late(run):
    (run / "changes.csv").write_text("generation,value\n1,0.5\nlate,0.25\n")
    asked = dict(file="changes.csv", where=dict(generation="late"), value="value")
    assert measures.measure(run, asked).value == 0.25


def test_a_list_of_metrics_is_their_mean(run):
    table = pd.read_csv(run / "metrics.csv")
    both = pd.concat([table, table.assign(metric="m2", value=table.value * 3)])
    both.to_csv(run / "metrics.csv", index=False)
    one, mean = (measures.measure(run, dict(metric=m, at={})).value for m in ("m", ["m", "m2"]))
    np.testing.assert_allclose(mean, 2 * one)


def test_a_seed_that_lacks_a_value_is_left_out(run):
    table = pd.read_csv(run / "metrics.csv")
    gone = (table.seed == 2) & (table.setup == "a") & (table.generation == 3)
    table.loc[gone, "value"] = np.nan
    table.to_csv(run / "metrics.csv", index=False)
    asked = dict(metric="m", at=dict(setup="b", generation=3), minus=dict(setup="a"))
    assert measures.measure(run, asked).n == 5


def test_a_seed_whose_chain_stopped_has_no_late_value(run):
    """The others keep their last generations, and the slope its levels."""
    table = pd.read_csv(run / "metrics.csv")
    stopped = (table.chain == "b-4") & (table.generation > 1)
    table.loc[(table.chain == "b-1") & (table.generation == 2), "value"] = np.nan
    table[~stopped].to_csv(run / "metrics.csv", index=False)
    wide = table[table.setup == "b"].pivot(index="seed", columns="generation", values="value")
    for asked, values in (
        ({"generation": "last"}, wide[3].drop(4)),
        ({"generation": "late"}, wide[[1, 2, 3]].mean(axis=1, skipna=False).drop([1, 4])),
    ):
        found = measures.measure(run, dict(metric="m", at={"setup": "b", **asked}))
        np.testing.assert_allclose(found.value, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(found.se, scipy.stats.sem(values), rtol=1e-12)
    slopes = [np.polyfit(wide.columns, wide.loc[seed], 1)[0] for seed in (0, 2, 3, 5)]
    found = measures.measure(run, dict(metric="m", at=dict(setup="b"), slope="generation"))
    assert found.n == 4
    np.testing.assert_allclose(found.value, np.mean(slopes), rtol=1e-12)


@pytest.mark.parametrize("at", [{"setup": "b"}, {"setup": "b", "generation": [1, 3]}])
def test_a_mean_over_generations_is_none_for_a_seed_whose_chain_stopped(run, at):
    table = pd.read_csv(run / "metrics.csv")
    table[(table.chain != "b-4") | (table.generation < 2)].to_csv(run / "metrics.csv", index=False)
    kept = table[(table.setup == "b") & (table.seed != 4)]
    values = kept[kept.generation.isin(at.get("generation", range(4)))].groupby("seed")["value"]
    found = measures.measure(run, dict(metric="m", at=at))
    assert found.n == 5
    np.testing.assert_allclose(found.value, values.mean().mean(), rtol=1e-12)


def test_a_mean_over_levels_is_none_for_a_seed_that_lacks_one(run):
    """Its chain may have stopped before anything was measured."""
    table = pd.read_csv(run / "metrics.csv")
    table[table.chain != "b-4"].to_csv(run / "metrics.csv", index=False)
    values = table[(table.seed != 4) & (table.generation == 3)].groupby("seed")["value"].mean()
    found = measures.measure(run, dict(metric="m", at=dict(setup=["a", "b"], generation=3)))
    assert found.n == 5
    np.testing.assert_allclose(found.value, values.mean(), rtol=1e-12)


def test_levels_of_which_every_unit_has_one_select_units(run):
    """A chain has one setup."""
    table = pd.read_csv(run / "metrics.csv")
    values = table[table.generation == 3]["value"]
    at = dict(setup=["a", "b"], generation=3)
    found = measures.measure(run, dict(metric="m", at=at, unit="chain"))
    assert found.n == len(values) == 12
    np.testing.assert_allclose([found.value, found.se], [values.mean(), values.sem()], rtol=1e-12)


def test_a_relative_change_of_values_on_both_sides_of_0_is_refused(run):
    asked = dict(metric="m", at=dict(setup="b", generation="last"), over=dict(generation=0))
    with pytest.raises(ValueError, match=r"measure.over: .* both sides of 0"):
        measures.measure(run, asked)
    table = pd.read_csv(run / "metrics.csv")
    table.loc[table.generation == 0, "value"] = -1.0 - table.seed
    table.to_csv(run / "metrics.csv", index=False)
    assert measures.measure(run, asked).n == 6


def test_late_is_that_of_the_run_where_every_chain_of_a_setup_stopped(run):
    """Their last generations are not held against later ones of the others."""
    table = pd.read_csv(run / "metrics.csv")
    table[(table.setup == "a") | (table.generation <= 2)].to_csv(run / "metrics.csv", index=False)
    for late in ({"setup": "b", "generation": "last"}, {"generation": "last", "setup": "b"}):
        with pytest.raises(ValueError, match="no unit has a value in every selection"):
            measures.measure(run, dict(metric="m", at=late, minus=dict(setup="a")))


def test_the_slope_of_the_last_generations_leaves_out_a_chain_that_stopped(run):
    table = pd.read_csv(run / "metrics.csv")
    table[(table.chain != "b-4") | (table.generation < 3)].to_csv(run / "metrics.csv", index=False)
    asked = dict(metric="m", at=dict(setup="b", generation="late"), slope="generation")
    assert measures.measure(run, asked).n == 5


@pytest.mark.parametrize(
    ("fields", "n", "says"),
    [
        (dict(low="low", high="high"), 1, "1.5 (no interval: one of seeds)"),
        (dict(se="se"), 1, "1.5 (no interval: one of seeds)"),
        (dict(se="se"), 3, "1.5 (no interval: 3 seeds without a standard error)"),
        (dict(low="low", high="high"), 4, "1.5 [1, 2]"),
    ],
)
def test_a_number_without_an_interval_is_undecided(run, fields, n, says):
    """Tables leave cells empty where there is one seed; other rows may have them."""
    (run / "effects.csv").write_text(
        "g,mean,low,high,se,n\n1,1.5,,,,1\n3,1.5,,,,3\n4,1.5,1,2,0.2,4\n"
    )
    asked = dict(file="effects.csv", where=dict(g=n), value="mean", count="n", units="seeds")
    estimate = measures.measure(run, asked | fields)
    interval = verdict.interval(estimate, 0.95)
    judged = verdict.judge(_claim(measure=asked), interval, 0.0)
    finding = page.Finding(_claim(), estimate, interval, judged)
    assert page.estimate_text(finding) == says
    assert judged == (verdict.REPLICATED if n == 4 else verdict.UNDECIDED)
    assert "nan" not in page._precision([finding], 0.95)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(se="word", count="n"), "'much' there, which is no number"),
        (dict(se="se", count="none"), "has no replicates behind this number"),
        (dict(se="se", count="empty"), "has no replicates behind this number"),
        (dict(low="se", count="n"), "needs both of the fields"),
    ],
)
def test_a_cell_that_is_no_number_is_refused_in_words(run, fields, says):
    (run / "effects.csv").write_text("g,mean,se,n,none,empty,word\n1,1.5,0.2,4,0,,much\n2,,,,,3,\n")
    asked = dict(file="effects.csv", where=dict(g=1), value="mean")
    with pytest.raises(ValueError, match="measure") as caught:
        measures.measure(run, asked | fields)
    assert says in str(caught.value)


def test_a_slope_against_words_is_refused(run):
    with pytest.raises(ValueError, match="measure.slope='setup': has a value that is no number"):
        measures.measure(run, dict(metric="m", at={}, slope="setup"))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_smallest_effect_that_is_found_is_that_of_statsmodels(count):
    """Of two units the first order would be 14 % too little."""
    found = verdict.smallest_detectable(Estimate(0.0, 0.3, count), 0.9)
    # Its unit is the standard deviation of one of them.
    expected = TTestPower().solve_power(nobs=count, alpha=0.1, power=verdict.POWER)
    np.testing.assert_allclose(found, expected * 0.3 * math.sqrt(count), rtol=1e-6)


def test_there_is_no_such_effect_where_numbers_end():
    assert math.isnan(verdict.smallest_detectable(Estimate(0.0, 0.3, 2), 1 - 1e-12))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(metric="n", at={}), "no such metric; there are: m"),
        (dict(metric="m", at=dict(setup="c")), "measure.at.setup='c': no row has it"),
        (dict(metric="m", at=dict(sed=1)), "no such column; did you mean 'seed'"),
        (dict(metric="m", at={}, minus={}, slope="seed"), "only one of"),
        (dict(metric="m", at={}, plus={}), "unknown field"),
        (dict(metric="m"), "'at' is missing"),
        (dict(metric="m", at={}, slope="tempo"), "no such column"),
        (dict(file="metrics.csv", where={}, value="value", se="value"), "selects 48 rows"),
        (dict(file="none.csv", where={}, value="v"), "no such file"),
        (dict(file="metrics.csv", where=dict(seed=1), value="value"), "selects 8 rows"),
        (
            dict(file="metrics.csv", where=dict(chain="a-1", generation=0), value="valeu"),
            "no such column; did you mean 'value'",
        ),
    ],
)
def test_a_measure_that_the_run_does_not_have_is_refused(run, asked, says):
    with pytest.raises(ValueError, match="measure") as caught:
        measures.measure(run, asked)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('expect = "above"', 'expect = "more"', "one of above, below, near"),
        ("by = 0.5", "by = -1", "by=-1 is not allowed"),
        ("by = 0.5", 'by = "much"', "a finite number"),
        ("by = 0.5", 'value = "formula"', "needs the field 'formula'"),
        ('says = "B is above A"', "", "'says' is missing"),
        ('where = "table 1"', 'were = "table 1"', "did you mean 'where'"),
        ('expect = "above"\nby = 0.5', 'expect = "near"', "by=0 is not allowed; above 0"),
        ('title = "Two setups"', "title = 3", "title=3 is not allowed"),
        ("tables = [", "confidence = 2\ntables = [", "confidence=2 is not allowed"),
        ("[[claim]]", "[claim]", "has no [[claim]]"),
        ("name =", "name", "is not TOML"),
        (CLAIM, CLAIM + CLAIM, "is used for two claims"),
    ],
)
def test_expectations_are_checked(tmp_path, run, old, new, says):
    path = _expect(tmp_path, (HEAD + CLAIM).replace(old, new, 1))
    with pytest.raises(ValueError, match="expect=") as caught:
        results.write(run, path, tmp_path / "out")
    assert says in str(caught.value) and not (tmp_path / "out").exists()


def test_the_page_has_the_claim_its_interval_and_the_files(tmp_path, run):
    written = results.write(run, _expect(tmp_path), tmp_path / "out")
    text = written.path.read_text()
    (finding,) = written.findings
    assert finding.verdict == verdict.REPLICATED
    low, high = (page.number(x) for x in finding.interval)
    assert f"[{low}, {high}]" in text and "above 0, by 0.5 at least" in text
    assert "![The metric.](two_setups/m.png)" in text
    assert (tmp_path / "out/two_setups/m.png").read_bytes() == b"a picture"
    assert (tmp_path / "out/two_setups/metrics.csv").exists()
    again = results.write(run, _expect(tmp_path), tmp_path / "out")
    assert again.path.read_text() == text


def test_the_page_links_to_the_paper_and_counts_claims_of_its_own(tmp_path, run):
    """The file of expectations is a link where it lies below the page."""
    own = CLAIM.replace('"more"', '"own"').replace('"table 1"', '"not in the paper, but near"')
    head = HEAD.replace("arXiv 0000.00000", "an experiment beside arXiv 0000.00000v2, section 1")
    place = tmp_path / "out" / "expectations"
    place.mkdir(parents=True)
    written = results.write(run, _expect(place, head + CLAIM + own), tmp_path / "out")
    text = written.path.read_text()
    assert (
        "\nAn experiment beside [arXiv 0000.00000v2](https://arxiv.org/abs/0000.00000v2), section "
        "1. 2 claims: 2 replicated. Not in the paper: 1 of them, where *replicated* means *as "
        "expected*.\n" in text
    )
    assert "[two_setups.toml](expectations/two_setups.toml)" in text
    assert all(f"* **{name}**: {rule}." in text for name, rule in verdict.RULES.items())


def test_nothing_is_written_where_a_figure_is_missing(tmp_path, run):
    (run / "figures/m.png").unlink()
    with pytest.raises(ValueError, match=r"has no file 'figures/m\.png'"):
        results.write(run, _expect(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_says_whether_expectations_came_before_the_run(tmp_path, run):
    path = _expect(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", path.name], ["commit", "-qm", "expected"]):
        subprocess.run([*git, *words], check=True)
    command = "run mine --workdir '/home/me/my runs/a' --chain.size=5"
    call = dict(command=command, commit="d", devices="e", versions={}, wall=60.0, processor=90.0)
    for began, says in (("2999-01-01", "before the run"), ("1999-01-01", "AFTER the run")):
        calls = [call | {"began": f"{began}T00:00:00+00:00"}]
        (run / spent.CALLS).write_text(json.dumps(calls))
        text = results.write(run, path, tmp_path / "out").path.read_text()
        assert says in text and f"{duration(60.0)} of the wall" in text
        assert "`run mine --workdir=RUN --chain.size=5`" in text
    calls.append(calls[0] | {"commit": "f", "versions": {"jax": "2"}})
    (run / spent.CALLS).write_text(json.dumps([*calls, calls[0]]))
    text = results.write(run, path, tmp_path / "out").path.read_text()
    assert "code: commit d, then f; devices: e\n* versions of the last call:" in text
    path.write_text(path.read_text() + "\n")
    text = results.write(run, path, tmp_path / "out").path.read_text()
    assert "not committed again" in text


def test_a_figure_added_after_the_run_leaves_the_claims_written_down_before_it(tmp_path):
    path = _expect(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]

    def commit(date: str, text: str) -> str:
        path.write_text(text)
        when = {"GIT_COMMITTER_DATE": f"{date}T00:00:00+00:00"}
        for words in (["add", path.name], ["commit", "-qm", date]):
            subprocess.run([*git, *words], check=True, env=os.environ | when)
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True)
        return head.stdout.decode().strip()

    subprocess.run([*git, "init", "-q"], check=True)
    text = path.read_text()
    commit("2020-01-01", text.replace("by = 0.5", "by = 0.4"))
    claims = commit("2020-01-02", text)
    figure = commit("2020-01-04", text.replace("The metric.", "The metric, by generation."))
    said = history.written_down(path, "2020-01-03T00:00:00+00:00", "the run")
    assert said.startswith(f"Claims last changed in commit {claims} of 2020-01-02T00:00, before")
    assert said.endswith(f"in commit {figure} of 2020-01-04T00:00.")
    commit("2020-01-05", text.replace("by = 0.5", "by = 0.6"))
    said = history.written_down(path, "2020-01-03T00:00:00+00:00", "the run")
    assert "AFTER the run began" in said and "Claims" not in said


def test_the_command_names_verdicts_and_refuses_what_it_does_not_know(tmp_path, run):
    words = [str(run), f"--expect={_expect(tmp_path)}", f"--out={tmp_path / 'out'}"]
    assert results.run_action(words).startswith("replicated: more\n")
    for wrong in (words[:1], words[1:], [*words, "--form=pdf"], [*words, str(run)]):
        with pytest.raises(ValueError, match="results"):
            results.run_action(wrong)


SEVERAL = HEAD.replace(
    'tables = ["metrics.csv"]', 'runs = ["a", "b"]\ntables = ["a/metrics.csv", "b/metrics.csv"]'
).replace('"figures/m.png"', '"a/figures/m.png"')
OF_RUNS = CLAIM.replace("measure = {", 'measure = {run = "b", ') + (
    'formula = {run = "a", file = "formula.csv", where = {g = 1}, value = "says"}\n'
)


def _two_runs(tmp_path, run):
    """A folder with two runs; every value of the second is one higher from generation 1 on."""
    folder = tmp_path / "both"
    shutil.copytree(run, folder / "a")
    shutil.copytree(run, folder / "b")
    table = pd.read_csv(run / "metrics.csv")
    table["value"] += (table.generation > 0) * (table.setup == "b")
    table.to_csv(folder / "b/metrics.csv", index=False)
    (folder / "a/formula.csv").write_text("g,says\n1,2.5\n")
    return folder


def test_a_page_of_several_runs_says_of_which_each_number_is(tmp_path, run):
    folder = _two_runs(tmp_path, run)
    head = SEVERAL + 'beside = "Measured and predicted."\n'
    written = results.write(folder, _expect(tmp_path, head + OF_RUNS), tmp_path / "out")
    (finding,) = written.findings
    (one,) = results.findings(run, expectations.read(_expect(tmp_path)))
    np.testing.assert_allclose(finding.estimate.value, one.estimate.value + 1)
    assert finding.predicted == 2.5
    text = written.path.read_text()
    assert (
        "* run a:" in text and "* run b:" in text and "![The metric.](two_setups/a_m.png)" in text
    )
    assert "![Measured and predicted.](two_setups/beside.png)" in text
    beside = tmp_path / "out/two_setups"
    assert (beside / "a_metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert (beside / "b_metrics.csv").exists() and (beside / "beside.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SEVERAL + CLAIM, "measure.run=None is not allowed; one of a, b"),
        (SEVERAL + OF_RUNS.replace('"b"', '"c"', 1), "measure.run='c' is not allowed"),
        (SEVERAL + OF_RUNS.replace('run = "a", ', ""), "formula.run=None is not allowed"),
        (HEAD + OF_RUNS, "measure.run='b' is not allowed; the file has no `runs`"),
        (HEAD + 'beside = "x"\n' + CLAIM, "beside needs a claim with the field 'formula'"),
    ],
)
def test_measures_of_several_runs_are_checked(tmp_path, run, text, says):
    with pytest.raises(ValueError, match="expect=") as caught:
        results.write(_two_runs(tmp_path, run), _expect(tmp_path, text), tmp_path / "out")
    assert says in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_expectations_can_be_read(path):
    found = expectations.read(path)
    assert found.config.split(":")[0] in catalogue.names()
    assert all(claim.where and not claim.says.endswith(".") for claim in found.claims)


def _diversity_chains(settings):
    return [(cell.set_name, cell.factors) for cell in cells.all_cells(settings)], (
        "test_loss_answer",
        "test_loss_all",
    )


def _bias_chains(settings):
    shares = [f"share({label})" for label in settings.data.labels]
    metrics = (*shares, "text_quality_index", "perplexity_base", "perplexity_own", "self_bleu")
    return [(spec.id, dict(spec.factors)) for spec in make_chains(settings, 30)], metrics


@pytest.mark.parametrize(
    ("name", "chains_of", "generations"),
    [("diversity", _diversity_chains, 1), ("bias_amplification", _bias_chains, 7)],
)
def test_every_claim_about_a_metric_is_about_chains_of_its_config(
    tmp_path, name, chains_of, generations
):
    """Before the run: each selects the same seeds on both sides, and has an interval."""
    expected = expectations.read(SHIPPED / f"{name}.toml")
    settings = load_config(expected.config)
    chains, metrics = chains_of(settings)
    draw = np.random.default_rng(0)
    rows = [
        {"chain": chain, **factors, "generation": t, "metric": metric, "value": draw.uniform(1, 2)}
        for chain, factors in chains
        for t in range(generations)
        for metric in metrics
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "metrics.csv", index=False)
    seeds = len({factors["seed"] for _, factors in chains})
    claims = [claim for claim in expected.claims if "metric" in claim.measure]
    found = [measures.measure(tmp_path, claim.measure) for claim in claims]
    assert {estimate.n for estimate in found} == {seeds} and len(claims) > 5
    assert all(estimate.se > 0 for estimate in found)


def test_claims_about_clusters_name_terms_and_forms_of_the_regressions():
    for claim in expectations.read(SHIPPED / "cluster_study.toml").claims:
        where = claim.measure["where"]
        assert where["term"] in PROPERTIES and where["form"] in FORMS
        assert where["dependent"] in ("diversity", "quality") and where["column"] == "All"
    assert subsets.check_size(load_config("cluster_study:small")) > 0


def test_a_call_is_recorded_with_its_seconds(tmp_path):
    with spent.recorded(tmp_path, "the command"):
        (begun,) = spent.read(tmp_path)
        assert "wall" not in begun
        sum(range(10**6))
    with pytest.raises(KeyboardInterrupt), spent.recorded(tmp_path, "the command"):
        raise KeyboardInterrupt
    first, second = spent.read(tmp_path)
    assert first["wall"] >= 0 and first["processor"] >= 0 and "wall" in second
    assert first["versions"]["python"] and first["command"] == "the command"
