"""Loss, perplexity and tail mass from nats: sums are weighted by tokens, means by texts."""

from collections import namedtuple

import numpy as np
import pytest

from jaxloop.metrics import losses as ls

Result = namedtuple("Result", "nll tokens")


def test_loss_is_per_token_and_perplexity_its_exponential():
    chains = [Result([2.0, 4.0], [1, 3]), ([0.0], [5]), Result([], []), ([0.0, 1.0], [0, 1])]
    np.testing.assert_allclose(ls.held_out_loss(chains), [1.5, 0, np.nan, 1])
    np.testing.assert_allclose(ls.perplexity(chains), np.exp([1.5, 0, np.nan, 1]))
    np.testing.assert_allclose(
        ls.mean_text_perplexity(chains), [(np.exp(2) + np.exp(4 / 3)) / 2, 1, np.nan, np.e]
    )
    np.testing.assert_allclose(ls.text_perplexities(chains)[3], [np.nan, np.e])


def test_a_uniform_model_has_its_vocabulary_as_perplexity():
    tokens = np.array([3, 10, 50])
    chain = [(tokens * np.log(4096), tokens)]
    assert ls.perplexity(chain)[0] == pytest.approx(4096)
    assert ls.mean_text_perplexity(chain)[0] == pytest.approx(4096)


def test_tail_mass_is_the_share_of_tokens_below_the_probability():
    chain = [-np.log([0.5, 0.02, 0.001]), -np.log([0.009]), np.array([np.nan])]
    np.testing.assert_allclose(ls.tail_mass([chain, []], 0.01), [0.5, 0])
    np.testing.assert_allclose(ls.tail_mass([chain], 0.0005), [0])


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: ls.held_out_loss([([1.0], [1, 2])]),
            r"losses\[0\] has nll \[1\] and tokens \[2\]",
        ),
        (lambda: ls.tail_mass([[]], 1.5), "probability is 1.5, a number between 0 and 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
