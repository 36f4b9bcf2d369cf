"""Lexical measures against plain Python, NLTK, scipy and drawn samples; collapsed and hostile
texts.
"""

from collections import Counter

import numpy as np
import pytest
from nltk.tokenize import NLTKWordTokenizer, WordPunctTokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy import stats

from jaxloop.metrics import lexical as lx

# One sentence each, so that NLTK's tokeniser and `word_tokenize` agree.
SENTENCES = [
    "The cat sat on the mat, and the dog didn't like the cat",
    "A man a plan a canal",
    "the the the the the the the the",
    "Prices rose 3.5% to $1,000 (a record), they said",
    "سلام دنيا 😀 😀",
    "",
]


def grams(texts, n):
    tokens = [Tokenizer13a()(text.rstrip()).split() for text in texts]
    return [[tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in tokens]


def nltk_words(texts):
    return NLTKWordTokenizer().tokenize(" ".join(texts))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_distinct_n_is_different_over_all(hostile, n):
    for texts in (SENTENCES, hostile[:300]):
        flat = [g for row in grams(texts, n) for g in row]
        assert lx.distinct_n(texts, n) == pytest.approx(len(set(flat)) / len(flat), abs=1e-15)


def test_size_matched_distinct_n_is_the_mean_over_draws():
    texts = ["a a a a b b c d e f g", "a b a b a b h i j"]
    flat = np.array([hash(g) for row in grams(texts, 1) for g in row])
    draw = np.random.default_rng(0)
    means = [len(set(draw.choice(flat, 7, replace=False))) / 7 for _ in range(20_000)]
    assert lx.distinct_n_size_matched(texts, 1, 7) == pytest.approx(
        np.mean(means), abs=4 * np.std(means) / np.sqrt(len(means))
    )
    # Drawing every n-gram is no draw.
    assert lx.distinct_n_size_matched(texts, 1, len(flat)) == pytest.approx(
        lx.distinct_n(texts, 1), abs=1e-12
    )
    assert np.isnan(lx.distinct_n_size_matched(texts, 1, len(flat) + 1))


def test_size_matching_removes_the_effect_of_the_corpus_size(tweets):
    small, large = tweets[:300], tweets[:1500]
    assert lx.distinct_n(small, 2) - lx.distinct_n(large, 2) > 0.05
    assert (
        abs(lx.distinct_n_size_matched(small, 2, 2000) - lx.distinct_n_size_matched(large, 2, 2000))
        < 0.02
    )


def test_distinct_n_by_context_sums_the_ratios_of_contexts():
    texts = ["a b c d e f", "a b c d e f", "x y z u v", "p q"]
    assert lx.distinct_n_by_context(texts, ["one", "one", "two", "three"]) == pytest.approx(
        2 / 4 + 1 + 0
    )
    chains = lx.distinct_n_by_context([texts, texts[:2]], [[1, 1, 2, 3], [1, 2]])
    np.testing.assert_allclose(chains, [1.5, 2.0])
    # It scales with the number of contexts; the corpus-level ratio does not.
    assert lx.distinct_n_by_context(texts[:1] * 6, range(6)) == pytest.approx(6.0)
    with pytest.raises(ValueError, match=r"contexts has \[3\] entries"):
        lx.distinct_n_by_context(texts, [1, 2, 3])


@pytest.mark.parametrize("characters", [10, 150, 200])
def test_type_token_ratio_is_over_nltks_words_of_a_prefix(characters):
    texts = SENTENCES * 2 + ["word " * 100]
    tokens = [NLTKWordTokenizer().tokenize(text[:characters]) for text in texts]
    want = [len(set(t)) / len(t) if t else 0.0 for t in tokens]
    np.testing.assert_allclose(lx.type_token_ratios(texts, characters), want, atol=1e-15)
    assert lx.type_token_ratio(texts, characters) == pytest.approx(np.mean(want), abs=1e-15)


def test_word_entropy_and_vocabulary_are_scipys_over_nltks_words():
    counts = Counter(nltk_words(SENTENCES))
    assert lx.word_entropy(SENTENCES) == pytest.approx(
        stats.entropy(list(counts.values())), rel=1e-12
    )
    assert lx.vocabulary_size(SENTENCES) == len(counts)
    assert lx.word_entropy(["a b c d"]) == pytest.approx(np.log(4), rel=1e-12)


def test_zipf_slope_is_the_regression_line_over_ranks(tweets):
    counts = np.array(sorted(Counter(nltk_words(SENTENCES)).values(), reverse=True))
    line = stats.linregress(np.log(np.arange(1, len(counts) + 1)), np.log(counts))
    assert lx.zipf_slope(SENTENCES) == pytest.approx(line.slope, rel=1e-12)
    assert lx.zipf_slope(["a b c"]) == pytest.approx(0, abs=1e-15)
    assert -1.3 < lx.zipf_slope(tweets) < -0.7


def test_ngram_ttr_is_guos_with_the_draw_replaced_by_its_mean(tweets):
    texts = tweets[:400]
    punctuation = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    tokens = [
        [t.lower() for t in WordPunctTokenizer().tokenize(text) if t not in punctuation]
        for text in texts
    ]
    draw, want = np.random.default_rng(1), []
    for n in (1, 2, 3):
        table: dict = {}
        flat = np.array(
            [
                table.setdefault(tuple(t[i : i + n]), len(table))
                for t in tokens
                for i in range(len(t) - n + 1)
            ]
        )
        want.append(
            np.mean(
                [len(np.unique(draw.choice(flat, 3000, replace=False))) / 3000 for _ in range(200)]
            )
        )
    assert lx.ngram_ttr(texts, 3000) == pytest.approx(np.mean(want), abs=1e-3)
    whole = [
        len({tuple(t[i : i + n]) for t in tokens for i in range(len(t) - n + 1)})
        / sum(len(t) - n + 1 for t in tokens if len(t) >= n)
        for n in (1, 2, 3)
    ]
    assert lx.ngram_ttr(texts) == pytest.approx(np.mean(whole), abs=1e-12)


def test_repetition_counts_repeats_inside_a_text(hostile):
    texts = hostile[:300] + ["a b c d a b c d a b c d", "x " * 50]
    want = [1 - len(set(g)) / len(g) if g else 0.0 for g in grams(texts, 4)]
    np.testing.assert_allclose(lx.repetitions(texts), want, atol=1e-15)
    assert lx.repetition(texts) == pytest.approx(np.mean(want), abs=1e-15)
    assert want[-1] > 0.9


def test_memorised_ngrams_are_found_in_the_reference(tweets):
    texts, reference = tweets[:100] + tweets[500:520], tweets[90:510]
    known = {g for row in grams(reference, 4) for g in row}
    flat = [g for row in grams(texts, 4) for g in row]
    assert lx.memorised_ngrams(texts, reference, 4) == pytest.approx(
        np.mean([g in known for g in flat]), abs=1e-15
    )
    own = lx.memorised_ngrams([texts, texts], [texts, ["nothing of the kind"]], 4)
    np.testing.assert_array_equal(own, [1, 0])
    shared = lx.memorised_ngrams([texts, texts[:5]], reference, 4)
    assert shared[0] == pytest.approx(
        lx.memorised_ngrams(texts, reference, 4)
    ) and shared.shape == (2,)
    with pytest.raises(ValueError, match="reference_texts has 2 chains, texts has 3"):
        lx.memorised_ngrams([texts] * 3, [texts, texts], 4)


CORPUS_MEASURES = [
    lx.text_length,
    lx.type_token_ratio,
    lx.word_entropy,
    lx.vocabulary_size,
    lx.zipf_slope,
    lx.distinct_n,
    lx.ngram_ttr,
    lx.repetition,
    lambda texts: lx.distinct_n_size_matched(texts, 2, 5),
    lambda texts: lx.memorised_ngrams(texts, ["a b c d e f g h i j k l"]),
]


@pytest.mark.parametrize("measure", CORPUS_MEASURES)
def test_a_chain_has_the_same_value_alone_and_among_others(measure, hostile):
    chains = [
        hostile[:200],
        ["one text"],
        [],
        hostile[100:400],
        ["", ""],
        ["same words here again"] * 4,
        SENTENCES,
    ]
    together = measure(chains)
    assert together.shape == (len(chains),) and together.dtype == np.float64
    np.testing.assert_array_equal(together, [measure(chain) for chain in chains])


@pytest.mark.parametrize("texts", [[], ["", ""], [" \n"]])
def test_output_without_words_has_the_stated_values(texts):
    assert lx.type_token_ratio(texts) == lx.word_entropy(texts) == lx.vocabulary_size(texts) == 0
    assert lx.distinct_n(texts) == lx.ngram_ttr(texts) == lx.repetition(texts) == 0
    assert lx.memorised_ngrams(texts, ["a"], 1) == lx.memorised_ngrams(["a"], texts, 1) == 0
    assert np.isnan(lx.zipf_slope(texts)) and np.isnan(lx.distinct_n_size_matched(texts))
    assert lx.distinct_n_by_context(texts, [0] * len(texts)) == 0


def test_a_megabyte_of_text_is_measured():
    long = ["word." * 200_000, "ab " * 350_000]
    assert lx.vocabulary_size(long) == 3  # the long word without its last period, the period, ab
    assert lx.repetition(long) > 0.9999
    assert lx.text_lengths(long).tolist() == [1_000_000.0, 1_050_000.0]
    assert lx.distinct_n(["ab " * 350_000], 2) == pytest.approx(1 / 349_999)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: lx.distinct_n(["a"], 0), "n is 0, a whole number of at least 1"),
        (lambda: lx.distinct_n(["a"], 1.5), "n is 1.5"),
        (lambda: lx.distinct_n_size_matched(["a"], 1, 0), "size is 0"),
        (lambda: lx.type_token_ratio(["a"], 0), "characters is 0"),
        (lambda: lx.ngram_ttr(["a"], 0), "sample is 0"),
        (lambda: lx.text_length("one string"), "texts is one string"),
        (lambda: lx.text_length(["a", 3]), r"texts\[1\] is int 3"),
        (lambda: lx.text_length([["a"], [None]]), r"texts\[1\]\[0\] is NoneType"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert str(error.value).count(".\n") == 0
