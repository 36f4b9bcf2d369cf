"""What judges are asked, and the scores in what they reply."""

import pytest

from jaxloop.metrics.judge_replies import POLITICAL_LEAN, QUALITY, parse_reply


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
