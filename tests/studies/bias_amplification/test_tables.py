"""Articles to prompts and examples, and the tables of the bias study against pandas, scipy and
simulation.
"""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxloop import config
from jaxloop.lm.training.gradient_constraint import Brake
from jaxloop.reporting.statistics import share_se
from jaxloop.studies.bias_amplification import articles as bias_data
from jaxloop.studies.bias_amplification import tables
from jaxloop.studies.bias_amplification.chains import make_chains
from jaxloop.studies.bias_amplification.config import CONFIG, ArticlesConfig
from jaxloop.studies.bias_amplification.family import training_examples

WORDS = "the senate votes on a tax bill while the house reads another one".split()


class Words:
    """One token per word."""

    start, blank = (), 7

    def encode(self, texts):
        return [[hash(word) % 1000 for word in text.split()] for text in texts]

    def decode(self, rows):
        return [" ".join(map(str, row)) for row in rows]


class PlainWords(Words):
    """Words are their own tokens."""

    def encode(self, texts):
        return [text.split() for text in texts]


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    return written(
        tmp_path / "articles.jsonl",
        [
            dict(
                original_title=f"Title {i}",
                original_body=" ".join(rng.choice(WORDS, 20)),
                bias=("Left", "Right", "Center")[i % 3],
            )
            for i in range(60)
        ],
    )


def settings(source, **changes):
    return ArticlesConfig(source=str(source), **{"per_label": 5, "short": "keep"} | changes)


def read(source, block=8, **changes):
    return bias_data.read_articles(settings(source, **changes), Words(), block)


# ---- articles


def test_articles_are_drawn_and_shuffled_as_pandas_does_with_the_papers_seed(source):
    found = read(source)
    frame = pd.read_json(source, lines=True)
    parts = [
        frame[frame["bias"] == label].sample(n=5, random_state=42)
        for label in ("Center", "Left", "Right")
    ]
    expected = pd.concat(parts).sample(frac=1, random_state=42)
    assert found.chosen["title"].tolist() == expected["original_title"].tolist()
    assert found.labels == ("Center", "Left", "Right") and len(found.rest) == 45
    assert not set(found.rest["id"]) & set(found.chosen["id"])
    assert found.text(0) == f"title: {found.chosen['title'][0]}\nbody: {found.chosen['body'][0]}"
    assert bias_data.body_of(found.text(0)) == found.chosen["body"][0]


def test_no_copy_of_an_article_that_chains_see_is_among_the_others(source, tmp_path):
    rows = source.read_text().splitlines()
    copies = [row.replace("Title", "TITLE:") for row in rows]
    (tmp_path / "twice.jsonl").write_text("\n".join([*rows, *copies]) + "\n")
    found = read(tmp_path / "twice.jsonl")
    titles = [*found.chosen["title"], *found.rest["title"]]
    contents = {title.replace("TITLE:", "Title") for title in titles}
    assert len(contents) == 60 and found.copies == 120 - len(titles)
    kept = [title.replace("TITLE:", "Title") for title in found.rest["title"]]
    assert len(set(kept)) == len(kept)
    assert not set(kept) & {title.replace("TITLE:", "Title") for title in found.chosen["title"]}
    assert read(source).copies == 0


def test_chains_of_one_label_know_all_labels(source):
    found = read(source, only="Center")
    assert set(found.chosen["label"]) == {"Center"} and found.labels == ("Center", "Left", "Right")


def test_posts_of_an_author_in_a_week_are_one_article(tmp_path):
    rows = [
        dict(text="First https://t.co/x post", who="a", party="D", date="2021-01-04"),
        dict(text="third\npost", who="a", party="D", date="2021-01-06"),
        dict(text="second post", who="a", party="D", date="2021-01-05"),
        dict(text="https://t.co/y", who="a", party="D", date="2021-01-05"),
        dict(text="next week", who="a", party="D", date="2021-01-11"),
        dict(text="other author", who="b", party="R", date="2021-01-04"),
        dict(text="again", who="b", party="R", date="2021-01-10"),
    ]
    source = written(tmp_path / "posts.jsonl", rows)
    found = read(source, body_column="text", label_column="party", author_column="who", per_label=1)
    table = found.chosen.set_index("label")
    assert table.loc["D", ["title", "body"]].tolist() == [
        "First post",
        "second post\nthird post",
    ]  # a week of one post is no article
    assert table.loc["R", ["title", "body"]].tolist() == ["other author", "again"]


