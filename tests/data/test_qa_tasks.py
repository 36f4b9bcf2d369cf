"""Tasks as prompts and texts: files as on the hub, real files, and what is refused."""

import gc
import json
import tracemalloc

import pandas as pd
import pytest

from jaxloop.data import qa_tasks
from tests.peers import require

SCIQ = {
    "question": "What is water?",
    "distractor3": "a",
    "distractor1": "b",
    "distractor2": "c",
    "correct_answer": "a liquid",
    "support": "Water is wet.",
}
GSM8K = {"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"}
ARC = {
    "id": "x",
    "question": "Which?",
    "choices": {"text": ["this", "that"], "label": ["1", "2"]},
    "answerKey": "2",
}


def file(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    "task, row, options, expected",
    [
        ("sciq", SCIQ, {}, ("Question: What is water?\nAnswer:", " a liquid")),
        (
            "sciq",
            SCIQ,
            {"prompt": "{support}\n{question}", "text": "\n{answer} (not {distractors})"},
            ("Water is wet.\nWhat is water?", "\na liquid (not b; c; a)"),
        ),
        ("gsm8k", GSM8K, {}, ("Question: 2 + 2?\nAnswer:", " It is <<2+2=4>>4.\n#### 4")),
        ("gsm8k", GSM8K, {"text": " {final}"}, ("Question: 2 + 2?\nAnswer:", " 4")),
        (
            "arc",
            ARC,
            {"prompt": "{question}\n{choices}\n", "text": "{letter}: {answer}"},
            ("Which?\n1. this\n2. that\n", "2: that"),
        ),
        (
            "arc",
            {"question": "Which?", "choices": ["this", "that"], "gold": 0},
            {"text": "{letter}: {answer}"},
            ("Question: Which?\nAnswer:", "A: this"),
        ),
        (
            "qa",
            {"question": "Who?", "answer": "She.", "book": "B"},
            {"prompt": "{book}: {question}"},
            ("B: Who?", " She."),
        ),
        (
            "gsm8k",
            GSM8K,
            {"prompt_words": 3},
            ("Question: 2 +", " 2?\nAnswer: It is <<2+2=4>>4.\n#### 4"),
        ),
        ("bookcorpus", {"text": "one two three four"}, {}, ("", "one two three four")),
        (
            "text",
            {"text": " one  two\nthree four"},
            {"prompt_words": 2},
            ("one  two", "\nthree four"),
        ),
    ],
)
def test_formats(tmp_path, task, row, options, expected):
    source, tested = file(tmp_path, [row] * 2), file(tmp_path, [row], "test.jsonl")
    train, test = qa_tasks.load(task, source=source, test_source=tested, held_out=1, **options)
    assert [tuple(r) for r in train.to_numpy()] == [expected] * 2 and tuple(
        test.to_numpy()[0]
    ) == expected


def test_splits_of_a_column_of_two_files_and_at_random(tmp_path):
    rows = [
        {"question": f"q{i}", "answer": f"a{i}", "split": "test" if i % 5 == 0 else "train"}
        for i in range(50)
    ]
    train, test = qa_tasks.load("qa", source=file(tmp_path, rows))
    assert (
        list(test["text"]) == [f" a{i}" for i in range(0, 50, 5)]
        and len(train) == 40
        and train.attrs["report"] == {"rows": 40, "kept": 40}
    )
    bare = [{k: v for k, v in row.items() if k != "split"} for row in rows]
    one, two = file(tmp_path, bare[:30], "one.jsonl"), file(tmp_path, bare[30:], "two.jsonl")
    train, test = qa_tasks.load("qa", source=one, test_source=two, held_out=5, limit=7)
    assert list(test["text"]) == [f" a{i}" for i in range(30, 35)] and list(train["text"]) == [
        f" a{i}" for i in range(7)
    ]
    train, test = qa_tasks.load("qa", source=one, held_out=10)
    again, same = qa_tasks.load("qa", source=one, held_out=10)
    assert (
        set(train["text"]) | set(test["text"]) == {f" a{i}" for i in range(30)} and len(train) == 20
    )
    assert list(test["text"]) == list(same["text"]) and list(train["text"]) == list(
        again["text"]
    ) == sorted(train["text"], key=lambda t: int(t[2:]))


