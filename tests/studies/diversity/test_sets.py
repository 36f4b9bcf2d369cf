"""Sets of the diversity study: replacement, mixtures and the generator-free control against the
specification's checks and against formulas.
"""

import numpy as np
import pandas as pd
import pytest

from jaxloop.metrics.lexical import distinct_n
from jaxloop.studies.diversity import measure, sets
from jaxloop.studies.diversity.sets import COLUMNS, Counts, draw, mixture

K = 30


def records(count, contexts=1, words=12, origin="real", start=0):
    """Records whose words are all different, so that every n-gram is."""
    rows = []
    for i in range(count):
        text = [f"w{start + i}x{j}" for j in range(words)]
        rows.append(
            (
                f"doc-{i * contexts // count}",
                "",
                " ".join(text[:-3]),
                " ".join(text[-3:]),
                "",
                origin,
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


@pytest.mark.parametrize(
    "rho, mixing, size, expected",
    [
        (0.1, "fixed", 22_040, (19_836, 2_204)),
        (0.0, "fixed", 10, (10, 0)),
        (1.0, "fixed", 10, (0, 10)),
        # What the paper's variable sizes come to beside 2,204 real records.
        (0.2, "variable", 2204, (2204, 551)),
        (0.4, "variable", 2204, (2204, 1469)),
        (0.6, "variable", 2204, (2204, 3306)),
        (0.8, "variable", 2204, (2204, 8816)),
    ],
)
def test_check_c_mixtures_keep_the_size_or_the_real_part(rho, mixing, size, expected):
    assert mixture(rho, mixing, size) == expected


def test_mixtures_that_are_none():
    with pytest.raises(ValueError, match=r"rho = 1: must be in \[0, 1\) at variable size."):
        mixture(1.0, "variable", 10)
    with pytest.raises(ValueError, match=r"rho = -0.1: must be in \[0, 1\] at fixed size."):
        mixture(-0.1, "fixed", 10)


@pytest.mark.parametrize("replaced", [30, 25, 20, 15, 10, 5, 0])
def test_replacement_is_equations_2_and_3(replaced):
    found = sets.replacement(K, replaced, 5, draw("x"))
    assert len(set(found.slot)) == replaced == len(found.source)
    assert len(set(found.source)) == replaced // 5 and set(found.source) <= set(found.slot)
    assert all((np.bincount(found.source)[source] == 5) for source in set(found.source))
    assert set(zip(found.source, found.version)) == {
        (s, v) for s in set(found.source) for v in range(5)
    }
    smaller = sets.replacement(K, max(replaced - 5, 0), 5, draw("x"))
    assert set(smaller.source) <= set(found.source) and set(smaller.slot) <= set(found.slot)


def test_what_is_asked_to_be_paraphrased_is_what_is_used():
    table, used = records(60, 2), []

    def paraphrase(row, version):
        used.append((row, version))
        return f"again {row} {version}", "so"

    made = sets.paraphrased(table, 20, 5, paraphrase, "name")
    assert sorted(used) == sorted(sets.sources(table, 20, 5, "name")) and len(used) == 40
    assert (made["origin"] == "paraphrase").groupby(made["context"]).sum().tolist() == [20, 20]
    kept = made["origin"] == "real"
    assert made.loc[kept, "head"].tolist() == table.loc[kept, "head"].tolist()


def test_check_a_exact_copies_lower_distinct_5_as_the_formula_says():
    """Without edits, m_r replaced records of K hold m_r / m_p different ones: Distinct = (K - m_r +
    m_r / m_p) / K of what it was.
    """
    table = records(60, 2)
    copies = sets.edited(table, 0.0, "e")
    for replaced in (30, 25, 20, 15, 10, 5, 0):
        made = sets.paraphrased(table, replaced, 5, copies, "name")
        whole = [f"{h} {t}" for h, t in zip(made["head"], made["text"])]
        # A copy keeps its record's words: of 8 five-grams all repeat.
        assert distinct_n(whole, 5) == pytest.approx((K - replaced + replaced / 5) / K, abs=1e-12)
        assert measure.distinct("qa", made) == pytest.approx(
            2 * (K - replaced + replaced / 5) / K, abs=1e-12
        )


def test_check_a_edited_near_duplicates_are_between_copies_and_new_records():
    table, values = records(60, 2, words=40), []
    for replaced in (30, 20, 10, 0):
        made = sets.paraphrased(table, replaced, 5, sets.edited(table, 0.05, "e"), "name")
        values.append(measure.distinct("qa", made) / 2)
        assert values[-1] >= (K - replaced + replaced / 5) / K
    assert values == sorted(values) and values[0] < 0.9 and values[-1] == 1.0


@pytest.mark.parametrize("kept", [1, 2, 4, 8, 16])
def test_check_b_topics_raise_distinct_5_as_the_formula_says(kept):
    """16 topics of 20 stories, 3 of each at most: of 48 stories min(48, 3 |T|) are different."""
    pool, topics = records(320), np.repeat(np.arange(16), 20)
    made = sets.topical(pool, topics, 48, kept, 3, 0.0, "names")
    assert len(made) == 48 and made["topic"].nunique() == kept
    assert made["head"].nunique() == min(48, 3 * kept)
    assert measure.distinct("story", made) == pytest.approx(min(48, 3 * kept) / 48, abs=1e-12)
    assert (made["origin"] == "repeat").sum() == 48 - min(48, 3 * kept)
    more = sets.topical(pool, topics, 48, min(2 * kept, 16), 3, 0.0, "names")
    assert set(made["topic"]) <= set(more["topic"])


def test_check_d_equation_5_is_proportional_to_the_number_of_contexts():
    one = records(30)
    for contexts in (1, 2, 5):
        many = pd.concat([one.assign(context=f"c{i}") for i in range(contexts)])
        half = sets.paraphrased(many, 15, 5, sets.edited(many, 0.0), "n")
        assert measure.distinct("qa", half) == pytest.approx(contexts * 18 / 30, abs=1e-12)


def test_check_e_the_groups_maximum_is_one():
    assert measure.normalised(pd.Series([0.2, 0.5, 0.25])).tolist() == [0.4, 1.0, 0.5]


def test_mixtures_nest_and_spread_over_contexts():
    real, generated = records(60, 6), records(60, 6, origin="generated", start=1000)
    small, large = (sets.mix(real, generated, Counts(12, n), "seed", 0) for n in (6, 24))
    assert (small["part"] == "real").sum() == 12 and (large["part"] == "generated").sum() == 24
    assert set(small["head"]) <= set(large["head"])
    assert small[small["part"] == "real"]["context"].value_counts().tolist() == [2] * 6
    assert set(sets.mix(real, generated, Counts(12, 6), "seed", 1)["head"]) != set(small["head"])
    with pytest.raises(
        ValueError, match="a training set needs 61 generated records, there are 60."
    ):
        sets.mix(real, generated, Counts(0, 61), "seed")


def test_crossed_sets_set_duplicates_and_shift_apart():
    pool, outside = records(100), records(100, origin="real", start=5000)
    for duplicates in (0.0, 0.5, 1.0):
        for shift in (0.0, 0.5, 1.0):
            made = sets.crossed(pool, outside, 40, duplicates, shift, 5, 0.0, 7)
            whole = sets.bodies(made)
            away = [text for text in whole if int(text.split("x")[0][1:]) >= 5000]
            assert len(made) == 40 and len(away) == 40 * shift
            assert distinct_n(whole, 5) == pytest.approx(1 - duplicates * 0.8, abs=1e-12)
    with pytest.raises(ValueError, match="control: a set needs 101 pool records, there are 100."):
        sets.crossed(pool, outside, 101, 0.0, 0.0, 5, 0.0, 7)


@pytest.mark.parametrize(
    "share, words, gone",
    [(0.0, 10, 0), (0.1, 10, 1), (0.01, 10, 1), (0.5, 10, 5), (0.5, 1, 0), (0.9, 2, 1)],
)
def test_near_duplicates_lack_a_share_of_their_words(share, words, gone):
    text = [f"w{i}" for i in range(words)]
    made = sets.near_duplicate(" ".join(text), share, draw("d")).split()
    assert len(made) == words - gone and [w for w in text if w in made] == made


def test_clusters_find_what_texts_are_about():
    rng = np.random.default_rng(0)
    words = [
        ["sea", "ship", "sail", "storm", "wave"],
        ["field", "plough", "wheat", "harvest", "barn"],
        ["court", "judge", "law", "trial", "jury"],
    ]
    texts = [" ".join(rng.choice(words[i % 3], 12)) for i in range(90)]
    found = sets.clusters(texts, 3)
    assert all(len(set(found[i::3])) == 1 for i in range(3)) and len(set(found)) == 3


def test_size_matched_diversity_does_not_depend_on_the_size():
    """Copies of one source in sets of 30 and 300 records: Distinct-5 differs, the size-matched one
    of random subsets agrees with a draw.
    """
    rng = np.random.default_rng(0)
    vocabulary = ["a", "b", "c", "d"]
    texts = [" ".join(rng.choice(vocabulary, 10)) for _ in range(300)]
    tables = {
        n: pd.DataFrame(
            [("c", "", t[: len(t) // 2], t[len(t) // 2 :], "", "real") for t in texts[:n]],
            columns=list(COLUMNS),
        )
        for n in (30, 300)
    }
    found = measure.describe(
        {str(n): ("story", t) for n, t in tables.items()}, lambda t: [len(x.split()) for x in t]
    ).set_index("set")
    assert found.loc["30", "distinct"] == found.loc["30", "distinct_matched"]
    assert found.loc["300", "distinct"] < 0.9 * found.loc["300", "distinct_matched"]
    grams = [
        tuple(x.split()[i : i + 5])
        for x in sets.bodies(tables[300])
        for i in range(len(x.split()) - 4)
    ]
    size = int(found.loc["30", "grams"])
    drawn = [
        len({grams[i] for i in rng.choice(len(grams), size, replace=False)}) / size
        for _ in range(400)
    ]
    error = np.std(drawn, ddof=1) / 20
    assert abs(found.loc["300", "distinct_matched"] - np.mean(drawn)) < 4 * error


def test_the_control_on_real_text(shared):
    """Checks (a) and (b) on ARC and on novels: near-duplicates lower Distinct-5 at every level,
    topics raise it.
    """
    from jaxloop.data.stories import read_qa, read_stories

    frame = read_qa(shared("data/arc/arc.jsonl"), passage="none", split_column="split").iloc[:120]
    table = frame.rename(columns={"question": "head", "answer": "text"}).assign(
        topic="", origin="real", context=[f"b{i // 30}" for i in range(120)]
    )
    reword = sets.edited(table, 0.1, "e")
    values = [
        measure.distinct("qa", sets.paraphrased(table, m, 5, reword, "n"))
        for m in (30, 25, 20, 15, 10, 5, 0)
    ]
    assert values == sorted(values) and values[0] < 0.75 * values[-1]
    frame = read_stories(shared("data/gutenberg_books/paragraphs.jsonl"), count=3, limit=600)
    pool = frame.rename(columns={"beginning": "head", "ending": "text"}).assign(
        context="s", passage="", topic="", origin="real"
    )
    topics = sets.clusters(sets.bodies(pool), 16)
    values = [
        measure.distinct("story", sets.topical(pool, topics, 64, t, 4, 0.1, "n"))
        for t in (1, 2, 4, 8, 16)
    ]
    assert values == sorted(values) and values[0] < 0.6 * values[-1]
