"""Runs side by side: intervals against scipy, lines that agree, what is refused, and the page."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop import cli, compare, main
from jaxloop.compare import differences, reading
from jaxloop.reporting import scores
from jaxloop.runtime.workdir import MARKER
from tests.browser import Browser, chromium
from tests.compare.runs import values, write

RATIOS = ({"ratio": 0.125}, {"ratio": 1.0})


def both(tmp_path, first, second, **configs):
    """Compares two tables of metrics; returns the differences."""
    paths = [
        write(tmp_path / name, table, configs.get(name))
        for name, table in (("a", first), ("b", second))
    ]
    return compare.compare_runs(paths, tmp_path / "out")


def late(table, line, metric, generation=None):
    """Late values by seed, written out again."""
    rows = table[(table["metric"] == metric) & (table["ratio"] == line["ratio"])]
    last = table["generation"].max() if generation is None else generation
    rows = rows[(rows["generation"] > max(last - 5, 0)) & (rows["generation"] <= last)]
    return rows.groupby("seed")["value"].mean()


@pytest.mark.parametrize("line", RATIOS)
def test_pairs_of_a_seed_have_students_interval(tmp_path, line):
    a, b = (values(RATIOS, range(4), 9, shift=s, seed=k) for k, s in enumerate((0, 0.3)))
    found = both(tmp_path, a, b).differences
    row = found[(found["what"] == "late") & (found["metric"] == "text_length")]
    (row,) = row[row["line"] == scores.label("ratio", line["ratio"])].to_dict("records")
    one, other = (late(table, line, "text_length") for table in (a, b))
    expected = scipy.stats.ttest_rel(other, one).confidence_interval(0.95)
    np.testing.assert_allclose([row["low"], row["high"]], expected, rtol=1e-9)
    np.testing.assert_allclose(row["difference"], (other - one).mean(), rtol=1e-9)
    assert (row["n_of_run"], row["paired"], row["generations"]) == (4, True, "4 to 8")


def test_other_seeds_have_welchs_interval(tmp_path):
    a, b = values(RATIOS, range(5), 4), values(RATIOS, range(7, 10), 4, seed=1)
    found = both(tmp_path, a, b).differences
    row = found[(found["what"] == "late") & (found["metric"] == "cosine_diversity")].iloc[0]
    one, other = (late(table, RATIOS[0], "cosine_diversity") for table in (a, b))
    expected = scipy.stats.ttest_ind(other, one, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([row["low"], row["high"]], expected, rtol=1e-9)
    counts = (row["n_of_baseline"], row["n_of_run"], row["paired"])
    assert counts == (5, 3, False) and row["line"] == "r = 1/8"
    assert "<td>5 and 3, unpaired</td>" in (tmp_path / "out.html").read_text()


def test_seeds_that_only_one_run_has_are_left_out_of_the_pairs(tmp_path):
    a, b = values(RATIOS, range(5), 3), values(RATIOS, range(2, 9), 3, seed=1)
    row = both(tmp_path, a, b).differences.iloc[0]
    assert (row["n_of_baseline"], row["n_of_run"], row["paired"]) == (3, 3, True)


def test_one_seed_has_a_difference_and_no_interval(tmp_path):
    found = both(tmp_path, values(RATIOS, [0], 3), values(RATIOS, [0], 3, shift=1)).differences
    rows = found[found["what"] == "late"]
    np.testing.assert_allclose(rows["difference"], 1, atol=1e-9)
    assert rows["low"].isna().all() and rows["high"].isna().all()
    assert "–" in (tmp_path / "out.html").read_text()


def test_runs_of_different_generations_are_compared_up_to_the_last_common_one(tmp_path):
    a, b = values(RATIOS, range(3), 9), values(RATIOS, range(3), 4, seed=1)
    found = both(tmp_path, a, b).differences
    assert set(found.loc[found["what"] == "generation", "generations"]) == {"0", "1", "2", "3"}
    row = found[(found["what"] == "late") & (found["metric"] == "text_length")].iloc[0]
    np.testing.assert_allclose(
        row["value_of_baseline"], late(a, RATIOS[0], "text_length", 3).mean(), rtol=1e-9
    )
    assert row["generations"] == "1 to 3"
    assert "a was measured to generation 8, b to 3: compared up to 3." in page(tmp_path)


def page(tmp_path):
    return (tmp_path / "out.html").read_text()


def test_relative_scores_are_those_of_the_reports(tmp_path):
    a, b = values(RATIOS, range(3), 7), values(RATIOS, range(3), 7, seed=1)
    found = both(tmp_path, a, b).differences
    rows = found[(found["what"] == "relative") & (found["metric"] == "text_length")]
    for side, table in (("baseline", a), ("run", b)):
        expected = scores.relative(table)
        expected = expected[expected["metric"] == "text_length"]["mean"]
        np.testing.assert_allclose(rows[f"value_of_{side}"], expected, rtol=1e-9)


def test_runs_on_different_sides_of_zero_have_no_relative_scores(tmp_path):
    a = values(RATIOS, range(3), 7)
    b = a.assign(value=a["value"].where(a["metric"] == "text_length", -a["value"]))
    found = both(tmp_path, a, b).differences
    assert set(found.loc[found["what"] == "relative", "metric"]) == {"text_length"}
    assert set(found.loc[found["what"] == "late", "metric"]) == {"cosine_diversity", "text_length"}


def test_names_of_lines_keep_their_capitals(tmp_path):
    a = values([{"dataset": "News"}, {"dataset": "EU"}], range(2), 3)
    both(tmp_path, a, values([{"dataset": "News"}], range(2), 3, seed=1))
    assert "Solid: dataset = EU; dashed: dataset = News." in page(tmp_path)


def test_a_run_that_does_not_vary_a_factor_has_the_value_of_its_config(tmp_path):
    rates = [{"ratio": 1.0, "fit.learning_rate": r} for r in (1e-4, 2e-3)]
    a, b = values(rates, range(3), 3), values([{"ratio": 1.0}], range(3), 3, seed=1)
    found = both(tmp_path, a, b, b={"fit.learning_rate": 2e-3}).differences
    assert set(found.loc[found["what"] == "late", "line"]) == {"fit.learning_rate = 0.002"}


def test_a_run_of_one_base_has_the_line_of_that_base(tmp_path):
    a = values([{"ratio": 1.0, "bases": base} for base in ("llama", "qwen2")], range(3), 3)
    b = values([{"ratio": 1.0}], range(3), 3, seed=1)
    found = both(tmp_path, a, b, b={"models.pool": ["qwen2"]}).differences
    assert set(found.loc[found["what"] == "late", "line"]) == {"bases = qwen2"}


def test_a_run_without_a_factor_agrees_with_all_of_its_values(tmp_path):
    a, b = values(RATIOS, range(3), 3), values([{}], range(3), 3, seed=1)
    found = both(tmp_path, a, b, b={"chain.workflow": "replace"}).differences
    assert set(found.loc[found["what"] == "late", "line"]) == {"r = 1/8", "r = 1"}
    assert "chain.workflow" in page(tmp_path)


def test_a_factor_that_is_fixed_in_each_run_tells_runs_apart_not_lines(tmp_path):
    a, b = (values([{"dataset": d}], range(3), 3, seed=k) for k, d in enumerate(("docs", "fables")))
    found = both(tmp_path, a, b).differences
    assert set(found.loc[found["what"] == "late", "line"]) == {"all chains"}


def test_lines_that_do_not_agree_are_drawn_and_not_subtracted(tmp_path):
    a, b = values(RATIOS, range(3), 3), values([{"ratio": 0.5}, {"ratio": 0.25}], range(3), 3)
    done = both(tmp_path, a, b)
    assert set(done.differences["what"]) == {"cost"}
    assert "No line of one agrees with a line of the other" in page(tmp_path)
    assert "r = 1/2" in page(tmp_path) and page(tmp_path).count("<svg") == 2


def test_a_chain_that_stopped_has_no_late_value_and_entities_are_averaged(tmp_path):
    a = values(RATIOS, range(3), 6, entities=2)
    stopped = (a["seed"] == 0) & (a["generation"] > 2)
    found = both(tmp_path, a[~stopped], values(RATIOS, range(3), 6, seed=1)).differences
    row = found[(found["what"] == "late") & (found["metric"] == "text_length")].iloc[0]
    expected = late(a[a["seed"] > 0], RATIOS[0], "text_length").mean()
    assert row["n_of_run"] == 2
    np.testing.assert_allclose(row["value_of_baseline"], expected, rtol=1e-9)


def test_late_values_are_of_generations_that_both_runs_measured(tmp_path):
    """Quality at the ends: 0 and 10 to 14 of fifteen generations, 0 and 7 to 11 of twelve."""
    a, b = values(RATIOS, range(3), 15), values(RATIOS, range(3), 12, seed=1)
    of = {}
    for name, table, middle in (("a", a, range(1, 10)), ("b", b, range(1, 7))):
        gone = (table["metric"] == "text_length") & table["generation"].isin(middle)
        of[name] = table[~gone]
    found = both(tmp_path, of["a"], of["b"]).differences
    rows = found[(found["line"] == "r = 1") & found["what"].isin(["late", "relative"])]
    rows = rows.set_index(["metric", "what"])
    assert set(rows.loc["text_length", "generations"]) == {"10 to 11"}
    assert set(rows.loc["cosine_diversity", "generations"]) == {"7 to 11"}
    wide = [
        table.query("metric == 'text_length' and ratio == 1").pivot(
            index="seed", columns="generation", values="value"
        )
        for table in (a, b)
    ]
    late = [one[[10, 11]].mean(axis=1) for one in wide]
    expected = scipy.stats.ttest_rel(late[1], late[0]).confidence_interval(0.95)
    row = rows.loc["text_length", "late"]
    np.testing.assert_allclose([row["low"], row["high"]], expected, rtol=1e-9)
    shares = [one / start[0] for one, start in zip(late, wide, strict=True)]
    row = rows.loc["text_length", "relative"]
    np.testing.assert_allclose(row["difference"], (shares[1] - shares[0]).mean(), rtol=1e-9)


def test_a_seed_that_lacks_a_late_value_is_left_out(tmp_path):
    a = values(RATIOS, range(4), 9)
    a.loc[(a["seed"] == 2) & (a["generation"] == 6), "value"] = np.nan
    found = both(tmp_path, a, values(RATIOS, range(4), 9, seed=1)).differences
    row = found[(found["what"] == "late") & (found["metric"] == "text_length")].iloc[0]
    assert (row["n_of_run"], row["generations"]) == (3, "4 to 8")


def test_the_table_is_read_by_pandas_and_holds_costs(tmp_path):
    done = both(tmp_path, values(RATIOS, range(2), 3), values(RATIOS, range(2), 3, seed=1))
    table = pd.read_csv(done.csv)
    assert list(table.columns) == list(differences.COLUMNS)
    numbers = ["value_of_baseline", "value_of_run", "difference", "low", "high", "n_of_run"]
    assert all(table[name].dtype.kind == "f" for name in numbers)
    np.testing.assert_array_equal(table["difference"], done.differences["difference"])
    assert "bytes on the disk" in set(table.loc[table["what"] == "cost", "metric"])


def test_configs_are_compared_under_current_names_with_defaults(tmp_path):
    a = write(tmp_path / "a", values(RATIOS, [0], 2), {"fit.batch_size": 8})
    b = write(tmp_path / "b", values(RATIOS, [0], 2))
    stored = json.loads((a / "config.json").read_text())
    stored["fit"]["clip"] = stored["fit"].pop("max_grad_norm")  # as an earlier version called it
    del stored["run"]["keep"]
    (a / "config.json").write_text(json.dumps(stored))
    done = compare.compare_runs([a, b], tmp_path / "out")
    assert done.configs == {"fit.batch_size": ["8", "16"]}


def test_three_runs_and_names_that_tell_them_apart(tmp_path):
    paths = [
        write(tmp_path / name / "run", values(RATIOS, range(2), 3, seed=k))
        for k, name in enumerate(("x", "y", "z"))
    ]
    done = compare.compare_runs(paths, tmp_path / "out.html")
    assert done.page == tmp_path / "out.html" and done.csv == tmp_path / "out.csv"
    assert set(done.differences["run"]) == {"y/run", "z/run"}
    assert set(done.differences["baseline"]) == {"x/run"}


# ---- refusals


def refusal(paths, tmp_path):
    with pytest.raises(ValueError) as caught:
        compare.compare_runs(paths, tmp_path / "out")
    assert not list(tmp_path.glob("out*")) and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path):
    table = values(RATIOS, range(2), 3)
    good = write(tmp_path / "good", table)
    other = write(tmp_path / "other", table.assign(metric="quality"))
    assert "good and other have no metric in common (cosine_diversity, text_length; quality)" in (
        refusal([good, other], tmp_path)
    )
    assert "1 given; at least two" in refusal([good], tmp_path)
    assert "is given twice" in refusal([good, tmp_path / "other" / ".." / "good"], tmp_path)
    assert "no such directory" in refusal([good, tmp_path / "none"], tmp_path)
    (tmp_path / "plain").mkdir()
    assert "holds no run" in refusal([good, tmp_path / "plain"], tmp_path)
    later = write(tmp_path / "later", table, marker={"format": 2, "jaxloop": "7.1"})
    assert re.search(
        r"format 2, of a later version of jaxloop \(7\.1\)", refusal([good, later], tmp_path)
    )
    young = write(tmp_path / "young", None)
    assert "has no metrics.csv" in refusal([good, young], tmp_path)
    empty = write(tmp_path / "empty", table[:0])
    assert "has no values yet" in refusal([good, empty], tmp_path)
    (empty / "config.json").write_text("{")
    assert "config.json" in refusal([good, empty], tmp_path)
    (good / MARKER).write_text("")  # nothing is known of its format: it is read
    assert reading.read([good, other])[0].last == 2


def test_the_command_says_where_it_wrote_and_refuses_what_it_does_not_know(tmp_path):
    paths = [str(write(tmp_path / n, values(RATIOS, [0], 2))) for n in "ab"]
    said = compare.run_action([*paths, f"--out={tmp_path / 'c'}"])
    assert said.split("\n") == [str(tmp_path / "c.html"), str(tmp_path / "c.csv")]
    with pytest.raises(ValueError, match="compare --oot=c: is not understood; it is compare RUN"):
        compare.run_action([*paths, "--oot=c"])


def test_a_refusal_of_the_command_is_one_line(tmp_path, capsys):
    path = str(write(tmp_path / "a", values(RATIOS, [0], 2)))
    out = f"--out={tmp_path / 'c'}"
    for words, said in (
        (["compare", path, out], "jaxloop: compare: 1 given; at least two"),
        (["compare", path, str(tmp_path / "none"), out], "there is no such directory"),
        (["export", path, "--to=csv", str(tmp_path)], "is not empty; give a new or an empty"),
        (["export", path, str(tmp_path / "b")], "jaxloop: export: --to is missing"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.guarded(main.main, cli.parse(["jaxloop", *words]))
        lines = capsys.readouterr().err.strip().split("\n")
        assert caught.value.code == 2 and len(lines) == 1 and said in lines[0]
    other = str(write(tmp_path / "b", values(RATIOS, [0], 2, seed=1)))
    assert cli.guarded(main.main, cli.parse(["jaxloop", "compare", path, other, out])) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"c.{k}") for k in ("html", "csv")]


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(tmp_path, width):
    table = values(RATIOS, range(3), 6)
    both(tmp_path, table, values(RATIOS, range(3), 6, seed=1, shift=1), b={"fit.batch_size": 8})
    with Browser(chromium()) as browser:
        shown = browser.open(tmp_path / "out.html", width=width)
        assert shown.faults() == [] and len(shown.requests()) == 1
        assert shown.value("document.documentElement.scrollWidth") <= width
        images = [name for role, name in shown.named() if role in ("image", "img")]
        assert len(images) == 2 and all(images)
        headings = [name for role, name in shown.named() if role == "heading"]
        for heading in ("What differs in the configs", "By generation", "b minus a", "Costs"):
            assert heading in headings
        assert ("rowheader", "fit.batch_size") in shown.named()
