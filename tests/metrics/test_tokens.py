"""13a tokens are sacrebleu's, words are NLTK's, and codes agree exactly where the tokens do."""

import numpy as np
import pytest
from nltk.tokenize import NLTKWordTokenizer, WordPunctTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from jaxloop.metrics import tokens as tk
from jaxloop.metrics import words as wd


def assert_same_tokens(coded: tk.Tokens, texts, tokenise):
    """One code for one token, one token for one code, in every text."""
    code_of, seen = {}, set()
    for index, text in enumerate(texts):
        want, got = (
            tokenise(text),
            coded.codes[coded.offsets[index] : coded.offsets[index + 1]].tolist(),
        )
        assert len(want) == len(got), (text, want)
        for token, code in zip(want, got, strict=True):
            assert code_of.setdefault(token, code) == code, (text, token)
        seen.update(got)
    assert len(set(code_of.values())) == len(code_of) == len(seen)
    assert max(seen, default=-1) < coded.size


def thirteen(text):
    return Tokenizer13a()(text.rstrip()).split()


def test_13a_is_sacrebleus_on_hostile_text(hostile):
    assert_same_tokens(tk.tokens_13a(hostile), hostile, thirteen)
    spans = tk.split_13a(hostile)
    assert spans.strings(np.arange(len(spans.starts))) == [
        token for text in hostile for token in thirteen(text)
    ]


def test_13a_is_sacrebleus_on_human_text(tweets, prose):
    assert_same_tokens(tk.tokens_13a(tweets + prose), tweets + prose, thirteen)


@pytest.mark.parametrize("before", ["a", "5", " ", "(", ""])
@pytest.mark.parametrize("after", ["a", "5", " ", "-", ""])
def test_runs_of_periods_and_commas_are_cut_in_pairs_as_by_the_regular_expressions(before, after):
    texts = [before + run + after for run in (".", ",", "..", ".,", "...", ",.,", "....", ".....")]
    assert_same_tokens(tk.tokens_13a(texts), texts, thirteen)


def test_long_tokens_are_told_apart_in_their_last_byte():
    stems = [("ab" * 60)[:length] for length in range(1, 100)]
    texts = [stem + end for stem in stems for end in ("", "x", "y", "\0")]
    assert_same_tokens(tk.tokens_13a(texts), texts, str.split)


def test_a_megabyte_without_a_space_is_one_token():
    coded = tk.tokens_13a(["x" * 1_000_000, "x" * 999_999 + "y", "x" * 1_000_000])
    assert coded.codes.tolist() == [0, 1, 0]


def test_ngrams_never_cross_texts_and_match_a_plain_enumeration(hostile):
    texts = hostile[:200]
    coded = tk.tokens_13a(texts)
    for order in (1, 2, 3, 5):
        rows = tk.ngrams(coded, order)
        assert_same_tokens(
            rows,
            texts,
            lambda t, n=order: [
                tuple(thirteen(t)[i : i + n]) for i in range(len(thirteen(t)) - n + 1)
            ],
        )


def test_words_are_nltks_on_hostile_text(hostile):
    texts = [text.replace("\x1c", "") for text in hostile]
    assert_same_tokens(wd.words(texts, sentences=False), texts, NLTKWordTokenizer().tokenize)


def test_words_are_nltks_on_human_text(tweets, prose):
    assert_same_tokens(
        wd.words(tweets + prose, sentences=False), tweets + prose, NLTKWordTokenizer().tokenize
    )


def test_sentences_end_where_punkt_ends_them_given_the_same_abbreviations(prose):
    parameters = PunktParameters()
    parameters.abbrev_types = set(wd._ABBREVIATIONS)
    punkt, word = PunktSentenceTokenizer(parameters), NLTKWordTokenizer()
    coded = wd.words(prose)
    want = [
        [token for sentence in punkt.tokenize(text) for token in word.tokenize(sentence)]
        for text in prose
    ]
    lengths = np.array([len(tokens) for tokens in want])
    # What is left are Punkt's heuristics for initials and ordinals, and marks glued to a period
    # ("here.*").
    assert np.abs(coded.lengths - lengths).sum() < 0.001 * lengths.sum()
    plain = np.array([len(word.tokenize(text)) for text in prose])
    assert np.abs(plain - lengths).sum() > 20 * np.abs(coded.lengths - lengths).sum()


@pytest.mark.parametrize(
    "text, want",
    [
        ("It rained. We left.", "It rained . We left ."),
        (
            "Dr. Smith met J. Doe at 5 p.m. in the U.S. capital.",
            "Dr. Smith met J. Doe at 5 p.m. in the U.S. capital .",
        ),
        ('He said "no." Then (why?) he left.)', "He said `` no . '' Then ( why ? ) he left . )"),
        ("Wait... what?", "Wait ... what ?"),
        ("Don't say 'tis so. I can't.", "Do n't say 't is so . I ca n't ."),
    ],
)
def test_sentence_final_periods_become_tokens_and_others_do_not(text, want):
    coded = wd.words([text, want])
    pieces = want.split()
    assert coded.lengths[0] == len(pieces)
    assert_same_tokens(
        tk.Tokens(coded.codes[: coded.offsets[1]], coded.offsets[:2], coded.size), [want], str.split
    )


def test_word_punct_is_nltks(hostile):
    hostile = [text.replace("\x1c", "") for text in hostile]
    assert_same_tokens(
        wd.word_punct(hostile, lower=False, punctuation=True),
        hostile,
        WordPunctTokenizer().tokenize,
    )
    lowered = wd.word_punct(["The cat, the CAT... don't!"])
    assert lowered.lengths.tolist() == [7]  # the cat the cat ... don t
    assert lowered.size == 5


@pytest.mark.parametrize(
    "bad, says",
    [
        ("one string", "texts is one string"),
        ([1], r"texts\[0\] is int 1"),
        ([None], "NoneType"),
        ([b"x"], "bytes"),
    ],
)
def test_anything_but_strings_is_refused_in_one_sentence(bad, says):
    with pytest.raises(ValueError, match=says) as error:
        tk.check_texts(bad)
    assert str(error.value).count("\n") == 0 and str(error.value).endswith("needed.")
