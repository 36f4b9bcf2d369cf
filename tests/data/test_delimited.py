"""Both ways of reading csv files against each other: what Arrow reads is what the csv module reads,
with the same refusals, or is left to it.
"""

import csv
import io
import random
from pathlib import Path

import pytest

from jaxloop.data import containers, delimited, delimited_arrow, reading
from jaxloop.data.dialect import Dialect
from tests.real_world import test_files

DIALECTS = [
    (),
    ("quotes",),
    ("no_quotes",),
    ("no_header",),
    ("backslash",),
    ("spaces",),
    ("short_rows",),
    ("no_header", "quotes"),
]


def outcome(open_stream, name, dialect, columns=None):
    """The rows of a file up to what refuses it, and the refusal."""
    rows = []
    try:
        with open_stream() as stream:
            for batch in delimited.batches(
                Path(name), stream, tabs=name.endswith(".tsv"), dialect=dialect, columns=columns
            ):
                wanted = columns if columns and set(columns) <= set(batch) else batch
                rows += zip(*(batch[c] for c in wanted), strict=True)
    except ValueError as error:
        return rows, str(error)
    return rows, None


class Ways:
    """`delimited_arrow.read_block`, counted, or not there at all."""

    def __init__(self, monkeypatch):
        self.patch, self.real, self.taken, self.declined = (
            monkeypatch,
            delimited_arrow.read_block,
            0,
            0,
        )

    def __call__(self, table, block, wanted):
        found = self.real(table, block, wanted)
        self.taken += found is not None
        self.declined += found is None
        return found

    def both(self, *args):
        self.patch.setattr(delimited_arrow, "read_block", lambda table, block, wanted: None)
        slow = outcome(*args)
        self.patch.setattr(delimited_arrow, "read_block", self)
        return outcome(*args), slow


@pytest.fixture
def ways(monkeypatch):
    return Ways(monkeypatch)


@pytest.mark.parametrize("row", [*test_files.CSV, *test_files.PACKED], ids=lambda row: row.name)
def test_awkward_files(row, ways, tmp_path, monkeypatch):
    """Whole and in some forty blocks, whatever dialect is said."""
    path = row.make(tmp_path)
    try:
        with containers.opened(path) as stream:
            size = len(stream.read())
    except (ValueError, *containers.DAMAGE):
        return
    name = path.name if reading.extension(path) == ".tsv" else "a.csv"
    for block in (1 << 22, max(size // 40, 5)):
        monkeypatch.setattr(delimited, "_BLOCK", block)
        for dialect in [
            row.kwargs.get("dialect", Dialect()),
            *(Dialect(None, options) for options in DIALECTS),
        ]:
            columns = None if dialect.options else ["text"]
            fast, slow = ways.both(lambda: containers.opened(path), name, dialect, columns)
            assert fast == slow, (block, dialect, columns)


def soup(draw, width, delimiter):
    """A file of rows that are almost as many cells, some of them as no writer would leave them."""
    plain = ["a", "b c", "é🙂", "x" * 30, "", " ", "12", "NA", "null", "'"]
    rough = [
        '"',
        '""',
        delimiter,
        "\n",
        "\r\n",
        "\r",
        "\\",
        '\\"',
        ' "a"',
        '"a" ',
        '5" b',
        "\ufeff",
        "\x1a",
        "\0",
        "\x0b",
        "\u2028",
        "\x85",
        "\n" * 6,
        ";",
    ]
    some = draw.sample(rough, draw.randint(0, 5))
    often = draw.choice([0.0, 0.02, 0.1, 0.4])

    def cell():
        text = "".join(
            draw.choice(some) if some and draw.random() < often else draw.choice(plain)
            for _ in range(draw.randint(0, 4))
        )
        if draw.random() < 0.3:
            return '"' + (text if draw.random() < 0.03 else text.replace('"', '""')) + '"'
        return (
            text
            if draw.random() < 0.1
            else "".join(c for c in text if c not in '"\r\n\0\x1a' + delimiter)
        )

    end = draw.choice(["\n", "\n", "\n", "\r\n", "\r\n", "\r"])
    mixed = draw.random() < 0.1
    lines = [delimiter.join(draw.choice([f"c{i}", f'"c{i}"']) for i in range(width))]
    for _ in range(draw.choice([0, 1, 5, 30])):
        count = width + (draw.choice([-1, 1]) if draw.random() < 0.01 else 0)
        lines.append(
            delimiter.join(cell() for _ in range(count))
            if draw.random() > 0.02
            else draw.choice(["", " ", '""', delimiter])
        )
    text = "".join(line + (draw.choice(["\n", "\r\n"]) if mixed else end) for line in lines)
    data = (text if draw.random() < 0.8 else text.removesuffix(end)).encode()
    data = b"\xef\xbb\xbf" + data if draw.random() < 0.1 else data
    broken = draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
    return data + broken + delimiter.encode() + b"\n" if draw.random() < 0.05 else data


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))]
)
def test_random_files(seed, ways, monkeypatch):
    draw = random.Random(seed)
    refused = 0
    for _ in range(1500):
        width, delimiter = draw.choice([1, 2, 2, 3]), draw.choice([",", ";", "\t"])
        data = soup(draw, width, delimiter)
        monkeypatch.setattr(delimited, "_BLOCK", draw.choice([5, 64, 300, 1 << 22]))
        dialect = Dialect(draw.choice([delimiter, None]), draw.choice(DIALECTS[:4]))
        columns = draw.choice([None, ["c0"], [f"c{width - 1}"]])
        name = draw.choice(["a.csv", "a.tsv"])
        fast, slow = ways.both(
            lambda d=data: io.BufferedReader(io.BytesIO(d)), name, dialect, columns
        )
        assert fast == slow, (data, name, dialect, columns, delimited._BLOCK)
        refused += slow[1] is not None
    # Arrow reads enough of them for the comparison to mean something, and enough are refused.
    assert ways.taken > 1500 and ways.declined > 500 and 200 < refused < 700


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_a_quoted_line_break_at_the_end_of_a_block(quoting, ways, monkeypatch):
    """The row goes on in the next block; Arrow reads all of the file."""
    monkeypatch.setattr(delimited, "_BLOCK", 100)
    rows = [(f"two\nlines, {'x' * (i % 40)}", str(i)) for i in range(300)]
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows([("text", "n"), *rows])
    fast, slow = ways.both(
        lambda: io.BufferedReader(io.BytesIO(text.getvalue().encode())), "a.csv", Dialect()
    )
    assert fast == slow == (rows, None) and ways.declined == 0


