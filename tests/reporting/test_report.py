"""Scores, figures and the page, on made-up metrics: values against scipy and numpy, hostile text,
and what a browser would load.
"""

import html.parser
import math
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxloop.reporting import figures, report, scores

HOSTILE = "<script>alert(1)</script> \ud83d \x00 \r NA \u202eabc $x_1$ & ' \" {{ 7 * 7 }} --> ]]>"


def made_up(
    ratios=(0.125, 1.0), seeds=(0, 1, 2), generations=8, names=("cosine_diversity", "text_length")
):
    rng = np.random.default_rng(0)
    rows = [
        {
            "study": "chain",
            "chain": f"r{r:g}-s{s}",
            "ratio": r,
            "seed": s,
            "generation": g,
            "metric": m,
            "value": (1 + k) * (5 - r * g * 0.5) + rng.normal() / 9,
        }
        for r in ratios
        for s in seeds
        for k, m in enumerate(names)
        for g in range(generations)
    ]
    return pd.DataFrame(rows)


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in ("meta", "use", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def page(metrics=None, **options):
    text = report.render(
        made_up() if metrics is None else metrics, **({"title": "A study"} | options)
    )
    return text, Page(text)


# ---- scores


def test_a_metric_that_crosses_zero_has_no_relative_score():
    rows = [
        ("a", g, m, v)
        for g, m, v in [
            (0, "positivity", -0.1),
            (1, "positivity", 0.2),
            (0, "text_length", 10.0),
            (1, "text_length", 5.0),
        ]
    ]
    rows += [
        ("b", g, m, v)
        for g, m, v in [
            (0, "positivity", 0.1),
            (1, "positivity", 0.2),
            (0, "text_length", 10.0),
            (1, "text_length", 5.0),
        ]
    ]
    metrics = pd.DataFrame(rows, columns=["chain", "generation", "metric", "value"]).assign(
        ratio=0.5
    )
    assert scores.crossing(metrics) == ["positivity"]
    page = report.render(metrics, title="T")
    assert (
        "None for Positivity, whose generation 0 lies on both sides of 0." in page
        and "Positivity</th>" not in page
    )
    assert '<th scope="row">Length</th>' in page
    alone = metrics[metrics["metric"] == "positivity"]
    assert "of generation 0" not in report.render(alone, title="T")


def test_mean_and_standard_error_equal_scipy():
    metrics = made_up()
    table = scores.by_generation(metrics)
    assert len(table) == 2 * 2 * 8 and list(table["line"].cat.categories) == ["r = 1/8", "r = 1"]
    for row in table.itertuples():
        ratio = {"r = 1/8": 0.125, "r = 1": 1.0}[row.line]
        picked = metrics[
            (metrics["metric"] == row.metric)
            & (metrics["ratio"] == ratio)
            & (metrics["generation"] == row.generation)
        ]["value"]
        assert (
            row.n == 3
            and row.mean == pytest.approx(picked.mean(), rel=1e-12)
            and row.se == pytest.approx(scipy.stats.sem(picked), rel=1e-12)
        )


def test_relative_score_is_last_five_over_generation_0_per_chain():
    metrics = made_up()
    by_chain = scores.relative_by_chain(metrics).set_index(["metric", "chain"])["value"]
    one = metrics[(metrics["metric"] == "text_length") & (metrics["chain"] == "r1-s2")].set_index(
        "generation"
    )["value"]
    assert by_chain["text_length", "r1-s2"] == pytest.approx(
        np.mean([one[g] for g in (3, 4, 5, 6, 7)]) / one[0], rel=1e-12
    )
    table = scores.relative(metrics).set_index(["metric", "line"])
    three = [by_chain["text_length", f"r1-s{s}"] for s in range(3)]
    assert table.loc[("text_length", "r = 1"), "mean"] == pytest.approx(np.mean(three), rel=1e-12)
    assert table.loc[("text_length", "r = 1"), "se"] == pytest.approx(
        scipy.stats.sem(three), rel=1e-12
    )


def test_relative_score_of_short_and_of_broken_chains():
    short = made_up(generations=3, seeds=(0,), ratios=(1.0,), names=("a",))
    value = short.set_index("generation")["value"]
    assert scores.relative_by_chain(short)["value"].item() == pytest.approx(
        (value[1] + value[2]) / 2 / value[0], rel=1e-12
    )
    metrics = made_up(names=("a",))
    stopped = metrics[(metrics["chain"] != "r1-s0") | (metrics["generation"] < 5)]
    zero = metrics.assign(
        value=metrics["value"].where(
            (metrics["chain"] != "r1-s1") | (metrics["generation"] > 0), 0.0
        )
    )
    for table, chain in ((stopped, "r1-s0"), (zero, "r1-s1")):
        value = scores.relative_by_chain(table).set_index("chain")["value"]
        assert math.isnan(value[chain]) and value.drop(chain).notna().all()
    row = scores.relative(stopped).set_index("line").loc["r = 1"]
    assert row["n"] == 2 and math.isfinite(row["mean"])


def test_many_lines_have_no_relative_score_after_generation_0():
    """pandas 3.1.1 stores a level of up to 127 lines in another type than one of more."""
    ratios = tuple(n / 256 for n in range(1, 201))
    table = scores.relative_by_chain(made_up(ratios, seeds=(0,), generations=1, names=("a",)))
    assert list(table["line"].cat.categories) == [scores.label("ratio", r) for r in ratios]
    assert len(table) == 200 and table["value"].isna().all()


def test_values_that_are_not_finite_are_left_out_and_counted():
    metrics = made_up(names=("a",))
    metrics.loc[(metrics["chain"] == "r1-s0") & (metrics["generation"] == 2), "value"] = np.inf
    metrics.loc[(metrics["ratio"] == 1) & (metrics["generation"] == 3), "value"] = np.nan
    table = scores.by_generation(metrics).set_index(["line", "generation"])
    assert table.loc[("r = 1", 2), "n"] == 2 and math.isfinite(table.loc[("r = 1", 2), "mean"])
    assert table.loc[("r = 1", 3), "n"] == 0 and math.isnan(table.loc[("r = 1", 3), "mean"])


def test_every_varying_factor_but_the_seed_tells_lines_apart():
    one = made_up(ratios=(1.0,), names=("a",))
    assert list(scores.by_generation(one)["line"].cat.categories) == ["r = 1"]
    both = pd.concat(
        [one.assign(dataset="docs"), one.assign(dataset="tweets", chain=one["chain"] + "t")]
    )
    assert list(scores.by_generation(both)["line"].cat.categories) == [
        "dataset = docs",
        "dataset = tweets",
    ]
    mixed = pd.concat([both, both.assign(ratio=0.5, chain=both["chain"] + "h")])
    expected = [
        "r = 1/2, dataset = docs",
        "r = 1/2, dataset = tweets",
        "r = 1, dataset = docs",
        "r = 1, dataset = tweets",
    ]
    assert list(scores.by_generation(mixed)["line"].cat.categories) == expected
    bare = one.drop(columns=["ratio", "seed"])
    assert list(scores.by_generation(bare)["line"].cat.categories) == ["all chains"]


def test_ratios_are_written_as_people_say_them():
    assert [scores.share(x) for x in (1 / 16, 1 / 3, 0.75, 1.0, 0.0, 0.137)] == [
        "1/16",
        "1/3",
        "3/4",
        "1",
        "0",
        "0.137",
    ]


# ---- figures


def test_the_curve_draws_the_means_the_bands_and_the_reference():
    summary = scores.by_generation(made_up())
    axes = figures.curve(summary, "text_length", reference=9.5).axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    for name in ("r = 1/8", "r = 1"):
        rows = summary[(summary["metric"] == "text_length") & (summary["line"] == name)]
        np.testing.assert_array_equal(drawn[name].get_ydata(), rows["mean"])
        np.testing.assert_array_equal(drawn[name].get_xdata(), rows["generation"])
    last = summary[(summary["metric"] == "text_length") & (summary["line"] == "r = 1")]
    corners = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(
        (last["mean"] - last["se"]).min()
    ) and corners.max() == pytest.approx((last["mean"] + last["se"]).max())
    assert any(np.allclose(line.get_ydata(), 9.5) for line in axes.lines)


def test_svg_and_png_are_reproducible_and_leave_the_global_style_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    summary = scores.by_generation(made_up())
    first, second = (figures.svg(figures.curve(summary, "text_length"), "p0") for _ in range(2))
    assert first == second and first.count("<svg") == 1
    one, two = (figures.write(summary, tmp_path / name) for name in ("a", "b"))
    assert [p.name for p in one] == ["cosine_diversity.png", "text_length.png"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert one[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert dict(matplotlib.rcParams) == before


def test_a_figure_in_a_file_and_on_a_page_is_laid_out_once(monkeypatch):
    laid_out, lay_out = [], ConstrainedLayoutEngine.execute

    def counted(engine, figure):
        laid_out.append(figure)
        lay_out(engine, figure)

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", counted)
    figure = figures.curve(scores.by_generation(made_up()), "text_length")
    empty = figure.axes[0].get_position().bounds
    figures.png(figure)
    place = figure.axes[0].get_position().bounds
    figures.svg(figure, "p0")
    assert laid_out == [figure] and place != empty
    assert figure.axes[0].get_position().bounds == place


def test_svg_takes_every_colour_from_the_page():
    text = figures.svg(
        figures.curve(
            scores.by_generation(made_up(ratios=tuple(np.linspace(0, 1, 6)))),
            "text_length",
            reference=1.0,
        ),
        "p0",
    )
    known = set(figures.colours_css())
    used = set(part.split(")")[0] for part in text.split("var(--")[1:])
    assert used <= known and len(used) >= 8
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", text)


def test_figures_of_nothing(tmp_path):
    metrics = made_up(names=("a",)).assign(value=np.nan)
    summary = scores.by_generation(metrics)
    assert "no value" in figures.svg(figures.curve(summary, "a"), "p")
    assert figures.write(summary.assign(metric="../../x"), tmp_path / "f") == [
        tmp_path / "f" / ".._.._x.png"
    ]


def test_palette_separates_what_it_can():
    for count in range(1, 7):
        assert len(set(figures.palette(count))) == count
    assert len(figures.palette(40)) == 40


def test_lines_of_one_colour_have_different_markers_in_figures_and_in_the_key():
    ratios = [k / 16 for k in range(1, 15)]
    many = made_up(ratios, seeds=(0,), generations=1, names=("text_length",))
    (axes,) = figures.curve(scores.by_generation(many), "text_length").axes
    drawn = [(line.get_color(), line.get_marker()) for line in axes.lines if len(line.get_xdata())]
    assert len(drawn) == len(set(drawn)) == 14
    words = "".join(page(many)[1].text)
    assert "● r = 1/16" in words and "■ r = 7/16" in words  # the first and the seventh


# ---- page


def samples(texts, line="r = 1"):
    return [report.Samples(line, "r1-s0", 0, texts, 7, texts[::-1])]


def test_the_page_shows_what_was_run():
    run_info = [("command", "python -m jaxloop.main"), ("data", "docs")]
    text, seen = page(
        run_info=run_info,
        config={"chain": {"size": 256}},
        versions=[("jax", "0.10.2")],
        subtitle="4 chains",
        samples=samples(["one", "two"]),
    )
    words = "".join(seen.text)
    for expected in (
        "A study",
        "4 chains",
        "python -m jaxloop.main",
        '"size": 256',
        "0.10.2",
        "Semantic diversity",
        "r = 1/8",
        "Generation 7",
        "one",
    ):
        assert expected in words
    assert seen.elements.count("svg") == 2 and "did not finish" not in words
    assert page(run_info=run_info)[0] == page(run_info=run_info)[0]


def test_the_page_shows_the_numbers():
    metrics = made_up()
    _, seen = page(metrics, references={"text_length": 152.5, "cosine_diversity": math.nan})
    words = "".join(seen.text)
    assert "text_length · human text: 152.5" in words and words.count("human text: ") == 1
    row = scores.relative(metrics).set_index(["metric", "line"]).loc[("cosine_diversity", "r = 1")]
    assert (
        f"{row['mean']:.3f}" in words
        and f"± {row['se']:.3f}" in words
        and f"{100 * row['mean']:.0f} %" in words
    )
    late = (
        scores.by_generation(metrics)
        .set_index(["metric", "line", "generation"])
        .loc[("text_length", "r = 1/8", 7)]
    )
    assert f"{late['mean']:.3f}" in words


def test_hostile_text_is_shown_and_does_nothing():
    in_table = HOSTILE.replace("\ud83d", "")  # which no pandas text column can hold
    metrics = made_up(seeds=(0,)).assign(chain=in_table)
    metrics["metric"] = metrics["metric"].replace("text_length", in_table)
    metrics["set"] = np.where(metrics["ratio"] == 1, in_table, "plain")
    text, seen = page(
        metrics,
        title=HOSTILE,
        subtitle=HOSTILE,
        run_info=[(HOSTILE, HOSTILE)],
        config={HOSTILE: [HOSTILE]},
        versions=[(HOSTILE, HOSTILE)],
        samples=samples([HOSTILE, "", "x" * 10**6]),
        failures=[report.Failure(HOSTILE, 3, HOSTILE)],
        references={in_table: 1.0},
    )
    text.encode("utf-8")
    assert (
        "script" not in seen.elements
        and "\x00" not in text
        and "\u202e" not in text
        and "\r" not in text
    )
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    words = "".join(seen.text)
    assert (
        "<script>alert(1)</script> \\ud83d \u2400 \u240d NA \\u202eabc $x_1$ & ' \" {{ 7 * 7 }} "
        "--> ]]>" in words
    )
    assert "998,000 more characters" in words and "(empty)" in words and len(text) < 400_000


def test_the_page_loads_nothing():
    text, seen = page(samples=samples(["see https://example.com/x.png"]))
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(
        seen.elements
    )
    links = [
        value
        for name, value in seen.attributes
        if name in ("src", "href", "xlink:href", "action", "data")
    ]
    assert all(value.startswith("#") for value in links)
    assert "@import" not in text and all(part.startswith("#") for part in text.split("url(")[1:])
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and {value[1:] for value in links} <= set(ids)
    assert ("http-equiv", "Content-Security-Policy") in seen.attributes


def test_sections_of_a_study_stand_before_the_curves():
    drawing = figures.curve(scores.by_generation(made_up()), "text_length")
    section = report.Section(
        HOSTILE,
        "what it says",
        drawings=[
            report.Drawing(HOSTILE, "a note", drawing),
            report.Drawing("again", "", drawing, wide=True),
        ],
        tables=[
            report.Table(
                HOSTILE,
                "of settings",
                ["setting", HOSTILE],
                [["one", 0.123456], ["two", float("nan")], [HOSTILE, 12]],
            )
        ],
    )
    text, seen = page(sections=[section])
    words = "".join(seen.text)
    assert "script" not in seen.elements and seen.elements.count("svg") == 4
    assert (
        words.index("of settings") < words.index("By generation")
        and "0.1235" in words
        and "–" in words
        and "nan" not in words.lower()
    )
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and 'class="wide"' in text


def test_later_sections_stand_behind_the_curves_and_a_panel_is_as_wide_as_a_third_of_the_page():
    drawing = figures.curve(scores.by_generation(made_up()), "text_length")
    later = report.Section("Beside it", drawings=[report.Drawing("", "", drawing)])
    text, seen = page(sections=[report.Section("Before it")], later=[later])
    words = "".join(seen.text)
    titles = ("Before it", "By generation", "Relative scores", "Beside it", "What was run")
    places = [words.index(title) for title in titles]
    assert places == sorted(places)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    # Three columns of a page of 1,120 pixels.
    widths = re.findall(r"min-width: (\d+)px; max-width: (\d+)px", text)
    assert len(widths) == 3 and all(int(low) <= 336 < int(high) for low, high in widths)


def test_failures_are_named():
    _, seen = page(failures=[report.Failure("r1-s1", 5, "loss is NaN at step 12")])
    words = "".join(seen.text)
    assert (
        "1 of 6 chains did not finish" in words
        and "r1-s1, generation 5: loss is NaN at step 12" in words
    )
    assert "The other chains went on." in words
    every = [report.Failure(f"r{r}-s{s}", 5, "stopped") for r in ("0.125", "1") for s in range(3)]
    _, seen = page(failures=every)
    words = "".join(seen.text)
    assert "6 of 6 chains did not finish" in words and "went on" not in words
    _, seen = page(failures=[report.Failure(f"early-{i}", 0, "stopped") for i in range(7)])
    assert "7 of 13 chains did not finish" in "".join(seen.text)
    assert "The other chains went on." in "".join(seen.text)


def test_a_page_without_much_to_show():
    for metrics in (
        made_up().iloc[:0],
        made_up(generations=1),
        made_up(seeds=(0,)),
        made_up().assign(value=np.nan),
    ):
        text, seen = page(metrics)
        assert "What was run" in "".join(seen.text)
        assert "nan" not in " ".join(seen.text).lower()


def test_a_single_generation_has_a_single_tick():
    summary = scores.by_generation(made_up(generations=1))
    (axes,) = figures.curve(summary, "text_length").axes
    assert list(axes.get_xticks()) == [0]
    (axes,) = figures.curve(scores.by_generation(made_up()), "text_length").axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_long_options_of_a_metric_fit_a_figure_and_a_file_name(tmp_path):
    place = "/".join(["a_folder"] * 30)
    name = f"judge_quality(model='{place}', url='http://127.0.0.1:8000/v1', reply='short')"
    rows = [
        {"chain": "a", "ratio": 0.5, "generation": g, "metric": name, "value": 1.0 + g}
        for g in (0, 1)
    ]
    (path,) = figures.write(scores.by_generation(pd.DataFrame(rows)), tmp_path)
    assert path.exists() and len(path.name) < 140
    assert len(figures.title(name)[0]) < 70 and figures.title(name)[0].endswith("…)")
    assert figures.title("distinct_n(n=3)")[0] == "Distinct n-grams (n=3)"
