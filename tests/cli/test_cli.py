"""The command line as a person meets it: exit codes, one line per refusal, nothing heavy imported
before it.
"""

import dataclasses
import pathlib
import sqlite3
import subprocess
import sys

import pytest

from jaxloop import cli
from jaxloop.runtime import environment
from jaxloop.runtime.atomic_io import DiskFull
from tests.command import call

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--confg=x"], "--confg is not a flag; did you mean --config?"),
        (["--config.chain.size=5"], "--config is missing: a config such as"),
        (
            ["--chain.size=5", f"--config={QUICKSTART}"],
            "--chain.size is not a flag; a field of the config is set with --config.chain.size=…",
        ),
        ([f"--config={QUICKSTART}"], "--workdir is missing: the directory to write to"),
        (["--workdir=x"], "--config is missing"),
        (["--config="], "--config is missing"),
        ([f"--config={QUICKSTART}", "--workdir=x", "run"], "'run' was not understood"),
        (
            [f"--config={QUICKSTART}", "--validate", "--plan"],
            "--validate and --plan cannot be used together",
        ),
        ([f"--config={QUICKSTART}", "--validate", "--config.=3"], "--config.=3: names no field"),
        (
            [f"--config={QUICKSTART}", "--validate", "--config.fit.stesp", "3"],
            "--config.fit.stesp: unknown field 'fit.stesp'; did you mean 'fit.st",
        ),
        (
            [f"--config={QUICKSTART}", "--validate", "--config.chain.ratios=2"],
            "config.chain.ratios[0] = 2 is not allowed: a number from 0 to 1",
        ),
        (
            ["--config=configs/nowhere.py", "--workdir=x"],
            "--config=configs/nowhere.py: there is no file",
        ),
        (["--debug=maybe"], "flag --debug=maybe"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith(f"jaxloop: {said}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_override_forms():
    words = [
        "--config=x.py",
        "--config.a.b=1=2",
        "--config.c",
        "3",
        "--config.d",
        "--workdir=w",
        "-config.e=-1",
    ]
    command = cli.parse(["jaxloop", *words])
    assert command.overrides == (("a.b", "1=2"), ("c", "3"), ("d", "true"), ("e", "-1"))
    assert (command.action, command.config, command.workdir) == ("run", "x.py", pathlib.Path("w"))


def test_help_and_fields(capsys):
    asked = ([], ["--help"], ["-h"], ["help", "run"])
    of_commands = [[word, "--help"] for word in ("run", "quickstart", "list", "compare", "cache")]
    for words in (*asked, *of_commands):
        code, out, _ = call(capsys, *words)
        assert code == 0 and "--config.SECTION.FIELD=VALUE" in out and "jaxloop run CONFIG" in out
    code, out, _ = call(capsys, f"--config={QUICKSTART}", "--fields")
    assert code == 0 and "| `chain.generations` | 20 |" in out


def test_list_shows_studies_and_configs_without_running_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "good.py").write_text('"""One line.\n\nMore."""\nraise SystemExit(9)\n')
    (tmp_path / "configs" / "bare.py").write_text("x = 1")
    (tmp_path / "configs" / "broken.py").write_text("def (")
    code, out, _ = call(capsys, "--list")
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0 and "chain" in rows
    assert (
        rows["configs/good.py"].endswith("One line.")
        and "no description" in rows["configs/bare.py"]
    )
    assert "cannot be read" in rows["configs/broken.py"]
    assert (
        "quickstart" in rows and "configs/quickstart.py" not in rows
    )  # a shipped one goes by its name


def test_environment_hides_secrets():
    fake = "sk-planted-0123456789"
    variables = {
        "HF_TOKEN": fake,
        "OPENAI_API_KEY": fake,
        "HF_ENDPOINT": f"https://me:{fake}@hub.example/x",
        "JAX_PLATFORMS": "cpu",
        "HOME": "/h",
    }
    rows = dict(environment.describe(variables))
    assert fake not in cli.table(list(rows.items()))
    assert (
        rows["HF_TOKEN"] == "(set, hidden)"
        and rows["HF_ENDPOINT"] == "https://(hidden)@hub.example/x"
    )
    assert rows["JAX_PLATFORMS"] == "cpu" and "HOME" not in rows
    assert rows["jax"] == environment.version("jax") and "cpu" in rows["devices"]
    assert environment.version("no-such-distribution") == "not installed"


def test_a_refusal_is_told_from_an_error_of_ours(capsys, tmp_path):
    def refuses(command):
        cli.config.read_file("nowhere.py")

    def fails(command):
        int("not a number, deep inside a library")

    def disk(command):
        (tmp_path / "missing" / "file").write_text("")

    command = cli.parse(["jaxloop", "--list"])
    with pytest.raises(SystemExit) as end:
        cli.guarded(refuses, command)
    assert end.value.code == 2 and capsys.readouterr().err.startswith(
        "jaxloop: --config=nowhere.py"
    )
    with pytest.raises(SystemExit):
        cli.guarded(disk, command)
    assert "No such file or directory" in capsys.readouterr().err

    def full(command):
        raise DiskFull(28, "disk full: 3 MB needed")

    def interrupted(command):
        raise KeyboardInterrupt

    def library(command):
        raise OSError(28, "No space left on device")

    def database(command):
        raise sqlite3.OperationalError("database or disk is full")

    for work, code in ((full, 28), (library, 28), (database, 28), (interrupted, 130)):
        with pytest.raises(SystemExit) as end:
            cli.guarded(work, command)
        assert end.value.code == code and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError):
        cli.guarded(fails, command)
    with pytest.raises(ValueError):
        cli.guarded(refuses, dataclasses.replace(command, debug=True))


