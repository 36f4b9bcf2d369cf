"""The texts of clean rows, in memory once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxloop.runtime.tables import unescape


class Texts(Sequence[str]):
    """Some rows of a text column, decoded when they are read.

    All subsets of a dataset share one column in memory.
    """

    def __init__(self, column: pa.LargeStringArray, rows: np.ndarray | None = None):
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [unescape(text) for text in self._column.take(self._rows[index]).to_pylist()]
        return unescape(self._column[int(self._rows[index])].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 8192):
            yield from self[start : start + 8192]

    def take(self, rows: np.ndarray) -> "Texts":
        """Return the texts at these positions, as another view of the column."""
        return Texts(self._column, self._rows[rows])


def text_column(path: Path) -> pa.LargeStringArray:
    """Return the texts of clean rows, read in two passes into memory of their size.

    They are the largest array of a run, which must not be in memory twice.
    """
    count = pq.read_metadata(path).num_rows
    lengths = [pc.binary_length(texts) for texts in _text_batches(path)]
    ends_N = np.zeros(count + 1, np.int64)
    if lengths:
        np.cumsum(pa.chunked_array(lengths).fill_null(0).to_numpy(), out=ends_N[1:])
    data = np.empty(int(ends_N[-1]), np.uint8)
    row = 0
    for texts in _text_batches(path):
        values = np.frombuffer(b"".join(texts.cast("binary").to_pylist()), np.uint8)
        data[ends_N[row] : ends_N[row + len(texts)]] = values
        row += len(texts)
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(ends_N), pa.py_buffer(data))


def _text_batches(path: Path) -> Iterator[pa.StringArray]:
    with pq.ParquetFile(path, buffer_size=1 << 22) as file:
        for batch in file.iter_batches(16_384, columns=["text"]):
            yield batch.column(0)
