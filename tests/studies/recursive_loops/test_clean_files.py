"""Cleaning in parts that a stopped run need not clean again; fast counts and languages."""

import json
import random

import py3langid
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxloop.data import load_texts
from jaxloop.data.batches import Shard, as_columns, rows_of
from jaxloop.lm.io import tokenizer
from jaxloop.studies.recursive_loops.data import (
    clean_files,
    cleaning,
    language,
    recipes,
    token_counts,
)
from tests import dumps, hub_tokenizers


def shard(name, texts, read):
    """A shard of these texts; `read` gets the number of every batch that is read of it."""

    def batches():
        for number, batch in enumerate(as_columns({"text": text} for text in texts)):
            read.append((name, number))
            yield batch

    return Shard(name, batches)


def cleaned(shards, folder, **options):
    report = {}
    steps = [cleaning.fewer("#", 1), cleaning.rewrite("upper case", str.upper)]
    batches = clean_files.clean_parts(shards, steps, report, folder, rows_of_a_part=1500, **options)
    return batches, report


def test_cleaning_goes_on_behind_the_last_whole_part(tmp_path):
    names = {"a": 4000, "b": 10, "c": 3000}
    texts = {n: [f"{n}{i}{'#' * (i % 3 == 0)}" for i in range(k)] for n, k in names.items()}
    expected = [t.upper() for n in names for t in texts[n] if "#" not in t]

    def shards(read):
        return [shard(name, texts[name], read) for name in names]

    batches, _ = cleaned(shards([]), tmp_path / "parts")
    assert next(batches)["text"][0] == expected[0]
    batches.close()
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["00000-00000.parquet"]
    read = []
    batches, report = cleaned(shards(read), tmp_path / "parts")
    assert [row["text"] for row in rows_of(batches)] == expected
    # What was clean is not cleaned again, and every row is counted once.
    assert ("b", 0) in read and report["1 or more '#'"] == {
        "in": 7010,
        "dropped": 7010 - len(expected),
        "out": len(expected),
    }
    read.clear()
    batches, again = cleaned(shards(read), tmp_path / "parts")
    assert [row["text"] for row in rows_of(batches)] == expected
    assert again == report and read == []
    # A part of another file is not taken for one of this.
    (tmp_path / "parts/00001-00000.parquet").write_bytes(b"half a file")
    batches, again = cleaned(shards(read), tmp_path / "parts")
    assert [row["text"] for row in rows_of(batches)] == expected and read == [("b", 0)]


@pytest.mark.parametrize("limit", [1, 1500, 1501, 4003, 7010])
def test_a_limit_counts_rows_of_the_source(tmp_path, limit):
    read = []
    shards = [shard("a", [f"a{i}" for i in range(4000)], read), shard("b", ["b"] * 3010, read)]
    batches, report = cleaned(shards, tmp_path, limit=limit)
    assert sum(len(batch["text"]) for batch in batches) == limit
    assert report["1 or more '#'"]["in"] == limit


def test_a_column_that_nobody_reads_may_hold_anything(tmp_path):
    """Reddit's dumps: `edited` is false or a time."""
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    texts = [" ".join(words * 2) + f" {i}" for i in range(60)]
    (path,) = dumps.write(tmp_path, "HuggingFaceGECLM/REDDIT_submissions", texts)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {type(row["edited"]) for row in rows} == {bool, float}
    steps = [cleaning.texts_from("title", "selftext"), cleaning.without(["title", "selftext"])]

    def clean(file):
        shards = recipes.shards_of("reddit_submissions", recipes.Origin((file,)))
        parts = tmp_path / f"parts of {file.name}"
        clean_files.write_parquet(
            tmp_path / "out.parquet", clean_files.clean_parts(shards, steps, {}, parts)
        )
        return pq.read_table(tmp_path / "out.parquet")

    table = clean(path)
    assert table.column_names == ["subreddit", "text"] and len(table) == 60
    rows[41]["subreddit"] = 17
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match="the column 'subreddit' holds int '17' in row 42 of .*bad.jsonl"
    ):
        clean(bad)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_every_reader_takes_the_columns_that_are_needed(tmp_path, form):
    path = tmp_path / f"tweets.{form}"
    table = pa.table({"tweet": ["a b"] * 5, "likes": [1] * 5, "date": ["2019-01-01"] * 5})
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    (one,) = recipes.shards_of("100M_tweets", recipes.Origin((path,)))
    assert list(next(one.read())) == ["tweet", "date"]
    dates = table.set_column(2, "date", pa.array(["2019-01-01"] * 3 + ["May 2019"] * 2))
    pq.write_table(dates, tmp_path / "bad.parquet")
    (one,) = recipes.shards_of("100M_tweets", recipes.Origin((tmp_path / "bad.parquet",)))
    with pytest.raises(ValueError, match="the date 'May 2019' in row 4 of .*bad.parquet"):
        next(one.read())