def test_blocks_are_the_title_and_pieces_of_the_body():
    assert bias_data.blocks([1, 2], list(range(10, 17)), 3) == [
        (1, 2),
        (10, 11, 12),
        (13, 14, 15),
        (16,),
    ]
    assert bias_data.blocks([1], [2, 3], 3, start=(0,)) == [(0, 1), (0, 2, 3)]


def test_variants_make_one_example_of_an_article_or_one_of_every_line():
    words = PlainWords()
    text = "title: A B\nbody: one two\n\nthree"
    assert bias_data.examples(text, "paper", words) == [
        ("title:", "A", "B", "body:", "one", "two", "three")
    ]
    lines = [("title:", "A", "B"), ("body:", "one", "two"), (7,), ("three",), (7,)]
    assert bias_data.examples(text, "released", words, blank=7) == lines
    bodies, heads = training_examples([text], "released", words)
    assert [h + b for h, b in zip(heads, bodies, strict=True)] == lines and all(
        len(h) == 1 for h in heads
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict(labels=("Left",)),
            r"config.data.label_column = 'bias': the 20 articles have the one label 'Left'; at "
            r"least two labels are needed",
        ),
        (
            dict(labels=("Left", "Rihgt")),
            r"config.data.labels has 'Rihgt', which column 'bias' never holds; it holds "
            r"'Center', 'Left', 'Right'",
        ),
        (
            dict(per_label=21),
            r"config.data.per_label = 21: .* has only 20 articles labelled 'Center'",
        ),
        (
            dict(short="refuse"),
            r"config.data.short = 'refuse': article 0 \('Title 0'\) and 59 others are shorter "
            r"than a block of 21 tokens",
        ),
        (
            dict(short="drop"),
            r"config.data.short = 'drop': every article of .* is shorter than a block of 21 tokens",
        ),
        (dict(title_column="headline"), r"headline"),
        (
            dict(author_column="original_title", date_column="original_body"),
            r"config.data.date_column = 'original_body': 'another the bill .* of the 1. article "
            r"with a wanted label, cannot be read as a date",
        ),
    ],
)
def test_articles_that_are_refused(source, changes, said):
    with pytest.raises(ValueError, match=said):
        read(source, block=21, **changes)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"chain": {"setups": ("greedy", "greedy")}}, r"config.chain.setups = .* repeats a value"),
        ({"chain": {"seeds": (1, 1)}}, r"config.chain.seeds = .* repeats a value"),
        ({"chain": {"setups": ("beem",)}}, r"config.chain.setups.* = 'beem' is not allowed"),
        (
            {"chain": {"setups": ("constrained",)}},
            r"config.gradient_constraint.direction is missing: setup 'constrained' needs a "
            r"direction",
        ),
        (
            {"chain": {"setups": ("braked",)}},
            r"config.gradient_constraint.direction is missing: setup 'braked' needs a direction",
        ),
        (
            {"gradient_constraint": {"direction": "fit", "toward": "Left"}},
            r"config.gradient_constraint.toward = 'Left' and away = None: direction 'fit' needs "
            r"two different labels",
        ),
        ({"fit": {"steps": 5}}, r"config.fit.steps = 5: setup 'overfit' counts epochs"),
        ({"fit": {"epochs": None}}, r"config.fit.steps and config.fit.epochs are both none"),
        ({"models": {"pool": ("a", "b")}}, r"config.models.pool = .* is not allowed"),
        ({"data": {}}, r"config.data.source is missing"),
    ],
)
def test_settings_that_are_refused(changes, said):
    raw = {
        "study": "bias",
        "data": {"source": "x.jsonl"},
        "classifier": {"target": "Left"},
    } | changes
    with pytest.raises(ValueError, match=said):
        config.build(CONFIG, raw)


