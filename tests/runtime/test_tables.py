"""Text goes into parquet and comes back as it was; numbers go into CSV and come back exactly; a
flipped bit is noticed.
"""

import io

import numpy as np
import pandas as pd
import pytest

from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic

HOSTILE = [
    "\ud800",
    "a\udfffb",
    "\udc80\udc81",
    "\ud83d\ude00",
    "\x00",
    "a\x00b",
    "a\rb",
    "a\r\nb",
    "\n",
    "NA",
    "null",
    "None",
    "nan",
    "",
    " ",
    "=1+1",
    "<script>alert('x')</script>",
    '"quoted", "twice""',
    "\x1a",
    "\x1ad800",
    "\x1a001a",
    "\\ud800",
    "x" * 1_000_000,
    "é",
    "😀",
    "\ufeffbom",
    "\u2028",
]


def test_any_text_survives_parquet(tmp_path):
    write_atomic(
        tmp_path / "t.parquet",
        tables.to_parquet({"text": [*HOSTILE, None], "row": range(len(HOSTILE) + 1)}),
    )
    back = tables.read_parquet(tmp_path / "t.parquet")
    assert back["text"] == [*HOSTILE, None] and back["row"].tolist() == list(
        range(len(HOSTILE) + 1)
    )


def test_every_string_of_code_points_survives(tmp_path):
    draw = np.random.default_rng(0)
    alphabet = [
        chr(c) for c in (0x1A, 0x61, 0x30, 0x64, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0x1F600)
    ]
    texts = ["".join(draw.choice(alphabet, size)) for size in draw.integers(0, 12, 3000)]
    assert [tables.unescape(tables.escape(t)) for t in texts] == texts
    assert len({tables.escape(t) for t in texts}) == len(set(texts))
    for t in texts:
        tables.escape(t).encode("utf-8")


def test_pandas_alone_reads_ordinary_text_as_it_is(tmp_path):
    ordinary = [
        t for t in HOSTILE if not any(0xD800 <= ord(c) < 0xE000 or c == "\x1a" for c in t[:100])
    ]
    tables.write_parquet(tmp_path / "t.parquet", {"text": ordinary})
    assert pd.read_parquet(tmp_path / "t.parquet").text.tolist() == ordinary


def test_equal_tables_are_equal_bytes():
    columns = {"a": ["x", None, "\ud800"], "n": np.arange(3), "f": [0.1, float("nan"), None]}
    assert tables.to_parquet(columns) == tables.to_parquet(
        {k: list(v) for k, v in columns.items()} | {"n": np.arange(3)}
    )


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    columns = {"text": [f"text number {i} of many" for i in range(200)], "row": np.arange(200)}
    whole = tables.to_parquet(columns)
    draw, refused = np.random.default_rng(1), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        write_atomic(tmp_path / "t.parquet", bytes(damaged))
        try:
            back = tables.read_parquet(tmp_path / "t.parquet")
        except ValueError as error:
            refused += 1
            assert "t.parquet" in str(error) and "\n" not in str(error)
            continue
        same = (
            back.keys() == columns.keys()
            and back["text"] == columns["text"]
            and back["row"].tolist() == list(range(200))
        )
        # Names and counts live in the footer, which has no checksum: the manifest's SHA-256 covers
        # it. Values never change silently.
        assert same or back.keys() != columns.keys() or len(back["row"]) != 200
    assert refused > 120


@pytest.mark.parametrize("size", [0, 4, 100])
def test_truncated_tables_are_named(tmp_path, size):
    (tmp_path / "t.parquet").write_bytes(tables.to_parquet({"a": [1, 2]})[:size])
    with pytest.raises(ValueError, match="t.parquet: cannot be read as parquet"):
        tables.read_parquet(tmp_path / "t.parquet")


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="lengths differ"):
        tables.to_parquet({"a": [1], "b": [1, 2]})


def test_concatenation_fills_missing_columns():
    joined = tables.concatenate(
        [{"a": np.asarray([1, 2]), "t": ["x", "y"]}, {}, {"a": [3], "b": [0.5]}]
    )
    assert joined == {"a": [1, 2, 3], "t": ["x", "y", None], "b": [None, None, 0.5]}


def test_numbers_survive_csv_and_rows_stay_rows():
    values = [0.1, 1 / 3, 1e-300, -0.0, float("inf"), float("nan"), None]
    names = ["plain", "a\rb", "a\nb", 'say "hi", twice', "\ud800", "=1+1", ""]
    back = pd.read_csv(
        io.BytesIO(
            tables.to_csv({"name": names, "value": values, "count": range(7), "flag": [True] * 7})
        )
    )
    np.testing.assert_array_equal(
        back.value, np.asarray([np.nan if v is None else v for v in values])
    )
    assert back["count"].tolist() == list(range(7)) and back.flag.all() and len(back) == 7
    assert [tables.unescape(n) for n in back.name.fillna("")] == names
