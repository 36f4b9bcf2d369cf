"""`jaxloop cache`: what is kept, and that clearing takes that and nothing else."""

import os
import shutil
from pathlib import Path

import pytest

from jaxloop.runtime import compile_cache, user_cache
from tests.command import call

HEX = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path):
    """A cache folder with everything that jaxloop keeps, and beside it what is not jaxloop's."""
    place = tmp_path / "cache"
    ours = {
        f"xla/{compile_cache.environment()}/jit_step-{HEX}-cache": 1000,
        f"xla/{compile_cache.environment()}/jit_step-{HEX}-atime": 8,
        "xla/python3.14-jax0.12.0.1-jaxlib0.12.0.1-gpu-0a1b2c3d/jit_step-1-cache": 500,
        f"xla/jit_old-{HEX}-cache": 300,
        f"datasets/posts-{HEX[:12]}/rows.parquet": 200,
        f"datasets/posts-{HEX[:12]}/.lock": 0,
        f"datasets/posts-{HEX[:12]}/embeddings/part.npy": 100,
        f"docs-{HEX}.parquet": 70,
        f"datasets/posts-{HEX[:12]}/answers.sqlite": 40,
        "judges.sqlite": 30,
        "micro_batch.json": 2,
        f"digests/{HEX}.json": 0,
    }
    theirs = [
        "notes.txt",
        "xla/notes.txt",
        "xla/mine/jit_step-1-cache",
        "datasets/mine/rows.parquet",
        "docs-mine.parquet",
        f"xla/{compile_cache.environment()}/kept.txt",
    ]
    for name, size in [*ours.items(), *((name, 5) for name in theirs)]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"x" * size)
    return place, ours, theirs


def test_the_table_counts_what_is_kept(folder):
    place, ours, _ = folder
    os.utime(place / "judges.sqlite", (1e9, 1e9))
    lines = user_cache.info(place).splitlines()
    assert lines[0] == f"folder: {place}"
    rows = {line[: lines[1].index("number")].strip(): line.split() for line in lines[2:]}
    here = next(words for name, words in rows.items() if name.endswith(compile_cache.environment()))
    assert here[3:6] == ["1", "1.0", "kB"]
    assert any("python3.14-jax0.12.0.1-jaxlib0.12.0.1-gpu-0a1b2c3d" in name for name in rows)
    assert any(
        "an earlier layout" in name and words[5:7] == ["1", "300"] for name, words in rows.items()
    )
    assert any(
        name.startswith("data set") and words[2:5] == [f"posts-{HEX[:12]}", "4", "340"]
        for name, words in rows.items()
    )
    assert rows["answers of judges"][3:7] == ["1", "30", "B", "2001-09-09"]
    assert rows["in all"][2:5] == [str(len(ours) - 1), "2.2", "kB"]


ANSWERS = (f"datasets/posts-{HEX[:12]}/answers.sqlite", "judges.sqlite")
STAY = "; 2 with answers of judges, which may have cost money, stay"


def test_clearing_takes_what_is_ours_and_nothing_else(folder):
    place, ours, theirs = folder
    assert user_cache.clear(place) == f"deleted {len(ours) - 2} files, 2.2 kB, from {place}{STAY}"
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert left == sorted([*theirs, *ANSWERS])
    assert not (place / f"datasets/posts-{HEX[:12]}" / "embeddings").exists()
    assert not (place / "xla" / "python3.14-jax0.12.0.1-jaxlib0.12.0.1-gpu-0a1b2c3d").exists()
    assert user_cache.clear(place) == f"deleted 0 files, 0 B, from {place}{STAY}"


def test_nothing_is_left_of_a_folder_that_was_ours_alone(folder):
    place, _, theirs = folder
    for name in [*theirs, *ANSWERS]:
        (place / name).unlink()
    (place / "xla/mine").rmdir()
    (place / "datasets/mine").rmdir()
    user_cache.clear(place)
    assert list(place.iterdir()) == []
    place.rmdir()
    assert (
        user_cache.clear(place) == f"deleted 0 files, 0 B, from {place}"
        and user_cache.entries(place) == []
    )


