"""Every kind of source: what comes out is what is in it, and what is wrong with it is said in one
sentence.
"""

import csv
import gzip
import json
import random

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxloop.data import docs, fingerprint, load_texts, reading
from jaxloop.data.dialect import Dialect
from jaxloop.data.sources import rows

HOSTILE = [
    "NA",
    "null",
    "",
    "nan",
    "None",
    "=1+1",
    "<script>alert('x')</script>",
    "a\x00b",
    "carriage\rreturn",
    "both\r\nends",
    "\x1a escape \x1ar \x1az",
    "line\u2028separator and \x85 and \x0b\x0c\x1c",
    '"quoted", with, commas',
    "tab\there",
    "\ufeffmark",
    "x" * 1_000_000,
    "emoji \U0001f600",
    "'; DROP TABLE texts; --",
    " leading and trailing ",
]
LONE = ["lone \ud800 surrogate", "\udfff", "pair the wrong way \udc00\ud800"]
# What fuzzed texts are made of: what breaks readers of one format or another, and ordinary letters.
ALPHABET = [
    "a",
    "B",
    "7",
    " ",
    ",",
    '"',
    "\t",
    "\r",
    "\n",
    "\r\n",
    "\x00",
    "\x1a",
    "r",
    "z",
    "\\",
    "\u2028",
    "\x85",
    "é",
    "漢",
    "\U0001f600",
    "NA",
    "{",
    "<",
]


def fuzzed(seed, count=300, extra=()):
    draw = random.Random(seed)
    return [
        "".join(draw.choices(ALPHABET + list(extra), k=draw.randint(0, 12))) for _ in range(count)
    ]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts)))


def write_raw_jsonl(path, texts):
    path.write_bytes(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()
    )


def write_json(path, texts):
    path.write_text(json.dumps([{"text": t} for t in texts], indent=1))


def write_columns(path, texts):
    path.write_text(json.dumps({"id": list(range(len(texts))), "text": texts}))


def write_csv(path, texts, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


def write_tsv(path, texts):
    write_csv(path, texts, "\t")


def write_quoted_csv(path, texts):
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        writer.writerow(["text", "id"])
        writer.writerows((t, i) for i, t in enumerate(texts))


def write_parquet(path, texts):
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path)


WRITERS = {
    ".jsonl": write_jsonl,
    ".raw.jsonl": write_raw_jsonl,
    ".json": write_json,
    ".columns.json": write_columns,
    ".csv": write_csv,
    ".quoted.csv": write_quoted_csv,
    ".tsv": write_tsv,
    ".parquet": write_parquet,
}
DIALECTS = {".tsv": Dialect(options=("quotes",))}


@pytest.mark.parametrize("suffix", WRITERS)
def test_hostile_text_comes_back_unchanged(tmp_path, suffix):
    path = tmp_path / f"hostile{suffix}"
    texts = HOSTILE + (LONE if suffix in (".jsonl", ".json", ".columns.json") else [])
    WRITERS[suffix](path, texts)
    frame = load_texts(path, dialect=DIALECTS.get(suffix, Dialect()))
    assert frame["text"].tolist() == texts
    assert all(type(t) is str for t in frame["text"])
    assert set(frame["domain"]) == {path.name.removesuffix(path.suffix)} or suffix.count(".") == 2


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("seed", range(5))
def test_any_text_comes_back_unchanged(tmp_path, suffix, seed):
    escaped = suffix in (".jsonl", ".json", ".columns.json")
    texts = fuzzed(seed, extra=["\ud800.", "\udfff"] if escaped else [])
    path = tmp_path / f"fuzz{suffix}"
    WRITERS[suffix](path, texts)
    frame = load_texts(path, dialect=DIALECTS.get(suffix, Dialect()))
    assert frame["text"].tolist() == texts
    expected = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    assert frame.attrs["fingerprint"] == fingerprint(expected)


def test_one_cell_limit_stays_as_it_was(tmp_path):
    limit = csv.field_size_limit()
    write_csv(tmp_path / "a.csv", HOSTILE)
    load_texts(tmp_path / "a.csv")
    assert csv.field_size_limit() == limit


