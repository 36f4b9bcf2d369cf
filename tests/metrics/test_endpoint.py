"""Judges behind an OpenAI-compatible endpoint, on this machine's loopback: order, keys, cache,
retries, scores, metrics.
"""

import contextlib
import logging
import sqlite3
import time

import numpy as np
import pytest

from jaxloop.metrics import registry
from jaxloop.metrics.endpoint import Endpoint, Unreachable, complete
from jaxloop.metrics.judge_replies import POLITICAL_LEAN, QUALITY
from jaxloop.metrics.judges import judge
from tests.metrics.server import Server, completion


def length_of_last_message(body, number):
    return completion(str(min(100, len(body["messages"][-1]["content"]))))


def test_scores_come_back_in_order_and_equal_texts_are_asked_once(monkeypatch):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key\n")
    with Server(length_of_last_message, delay=0.02) as server:
        texts = ["a" * n for n in range(1, 30)] * 2
        found = judge(texts, server.endpoint(concurrency=4), POLITICAL_LEAN)
        assert found.score.tolist() == [float(len(t)) for t in texts]
        assert len(server.requests) == 29 and 1 < server.most <= 4
        path, body = server.requests[0]
        assert (
            path == "/v1/chat/completions"
            and body["model"] == "m"
            and body["temperature"] == 0.01
            and body["top_logprobs"] == 20
        )
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret-key"}


def test_no_key_no_header(monkeypatch):
    monkeypatch.delenv("JAXLOOP_TEST_KEY", raising=False)
    with Server(length_of_last_message) as server:
        complete(server.endpoint(), [QUALITY.messages("x")])
        assert "Authorization" not in server.headers[0]


