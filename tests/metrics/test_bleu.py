"""Self-BLEU against sacrebleu, text by text, and its cost."""

import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from jaxloop.metrics.bleu import lexical_diversity, mean_self_bleu, self_bleu


def sacrebleu_loop(texts):
    bleu = BLEU(effective_order=True)
    return np.array(
        [
            bleu.sentence_score(t, texts[:i] + texts[i + 1 :]).score / 100
            for i, t in enumerate(texts)
        ]
    )


def test_equal_to_sacrebleu_on_human_text_with_duplicates_and_empty_texts(tweets, prose):
    texts = tweets[::60] + prose[::75] + tweets[:240:30] + ["", "", " ", "a"]
    np.testing.assert_allclose(self_bleu(texts), sacrebleu_loop(texts), rtol=0, atol=1e-9)


def test_equal_to_sacrebleu_on_hostile_text(hostile):
    texts = hostile[:180] + hostile[:10] + hostile[-10:]
    np.testing.assert_allclose(self_bleu(texts), sacrebleu_loop(texts), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "texts",
    [
        ["a b c d e"] * 3,
        ["a b c d a b c d", "a b c d", "a a a a", "b"],
        ["a a a b", "a a", "a a a a a"],
        ["", "", "a"],
        ["a", "b"],
        ["the cat sat", "the cat sat on the mat today", "cat the sat"],
    ],
)
def test_equal_to_sacrebleu_where_counts_clip(texts):
    np.testing.assert_allclose(self_bleu(texts), sacrebleu_loop(texts), rtol=0, atol=1e-9)


def test_a_chain_does_not_depend_on_the_others(hostile):
    chains = [hostile[:100], [], hostile[50:180], ["a"], hostile[:100]]
    together = self_bleu(chains)
    assert [len(scores) for scores in together] == [100, 0, 130, 1, 100]
    for chain, scores in zip(chains, together, strict=True):
        np.testing.assert_array_equal(scores, self_bleu(chain))


def test_collapsed_output_has_stated_values():
    assert self_bleu([]).shape == (0,)
    assert self_bleu(["only one"]).tolist() == [0.0]
    np.testing.assert_array_equal(
        lexical_diversity([[], ["one"], ["", "  "], ["same text"] * 5, ["same", "", "same"]]),
        [0, 0, 0, 0, 0],
    )
    np.testing.assert_array_equal(mean_self_bleu([["a b", "c d"], ["a b", "a b"]]), [0, 1])


def test_lexical_diversity_strips_and_drops_empty_texts_as_the_paper_does(tweets):
    texts = tweets[::60]
    want = 1 - sacrebleu_loop([t.strip() for t in texts]).mean()
    assert lexical_diversity([f"  {t}\n" for t in texts] + ["", " \n"]) == pytest.approx(
        want, abs=1e-9
    )


def test_time_grows_with_the_number_of_texts_and_not_with_its_square(human):
    texts = human("senate_tweets/tweets.jsonl", 20_000)

    def best(n):
        times = []
        for _ in range(3):
            start = time.process_time()
            self_bleu(texts[:n])
            times.append(time.process_time() - start)
        return min(times)

    best(1000)
    assert best(20_000) / best(2500) < 30  # 8 times the texts; 64 if quadratic
