"""Answers about texts that are asked once and survive a kill."""

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxloop.studies.recursive_loops.data import answer_cache, cleaning


class Judge:
    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [math.nan if text == "?" else len(text) / 7 for text in texts]


TEXTS = ["one", "two", "?", "a\ud800b", "one", "", "three"]


def test_each_text_is_asked_once_and_answers_come_back_exactly(tmp_path):
    judge = Judge()
    ask = answer_cache.remembered(judge, tmp_path / "answers.sqlite", name="length", batch=2)
    first = ask(TEXTS)
    np.testing.assert_array_equal(first, [math.nan if t == "?" else len(t) / 7 for t in TEXTS])
    assert judge.asked == list(dict.fromkeys(TEXTS))
    np.testing.assert_array_equal(
        answer_cache.remembered(judge, tmp_path / "answers.sqlite", name="length")(TEXTS[::-1]),
        first[::-1],
    )
    assert len(judge.asked) == 6 and ask([]).shape == (0,)
    answer_cache.remembered(judge, tmp_path / "answers.sqlite", name="another")(["one"])
    assert judge.asked[6:] == ["one"]


def test_a_kill_loses_one_batch(tmp_path):
    code = """
import os, signal, sys
from jaxloop.studies.recursive_loops.data.answer_cache import remembered
calls = []
def judge(texts):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(t) for t in texts]
remembered(judge, sys.argv[1], name="n", batch=10)([str(i) for i in range(100)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.sqlite")], env=os.environ, check=False
    )
    assert done.returncode == -signal.SIGKILL
    asked = []

    def judge(texts):
        asked.extend(texts)
        return [float(t) for t in texts]

    found = answer_cache.remembered(judge, tmp_path / "a.sqlite", name="n", batch=10)(
        [str(i) for i in range(100)]
    )
    assert found.tolist() == list(range(100)) and asked == [str(i) for i in range(30, 100)]


def test_a_rule_of_a_cleaning_stream_asks_only_for_what_is_new(tmp_path):
    judge = Judge()
    english = answer_cache.remembered(judge, tmp_path / "a.sqlite", name="english")
    step = cleaning.keep_batches("not English", lambda texts: english(texts) > 0.3)
    texts = ["aaa", "b", "cccc"]
    (batch,) = cleaning.clean([{"text": texts}], [step], {})
    assert batch["text"] == ["aaa", "cccc"]
    (batch,) = cleaning.clean([{"text": [*texts, "dddd"]}], [step], {})
    assert batch["text"] == ["aaa", "cccc", "dddd"]
    assert judge.asked == ["aaa", "b", "cccc", "dddd"]


def test_bad_answers_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"annotation 'bad': gave the shape \(1,\) for 2 texts"):
        answer_cache.remembered(lambda texts: [1.0], tmp_path / "a.sqlite", name="bad")(["a", "b"])
    (tmp_path / "b.sqlite").write_text(
        "this is no database, not at all, and it is long enough to be read as one" * 20
    )
    with pytest.raises(ValueError, match="b.sqlite cannot be used .* delete it to ask again"):
        answer_cache.remembered(Judge(), tmp_path / "b.sqlite", name="n")(["a"])
