"""What judges are asked, and the scores in what they reply."""

import numpy as np
import pytest

from jaxloop.metrics.endpoint import Reply
from jaxloop.metrics.judge_replies import POLITICAL_LEAN, QUALITY, from_replies, parse_reply


def test_prompts_are_the_papers():
    message = QUALITY.messages("{text} here")
    assert [m["role"] for m in message] == [
        "system"
    ] and "Post: {text} here\n\nReply ONLY with the integer score (0-100)." in message[0]["content"]
    system, user = POLITICAL_LEAN.messages("vote")
    assert system["content"].endswith(
        "(0-100 or -1). DO NOT reply with text. Here is the text:"
    ) and user == {"role": "user", "content": "vote"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 0\n", 0),
        ("100.", 100),
        ("70/100", 70),
        ("42\nbecause", 42),
        ("101", None),
        ("-1", None),
        ("8 5", None),
        ("85 because", None),
        ("", None),
        ("about 70", None),
        ("7.5", None),
        ("٤٢", None),
        ("-5", None),
        ("1e2", None),
    ],
)
def test_replies_are_parsed_and_never_guessed(reply, score):
    assert parse_reply(reply) == score


def test_minus_one_only_where_the_prompt_allows_it():
    assert parse_reply("-1", none=True) == -1 and parse_reply("-2", none=True) is None


def shares(**tokens):
    return tuple((token.removeprefix("t"), np.log(p)) for token, p in tokens.items())


def test_expected_scores_of_replies_that_were_drawn():
    """One that is not the likeliest takes the means of no other away; digits alone have none."""
    likeliest = Reply("70", shares(t70=0.8, t60=0.2))
    drawn = Reply("72", shares(t70=0.41, t72=0.4, t7=0.01))
    low = Reply("5", shares(t5=0.75, t10=0.25))
    found = from_replies([likeliest, drawn, low], QUALITY, first_token=False)
    assert found.score.tolist() == [70, 72, 5]
    second = (0.41 * 70 + 0.4 * 72 + 0.01 * 7) / 0.82
    np.testing.assert_allclose(found.expected, [68, second, 6.25])
    alone = [from_replies([reply], QUALITY, first_token=False) for reply in (likeliest, drawn, low)]
    np.testing.assert_array_equal([one.expected[0] for one in alone], found.expected)
    digits = [Reply("72", shares(t7=0.6, t8=0.4)), Reply("5", shares(t5=0.6, t7=0.4))]
    assert np.isnan(from_replies(digits, QUALITY, first_token=False).expected).all()