def test_text_files_are_cut_at_blank_lines(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_bytes(
        (
            "\ufeffFirst line\r\nsecond line\r\n\r\n \t\r\n"
            "Next\u2028paragraph\n\n\nLast, without end"
        ).encode()
    )
    frame = load_texts(path)
    assert frame["text"].tolist() == [
        "First line\nsecond line",
        "Next\u2028paragraph",
        "Last, without end",
    ]
    assert set(frame["domain"]) == {"novel"}


def test_compressed_files_and_one_object_per_line_under_the_name_json(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert load_texts(tmp_path / "a.jsonl.gz")["text"].tolist() == ["one", "two"]
    assert set(load_texts(tmp_path / "a.jsonl.gz")["domain"]) == {"a"}
    (tmp_path / "b.json").write_text('{"text": "one"}\n{"text": "two", "more": 1}\n')
    assert load_texts(tmp_path / "b.json")["text"].tolist() == ["one", "two"]
    (tmp_path / "c.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a file type"):
        list(reading.read_rows(tmp_path / "c.gz"))
    (tmp_path / "d.csv.gz").write_bytes(b"this is no gzip file")
    with pytest.raises(ValueError, match=r"d.csv.gz': cannot be read"):
        load_texts(tmp_path / "d.csv.gz")


def words(texts):
    return [len(t.split()) for t in texts]


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_filters_columns_and_report(tmp_path):
    path = table(
        tmp_path / "posts.parquet",
        body=["a b", "a b c", None, "a b c d", "", "a b c d e", "x y z"],
        label=["u", "v", "v", "v", "u", "v", "w"],
        ask=["p"] * 7,
        score=list(range(7)),
    )
    frame = load_texts(
        path,
        text_column="body",
        prompt_column="ask",
        domain_column="label",
        domains=["u", "v"],
        keep_columns=["score"],
        min_tokens=2,
        max_tokens=5,
        count_tokens=words,
    )
    assert list(frame.columns) == ["text", "domain", "prompt", "score"]
    assert frame["text"].tolist() == ["a b c", "a b c d"] and frame["score"].tolist() == [1, 3]
    assert frame.attrs["report"] == {
        "rows": 7,
        "no text": 1,
        "other domains": 1,
        "at most 2 tokens": 2,
        "at least 5 tokens": 1,
        "kept": 2,
    }
    assert len(load_texts(path, text_column="body", limit=2)) == 2
    assert load_texts(path, text_column="body")["text"].tolist().count("") == 1


def test_counting_survives_lone_surrogates(tmp_path):
    def strict(texts):
        return [len(t.encode()) for t in texts]

    write_jsonl(tmp_path / "a.jsonl", LONE)
    frame = load_texts(tmp_path / "a.jsonl", min_tokens=0, count_tokens=strict)
    assert frame["text"].tolist() == LONE
    with pytest.raises(ValueError, match="gave 0 numbers for 3 texts"):
        load_texts(tmp_path / "a.jsonl", min_tokens=0, count_tokens=lambda texts: [])


def test_only_what_is_needed_is_read(tmp_path):
    path = tmp_path / "broken_later.jsonl"
    path.write_text('{"text": "one"}\n' * 3 + "this is no JSON\n")
    assert len(load_texts(path, limit=3)) == 3
    with pytest.raises(ValueError, match="line 4 is not valid JSON"):
        load_texts(path, limit=4)


def test_docs_is_a_source():
    frame = load_texts("docs:networkx, nltk", limit=3000)
    assert set(frame["domain"]) == {"networkx", "nltk"}
    expected = docs.load(["nltk", "networkx"])
    assert frame["text"].tolist() == expected["text"].tolist()[:3000]
    scipy = load_texts("docs", domains=["scipy"])
    assert scipy.attrs["fingerprint"] == fingerprint(docs.load(["scipy"])) and set(
        scipy["domain"]
    ) == {"scipy"}
    with pytest.raises(ValueError, match="did you mean 'numpy'"):
        load_texts("docs:nunpy")


def save(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["one", None, "NA", "four"], "label": [0, 1, 1, 0]})
    datasets.DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "plain"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", ["one", "two"])
    return tmp_path / "saved", folder


def test_folders_that_datasets_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    saved, plain = save(tmp_path)
    assert load_texts(saved)["text"].tolist() == ["one", "NA", "four"]
    assert load_texts(saved, split="test", domain_column="label")["domain"].tolist() == ["0"]
    for streaming in (False, True):
        assert load_texts(plain, streaming=streaming)["text"].tolist() == ["one", "two"]
    with pytest.raises(
        ValueError, match=r"data.split = 'dev' is not one of its splits .*train.*test"
    ):
        load_texts(saved, split="dev")
    with pytest.raises(ValueError, match=r"data.split = 'dev' is not one of its splits"):
        load_texts(plain, split="dev")
    with pytest.raises(ValueError, match=r"data.name = 'tiny' is not one of its configurations"):
        load_texts(plain, name="tiny")
    with pytest.raises(
        ValueError,
        match=r"data.text_column = 'txt': .* has the columns text, label; did you mean 'text'",
    ):
        load_texts(saved, text_column="txt")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing': this folder has no data file"):
        load_texts(tmp_path / "nothing")


def test_hub_arguments_reach_datasets_and_no_remote_code_is_asked_for(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["a", "b"], "id": [1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    frame = load_texts("owner/data-set", split="test", name="en", revision="abc", streaming=True)
    assert calls == [
        (("owner/data-set", "en"), {"split": "test", "revision": "abc", "streaming": True})
    ]
    assert frame["text"].tolist() == ["a", "b"] and set(frame["domain"]) == {"data-set"}


@pytest.mark.parametrize(
    "error, message",
    [
        (
            datasets.exceptions.DatasetNotFoundError("gone"),
            "has no such dataset at revision 'v2', or it needs a login",
        ),
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'a/b' is a gated dataset on the Hub."
            ),
            "it is gated on the Hugging Face hub: ask for access on its page, then set HF_TOKEN",
        ),
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"),
            "the Hugging Face hub cannot be reached",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found b.py"),
            "remote code is never run",
        ),
        (KeyError("surprise"), "`datasets` cannot read it .KeyError"),
    ],
)
def test_hub_errors_are_one_sentence(monkeypatch, error, message):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=message) as caught:
        load_texts("a/b", revision="v2")
    assert str(caught.value).startswith("data.source = 'a/b': ") and "\n" not in str(caught.value)


