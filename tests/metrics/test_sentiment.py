"""Positivity against vaderSentiment itself."""

import random

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from jaxloop.metrics.sentiment import positivities, positivity


@pytest.fixture(scope="module")
def vader():
    analyser = SentimentIntensityAnalyzer()
    return lambda texts: [analyser.polarity_scores(text)["compound"] for text in texts]


def test_equal_to_vader_on_human_text(tweets, prose, vader):
    texts = tweets + prose[::4]
    assert positivities(texts).tolist() == vader(texts)


def test_equal_to_vader_on_hostile_text(hostile, vader):
    texts = [text.replace("\ud800", "") for text in hostile] + [
        "😀😀 x😀",
        "😀",
        " 😀",
        "GREAT",
        "kind of good",
        "no good",
        "!!! ???",
        "x" * 100_000,
    ]
    assert positivities(texts).tolist() == vader(texts)


def test_equal_to_vader_where_its_rules_interact(vader):
    draw = random.Random(0)
    lexicon = list(SentimentIntensityAnalyzer().lexicon)
    rules = (
        "but BUT not never no without doubt so this least at very kind of sort the shit bomb or "
        "nor to die for yeah right isn't VERY "
        "absolutely hardly bus stop hand mouth kiss death"
    ).split()
    texts = []
    for _ in range(8000):
        words = [
            draw.choice(rules if draw.random() < 0.6 else lexicon)
            for _ in range(draw.randint(1, 10))
        ]
        texts.append(
            " ".join(w.upper() if draw.random() < 0.2 else w for w in words)
            + draw.choice(["", "!", "!!!!!", "??", " 😀"])
        )
    assert positivities(texts).tolist() == vader(texts)


def test_the_mean_of_a_chain_is_its_own(hostile):
    chains = [["good", "bad", "GOOD but bad"], [], ["", " "], hostile[:50], ["good"]]
    np.testing.assert_array_equal(positivity(chains), [positivity(chain) for chain in chains])
    assert positivity(chains)[1] == positivity(chains)[2] == 0
    assert positivity(["good", "good"]) == positivities(["good"])[0] > 0.4


@pytest.mark.slow
def test_processes_share_the_texts_and_keep_their_order(tweets, vader):
    texts = tweets[:200]
    assert positivities(texts, processes=2).tolist() == vader(texts)


def test_no_process_is_refused():
    with pytest.raises(ValueError, match="processes is 0, at least 1 is needed"):
        positivities(["a"], processes=0)