@pytest.mark.parametrize(
    "words, begun, said",
    [
        (["--workdir=run", "--config=quickstart"], False, " before anything was written"),
        (
            ["--workdir=run", "--config=quickstart"],
            True,
            "; what was finished is on disk, the same command goes on",
        ),
        (["cache", "--clear"], True, ""),
    ],
)
def test_what_ctrl_c_says_is_true(capsys, tmp_path, monkeypatch, words, begun, said):
    """Outside of the chains, whose own message names the command."""
    monkeypatch.chdir(tmp_path)
    if begun:
        (tmp_path / "run").mkdir()

    def interrupted(command):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        cli.guarded(interrupted, cli.parse(["jaxloop", *words]))
    assert left.value.code == 130
    assert capsys.readouterr().err == f"jaxloop: stopped by Ctrl-C{said}\n"


def test_refuse_survives_text_that_no_terminal_can_show(capsys):
    with pytest.raises(SystemExit) as end:
        cli.refuse(ValueError("text '\udcff'\nsecond line"))
    assert (
        end.value.code == 2 and capsys.readouterr().err == "jaxloop: text '\\udcff' second line\n"
    )


def test_typos_are_refused_before_jax_is_imported(tmp_path):
    code = (
        "import sys\nfrom jaxloop import main\n"
        f"sys.argv = ['jaxloop', '--config={QUICKSTART}', '--workdir=w', "
        "'--config.chain.generations=none']\n"
        "try:\n    main.run()\nexcept SystemExit as end:\n    print(end.code, [m for m in "
        "('jax', 'torch', 'pandas') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2 []\n"
    assert (
        done.stderr
        == "jaxloop: config.chain.generations = 'none' is not allowed: a whole number of at "
        "least 1\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_module_entry_point(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxloop.main", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "configs/quickstart.py" in done.stdout and done.stderr == ""


def test_an_old_name_of_a_field_costs_one_line(tmp_path):
    words = [
        f"--config={QUICKSTART}",
        "--workdir=w",
        "--config.fit.clip=2",
        "--config.fit.loss_on=all",
        "--config.chain.size=0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "jaxloop.main", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "WARNING jaxloop: config.fit.clip is now called config.fit.max_grad_norm; the next release "
        "refuses the old name",
        "WARNING jaxloop: config.fit.loss_on is now called config.fit.completion_only; the next "
        "release refuses the old name",
        "jaxloop: config.chain.size = 0 is not allowed: a whole number of at least 1",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_in_a_work_directory_is_the_one_that_is_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["jaxloop", f"--config={QUICKSTART}"]
    assert cli.parse([*words, "--workdir=~/runs/first"]).workdir == tmp_path / "runs" / "first"
    assert cli.parse([*words, "--workdir=s3://b/~/run"]).workdir == "s3://b/~/run"
    # No user has this name.
    assert cli.parse([*words, "--workdir=~nobody-here/a"]).workdir == pathlib.Path("~nobody-here/a")
