"""The room on the disk that a run needs, before it begins."""

import shutil

import pytest

from jaxloop.runtime import atomic_io, workdir
from jaxloop.studies.common import disk


def test_only_what_a_run_has_written_counts_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 2000, 2000)
    )
    (tmp_path / "photos").write_bytes(bytes(4000))
    with pytest.raises(atomic_io.DiskFull, match=r"this run needs 5.0 kB, 2.0 kB are free"):
        disk.room_line(5000, tmp_path)
    (tmp_path / workdir.MARKER).write_text("{}")
    assert disk.room_line(5000, tmp_path) == (
        f"disk: 5.0 kB at most; 2.0 kB are free in {tmp_path}"
    )
