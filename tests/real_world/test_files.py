"""Files as people bring them: a row an input, what pandas, datasets or the standard library make of
it, and what we do.

`judge` reads the same file with the library that the user has, told what the file is where it
cannot know; `ours` is RIGHT where we must give the same, or a pattern of the one sentence that
refuses the file. `kwargs` are what a user then adds.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxloop.data import load_texts
from jaxloop.data.dialect import OPTIONS, Dialect

RIGHT = "right"
TEXTS = [
    "The first text, with a comma.",
    'A "quoted" word; here',
    "NA",
    "null",
    "",
    "Zwei\nZeilen, naïve 🙂",
    "  spaces around  ",
    "12",
    "It's 5' 10\" tall",
]
FRAME = pd.DataFrame({"text": TEXTS, "label": [f"l{i % 2}" for i in range(len(TEXTS))]})
PLAIN = [f"A plain text of row {i}" for i in range(1002)]
AS_TEXT = dict(dtype=str, keep_default_na=False)


def dialect(*options, delimiter=None):
    return {"dialect": Dialect(delimiter, options)}


def text(content, name="a.csv"):
    def make(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def frame_csv(name="a.csv", frame=FRAME, **kwargs):
    def make(folder):
        frame.to_csv(folder / name, **kwargs)
        return folder / name

    return make


def csv_judge(**kwargs):
    return lambda path: pd.read_csv(path, **(AS_TEXT | kwargs))["text"].tolist()


def exactly(*texts):
    """Where no library reads it, or reads it otherwise: what a person sees in it."""
    return lambda path: list(texts)


class Row(NamedTuple):
    name: str
    make: Callable
    judge: Callable | None
    ours: str = RIGHT
    kwargs: dict[str, Any] = {}


def lone_quote(folder):
    lines = [f"{i}\t{t}" for i, t in enumerate(PLAIN)]
    lines[4] = '4\t"5 inches, he said'
    (folder / "a.tsv").write_text("\n".join(["id\ttext", *lines]) + "\n")
    return folder / "a.tsv"


def lone_quote_csv(folder):
    lines = [f"{i},{t}" for i, t in enumerate(PLAIN)]
    lines[4], lines[900] = '4,"5 inches he said', '900,6 tall"'
    (folder / "a.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    return folder / "a.csv"


def long_cell(folder):
    frame = pd.DataFrame(
        {"id": [0, 1], "text": ["\n".join(f"line {i}, of a song" for i in range(700)), "short"]}
    )
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def poem(folder):
    frame = pd.DataFrame(
        {
            "id": [0, 1],
            "text": ["Roses are red\nviolets, blue\n\nSugar is sweet, and so\nare you", "x"],
        }
    )
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


CSV = [
    Row("pandas' default, with row numbers", frame_csv(), csv_judge()),
    Row("without row numbers", frame_csv(index=False), csv_judge()),
    Row(
        "an index of two levels",
        frame_csv(frame=FRAME.set_index(["label", FRAME.index])),
        csv_judge(),
    ),
    Row("all cells quoted", frame_csv(index=False, quoting=csv.QUOTE_ALL), csv_judge()),
    Row("CR LF", frame_csv(index=False, lineterminator="\r\n"), csv_judge()),
    Row("a byte order mark", frame_csv(index=False, encoding="utf-8-sig"), csv_judge()),
    Row(
        "semicolons from a European spreadsheet",
        frame_csv(index=False, sep=";"),
        csv_judge(sep=";"),
    ),
    Row(
        "tabs in a .csv",
        frame_csv(frame=pd.DataFrame({"text": PLAIN, "n": range(1002)}), index=False, sep="\t"),
        csv_judge(sep="\t"),
    ),
    Row(
        "pipes",
        frame_csv(frame=pd.DataFrame({"text": PLAIN, "n": range(1002)}), index=False, sep="|"),
        csv_judge(sep="|"),
    ),
    Row("commas in a .tsv", text("id,text\n1,one\n2,two\n", "a.tsv"), csv_judge()),
    Row("one column", text("text\none\ntwo\n"), csv_judge()),
    Row("one column, semicolons in the texts", text("text\none; two\nthree\n"), csv_judge(sep=",")),
    Row(
        "two delimiters that fit",
        text("a;text,b\n1;2,3\n4;5,6\n"),
        None,
        r"data.text_column = 'text': .* has the columns a;text, b",
    ),
    Row(
        "two delimiters, one named",
        text("a;text\n1;2,3\n4;5,6\n"),
        csv_judge(sep=";"),
        RIGHT,
        dialect(delimiter=";"),
    ),
    Row(
        "a delimiter by its name",
        text("a\ttext\n1\t2\n"),
        csv_judge(sep="\t"),
        RIGHT,
        dialect(delimiter="tab"),
    ),
    Row(
        "semicolons, rows of other lengths",
        text("id;text\n1;a;b\n2;c\n"),
        None,
        r"columns id;text; its first .* a semicolon .*--config.data.delimiter=semicolon",
    ),
    Row(
        "quotes escaped by backslashes",
        text('id,text\n1,"say \\"hi\\", ok"\n'),
        None,
        r"line 2 .*--config.data.csv_options=backslash",
    ),
    Row(
        "the same, said",
        text('id,text\n1,"say \\"hi\\", ok"\n2,b\n'),
        csv_judge(escapechar="\\"),
        RIGHT,
        dialect("backslash"),
    ),
    Row(
        "a space after the comma",
        text("id, text\n1, a\n"),
        None,
        r"some begin with a space, which --config.data.csv_options=spaces takes off",
    ),
    Row(
        "a space before a quotation mark",
        text('id,text\n1, "a, b"\n'),
        None,
        "--config.data.csv_options=spaces",
    ),
    Row(
        "a space before a whole quoted cell",
        text('id,text\n1, "ab"\n'),
        None,
        "space before a quotation mark, which --config.data.csv_options=spaces",
    ),
    Row(
        "the same, said",
        text('id, text\n1, "a, b"\n2,  c\n'),
        csv_judge(skipinitialspace=True),
        RIGHT,
        dialect("spaces"),
    ),
    Row(
        "short rows",
        text("text,label,n\na,b,1\nc\n"),
        None,
        r"row that ends at line 3 has 1 cells, the header 3; .*csv_options=short_rows",
    ),
    Row(
        "the same, said",
        text("text,label,n\na,b,1\nc\n"),
        csv_judge(),
        RIGHT,
        dialect("short_rows"),
    ),
    Row(
        "long rows",
        text("id,text\n1,a, b\n"),
        None,
        "row that ends at line 2 has 3 cells, the header 2; a cell that holds a ',' must stand "
        "in quotation",
    ),
    Row(
        "no header",
        text(
            "1,I loved this film and I will see it again as soon as it is back in the "
            "cinema\n0,Bad\n"
        ),
        None,
        "csv_options=no_header",
    ),
    Row(
        "the same, said",
        text("1,Good film\n0,Bad\n"),
        lambda p: pd.read_csv(p, header=None)[1].tolist(),
        RIGHT,
        dialect("no_header") | {"text_column": "1"},
    ),
    Row("two columns of one name", text("text,text\na,b\n"), None, "header line has 'text' twice"),
    Row("a trailing comma in every line", text("text,label,\na,b,\nc,d,\n"), csv_judge()),
    Row("empty lines", text("text,label\n\na,b\n\n\nc,d\n"), csv_judge()),
    Row("no line end at the end", text("text,label\na,b"), csv_judge()),
    Row("carriage returns in a text", text('text,label\r\n"a\rb",1\r\n'), exactly("a\rb")),
    Row("a quotation mark inside a cell", text('text,n\n5" pipe,1\nb,2\n'), csv_judge()),
    Row(
        "a lone quotation mark, never closed",
        text('id,text\n1,a\n2,"b\n3,c\n'),
        None,
        r"begins at line 3 is not well-formed .*csv_options=no_quotes",
    ),
    Row(
        "a lone quotation mark that swallows rows",
        lone_quote_csv,
        None,
        r"row that begins at line 6 makes one cell of 897 lines; .*no_quotes",
    ),
    Row(
        "the same, said",
        lone_quote_csv,
        csv_judge(quoting=csv.QUOTE_NONE),
        RIGHT,
        dialect("no_quotes"),
    ),
    Row(
        "a cell of 700 lines",
        long_cell,
        None,
        r"row that begins at line 2 makes one cell of 700 lines; .*csv_options=quotes",
    ),
    Row("the same, said", long_cell, csv_judge(), RIGHT, dialect("quotes")),
    Row("a poem", poem, csv_judge()),
    Row("a lone quotation mark in a .tsv", lone_quote, csv_judge(sep="\t", quoting=csv.QUOTE_NONE)),
    Row(
        "a .tsv in quotation marks",
        frame_csv("a.tsv", index=False, sep="\t"),
        None,
        "csv_options=quotes",
    ),
    Row(
        "the same, said",
        frame_csv("a.tsv", index=False, sep="\t"),
        csv_judge(sep="\t"),
        RIGHT,
        dialect("quotes"),
    ),
    Row(
        "names of a .tsv in quotation marks",
        text('"text"\t"n"\n"a"\t"1"\n', "a.tsv"),
        None,
        "names stand in quotation marks, which .*csv_options=quotes",
    ),
    Row("UTF-16", text("text\na\n".encode("utf-16")), None, "UTF-16"),
    Row(
        "Latin-1",
        text("text\ncafé\n".encode("latin-1")),
        None,
        r"not UTF-8 at line 2, byte 8 \(0xe9\)",
    ),
    Row("NUL", text(b"text,n\na\0b,1\n"), exactly("a\0b")),
    Row("numbers in the text column", text("text,n\n1,2\n3,4\n"), csv_judge()),
    Row("CR LF under a header with LF", text("n,text\n1,a\r\n2,b\r\n"), csv_judge()),
    Row("LF under a header with CR LF", text("n,text\r\n1,a\n2,b\n"), csv_judge()),
    Row(
        "CR LF under a header with LF, more inside",
        text('n,text\n1,"a\r\nb"\r\n2,b\r\n'),
        csv_judge(),
    ),
    Row(
        "carriage returns alone",
        text("text,n\ra,1\rb,2\r"),
        None,
        "its lines end with carriage returns alone",
    ),
    Row(
        "a spreadsheet's note of its delimiter",
        text("sep=;\nid;text\n1;a, b\n2;c\n"),
        csv_judge(sep=";", skiprows=1),
    ),
    Row("the same, with a comma", text("sep=,\r\nid,text\r\n1,a; b\r\n"), csv_judge(skiprows=1)),
    Row("UTF-16 without its mark", text("text,n\na,1\n".encode("utf-16-le")), None, "UTF-16"),
    Row(
        "an old Excel file",
        text(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
        None,
        "is a file of an office program",
    ),
    Row("a PDF", text("%PDF-1.4\ntext\n", "a.txt"), None, "is a PDF"),
    Row(
        "a link to nothing",
        lambda folder: (folder / "a.csv").symlink_to(folder / "b.csv") or folder / "a.csv",
        None,
        "is a link to .*b.csv', which is not",
    ),
]


def lines(*rows, name="a.jsonl"):
    return text("".join(json.dumps(row) + "\n" for row in rows), name)


TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
]


def jsonl_judge(path):
    return [None if t is None else t for t in pd.read_json(path, lines=True, dtype=False)["text"]]


JSON = [
    Row(
        "two rows on a line",
        text('{"text": "a"}{"text": "b"}\n', "a.jsonl"),
        None,
        "line 1 is not valid JSON",
    ),
    Row(
        "two rows on a line, with a comma",
        text('{"text": "a"},{"text": "b"}\n', "a.jsonl"),
        None,
        "line 1 is not valid JSON",
    ),
    Row(
        "a row on two lines", text('{"text":\n"a"}\n', "a.jsonl"), None, "line 1 is not valid JSON"
    ),
    Row(
        "spaces and empty lines",
        text('{ "text" : "a" }\r\n\n  {"text": "b"}\n\n', "a.jsonl"),
        exactly("a", "b"),
    ),
    Row(
        "a key that the first row lacks",
        lines({"id": 1}, {"id": 2, "text": "b"}, {"id": 3, "text": "c"}),
        exactly("b", "c"),
    ),
    Row(
        "a key that no row has",
        lines({"tekst": "a"}, {"id": 2}),
        None,
        r"has the columns tekst, id; did you mean 'tekst'",
    ),
    Row(
        "a key twice",
        text('{"text": "a", "text": "b"}\n', "a.jsonl"),
        None,
        r"line 1 is not valid JSON \(an object has the key 'text' twice\)",
    ),
    Row(
        "a key twice, far down",
        text('{"text": "a"}\n' * 5000 + '{"text": "a", "text": "b"}\n', "a.jsonl"),
        None,
        "line 5001 .* 'text' twice",
    ),
    Row(
        "a key twice beside a row without it",
        text('{"text": "a"}\n{"text": "b", "id": 1, "id": 2}\n', "a.jsonl"),
        None,
        "line 2 .* 'id' twice",
    ),
    Row(
        "a nested key of the same name",
        lines({"text": "a", "m": {"text": "b"}}, {"text": "c", "m": {"text": "d"}}),
        jsonl_judge,
    ),
    Row("its own name as a value", lines({"text": "text"}, {"text": "text"}), jsonl_judge),
    Row("numbers", lines({"text": "a"}, {"text": 5}, {"text": 1.5}), exactly("a", "5", "1.5")),
    Row(
        "truth values",
        lines({"text": "a"}, {"text": True}),
        None,
        "row 2 of .* has bool 'True' there; a text must be a string",
    ),
    Row("lists", lines({"text": ["a"]}), None, "row 1 of .* has list .* a text must be a string"),
    Row("null", lines({"text": None}, {"text": "b"}), exactly("b")),
    Row("NaN", text('{"text": NaN}\n{"text": "b"}\n', "a.jsonl"), exactly("b")),
    Row(
        "nested columns",
        lines({"data": {"body": "a"}}, {"data": {"body": "b"}}),
        exactly("a", "b"),
        RIGHT,
        {"text_column": "data.body"},
    ),
    Row(
        "a place in a list",
        lines({"answers": {"text": ["a", "b"]}}),
        exactly("a"),
        RIGHT,
        {"text_column": "answers.text.0"},
    ),
    Row(
        "a name with a dot",
        lines({"data.body": "a"}),
        exactly("a"),
        RIGHT,
        {"text_column": "data.body"},
    ),
    Row(
        "a nested column that is not there",
        lines({"data": {"body": "a"}}),
        None,
        "data.text_column = 'data.bdy'",
        {"text_column": "data.bdy"},
    ),
    Row("a list of strings", text('["one", "two"]', "a.json"), exactly("one", "two")),
    Row(
        "a list of strings, indented",
        text('[\n "one",\n "two"\n]\n', "a.json"),
        exactly("one", "two"),
    ),
    Row("a string a line", text('"one"\n"two"\n', "a.jsonl"), exactly("one", "two")),
    Row(
        "a list of numbers",
        text("[1, 2]", "a.json"),
        None,
        "entry 0 of the array is a JSON number; every entry must be an object, or a string",
    ),
    *(
        Row(
            f"pandas' orient={orient}",
            lambda folder, o=orient: (
                FRAME.to_json(folder / "a.json", orient=o) or folder / "a.json"
            ),
            exactly(*TEXTS),
        )
        for orient in ("columns", "records", "split", "table")
    ),
    Row(
        "messages (OpenAI, TRL)",
        lines({"messages": TURNS}, {"messages": TURNS[:2]}),
        exactly("Hello!"),
    ),
    Row(
        "messages in parts",
        lines(
            {
                "messages": [
                    TURNS[1],
                    {"role": "assistant", "content": [{"type": "text", "text": "Yo"}]},
                ]
            }
        ),
        exactly("Yo"),
    ),
    Row(
        "conversations (ShareGPT)",
        lines(
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
        ),
        exactly("Yo"),
    ),
    Row(
        "messages, named",
        lines({"messages": TURNS, "text": "x"}),
        exactly("Hello!"),
        RIGHT,
        {"text_column": "messages"},
    ),
    Row("prompt and completion", lines({"prompt": "Q", "completion": "A"}), exactly("A")),
    Row(
        "prompt and completion in turns",
        lines({"prompt": TURNS[:2], "completion": TURNS[2:]}),
        exactly("Hello!"),
    ),
    Row("a text beside messages", lines({"messages": TURNS, "text": "x"}), exactly("x")),
    Row("a byte order mark", text("\ufeff" + '{"text": "a"}\n', "a.jsonl"), exactly("a")),
    Row(
        "a Git LFS pointer",
        text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "a.jsonl"),
        None,
        "is a Git LFS pointer",
    ),
    Row(
        "an LFS pointer for parquet",
        text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a.parquet"),
        None,
        "is a Git LFS pointer",
    ),
    Row(
        "a web page",
        text("\n<!DOCTYPE html>\n<html><body>404</body></html>", "a.csv"),
        None,
        "is a web page",
    ),
    Row(
        "a web page for parquet",
        text("<html><body>404</body></html>", "a.parquet"),
        None,
        "is a web page",
    ),
    Row(
        "an array under the name of lines",
        text('[{"text": "a"}, {"text": "b"}]', "a.jsonl"),
        lambda p: pd.read_json(p)["text"].tolist(),
    ),
    Row(
        "the same, on several lines",
        text('[\n{"text": "a"},\n{"text": "b"}\n]\n', "a.jsonl"),
        lambda p: pd.read_json(p)["text"].tolist(),
    ),
    Row(
        "a filtered frame",
        lambda f: FRAME[FRAME.label == "l1"].to_json(f / "a.json") or f / "a.json",
        exactly(*TEXTS[1::2]),
    ),
    Row(
        "pandas' orient=index",
        lambda f: FRAME.to_json(f / "a.json", orient="index") or f / "a.json",
        exactly(*TEXTS),
    ),
    Row(
        "rows by names of their own",
        text('{"x": {"text": "a"}, "y": {"text": "b"}}', "a.json"),
        None,
        "not equally long columns",
    ),
    Row(
        "a place that is no number",
        lines({"a": ["x"]}),
        None,
        "data.text_column = 'a.²'",
        {"text_column": "a.²"},
    ),
    Row(
        "messages as text in a .csv",
        frame_csv(frame=pd.DataFrame({"messages": [json.dumps(TURNS)] * 2})),
        exactly("Hello!", "Hello!"),
    ),
    Row(
        "messages by key",
        lines({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yo"]}}),
        exactly("Yo"),
    ),
    Row(
        "messages of numbers",
        lines(
            {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "Yo"}]}
        ),
        exactly("Yo"),
    ),
    Row(
        "other names of the assistant",
        lines({"messages": [{"role": "human", "content": "Hi"}, {"role": "AI", "content": "Yo"}]}),
        exactly("Yo"),
    ),
    Row(
        "a prompt that is a number",
        lines({"prompt": 5, "completion": "A"}),
        None,
        "data.prompt_column = 'prompt': .* has int '5'",
    ),
    Row(
        "half a file",
        text('{"text": "a"}\n{"text": "b', "a.jsonl"),
        None,
        "line 2 is not valid JSON",
    ),
]


def packed(name, pack):
    return lambda folder: (
        (folder / name).write_bytes(pack(FRAME.to_csv(index=False).encode())) and folder / name
    )


def zipped(data, *names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return stream.getvalue()


PACKED = [
    Row("gzip", packed("a.csv.gz", gzip.compress), csv_judge()),
    Row("bzip2", packed("a.csv.bz2", bz2.compress), csv_judge()),
    Row("xz", packed("a.csv.xz", lzma.compress), csv_judge()),
    Row(
        "zstd",
        packed("a.csv.zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
        exactly(*TEXTS),
    ),
    Row("zip of one file", packed("a.csv.zip", lambda data: zipped(data, "a.csv")), csv_judge()),
    Row(
        "zip under its own name",
        packed("posts.zip", lambda data: zipped(data, "inner/posts.csv", "__MACOSX/._posts.csv")),
        exactly(*TEXTS),
    ),
    Row(
        "zip of two files",
        packed("a.csv.zip", lambda data: zipped(data, "a.csv", "b.csv")),
        None,
        r"holds 2 \(a.csv, b.csv\)",
    ),
    Row("a gzip without its ending", packed("a.csv", gzip.compress), csv_judge(compression="gzip")),
    Row(
        "zip with a shadow of macOS",
        packed("a.zip", lambda data: zipped(data, "d/a.csv", "d/._a.csv")),
        exactly(*TEXTS),
    ),
    Row(
        "an Excel file under another name",
        packed("a.csv", lambda data: zipped(data, "[Content_Types].xml", "xl/a.xml")),
        None,
        "office program",
    ),
    Row(
        "a gzip in a gzip",
        packed("a.csv.gz", lambda data: gzip.compress(gzip.compress(data))),
        None,
        "is compressed twice",
    ),
    Row(
        "a gzip in a zip",
        packed("a.zip", lambda data: zipped(gzip.compress(data), "a.csv.gz")),
        None,
        "is compressed twice",
    ),
    Row(
        "half a gzip",
        packed("a.csv.gz", lambda data: gzip.compress(data)[:-20]),
        None,
        "cannot be read",
    ),
    Row(
        "no gzip under its name",
        packed("a.csv.gz", lambda data: data),
        None,
        "cannot be read as .gz",
    ),
    Row(
        "parquet under another name",
        lambda f: pq.write_table(pa.table({"text": ["a"]}), f / "a.csv") or f / "a.csv",
        None,
        "is a parquet file",
    ),
]


def files(**contents):
    def make(folder):
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return folder

    return make


def folder_judge(path):
    return datasets.load_dataset(str(path), split="train")["text"][:]


CARD = "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n"
ONE, TWO = '{"text": "one"}\n', "text\ntwo\n"
FOLDERS = [
    Row("one kind", files(a_dot_jsonl=ONE, b_dot_jsonl='{"text": "two"}\n'), folder_judge),
    Row(
        "mixed kinds",
        files(a_dot_jsonl=ONE, b_dot_csv=TWO),
        None,
        r"files of several kinds, 1 .csv \(as b.csv\) and 1 .jsonl \(as a.jsonl\)",
    ),
    Row(
        "mixed kinds below",
        files(sub__a_dot_jsonl=ONE, b_dot_csv=TWO),
        None,
        "files of several kinds",
    ),
    Row(
        "an ending in capitals",
        files(a_dot_jsonl=ONE, b_dot_JSONL=ONE),
        None,
        r"sorts some .*\(as a.jsonl\) and leaves out b.JSONL",
    ),
    Row(
        "a file above the training file",
        files(data__train_dot_csv=TWO, b_dot_csv=TWO),
        None,
        r"sorts some .*\(as train.csv\) and leaves out b.csv",
    ),
    Row("splits", files(train_dot_csv=TWO, test_dot_csv=TWO), folder_judge),
    Row(
        "a spreadsheet beside the data",
        files(a_dot_jsonl=ONE, b_dot_xlsx="PK"),
        None,
        r"several kinds, 1 .jsonl \(as a.jsonl\) and 1 .xlsx",
    ),
    Row(
        "a card that names the files",
        files(README_dot_md=CARD, a_dot_jsonl=ONE, b_dot_csv=TWO),
        folder_judge,
    ),
    Row(
        "a file without the column",
        files(a_dot_csv="text,n\none,1\n", b_dot_csv="txt,n\ntwo,2\n"),
        None,
        r"b.csv': has no column 'text', which other files",
    ),
    Row("a licence beside the data", files(a_dot_jsonl=ONE, LICENSE_dot_txt="MIT"), exactly("one")),
    Row("no data", files(README_dot_md="hello"), None, "this folder has no data file"),
    Row(
        "NA is a text in a folder too",
        files(a_dot_csv="text,n\nNA,1\nnull,2\n"),
        exactly("NA", "null"),
    ),
]


@pytest.mark.parametrize("row", [*CSV, *JSON, *PACKED, *FOLDERS], ids=lambda row: row.name)
def test_files(row, tmp_path, monkeypatch):
    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", tmp_path.parent / f"{tmp_path.name}-cache"
    )
    path = row.make(tmp_path)
    if row.ours == RIGHT:
        assert load_texts(path, **row.kwargs)["text"].tolist() == row.judge(path)
        return
    with pytest.raises(ValueError, match=row.ours) as caught:
        load_texts(path, **row.kwargs)
    said = str(caught.value)
    assert "\n" not in said and not re.search(r"\b\w*(Error|Exception)\b", said)


def test_instructions_of_conversations(tmp_path):
    frame = load_texts(lines({"messages": TURNS})(tmp_path))
    assert frame.loc[0].to_dict() == {"text": "Hello!", "domain": "a", "prompt": "Be short.\n\nHi"}
    assert frame.attrs["report"] == {"rows": 1, "no text": 0, "read from messages": 1, "kept": 1}
    frame = load_texts(lines({"prompt": "Q", "completion": "A"})(tmp_path))
    assert frame.loc[0, ["text", "prompt"]].tolist() == ["A", "Q"]


def test_numbers_read_as_texts_are_counted(tmp_path):
    assert (
        load_texts(lines({"text": "a"}, {"text": 5})(tmp_path)).attrs["report"][
            "numbers read as texts"
        ]
        == 1
    )


LABELS = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
)


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_class_labels_by_their_names(form, tmp_path):
    data = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=LABELS
    )
    path = tmp_path / "data.parquet" if form == "parquet" else tmp_path / "data"
    data.to_parquet(path) if form == "parquet" else data.save_to_disk(path)
    frame = load_texts(path, domain_column="label")
    assert (
        frame["domain"].tolist() == ["pos", "neg", ""]
        and data.features["label"].int2str(1) == "pos"
    )
    assert load_texts(path, domain_column="label", domains=["pos"])["text"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ([1.0, 2.0], "1"),
        ([1.0, 2.0], "1.0"),
        ([True, False], "true"),
        ([True, False], "True"),
        ([1, 2], "1"),
        (["1.0", "2.0"], "1"),
        (["True", "x"], "true"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_domains_that_are_numbers_or_truth_values(values, asked, suffix, tmp_path):
    frame, path = pd.DataFrame({"text": ["a", "b"], "domain": values}), tmp_path / f"a.{suffix}"
    {
        "csv": frame.to_csv,
        "parquet": frame.to_parquet,
        "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
    }[suffix](path)
    found = load_texts(path, domain_column="domain", domains=[asked])
    assert found["text"].tolist() == ["a"]


def test_two_parquet_columns_of_one_name(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        tmp_path / "a.parquet",
    )
    with pytest.raises(ValueError, match="has two columns called 'text'"):
        load_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(delimiter=";;"), "data.delimiter = ';;' is not allowed: one ASCII character"),
        (dict(delimiter='"'), "data.delimiter = '\"' is not allowed"),
        (
            dict(options=("header",)),
            f"data.csv_options has 'header', which is none of {', '.join(OPTIONS)}",
        ),
        (
            dict(options=("quotes", "no_quotes")),
            "data.csv_options has both 'quotes' and 'no_quotes'",
        ),
    ],
)
def test_bad_dialects(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Dialect(**options)


# ---- both ways of reading a csv file

ALPHABET = [
    "a",
    "b c",
    '"',
    '""',
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\\",
    " ",
    "'",
    "é",
    "🙂",
    "\x1a",
    "x" * 40,
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_the_csv_module_writes_is_read_back(seed, delimiter, tmp_path, monkeypatch):
    """Rows of any text, in blocks of a few lines, so that Arrow reads some and the csv module
    others.
    """
    from jaxloop.data import delimited

    monkeypatch.setattr(delimited, "_BLOCK", 97)
    draw = random.Random(seed)
    letters = ALPHABET[:2] + draw.sample(ALPHABET[2:], 6)
    rows = [
        ["".join(draw.choices(letters, k=draw.randint(0, 8))) for _ in range(2)] for _ in range(200)
    ]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(
            stream,
            delimiter=delimiter,
            lineterminator=draw.choice(["\n", "\r\n"]),
            quoting=draw.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
        )
        writer.writerows([["text", "other"], *rows])
    frame = load_texts(
        tmp_path / "a.csv", keep_columns=["other"], dialect=Dialect(delimiter, ("quotes",))
    )
    assert frame[["text", "other"]].values.tolist() == rows