def test_setups_are_those_of_the_specification():
    raw = {
        "data": {"source": "x.jsonl"},
        "classifier": {"target": "R"},
        "gradient_constraint": {"direction": "fit", "toward": "R", "away": "L"},
    }
    raw["chain"] = {
        "setups": (
            "greedy",
            "beam",
            "nucleus",
            "penalty",
            "overfit",
            "preserve",
            "accumulate",
            "accumulate_matched",
            "constrained",
            "braked",
        ),
        "seeds": (3,),
    }
    chains = {dict(c.factors)["setup"]: c for c in make_chains(config.build(CONFIG, raw), 1518)}
    assert all(
        c.workflow.start == "previous"
        and c.workflow.initial == 1518
        and c.workflow.synthetic == 1518
        for c in chains.values()
    )
    assert chains["preserve"].workflow.preserved == 152
    assert (
        chains["accumulate"].workflow.real == "always"
        and chains["accumulate"].workflow.train is None
    )
    assert chains["accumulate_matched"].workflow.train == 1518
    assert dict(chains["overfit"].fit) == {"epochs": 25.0, "weight_decay": 0.0}
    assert dict(chains["beam"].sample) == {"decoder": "beam", "num_beams": 10}
    assert dict(chains["nucleus"].sample) == {"decoder": "sample", "top_p": 0.9}
    assert dict(chains["penalty"].sample) == {
        "decoder": "beam",
        "num_beams": 5,
        "repetition_penalty": 2.0,
    }
    constraint = dict(chains["constrained"].fit)["constraint"]
    assert (constraint.gam, constraint.per) == (1e4, "direction")
    assert dict(chains["braked"].fit)["constraint"] == Brake(1e3)
    assert {
        chains[name].fit for name in ("greedy", "beam", "nucleus", "preserve", "accumulate")
    } == {()}


# ---- tables


