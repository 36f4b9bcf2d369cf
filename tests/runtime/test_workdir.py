"""Run directories: whose they are, which config they hold, what is deleted in them, what is never
written to them.
"""

import collections
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import jaxloop
from jaxloop.runtime import atomic_io, log, workdir
from jaxloop.runtime.workdir import open_workdir

CONFIG = {
    "chain": {"generations": 3, "ratios": (0.125, 1.0)},
    "fit": {"lr": 2e-4, "max_new_tokens": 300},
    "run": {"show": True},
}


def changed(**fields):
    out = json.loads(json.dumps(CONFIG))
    for dotted, value in fields.items():
        section, name = dotted.split("__")
        out[section][name] = value
    return out


def test_a_new_directory_holds_config_marker_and_log(tmp_path):
    with open_workdir(tmp_path / "a/b", CONFIG, console=False) as w:
        assert not w.resumed and workdir.is_workdir(w.path)
        log.LOGGER.info("hello")
    assert json.loads((tmp_path / "a/b/config.json").read_text()) == json.loads(json.dumps(CONFIG))
    assert "INFO hello" in (tmp_path / "a/b/run.log").read_text()
    with open_workdir(tmp_path / "a/b", CONFIG, console=False) as w:
        assert w.resumed
    assert not (tmp_path / "a/b/.jaxloop.holder").exists()


def test_another_config_is_refused_with_the_difference_and_changes_nothing(tmp_path):
    with open_workdir(tmp_path, CONFIG, console=False):
        pass
    before = (tmp_path / "config.json").read_bytes()
    with (
        pytest.raises(ValueError) as error,
        open_workdir(
            tmp_path, changed(fit__lr=1e-4, chain__ratios=[1.0], fit__new=1), console=False
        ),
    ):
        pass
    message = str(error.value)
    for part in (
        "fit.lr 0.0002 -> 0.0001",
        "chain.ratios [0.125, 1.0] -> [1.0]",
        "fit.new (absent) -> 1",
        "use another workdir",
    ):
        assert part in message
    assert "\n" not in message and (tmp_path / "config.json").read_bytes() == before


def test_generations_may_be_raised_and_not_lowered_and_named_fields_may_change(tmp_path):
    with open_workdir(tmp_path, CONFIG, console=False):
        pass
    with open_workdir(
        tmp_path, changed(chain__generations=5, run__show=False), may_change=("run",), console=False
    ) as w:
        assert w.config["chain"]["generations"] == 5
    assert json.loads((tmp_path / "config.json").read_text())["chain"]["generations"] == 5
    assert "chain.generations 3 -> 5" in (tmp_path / "run.log").read_text()
    with (
        pytest.raises(ValueError, match="chain.generations 5 -> 4"),
        open_workdir(tmp_path, changed(chain__generations=4), may_change=("run",)),
    ):
        pass
    with (
        pytest.raises(ValueError, match="run.show false -> true"),
        open_workdir(tmp_path, changed(chain__generations=5)),
    ):
        pass


def test_a_damaged_config_is_written_again_only_from_the_config_it_was(tmp_path):
    with open_workdir(tmp_path, CONFIG, console=False):
        pass
    whole = (tmp_path / "config.json").read_bytes()
    for damaged in (whole[:40], b"", whole.replace(b"0.0002", b"0.0003")):
        (tmp_path / "config.json").write_bytes(damaged)
        with (
            pytest.raises(ValueError, match="damaged|another config"),
            open_workdir(tmp_path, changed(fit__lr=1), console=False),
        ):
            pass
        assert (tmp_path / "config.json").read_bytes() == damaged
        with open_workdir(tmp_path, CONFIG, console=False) as w:
            assert w.resumed
        assert (tmp_path / "config.json").read_bytes() == whole
    assert "was damaged" in (tmp_path / "run.log").read_text()
    (tmp_path / "checkpoints/generation=0000").mkdir(parents=True)
    (tmp_path / "config.json").unlink()
    with (
        pytest.raises(ValueError, match="missing or damaged"),
        open_workdir(tmp_path, changed(fit__lr=1), console=False),
    ):
        pass


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(ValueError, match="is not empty and was not made by jaxloop"),
        open_workdir(tmp_path, CONFIG),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(ValueError, match="is a file"),
        open_workdir(tmp_path / "thesis.tex", CONFIG),
    ):
        pass
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="symbolic link"), open_workdir(tmp_path / "link", CONFIG):
        pass