def test_one_doubtful_block_leaves_the_others_to_arrow(ways, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 100)
    rows = [("a text", str(i)) for i in range(300)]
    rows[100] = ('5" pipe', "100")
    data = "text,n\n" + "".join(",".join(row) + "\n" for row in rows)
    fast, slow = ways.both(lambda: io.BufferedReader(io.BytesIO(data.encode())), "a.csv", Dialect())
    assert fast == slow == (rows, None) and ways.declined == 1 and ways.taken > 30


@pytest.mark.parametrize("start", ["\ufeff", "\ufeff\ufeff"])
def test_a_text_that_begins_with_a_byte_order_mark(start, ways):
    """Arrow drops one from the start of what it is given."""
    fast, slow = ways.both(
        lambda: io.BufferedReader(io.BytesIO(f"text,n\n{start}a,1\n{start}b,2\n".encode())),
        "a.csv",
        Dialect(),
    )
    assert fast == slow == ([(f"{start}a", "1"), (f"{start}b", "2")], None)


def test_rows_after_many_empty_lines(ways):
    data = b'text,n\n5" a,1\n' + b"\n" * 5000 + b"b,2\n"
    fast, slow = ways.both(lambda: io.BufferedReader(io.BytesIO(data)), "a.csv", Dialect())
    assert fast == slow == ([('5" a', "1"), ("b", "2")], None)


def test_what_arrow_has_read_does_not_lie_in_the_buffer(monkeypatch):
    """The buffer is filled again while texts are made of what was read."""
    monkeypatch.setattr(delimited, "_BLOCK", 1000)
    data = "text,n\n" + "".join(f"text {i},{i}\n" for i in range(2000))
    tables = []
    real = delimited_arrow.read_block
    monkeypatch.setattr(
        delimited_arrow, "read_block", lambda *args: (tables.append(real(*args)), tables[-1])[1]
    )
    list(
        delimited.batches(
            Path("a.csv"),
            io.BufferedReader(io.BytesIO(data.encode())),
            tabs=False,
            dialect=Dialect(),
        )
    )
    assert [text for found in tables for text in found.rows.column("text").to_pylist()] == [
        f"text {i}" for i in range(2000)
    ]