def test_long_prompts_and_short_texts_are_dropped_and_counted(tmp_path):
    path = file(tmp_path, [{"text": " ".join("w" * n for n in range(1, k))} for k in range(2, 12)])
    train, _ = qa_tasks.load(
        "text",
        source=path,
        held_out=1,
        prompt_words=4,
        count_tokens=lambda texts: [len(t) for t in texts],
        max_prompt_tokens=13,
    )
    report = train.attrs["report"]
    assert report == {
        "rows": 10,
        "at most 4 words": 4,
        "prompt longer than 13 tokens": 0,
        "kept": 5,
    }
    with pytest.raises(ValueError, match="leaves no row .*prompt longer than 3 tokens: 6"):
        qa_tasks.load(
            "text",
            source=path,
            held_out=1,
            prompt_words=4,
            count_tokens=lambda texts: [len(t) for t in texts],
            max_prompt_tokens=3,
        )


def test_short_rows_are_joined_and_no_more_is_read_than_is_asked_for(tmp_path):
    path = file(tmp_path, [{"text": f"s{i} word "} for i in range(101)])
    train, test = qa_tasks.load("bookcorpus", source=path, join_words=10, held_out=4)
    assert (
        len(train) == 16
        and len(test) == 4
        and set(train["text"]) >= {" ".join(f"s{i} word" for i in range(5))} - set(test["text"])
    )
    train, test = qa_tasks.load("bookcorpus", source=path, join_words=10, held_out=4, limit=3)
    assert (len(train), len(test)) == (3, 4) and train.attrs["report"]["rows"] == 7


SENTENCES = 10_000


def corpus(folder, kind):
    """A corpus of sentences in one of the forms that have a limit, far longer than the limit."""
    texts = [f"this is sentence {i} of the books ." for i in range(SENTENCES)]
    if kind == "folder":
        (folder / "data").mkdir()
        for part in range(4):
            rows = [{"text": text} for text in texts[part::4]]
            file(folder / "data", rows, f"train-0000{part}-of-00004.jsonl")
        return str(folder / "data")
    path = folder / f"corpus.{kind}"
    if kind == "jsonl":
        return str(file(folder, [{"text": text} for text in texts], path.name))
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "csv":
        pd.DataFrame({"text": texts}).to_csv(path, index=False)
    else:
        pd.DataFrame({"text": texts}).to_parquet(path)
    return str(path)


def lengths(texts):
    return [len(text.split()) for text in texts]


LIMITED = {
    "held_out": 20,
    "limit": 30,
    "prompt_words": 4,
    "join_words": 32,
    "count_tokens": lengths,
    "max_prompt_tokens": 8,
}