def test_cache_pays_once_and_holds_neither_key_nor_text(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key")
    file = tmp_path / "new" / "replies.sqlite"
    with Server(length_of_last_message) as server:
        endpoint = server.endpoint(cache=str(file))
        first = judge(["one text", "second"], endpoint, POLITICAL_LEAN)
        again = judge(["second", "one text", "third one"], endpoint, POLITICAL_LEAN)
        assert first.score.tolist() == [8, 6] and again.score.tolist() == [6, 8, 9]
        assert len(server.requests) == 3
        judge(["second"], server.endpoint(cache=str(file), temperature=0.5), POLITICAL_LEAN)
        assert len(server.requests) == 4  # another request is another content
    data = b"".join(f.read_bytes() for f in file.parent.iterdir())
    assert b"secret-key" not in data and b"one text" not in data
    assert "secret-key" not in repr(endpoint)


def test_draws_of_one_conversation_are_asked_each_and_the_endpoint_does_not_see_them(tmp_path):
    asked = [[{"role": "user", "content": "write"}]] * 3
    with Server(lambda body, number: completion(str(number))) as server:
        endpoint = server.endpoint(cache=str(tmp_path / "c.sqlite"), concurrency=1)
        assert len({reply.text for reply in complete(endpoint, asked)}) == 1
        first = [reply.text for reply in complete(endpoint, asked, draws=[5, 6, 5])]
        assert first[0] == first[2] != first[1]
        assert [r.text for r in complete(endpoint, asked[:2], draws=[6, 5])] == first[1::-1]
        assert len(server.requests) == 3
        assert all(body["messages"] == asked[0] for _, body in server.requests)


def test_a_failed_run_keeps_what_was_answered(tmp_path):
    def reply(body, number):
        return completion("50") if number <= 3 else (503, {}, b"")

    with Server(reply) as server:
        endpoint = server.endpoint(cache=str(tmp_path / "c.sqlite"), concurrency=1, retries=1)
        with pytest.raises(
            Unreachable,
            match=r"m at http://127.0.0.1:\d+/v1 did not answer in 2 tries; the last one gave "
            r"status 503",
        ):
            judge([f"text {i}" for i in range(10)], endpoint)
        # One request failed twice, and none was made after it.
        assert len(server.requests) == 5
    with contextlib.closing(sqlite3.connect(tmp_path / "c.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM replies").fetchone() == (3,)


def test_passing_failures_are_tried_again():
    failures = [(429, {"Retry-After": "0"}, b""), (500, {}, b"x"), b"<html>not json</html>"]
    with Server(
        lambda body, number: failures[number - 1] if number <= 3 else completion("12")
    ) as server:
        assert judge(["x"], server.endpoint()).score.tolist() == [12]
        assert len(server.requests) == 4


def test_retry_after_is_waited_for():
    with Server(
        lambda body, number: (429, {"Retry-After": "1"}, b"") if number == 1 else completion("12")
    ) as server:
        begin = time.monotonic()
        judge(["x"], server.endpoint(longest_wait=5.0))
        assert time.monotonic() - begin >= 1.0


def test_a_date_in_retry_after():
    from email.utils import formatdate

    from jaxloop.metrics.endpoint import _retry_after

    assert 25 < _retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert [_retry_after(v) for v in (None, "soon", "-3", "nan", "inf", formatdate(0))] == [0.0] * 6


@pytest.mark.parametrize(
    ("status", "said"), [(401, "JAXLOOP_TEST_KEY"), (404, "status 404"), (302, "status 302")]
)
def test_refusals_are_final_and_redirects_not_followed(monkeypatch, status, said):
    monkeypatch.setenv("JAXLOOP_TEST_KEY", "secret-key")
    with Server(length_of_last_message) as other:
        with Server(
            lambda body, number: (
                status,
                {"Location": other.url + "/chat/completions"},
                b"secret-key?",
            )
        ) as server:
            with pytest.raises(Unreachable, match=said) as caught:
                judge(["x"], server.endpoint())
            assert len(server.requests) == 1 and not other.requests
            assert "secret-key" not in str(caught.value)


def test_silence_times_out():
    with Server(length_of_last_message, delay=2.0) as server:
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="in 1 tries"):
            judge(["x"], server.endpoint(timeout=0.1, retries=0))
        assert time.monotonic() - begin < 1.5


def test_a_closed_port_is_unreachable():
    with Server(length_of_last_message) as server:
        endpoint = server.endpoint(retries=1)
    with pytest.raises(Unreachable, match="did not answer in 2 tries"):
        judge(["x"], endpoint)


def test_expected_score_where_numbers_are_one_token():
    replies = {
        "a": completion("42", ("42", -0.1), ("60", -3.0), ("x", -5.0)),
        "b": completion("7", ("7", -0.2), ("80", -2.0)),
        "c": completion("I cannot", ("I", -0.1), ("70", -3.0)),
        "d": completion("-1", ("-1", -0.1), ("50", -3.0)),
    }
    with Server(lambda body, number: replies[body["messages"][-1]["content"]]) as server:
        found = judge(list("abcd"), server.endpoint(), POLITICAL_LEAN)
    weights = np.exp([-0.1, -3.0])
    assert (
        found.score[:2].tolist() == [42, 7]
        and found.unparsable.tolist() == [False, False, True, False]
        and found.none.tolist() == [False] * 3 + [True]
    )
    assert found.expected[0] == pytest.approx((weights * [42, 60]).sum() / weights.sum())
    assert np.isnan(found.expected[2:]).all()


def test_no_expected_score_where_numbers_are_written_digit_by_digit():
    with Server(lambda body, number: completion("42", ("4", -0.1), ("6", -3.0))) as server:
        found = judge(["a"], server.endpoint())
    assert found.score.tolist() == [42] and np.isnan(found.expected).all()


def test_one_token_replies_as_in_the_papers_code():
    """max_tokens = 1: the first of the top tokens that is a number; "-" is the beginning of -1."""
    replies = [
        completion("The", ("The", -0.1), ("70", -2.0), ("80", -3.0)),
        completion("-", ("-", -0.1), ("50", -2.0)),
        completion("A", ("A", -0.1), ("B", -2.0)),
    ]
    with Server(
        lambda body, number: replies["abc".index(body["messages"][-1]["content"])]
    ) as server:
        found = judge(list("abc"), server.endpoint(max_tokens=1), POLITICAL_LEAN)
    assert (
        found.score[0] == 70
        and found.none.tolist() == [False, True, False]
        and found.unparsable.tolist() == [False, False, True]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(url="localhost:80"), "begins with http"),
        (dict(url="http://me:pw@host/v1"), "environment variable"),
        (dict(model=""), "model is empty"),
        (dict(concurrency=0), "concurrency is 0"),
        (dict(timeout=0), "timeout is 0"),
        (dict(retries=-1), "retries is -1"),
        (dict(temperature=float("nan")), "temperature is nan"),
    ],
)
def test_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Endpoint(**dict(url="http://host/v1", model="m") | changes)


def test_a_cache_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "c").write_text("hello, this is no database at all, not even a little one")
    with pytest.raises(ValueError, match="endpoint.cache is .* cannot be used"):
        complete(
            Endpoint("http://127.0.0.1:1/v1", "m", cache=str(tmp_path / "c")),
            [QUALITY.messages("x")],
        )


# ---- metrics