def test_an_unreachable_hub_is_named():
    """Without a network (or with HF_HUB_OFFLINE, as the tests are run) the hub cannot be reached;
    with one it does not know the id.
    """
    with pytest.raises(
        ValueError,
        match="the Hugging Face hub (cannot be reached and the dataset is not in the local "
        "cache|has no such)",
    ):
        load_texts("nobody-at-all/no-such-dataset")


BAD = {
    "missing.jsonl": (None, r"missing.jsonl': there is no such file\.$"),
    "empty.jsonl": (b"", "the file is empty"),
    "blank.jsonl": (b"\n \n", "the dataset is empty"),
    "header.csv": (b"text,id\n", "the dataset is empty"),
    "blank.txt": (b"\n\n", "the dataset is empty"),
    "list.json": (b"[]", "the dataset is empty"),
    "latin.jsonl": (
        '{"text": "one"}\n{"text": "café"}\n'.encode("latin-1"),
        r"not UTF-8 at line 2, byte 29 \(0xe9\)",
    ),
    "latin.csv": ("text\nab\nçd\n".encode("latin-1"), r"not UTF-8 at line 3, byte 8 \(0xe7\)"),
    "latin.txt": (b"ab\n\n\xff\xfe", r"not UTF-8 at line 3, byte 4"),
    "latin.json": (b'[{"text": "\xe9"}]', "not UTF-8 at line 1, byte 11"),
    "utf16.csv": ("text\na\n".encode("utf-16"), "not UTF-8 at line 1, byte 0"),
    "array.jsonl": (
        b'{"text": "a"}\n["b"]\n',
        "line 2 is a JSON array; every line must be an object",
    ),
    "half.jsonl": (b'{"text": "a"}\n{"text": "b', "line 2 is not valid JSON"),
    "number.json": (b"17", "holds a JSON number"),
    "uneven.json": (b'{"text": ["a", "b"],\n "id": [1]}', "not equally long columns"),
    "typed.jsonl": (
        b'{"text": "a"}\n{"text": ["b"]}\n',
        r"data.text_column = 'text': row 2 of .* has list \"\['b'\]\" there; a text must be a "
        r"string",
    ),
    "other.jsonl": (
        b'{"tekst": "a", "id": 1}\n',
        "data.text_column = 'text': .* has the columns tekst, id; did you mean 'tekst'",
    ),
    "none.jsonl": (b'{"text": null}\n', r"the filters drop all of its 1 rows \(no text: 1\)"),
    "ragged.csv": (b"text,id\na,1\nb\n", "the row that ends at line 3 has 1 cells, the header 2"),
    "open.csv": (b'text,id\n"a,1\nb,2\n', "is not well-formed"),
    "twice.csv": (b"text,text\na,b\n", "the header line has 'text' twice"),
    "fake.parquet": (b"PAR1 this is no parquet file", "cannot be read as parquet"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
    "text.docx": (b"x", "not a file type that is read; allowed are .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_texts(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_bad_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    binary = pa.array([b"ok", b"\xff\xfe"], pa.binary())
    pq.write_table(pa.table({"text": binary}), path)
    with pytest.raises(ValueError, match="column 'text' is not UTF-8"):
        load_texts(path)
    pq.write_table(
        pa.table({"text": ["word " * 50] * 500}),
        path,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="a.parquet': cannot be read as parquet"):
        load_texts(path)


def test_bad_arguments_are_refused(tmp_path):
    path = table(tmp_path / "a.parquet", text=["a b c"] * 3, label=["x", "x", "y"], n=[1, 2, 3])
    with pytest.raises(
        ValueError, match=r"filters drop all of its 3 rows \(at most 20 tokens: 3\)"
    ):
        load_texts(path, min_tokens=20, count_tokens=words)
    (tmp_path / "lines.txt").write_text("a b\nc d\n")
    with pytest.raises(ValueError, match=r"its 1 rows .*; in a .txt file an empty line parts two"):
        load_texts(tmp_path / "lines.txt", max_tokens=3, count_tokens=words)
    with pytest.raises(ValueError, match=r"\(at least 2 tokens: 3\)"):
        load_texts(path, max_tokens=2, count_tokens=words)
    with pytest.raises(ValueError, match="need count_tokens"):
        load_texts(path, min_tokens=20)
    with pytest.raises(ValueError, match="data.limit = 0: must be at least 1"):
        load_texts(path, limit=0)
    with pytest.raises(
        ValueError,
        match="data.domain_column = 'lable': .* columns text, label, n; did you mean 'label'",
    ):
        load_texts(path, domain_column="lable")
    with pytest.raises(
        ValueError, match="data.keep_columns = 'm': .* has the columns text, label, n"
    ):
        load_texts(path, keep_columns=["m"])
    with pytest.raises(
        ValueError,
        match="data.prompt_column = 'n': .* has int '1' there; a prompt must be a string",
    ):
        load_texts(path, prompt_column="n")
    with pytest.raises(
        ValueError, match="data.domains: .* has no row of the domain 'z'; it has 'x', 'y'"
    ):
        load_texts(path, domain_column="label", domains=["x", "z"])
    with pytest.raises(ValueError, match="neither 'docs', nor a file that exists"):
        load_texts("not a dataset/at all/really")
    with pytest.raises(ValueError, match="there is no such file, nor a folder"):
        load_texts(tmp_path / "no" / "a.csv")
    with pytest.raises(
        ValueError, match=r"there is no such file; the nearest name is '.*a\.parquet'"
    ):
        load_texts(tmp_path / "a.parqet.parquet")
    with pytest.raises(ValueError, match="neither 'docs', nor a file that exists"):
        load_texts("typo.docx")


def test_rows_stream_without_reading_ahead(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 1}\nno JSON\n')
    stream = rows(path)
    assert next(stream) == {"text": "one", "n": 1}
    with pytest.raises(ValueError, match="line 2"):
        next(stream)


REAL = {
    "senate_tweets/tweets.jsonl": ("text", 57_663),
    "tweeteval/tweets.jsonl": ("text", 30_000),
    "reddit_top/selfposts.jsonl": ("text", 10_000),
    "reddit_top/tldr_pairs.jsonl": ("content", 4_000),
    "wikipedia_boolq/paragraphs.jsonl": ("text", 12_931),
    "narrativeqa/documents.csv": ("wiki_title", 50),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_pandas_reads_them(shared, name):
    path = shared(f"data/{name}")
    column, count = REAL[name]
    frame = load_texts(path, text_column=column)
    reader = (
        pd.read_csv if path.suffix == ".csv" else lambda p: pd.read_json(p, lines=True, dtype=False)
    )
    expected = reader(path)[column].tolist()
    assert len(frame) >= count and frame["text"].tolist() == expected


def test_domains_of_a_real_file(shared):
    frame = load_texts(
        shared("data/senate_tweets/tweets.jsonl"),
        domain_column="party",
        domains=["D", "R"],
        keep_columns=["senator", "date"],
    )
    assert set(frame["domain"]) == {"D", "R"} and frame.attrs["report"]["other domains"] > 0
    assert frame["date"].str.match(r"\d{4}-\d\d-\d\d").all()
