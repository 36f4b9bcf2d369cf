"""Opens a local file and unpacks it if it is compressed, whatever its name says.

The first bytes decide what a file is: a gzip file that is called .jsonl is unpacked too. A Git LFS
pointer or a web page that was saved in place of the file is refused, and the error says so.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_OPENERS: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
}
# A buffered stream, of which the next bytes can be seen before they are read; `gzip`, `bz2` and
# `lzma` have classes of their own for it.
Peekable = Any
_HEAD = 512
_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ASIDE = ("__MACOSX/", ".DS_Store")
# What readers of these formats raise on damaged input.
DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
    RuntimeError,
)


_MARKS = (
    ("gzip", b"\x1f\x8b"),
    ("bz2", b"BZh"),
    ("xz", b"\xfd7zXZ\x00"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("zip", b"PK\x03\x04"),
    ("zip", b"PK\x05\x06"),
    ("parquet", b"PAR1"),
    ("pdf", b"%PDF-"),
    ("xls", _OFFICE),
    ("lfs", b"version https://git-lfs"),
    ("utf-16", b"\xff\xfe"),
    ("utf-16", b"\xfe\xff"),
)


def what(head: bytes) -> str:
    """Return the kind of a file by its first bytes.

    It is gzip, bz2, xz, zstd, zip, parquet, pdf, xls, lfs, html, utf-16, or plain.
    """
    for kind, mark in _MARKS:
        if head.startswith(mark):
            return kind
    if len(head) > 3 and head[:64].count(0) >= len(head[:64]) // 3:
        return "utf-16"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return "html" if start.startswith((b"<!doctype html", b"<html")) else "plain"


def problem(head: bytes) -> str | None:
    """Return why a file with this beginning is no data, as half a sentence; None if it may be."""
    return {
        "lfs": "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
        "html": "is a web page (HTML), not data; the download was probably an error page or the "
        "page about the file",
        "utf-16": "not UTF-8 at line 1, byte 0, but UTF-16 by its first bytes; convert the file "
        "to UTF-8 first",
        "pdf": "is a PDF, not data; export its text first",
        "xls": "is a file of an office program (Excel or Word), not data; export it as CSV first",
    }.get(what(head))


def head_of(path: str | Path) -> bytes:
    """Return the first bytes of a file."""
    with open(path, "rb") as stream:
        return stream.read(_HEAD)


def inner_name(path: Path) -> str | None:
    """Return the name of the only file in a zip; None for a file that is no zip.

    Raises:
        ValueError: the zip does not hold one file.
    """
    if what(head_of(path)) != "zip":
        return None
    with zipfile.ZipFile(path) as archive:
        names = [
            n
            for n in archive.namelist()
            if not n.endswith("/") and not n.startswith(_ASIDE) and not n.endswith(_ASIDE)
        ]
    names = [n for n in names if not n.rsplit("/", 1)[-1].startswith("._")]
    if "[Content_Types].xml" in names:
        raise ValueError(f"data.source = '{path}': {problem(_OFFICE)}.")
    if len(names) != 1:
        found = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise ValueError(
            f"data.source = '{path}': a zip is read where it holds one file, and this one holds "
            f"{len(names)}{f' ({found})' if names else ''}."
        )
    return names[0]


@contextmanager
def opened(path: Path) -> Iterator[Peekable]:
    """Open the bytes of a file, unpacked.

    Reading what is damaged raises an exception of `DAMAGE`.

    Raises:
        ValueError: in one sentence, for what is no data.
    """
    kind = what(head_of(path))
    if kind == "zip":
        with zipfile.ZipFile(path) as archive, archive.open(inner_name(path) or "") as stream:
            yield _checked(path, io.BufferedReader(stream))
    elif kind == "zstd":
        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield _checked(path, io.BufferedReader(stream))
    elif kind in _OPENERS:
        with _OPENERS[kind](path) as stream:
            yield _checked(path, stream)
    else:
        if path.suffix.lower() in COMPRESSED and problem(head_of(path)) is None:
            raise ValueError(
                f"data.source = '{path}': cannot be read as {path.suffix}, which its bytes are "
                "not; if it is unpacked already, rename it."
            )
        with open(path, "rb") as stream:
            yield _checked(path, stream)


def _checked(path: Path, stream: Peekable) -> Peekable:
    """The stream; ValueError if its first bytes show that it is no data."""
    head = stream.peek(_HEAD)[:_HEAD]
    if bad := problem(head):
        raise ValueError(f"data.source = '{path}': {bad}.")
    if not head:
        raise ValueError(f"data.source = '{path}': the file is empty.")
    if what(head) in ("gzip", "bz2", "xz", "zstd", "zip"):
        raise ValueError(f"data.source = '{path}': is compressed twice; unpack it once.")
    if what(head) == "parquet":
        raise ValueError(
            f"data.source = '{path}': is a parquet file under another name; call it .parquet."
        )
    return stream