def test_metrics_of_many_chains(tmp_path):
    replies = {"left": "10", "right": "90", "cat": "-1", "zzz": "what?"}
    chains = [["left", "right", "cat", "zzz"], ["right"], ["cat", "zzz"], []]
    with Server(
        lambda body, number: completion(replies[body["messages"][-1]["content"]])
    ) as server:
        options = f"url={server.url!r}, model='m', cache={str(tmp_path / 'c.sqlite')!r}"
        names = [
            f"judge_political_lean({options})",
            f"judge_not_political({options})",
            f"judge_unparsable(prompt='political_lean', {options})",
        ]
        found = registry.evaluate(names, texts=chains)
        asked = len(server.requests)
        each = registry.evaluate_texts(names[:1], texts=chains)[names[0]]
    assert asked == 4  # three metrics, one judgement
    np.testing.assert_array_equal(found[names[0]], [50, 90, np.nan, np.nan])
    np.testing.assert_array_equal(found[names[1]], [1 / 3, 0, 1, np.nan])
    np.testing.assert_array_equal(found[names[2]], [0.25, 0, 0.5, 0])
    np.testing.assert_array_equal(each[0], [10, 90, -1, np.nan])


def test_an_endpoint_that_is_down_leaves_the_other_metrics(tmp_path, caplog):
    names = [
        f"judge_quality(url='http://127.0.0.1:9/v1', model='m', cache={str(tmp_path / 'c')!r})",
        "text_length",
    ]
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)
        found = registry.evaluate(names, texts=[["one"], ["two", "x"]])
    assert np.isnan(found[names[0]]).all() and found["text_length"].tolist() == [3, 2]
    assert "judge_quality" in caplog.text and "did not answer" in caplog.text


# ---- bad answers


def test_a_long_retry_after_ends_the_tries_at_once():
    with Server(lambda body, number: (429, {"Retry-After": "3600"}, b"")) as server:
        with pytest.raises(Unreachable, match=r"status 429 and asks to be left alone for 3,600 s"):
            judge(["x"], server.endpoint(retries=5))
        assert len(server.requests) == 1


def test_silence_is_said_in_seconds():
    with Server(length_of_last_message, delay=1.0) as server:
        with pytest.raises(Unreachable, match="the last one gave silence for 0.1 s"):
            judge(["x"], server.endpoint(timeout=0.1, retries=0))


def test_the_endpoints_own_words_are_quoted():
    said = b'{"error": {"message": "The model `m` does not exist."}}'
    with Server(lambda body, number: (404, {}, said)) as server:
        with pytest.raises(Unreachable, match=r"status 404 \(The model `m` does not exist\)\.$"):
            judge(["x"], server.endpoint())


def test_the_reading_is_chosen_by_an_option(tmp_path):
    answer = completion("The", ("The", -0.1), ("70", -2.0))
    with Server(lambda body, number: answer) as server:
        options = f"model='m', url={server.url!r}, cache={str(tmp_path / 'c')!r}"
        names = [
            f"judge_quality({options}, reply='first_token')",
            f"judge_quality({options}, reply='short')",
            f"judge_quality({options})",
        ]
        found = registry.evaluate(names, texts=[["a text"]])
        assert [body["max_tokens"] for _, body in server.requests] == [1, 8]
    assert found[names[0]].tolist() == [70] and np.isnan([found[n][0] for n in names[1:]]).all()
    with pytest.raises(ValueError, match="reply is 'long'; allowed are 'first_token', 'short'"):
        registry.check([f"judge_quality({options}, reply='long')"])


def test_replies_that_are_no_score_are_counted_in_one_line(tmp_path, caplog):
    with Server(lambda body, number: completion("I cannot help with that.")) as server:
        options = f"model='m', url={server.url!r}, cache={str(tmp_path / 'c')!r}"
        names = registry.with_unparsable([f"judge_quality({options})"])
        with caplog.at_level(logging.WARNING):
            found = registry.evaluate(names, texts=[["one", "two"]])
    assert found[names[1]].tolist() == [1] and np.isnan(found[names[0]][0])
    assert "2 of 2 replies of m are no score, such as 'I cannot help with that.'" in caplog.text


def test_a_silent_judge_is_asked_briefly_the_next_time_and_fully_once_it_answers(tmp_path):
    with Server(length_of_last_message) as server:
        url = server.url
    options = f"model='m', url={url!r}, cache={str(tmp_path / 'c')!r}"
    name = f"judge_political_lean({options})"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)
        unavailable = {}
        registry.evaluate([name], unavailable=unavailable, texts=[["aa"]])
        assert "in 7 tries" in unavailable[name]
        registry.evaluate([name], unavailable=unavailable, texts=[["aa"]])
        assert "in 2 tries" in unavailable[name]
        port = int(url.split(":")[2].split("/")[0])
        with Server(length_of_last_message, port=port):
            assert registry.evaluate([name], texts=[["aa"]])[name].tolist() == [2]