def test_links_are_neither_followed_nor_deleted(folder, tmp_path):
    place, _, theirs = folder
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "jit_step-1-cache").write_text("theirs")
    links = [
        "xla/python3.13-jax0.12.0-jaxlib0.12.0-cpu-0a1b2c3d",
        f"datasets/linked-{HEX[:12]}",
        f"datasets/posts-{HEX[:12]}/linked",
    ]
    for name in links:
        (place / name).symlink_to(outside, target_is_directory=True)
    (place / "xla/jit_linked-1-cache").symlink_to(outside / "jit_step-1-cache")
    user_cache.clear(place)
    assert (outside / "jit_step-1-cache").read_text() == "theirs"
    assert all((place / name).is_symlink() for name in [*links, "xla/jit_linked-1-cache"])
    (tmp_path / "link").symlink_to(place, target_is_directory=True)
    with pytest.raises(ValueError, match="is a link"):
        user_cache.clear(tmp_path / "link")


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    place, ours, _ = folder
    monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(ValueError, match="belongs to another user"):
        user_cache.clear(place)
    assert all((place / name).exists() for name in ours)


def test_a_cache_of_the_users_own_is_said_and_left(folder, tmp_path, monkeypatch):
    place, _, _ = folder
    own = tmp_path / "own"
    own.mkdir()
    (own / "jit_step-1-cache").write_text("x")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(own))
    assert f"JAX_COMPILATION_CACHE_DIR={own}" in user_cache.info(place).splitlines()[-1]
    user_cache.clear(place)
    assert (own / "jit_step-1-cache").exists()


@pytest.mark.parametrize(
    "words, reason",
    [
        ([], "needs exactly one of --info"),
        (["--claer"], "did you mean --clear?"),
        (["--info", "--clear"], "needs exactly one"),
        (["all"], "allowed is --info"),
    ],
)
def test_a_bad_use_is_one_sentence(words, reason):
    with pytest.raises(ValueError, match="^cache") as error:
        user_cache.requested_action(words)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_the_command_line(folder, capsys, monkeypatch):
    place, ours, _ = folder
    monkeypatch.setenv("JAXLOOP_CACHE", str(place))
    code, out, err = call(capsys, "cache", "--info")
    assert code == 0 and out.startswith(f"folder: {place}\n") and err == ""
    for words in (["cache"], ["cache", "--claer"]):
        code, out, err = call(capsys, *words)
        assert code == 2 and out == "" and err.startswith("jaxloop: cache") and err.count("\n") == 1
    assert all((place / name).exists() for name in ours)
    code, out, err = call(capsys, "cache", "--clear")
    assert code == 0 and out.startswith(f"deleted {len(ours) - 2} files, ") and err == ""
    code, out, _ = call(capsys, "--help")
    assert "cache --info" in out and "--clear" in out


def test_copies_of_runs_in_stores_are_counted_and_stay(folder):
    place, ours, _ = folder
    copy = place / "mirrors" / HEX
    for name, data in (
        ("mirror.json", '{"address": "s3://bucket/run"}'),
        ("run/texts/a.parquet", "x" * 5000),
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(data)
    (row,) = [line for line in user_cache.info(place).splitlines() if "copy of a run" in line]
    assert row.split()[4:8] == ["s3://bucket/run", "2", "5.0", "kB"]
    said = user_cache.clear(place)
    assert said.startswith(f"deleted {len(ours) - 2} files") and (copy / "run/texts").exists()
    assert said.endswith(f"; copies of runs in object stores stay in {place / 'mirrors'}: 1")


def test_a_copy_whose_run_deletes_files_meanwhile_is_counted(tmp_path, monkeypatch):
    place = tmp_path
    copy = place / "mirrors" / HEX
    (copy / "run").mkdir(parents=True)
    (copy / "mirror.json").write_text('{"address": "s3://bucket/run"}')
    (copy / "run/pruned").write_text("soon gone")
    lstat = os.lstat

    def pruned_first(path, **more):
        if str(path).endswith("pruned"):
            os.unlink(path)
        return lstat(path, **more)

    monkeypatch.setattr(os, "lstat", pruned_first)
    assert "s3://bucket/run" in user_cache.info(place)


def test_what_another_run_deletes_meanwhile_is_not_counted(folder, monkeypatch):
    """Runs that go on write temporary files there, and forget data sets."""
    place, _, _ = folder
    going, gone = place / "digests/.tmp-01234567-x.json", place / f"datasets/posts-{HEX[:12]}"
    going.write_bytes(b"x")
    lstat, listdir = Path.lstat, os.listdir

    def after_it_went(path):
        if path == going:
            going.unlink(missing_ok=True)
        return lstat(path)

    def of_one_that_went(path):
        if Path(path) == gone:
            shutil.rmtree(gone, ignore_errors=True)
        return listdir(path)

    monkeypatch.setattr(Path, "lstat", after_it_went)
    monkeypatch.setattr(os, "listdir", of_one_that_went)
    lines = user_cache.info(place).splitlines()
    assert not going.exists() and not gone.exists()
    assert any(line.split()[:5] == ["checksums", "of", "files", "2", "0"] for line in lines)