def test_deletion_happens_only_inside_a_marked_directory(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    with pytest.raises(ValueError, match="nothing in it is deleted"):
        workdir.delete(outside, "keep.txt")
    with open_workdir(tmp_path / "run", CONFIG, console=False) as w:
        (w.path / "texts").symlink_to(outside, target_is_directory=True)
        for parts in (
            ("..", "outside", "keep.txt"),
            ("texts", "keep.txt"),
            ("texts",),
            (str(outside / "keep.txt"),),
            (),
            ("config.json",),
        ):
            with pytest.raises(ValueError):
                workdir.delete(w.path, *parts)
        (w.path / "gone").mkdir()
        (w.path / "gone/deep").mkdir()
        (w.path / "gone/deep/link").symlink_to(outside / "keep.txt")
        workdir.delete(w.path, "gone")
        assert not (w.path / "gone").exists()
    assert (outside / "keep.txt").read_text() == "mine"


def test_half_written_files_are_named_and_removed(tmp_path):
    with open_workdir(tmp_path, CONFIG, console=False):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/.tmp-a.parquet").write_text("half")
        (tmp_path / ".tmp-metrics.csv").write_text("half")
    with open_workdir(tmp_path, CONFIG, console=False):
        assert not list(tmp_path.rglob(".tmp-*"))
    said = (tmp_path / "run.log").read_text()
    assert (
        "removed the unfinished file checkpoints/.tmp-a.parquet" in said
        and "removed the unfinished file .tmp-metrics.csv" in said
    )


def test_the_second_process_names_the_holder_and_a_dead_holder_is_replaced(tmp_path):
    script = (
        "import sys, time; from jaxloop.runtime.workdir import open_workdir\n"
        f"with open_workdir({str(tmp_path / 'run')!r}, {{'a': 1}}, console=False): print('held', "
        "flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as child:
        try:
            assert child.stdout.readline() == "held\n"
            with pytest.raises(
                ValueError,
                match=rf"is in use by process {child.pid} on {socket.gethostname()} since 20",
            ):
                with open_workdir(tmp_path / "run", {"a": 1}):
                    pass
        finally:
            child.kill()
    with open_workdir(tmp_path / "run", {"a": 1}, console=False) as w:
        assert w.resumed
        assert json.loads((w.path / ".jaxloop.holder").read_text())["pid"] == os.getpid()
    assert f"did not end properly (process {child.pid} on" in (tmp_path / "run/run.log").read_text()


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    with open_workdir(tmp_path / "run", CONFIG, console=False):
        pass
    for path in (tmp_path / "run", *(tmp_path / "run").iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    tmp_path.chmod(0o755)
    # Permissions do not bind root, so the run is another user's.
    script = (
        "import os, sys; from jaxloop.runtime.workdir import open_workdir\n"
        "os.getuid() == 0 and os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        with open_workdir(path, {'a': 1}): print('opened')\n"
        "    except ValueError as error: print(error)"
    )
    for parent in list(tmp_path.parents)[:3]:
        if os.access(parent, os.W_OK) and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    said = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "run", tmp_path / "run/below"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    lines = said.stdout.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "cannot be written (permission denied)"
    ] * 2, said.stderr


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 2_500_000, 2_500_000),
    )
    with (
        pytest.raises(atomic_io.DiskFull, match=r"this run needs 3.0 GB, 2.5 MB are free"),
        open_workdir(tmp_path / "run", CONFIG, needs=3 * 10**9),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_no_key_reaches_config_or_log(tmp_path, monkeypatch):
    planted = "sk-abcdefghijklmnop1234567890"
    other = "plain-looking-value-of-a-secret"
    monkeypatch.setenv("JUDGE_API_KEY", other)
    config = {
        "judge": {
            "api_key": "tiny",
            "token": [planted],
            "url": f"https://host/?k={planted}",
            "max_tokens": 7,
            "note": f"my {other}",
        }
    }
    with open_workdir(tmp_path, config, console=False) as w:
        log.LOGGER.error("failed with %s and %s", planted, other)
        try:
            raise RuntimeError(f"bad key {other}")
        except RuntimeError:
            log.LOGGER.exception("trace")
        assert w.config["judge"]["max_tokens"] == 7
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert (
                planted.encode() not in content
                and other.encode() not in content
                and b"tiny" not in content
            )
    assert log.REDACTED in (tmp_path / "run.log").read_text()
    with open_workdir(tmp_path, config, console=False) as w:
        assert w.resumed


def test_the_log_survives_text_that_is_not_utf8_and_a_full_disk(tmp_path, capsys):
    with log.run_log(tmp_path / "run.log", console=False):
        log.LOGGER.info("lone %s surrogate", "\ud800")
    assert "\\ud800" in (tmp_path / "run.log").read_text()
    with log.run_log(Path("/dev/full"), console=False):
        log.LOGGER.info("x" * 100_000)
        log.LOGGER.info("again")
    assert "Traceback" not in capsys.readouterr().err
    assert not logging.getLogger("jaxloop").handlers


@pytest.mark.parametrize(
    "name", ["api_key", "HF_TOKEN", "password", "client_secret", "OPENAI_APIKEY"]
)
def test_names_of_secrets(name):
    assert log.is_secret_name(name)
    assert not log.is_secret_name(f"max_new_{name}s_count")


def test_paths_stay_inside(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    for parts in (
        ("/etc/passwd",),
        ("..", "x"),
        ("a", "..", "..", "x"),
        ("link", "passwd"),
        ("link",),
        ("",),
    ):
        with pytest.raises(ValueError):
            atomic_io.inside(tmp_path, *parts)
    assert atomic_io.inside(tmp_path, "a/b", "c") == tmp_path / "a/b/c"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    import resource

    path = tmp_path / "table"
    atomic_io.write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(atomic_io.DiskFull, match=r"table needs 5.0 kB, .* are free in .*limit"):
            atomic_io.write_atomic(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["table"]


def test_files_that_go_while_their_sizes_are_read_are_left_out(tmp_path, monkeypatch):
    """A run that is going on renames and deletes directories all the time."""
    (tmp_path / "checkpoints/generation=0000").mkdir(parents=True)
    for name in ("a", "b", "checkpoints/generation=0000/manifest.json"):
        (tmp_path / name).write_bytes(b"four")
    assert atomic_io.bytes_in(tmp_path) == 12
    lstat = os.lstat

    def after_the_rest_went(path):
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "b").unlink()
        return lstat(path)

    monkeypatch.setattr(os, "lstat", after_the_rest_went)
    assert atomic_io.bytes_in(tmp_path) == 4


def test_sizes_are_said_in_words():
    assert [atomic_io.human_size(n) for n in (12, 1500, 2.5e6, 3e9, 4e12)] == [
        "12 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
        "4.0 TB",
    ]


def test_a_directory_of_another_format_is_refused_with_the_version_that_made_it(tmp_path):
    with workdir.open_workdir(tmp_path, {"a": 1}, console=False):
        pass
    marker = json.loads((tmp_path / workdir.MARKER).read_text())
    assert marker["format"] == 1 and marker["jaxloop"] == jaxloop.__version__
    workdir.check_format(tmp_path)
    for maker, words in (({"jaxloop": "9.8"}, r"jaxloop \(9\.8\)"), ({}, "jaxloop")):
        (tmp_path / workdir.MARKER).write_text(json.dumps({"format": 2, **maker}))
        with pytest.raises(ValueError, match=rf"has format 2, of a later version of {words}; .* 1"):
            with workdir.open_workdir(tmp_path, {"a": 1}, console=False):
                pass
    (tmp_path / workdir.MARKER).write_text("")  # a run that was killed at its very start
    workdir.check_format(tmp_path)


def test_a_run_from_before_a_field_was_added_goes_on_where_the_field_is_none(tmp_path):
    def opened(section):
        with workdir.open_workdir(tmp_path, {"chain": section}, console=False) as place:
            return place.config["chain"]

    opened({"size": 5})
    with pytest.raises(ValueError, match=r"chain.start_adapter \(absent\) -> \"x\""):
        opened({"size": 5, "start_adapter": "x"})
    assert opened({"size": 5, "start_adapter": None}) == {"size": 5, "start_adapter": None}
    with pytest.raises(ValueError, match=r"chain.start_adapter null -> \"x\""):
        opened({"size": 5, "start_adapter": "x"})


def test_two_writers_of_one_file_do_not_take_each_others_temporary_file(tmp_path, monkeypatch):
    """Such as two runs with one cache folder, which both have counted the same tokens."""
    path, fsync, inside = tmp_path / "file", os.fsync, []

    def while_the_first_is_written(handle):
        if not inside:
            inside.append(True)
            atomic_io.write_atomic(path, b"of the second")
            assert path.read_bytes() == b"of the second"
        fsync(handle)

    monkeypatch.setattr(os, "fsync", while_the_first_is_written)
    atomic_io.write_atomic(path, b"of the first, which is longer")
    assert path.read_bytes() == b"of the first, which is longer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_model_of_the_hub_is_the_same_as_long_as_its_files_are(tmp_path):
    """Of a branch, a later commit may have changed the model card alone."""
    name = "models.pool org/model"
    for commit in ("1111", "2222"):
        same = {name: f"{'a' * 64} (commit {commit})"}
        with open_workdir(tmp_path, CONFIG, identity=same, console=False) as place:
            assert place.config["identity"] == same
    with (
        pytest.raises(ValueError, match=r"other files of models\.pool org/model \(SHA-256 aaaa"),
        open_workdir(tmp_path, CONFIG, identity={name: f"{'b' * 64} (commit 3333)"}),
    ):
        pass


def test_what_a_resumed_run_has_written_is_part_of_what_it_needs(tmp_path, monkeypatch):
    free = [1_000_000]
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free[0]))
    with open_workdir(tmp_path, CONFIG, needs=900_000, console=False) as place:
        (place.path / "texts").mkdir()
        (place.path / "texts" / "all").write_bytes(b"x" * 800_000)
        free[0] -= 800_000
    with open_workdir(tmp_path, CONFIG, needs=900_000, console=False) as place:
        assert place.resumed
    with (
        pytest.raises(atomic_io.DiskFull, match="this run needs .* 200.0 kB are free"),
        open_workdir(tmp_path, CONFIG, needs=1_200_000, console=False),
    ):
        pass
