"""Random samples of streams of rows, as a step of cleaning."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxloop.data.batches import Columns, Row, as_columns, count_of
from jaxloop.studies.recursive_loops.data.cleaning import Step

# Bytes that are read of a row at first: most rows are shorter.
_LINE = 1024
_ENCODER = json.JSONEncoder(default=str, check_circular=False)


def sample(count: int, seed: int, group: str | None = None) -> Step:
    """Return a step that keeps a uniform random sample of rows, in random order.

    It keeps `count` rows, or `count` for each value of the column `group` if that is given; all if
    there are fewer. What happens to a row depends on the seed and its number in the stream alone.
    Rows are kept in a temporary file, so that memory grows by only 48 bytes per row of the sample;
    values that JSON does not have are turned into text.
    """
    name = f"not in the sample of {count}" + (f" of each {group}" if group else "")

    def run(batches: Iterator[Columns]) -> Iterator[Columns]:
        with tempfile.TemporaryFile() as spool:
            yield from as_columns(_rows(spool, _chosen(spool, batches, count, seed, group)))

    return Step(name, run, (group,) if group else (), by_row=False)


def _chosen(
    spool: BinaryIO, batches: Iterator[Columns], count: int, seed: int, group: str | None
) -> np.ndarray:
    """Write rows of a stream into a file; return where those of the sample begin, in its order."""
    pools: dict[Any, _Smallest] = {}
    index = 0
    for batch in batches:
        rows = count_of(batch)
        draws_N2 = _draws(seed, index, rows)
        for value, at in _places(batch[group] if group else [None] * rows).items():
            pool = pools.setdefault(value, _Smallest(count))
            at = at[draws_N2[at, 0] <= pool.bound]
            if len(at):
                pool.add(np.column_stack([draws_N2[at], _write(spool, batch, at)]))
        index += rows
    spool.flush()
    rest = [pool.rest() for pool in pools.values()]
    table_N3 = np.concatenate(rest) if rest else np.zeros((0, 3), np.uint64)
    return table_N3[np.argsort(table_N3[:, 1], kind="stable"), 2]


def _draws(seed: int, first: int, rows: int) -> np.ndarray:
    """Two random numbers for each row, [rows, 2] uint64: its priority and its place."""
    digests = [
        hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=16).digest()
        for index in range(first, first + rows)
    ]
    return np.frombuffer(b"".join(digests), "<u8").reshape(rows, 2)


def _places(values: list[Any]) -> dict[Any, np.ndarray]:
    """{value: the rows that have it}."""
    places: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        places.setdefault(value, []).append(row)
    return {value: np.array(rows) for value, rows in places.items()}


def _write(spool: BinaryIO, batch: Columns, rows: np.ndarray) -> np.ndarray:
    """Append rows to the file, a line of JSON each; return where the lines begin, [rows] uint64."""
    at = rows.tolist()
    cells = zip(*([values[row] for row in at] for values in batch.values()), strict=True)
    lines = [_ENCODER.encode(dict(zip(batch, row, strict=True))) for row in cells]
    start = spool.seek(0, os.SEEK_END)
    data = [line.encode() + b"\n" for line in lines]
    spool.writelines(data)
    ends = np.cumsum([len(line) for line in data])
    return (start + np.concatenate([[0], ends[:-1]])).astype(np.uint64)


def _rows(spool: BinaryIO, offsets: np.ndarray) -> Iterator[Row]:
    """Yield the rows that begin at these places of the file."""
    descriptor = spool.fileno()
    for offset in map(int, offsets):
        line = os.pread(descriptor, _LINE, offset)
        while (end := line.find(b"\n")) < 0:
            line += os.pread(descriptor, len(line), offset + len(line))
        yield json.loads(line[:end])


class _Smallest:
    """The `count` triples (priority, place, offset) with the smallest priorities seen so far.

    bound: the priority above which a new triple is not among them.
    """

    def __init__(self, count: int):
        self.count = count
        self.table = np.zeros((min(2 * count, 1024), 3), np.uint64)
        self.size = 0
        self.bound = np.uint64(2**64 - 1)

    def add(self, triples_N3: np.ndarray) -> None:
        """Take triples."""
        while len(triples_N3):
            if self.size == len(self.table):
                self.table = np.resize(self.table, (min(2 * self.count, 2 * self.size), 3))
            part = triples_N3[: len(self.table) - self.size]
            self.table[self.size : self.size + len(part)] = part
            self.size += len(part)
            triples_N3 = triples_N3[len(part) :]
            if self.size == 2 * self.count:
                self.table[: self.count] = self.rest()
                self.size = self.count
                self.bound = self.table[: self.count, 0].max()

    def rest(self) -> np.ndarray:
        """Return the triples, [count, 3] or fewer."""
        table = self.table[: self.size]
        return (
            table
            if self.size <= self.count
            else table[np.argpartition(table[:, 0], self.count - 1)[: self.count]]
        )