def test_the_tldr_corpus_is_read_as_it_is_published(tmp_path):
    """A file of JSON lines called .json, without a title; and a parquet conversion of it."""
    (path,) = dumps.write(tmp_path, "webis/tldr-17", ["a post about cats", "one about dogs"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "converted.parquet")
    titled = [row | {"title": "T"} for row in rows]
    pq.write_table(pa.Table.from_pylist(titled), tmp_path / "titled.parquet")
    for file, names in (
        (path, ["normalizedBody", "subreddit"]),
        (tmp_path / "converted.parquet", ["normalizedBody", "subreddit"]),
        (tmp_path / "titled.parquet", ["normalizedBody", "subreddit", "title"]),
    ):
        origin = recipes.Origin((file,))
        (one,) = recipes.shards_of("webis_reddit", origin)
        assert list(next(one.read())) == names
        report = {}
        out = recipes.clean_dataset("webis_reddit", report, count_tokens=all_long, origin=origin)
        found = [text for batch in out for text in batch["text"]]
        title = "T\n\n" if "title" in names else ""
        assert found == [f"{title}a post about cats", f"{title}one about dogs"]


def all_long(texts):
    return [30] * len(texts)


# ---- fast counts


WHITE = ["a  b", " a", "a ", "", " ", "a\nb c", "a\u00a0b c", "a\tb", "a \n b", "x\0y z", "!\n\n b"]


@pytest.mark.parametrize("cut", ["", hub_tokenizers.LLAMA3_CUT, hub_tokenizers.QWEN2_CUT])
def test_words_are_counted_as_texts_are(tmp_path, cut):
    texts = list(load_texts("jaxloop:emotions", limit=500)["text"])
    kind = hub_tokenizers.GPT2._replace(cut=cut)
    hub_tokenizers.write(kind, tmp_path, texts, 2000)
    tokens = tokenizer.load(tmp_path)
    counts = token_counts.counter(tokens)
    assert counts != tokens.count
    draw = random.Random(0)
    odd = ["".join(draw.choices("aB9#'é漢 \n\t\u00a0!.\u0301😀", k=30)) for _ in range(500)]
    for texts_now in (texts, WHITE, odd, texts[:100]):
        assert counts(texts_now) == tokens.count(texts_now)


def test_tokenizers_that_do_not_cut_at_spaces_count_whole_texts(tmp_path):
    hub_tokenizers.write(hub_tokenizers.WordPiece(), tmp_path, ["some text"], 100)
    backend = tokenizer.tokenizer_files.read(tmp_path)
    assert not tokenizer.tokenizer_files.cuts_at_spaces(backend)


def test_languages_are_those_of_py3langid():
    texts = list(load_texts("jaxloop:emotions", limit=800)["text"])
    draw = random.Random(1)
    texts += [
        "".join(draw.choices("abcd éøß漢 the und la", k=draw.randint(0, 40))) for _ in range(500)
    ]
    texts += ["", "A", "ÄÖ", "WHAT IS THIS", "\ud800 x", "x " * 5000, "日本語"]
    expected = [py3langid.classify(t.encode("utf-8", "replace").decode())[0] == "en" for t in texts]
    assert language.english_by_langid(texts) == expected and 0 < sum(expected) < len(texts)