@pytest.mark.parametrize(
    "kind",
    [
        "jsonl",
        "parquet",
        "folder",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("csv", "txt")),
    ],
)
def test_a_limit_stops_the_reading(tmp_path, kind):
    """With the limit on prompts, too, that every study sets: memory is that of the rows kept."""
    source = corpus(tmp_path, kind)
    qa_tasks.load("bookcorpus", source=source, **LIMITED)  # imports
    peaks = []
    for limit in (30, None):
        gc.collect()
        tracemalloc.start()
        options = LIMITED | {"limit": limit}
        train, test = qa_tasks.load("bookcorpus", source=source, **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(test) == 20
        if limit:
            # 50 texts of four sentences each were read, and what shares the file's block.
            assert len(train) == 30 and train.attrs["report"]["rows"] == 50
    # csv files are read in blocks of 4 MB, of which this file is one.
    assert len(train) > 2000 and (kind == "csv" or peaks[0] < peaks[1] / 2)


def test_a_limit_of_a_split_reads_no_spare_rows(tmp_path):
    rows = [GSM8K | {"split": "test" if i % 2 else "train"} for i in range(100)]
    path = file(tmp_path, rows)
    train, test = qa_tasks.load("gsm8k", source=path, held_out=5, limit=7)
    assert (len(train), len(test)) == (7, 5) and train.attrs["report"]["rows"] == 7


def test_a_limit_streams_from_the_hub_and_falls_back_to_what_is_here(monkeypatch):
    read, calls = [], []

    def rows():
        for i in range(10**9):
            read.append(i)
            yield {"text": f"this is sentence {i} of the books ."}

    def load_dataset(*_, streaming=False, revision=None, **__):
        calls.append((streaming, revision))
        if streaming and offline:
            raise ConnectionError("Couldn't reach the Hugging Face Hub")
        if streaming:
            return datasets.IterableDataset.from_generator(rows)
        return datasets.Dataset.from_list([{"text": f"line {i} here ."} for i in range(900)])

    (datasets,) = require("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    offline = False
    train, test = qa_tasks.load("bookcorpus", **LIMITED)
    assert (len(train), len(test)) == (30, 20) and len(read) < 5 * 1024
    assert calls == [(True, "refs/convert/parquet")]
    offline, calls[:] = True, []
    train, _ = qa_tasks.load("bookcorpus", **LIMITED)
    assert len(train) == 30 and calls == [
        (True, "refs/convert/parquet"),
        (False, "refs/convert/parquet"),
    ]


def test_the_real_files(shared):
    train, test = qa_tasks.load("gsm8k", source=str(shared("data/gsm8k/gsm8k.jsonl")))
    assert (len(train), len(test)) == (7473, 1319) and all("####" in t for t in test["text"])
    easy, test = qa_tasks.load("arc", source=str(shared("data/arc/arc.jsonl")))
    hard, _ = qa_tasks.load("arc", source=str(shared("data/arc/arc.jsonl")), name="ARC-Challenge")
    assert (len(easy), len(test), len(hard)) == (2251, 2376, 1119)
    train, test = qa_tasks.load(
        "text",
        source=str(shared("data/gutenberg_books/paragraphs.jsonl")),
        held_out=100,
        prompt_words=12,
    )
    assert len(test) == 100 and all(
        len(p.split()) == 12 and t[0].isspace() for p, t in train.head(200).to_numpy()
    )


@pytest.mark.parametrize(
    "rows, options, said",
    [
        ([SCIQ | {"correct_answer": ""}], {"task": "sciq"}, "row 1 of .* has no correct_answer"),
        (
            [GSM8K, {"question": "q"}],
            {"task": "gsm8k"},
            "row 2 of .* has no column 'answer'; its columns are question",
        ),
        (
            [ARC | {"answerKey": "7"}],
            {"task": "arc"},
            "row 1 of .* has no answer among its choices",
        ),
        (
            [{"question": "q", "choices": ["a"], "gold": 4}],
            {"task": "arc"},
            "has no answer among its choices",
        ),
        (
            [{"question": "q", "choices": ["a", "b"], "gold": -1}],
            {"task": "arc"},
            "row 1 of .* has no answer among its choices",
        ),
        (
            [{"question": "q", "choices": ["a", "b"], "gold": "A"}],
            {"task": "arc"},
            "row 1 of .* has no answer among its choices",
        ),
        (
            [GSM8K] * 3,
            {"task": "gsm8k", "prompt": "{questoin}"},
            "a format names 'questoin', which is no field of it; there are answer",
        ),
        (
            [GSM8K] * 3,
            {"task": "gsm8k"},
            "has 3 rows and no test split: give a test source, or how many",
        ),
        ([GSM8K | {"split": "train"}], {"task": "gsm8k"}, "has no row of split 'test'"),
        ([GSM8K], {"task": "trivia"}, "task 'trivia': must be one of sciq, gsm8k"),
        ([GSM8K], {"task": "qa", "source": None}, "has no source of its own"),
        ([GSM8K], {"task": "qa", "max_prompt_tokens": 3}, "max_prompt_tokens needs count_tokens"),
    ],
)
def test_refusals(tmp_path, rows, options, said):
    options = {"source": file(tmp_path, rows)} | options
    with pytest.raises(ValueError, match=said) as error:
        qa_tasks.load(**options)
    assert "\n" not in str(error.value)
