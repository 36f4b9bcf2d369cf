"""Where the texts of the decoding loop end, how tokens are drawn, how many steps it takes: compiled
the short way.
"""

import functools

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxloop.lm.generation import decode_loop
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.prefill import prefill
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slots import DecodeShape
from tests.lm.generation.test_decode_loop import (
    GREEDY,
    LLAMA,
    RAGGED,
    RAGGED_SHAPE,
    decode,
    forward,
    init,
    jobs_of,
    prompt_table,
    requests_of,
)


def test_a_text_ends_with_the_first_of_several_ends():
    """Greedy, so a text that stops later, or never, begins with the one that stops first."""
    params = init(jax.random.key(0), LLAMA)
    cached = prefill(LLAMA, params, None, *prompt_table(RAGGED, 6))
    write = functools.partial(decode, LLAMA, GREEDY, RAGGED_SHAPE)
    given = params, None, cached, requests_of(range(6), [11] * 6), jobs_of([(0, 6, 0)])
    whole = write(None, *given)
    assert whole.length.tolist() == [11] * 6 and not whole.ended.any()
    chosen = {int(whole.tokens[0, 4]), int(whole.tokens[3, 6])}
    for ends in (tuple(chosen), tuple(reversed([*chosen])), next(iter(chosen))):
        out, wanted = write(ends, *given), set(ends) if isinstance(ends, tuple) else {ends}
        for row in range(6):
            text = whole.tokens[row].tolist()
            stop = next((i + 1 for i, token in enumerate(text) if token in wanted), 11)
            assert out.tokens[row, : out.length[row]].tolist() == text[:stop] and bool(
                out.ended[row]
            ) == (text[stop - 1] in wanted)
    assert len(chosen) == 2


def test_sampling_follows_the_model_distribution():
    """First tokens of many rows pass a chi-square test against the probabilities of `forward`."""
    params = init(jax.random.key(0), LLAMA)
    shape = DecodeShape(num_groups=1, slots_per_group=64, window=4, max_new_tokens=1, prompt_len=3)
    cached = prefill(LLAMA, params, None, *prompt_table([[1, 2, 3]], 4))
    n = 6000
    out = decode(
        LLAMA,
        Sampler(temperature=1.3),
        shape,
        -1,
        params,
        None,
        cached,
        requests_of([0] * n, [1] * n),
        jobs_of([(0, n, 0)]),
    )
    expected = np.asarray(
        jax.nn.softmax(forward(LLAMA, params, np.array([[1, 2, 3]]), None)[0, -1] / 1.3),
        np.float64,
    )
    seen = np.bincount(out.tokens[:, 0], minlength=LLAMA.vocab_size)
    large = expected * n >= 5
    counts, means = (
        np.append(seen[large], seen[~large].sum()),
        np.append(expected[large], expected[~large].sum()) / expected.sum() * n,
    )
    assert chisquare(counts, means).pvalue > 1e-3


@pytest.mark.parametrize(
    "loop", [decode_loop.decode, functools.partial(decode_rows, implementation="plain")]
)
def test_repetition_penalty_sees_prompt_and_text(loop):
    """With a huge penalty greedy decoding writes every token at most once, and none of the
    prompt's.
    """
    params = init(jax.random.key(0), LLAMA)
    shape = DecodeShape(num_groups=1, slots_per_group=2, window=4, max_new_tokens=20, prompt_len=3)
    cached = prefill(LLAMA, params, None, *prompt_table([[1, 2, 3]], 4))
    sampler = Sampler(greedy=True, repetition_penalty=1e6)
    out = decode(
        LLAMA,
        sampler,
        shape,
        -1,
        params,
        None,
        cached,
        requests_of([0] * 3, [20, 13, 20]),
        jobs_of([(0, 3, 0)]),
        loop=loop,
    )
    for row, n in enumerate((20, 13, 20)):
        text = out.tokens[row, :n].tolist()
        assert len(set(text)) == n and not set(text) & {1, 2, 3}
    assert out.tokens[0].tolist() == out.tokens[2].tolist()


def test_useful_share_is_counted_in_steps():
    params = init(jax.random.key(0), LLAMA)
    shape = DecodeShape(num_groups=1, slots_per_group=4, window=4, max_new_tokens=8, prompt_len=3)
    cached = prefill(LLAMA, params, None, *prompt_table([[1, 2, 3]], 4))
    out = decode(
        LLAMA,
        GREEDY,
        shape,
        -1,
        params,
        None,
        cached,
        requests_of([0] * 8, [8] * 8),
        jobs_of([(0, 8, 0)]),
    )
    assert int(out.steps.sum()) == 16