def simulated(rng, shift, chains=4, n=200, generations=3):
    """Articles whose probability of label R moves by `shift` a generation, with a draw of the
    chain's own.
    """
    rows = []
    for seed in range(chains):
        own = rng.normal(0, 0.05)
        base = rng.uniform(0.2, 0.6, n)
        for g in range(generations):
            hit = rng.random(n) < base + g * (shift + own)
            rows.append(
                pd.DataFrame(
                    {
                        "chain": f"c{seed}",
                        "setup": "greedy",
                        "seed": seed,
                        "generation": g,
                        "id": [str(i) for i in range(n)],
                        "label": np.where(hit, "R", "L"),
                        "quality": rng.normal(2, 0.3, n),
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def test_changes_have_the_errors_of_a_paired_test_and_intervals_those_of_scipy():
    articles = simulated(np.random.default_rng(0), 0.05)
    change = tables.changes(articles, "R")
    assert len(change) == 4 * 2
    for row in change.itertuples():
        mine = articles[articles["chain"] == row.chain].assign(
            hit=lambda t: (t["label"] == "R").astype(float)
        )
        first, last = (
            mine[mine["generation"] == g].set_index("id")["hit"] for g in (0, row.generation)
        )
        paired = stats.ttest_rel(last, first)
        assert row.change == pytest.approx(
            last.mean() - first.mean()
        ) and row.change / row.se == pytest.approx(paired.statistic)
    found = tables.amplification(change).set_index("generation").loc[2]
    values = change[change["generation"] == 2]["change"]
    expected = stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    assert (found["change"], found["p"], found["low"], found["high"]) == pytest.approx(
        (values.mean(), expected.pvalue, low, high)
    )
    assert found["replicates"] == 4 and found["se_articles"] == pytest.approx(
        np.sqrt((change[change["generation"] == 2]["se"] ** 2).mean())
    )


def test_an_article_that_keeps_its_label_adds_no_error_and_one_replicate_gives_no_interval():
    articles = simulated(np.random.default_rng(0), 0.0, chains=1)
    frozen = articles[articles["generation"] == 0]
    still = pd.concat([frozen, frozen.assign(generation=1)])
    row = tables.changes(still, "R").iloc[0]
    assert row["change"] == 0 and row["se"] == 0
    found = tables.amplification(tables.changes(articles, "R")).iloc[-1]
    assert np.isnan([found["low"], found["high"], found["p"]]).all() and found["se_articles"] > 0


def test_replicates_that_do_not_differ_have_no_p():
    # Their standard deviation is not 0, but for rounding.
    row = {"setup": "s", "generation": 1, "first": 0.2, "share": 0.3, "change": 0.1, "se": 0.0}
    found = tables.amplification(pd.DataFrame([row] * 3)).iloc[0]
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.1)) and np.isnan(found["p"])


def test_intervals_over_replicates_cover_the_change_and_paired_ones_of_a_chain_do_not():
    """Chains differ by more than their articles do: the paper's single chain says too little."""
    rng, covered, alone = np.random.default_rng(1), 0, 0
    for _ in range(100):
        change = tables.changes(simulated(rng, 0.05, chains=4, n=100, generations=2), "R")
        found, one = tables.amplification(change).iloc[0], change.iloc[0]
        covered += found["low"] <= 0.05 <= found["high"]
        alone += abs(one["change"] - 0.05) <= 1.96 * one["se"]
    assert stats.binomtest(int(covered), 100, 0.95).pvalue > 0.001
    assert covered > alone


def test_transitions_count_every_article_of_both_generations():
    articles = simulated(np.random.default_rng(2), 0.1)
    found = tables.transitions(articles, ("L", "R"))
    wide = articles.pivot(index=["chain", "id"], columns="generation", values="label")
    expected = pd.crosstab(wide[0], wide[2])
    for row in found.itertuples():
        assert row.articles == expected.loc[row.before, row.after]
        assert row.share == pytest.approx(
            expected.loc[row.before, row.after] / expected.loc[row.before].sum()
        )
    assert found["articles"].sum() == 4 * 200
    assert not len(tables.transitions(articles.iloc[:0], ("L", "R")))


def test_distributions_are_quantiles_without_what_is_missing():
    articles = simulated(np.random.default_rng(3), 0.0)
    articles.loc[articles.index[:10], "quality"] = np.nan
    found = tables.distributions(articles, ["quality", "absent"])
    mine = articles[articles["generation"] == 1]["quality"]
    row = found[(found["generation"] == 1)].iloc[0]
    assert (
        row["q50"] == pytest.approx(mine.median())
        and row["q05"] == pytest.approx(mine.quantile(0.05))
        and row["n"] == len(mine)
    )
    assert found["n"].tolist() == [790, 800, 800] and set(found["measure"]) == {"quality"}


def test_a_preserved_tenth_is_a_tenth_of_the_real_articles_and_an_eleventh_of_the_mix():
    ledger = pd.DataFrame(
        [
            dict(chain="p", generation=1, source="synthetic", count=1518),
            dict(chain="p", generation=1, source="human", count=152),
        ]
    )
    row = tables.real_shares(ledger, {"p": "preserve"}, 1518).iloc[0]
    assert row["of_real"] == pytest.approx(0.1001, abs=1e-4) and row["of_mix"] == pytest.approx(
        0.0910, abs=1e-4
    )


def test_old_names_of_fields_are_read():
    raw = {
        "study": "bias",
        "data": {"source": "x.jsonl"},
        "classifier": {"target": "Left"},
        "chain": {"reading": "paper"},
        "projection": {"gam": 3.0},
    }
    built = config.build(CONFIG, raw)
    assert built.chain.variant == "paper" and built.gradient_constraint.gam == 3.0


def test_the_accuracy_of_a_classifier_has_the_error_that_scipy_gives():
    fit = {
        "encoder": "MiniLM",
        "split": [280, 60, 60],
        "validation": 0.9,
        "test": {"accuracy": 51 / 60, "macro_f1": 0.84},
        "majority": {"accuracy": 0.5},
    }
    table = tables.classifiers([fit, fit | {"encoder": "other"}])
    assert table["used"].tolist() == [True, False] and list(table) == tables.CLASSIFIERS
    assert table["se"][0] == pytest.approx(stats.sem([1] * 51 + [0] * 9), rel=1e-12)
    assert not len(tables.classifiers([]))
    right = tables.classifiers([fit | {"test": {"accuracy": 1.0, "macro_f1": 1.0}}])
    assert right["se"][0] == share_se(1.0, 60) > 0
