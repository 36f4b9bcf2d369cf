"""Commands as words: the flags that they stand for, and their completion in a real bash."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxloop import cli
from jaxloop.cli import completion, words
from tests.command import call

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "typed, flags",
    [
        (
            "run quickstart --workdir=w --chain.generations=5 --title=T --debug",
            "--config=quickstart --workdir=w --config.chain.generations=5 --config.title=T --debug",
        ),
        (
            "run mine.py:small --workdir w --chain.size 5 --config.fit.steps=2",
            "--config=mine.py:small --workdir w --config.chain.size 5 --config.fit.steps=2",
        ),
        ("quickstart", "--config=quickstart --workdir=runs/quickstart"),
        (
            "quickstart --workdir=w --fit.steps=3",
            "--config=quickstart --workdir=w --config.fit.steps=3",
        ),
        ("plan ratio_sweep --for=h100", "--plan --config=ratio_sweep --for=h100"),
        ("validate a.py --chain.size=5", "--validate --config=a.py --config.chain.size=5"),
        ("fields theory", "--fields --config=theory"),
        ("list", "--list"),
        ("--config=a.py --plan", "--config=a.py --plan"),
    ],
)
def test_words_stand_for_flags(typed, flags):
    assert words.to_flags(typed.split()) == flags.split()


def test_a_command_in_words_is_the_command_in_flags():
    typed = cli.parse("jaxloop run a.py --workdir=w --chain.size=5 --fit.lora.rank 4".split())
    flags = "jaxloop --config=a.py --workdir=w --config.chain.size=5 --config.fit.lora.rank 4"
    as_flags = cli.parse(flags.split())
    assert typed.overrides == as_flags.overrides == (("chain.size", "5"), ("fit.lora.rank", "4"))
    assert (typed.action, typed.config, typed.workdir) == ("run", "a.py", pathlib.Path("w"))


@pytest.mark.parametrize(
    "typed, said",
    [
        ("quikstart", "'quikstart' was not understood; did you mean 'quickstart'?"),
        ("wibble", "'wibble' was not understood; there are run, validate"),
        ("run", "run: the config is missing, such as `jaxloop run quickstart`"),
        ("plan --for=h100", "plan: the config is missing"),
        ("run quickstart", "--workdir is missing: the directory to write to"),
        ("run quickstart --wrokdir=x", "--wrokdir is not a flag; did you mean --workdir?"),
        ("run quickstart more --workdir=x", "'more' was not understood"),
        (
            "validate quickstart --chain.sise=4",
            "--config.chain.sise: unknown field 'chain.sise'; did you mean 'chain.size'?",
        ),
        ("run quickstart --workdir=nope://b/run", "workdir=nope://b/run: nope:// is no kind of"),
        ("run quickstart --workdir=memory://", "workdir=memory://: names no place, such as"),
        ("completion", "completion: must be followed by a shell, one of bash, zsh, fish"),
        ("completion csh", "completion csh: must be followed by a shell"),
    ],
)
def test_words_that_make_no_sense_are_refused(capsys, tmp_path, monkeypatch, typed, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *typed.split())
    assert code == 2 and out == "" and err.startswith(f"jaxloop: {said}")
    assert err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_what_a_word_can_become():
    assert completion.answers(["qui"]) == ["quickstart"]
    assert completion.answers(["run", "quick"]) == ["quickstart"]
    assert completion.answers(["run", "quickstart", "--chain.ra"]) == ["--chain.ratios="]
    assert "--fit.lora.rank=" in completion.answers(["quickstart", "--fit.l"])
    assert completion.answers(["run", "quickstart", "--work"]) == ["--workdir"]
    assert completion.answers(["list", "x"]) == [] == completion.answers(["run", "no", "--fit.l"])


def test_completion_executes_no_file_of_somebody_else(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert completion.answers(["run", "own.py", "--work"]) == ["--workdir"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes(tmp_path):
    script = f"""jaxloop() {{ {sys.executable} -m jaxloop.main "$@"; }}
{completion.run_action(["bash"])}
for line in 'jaxloop qu' 'jaxloop run ratio' 'jaxloop run quickstart --chain.ra'; do
    COMP_LINE="$line" COMP_POINT=${{#line}} COMPREPLY=()
    _jaxloop
    echo "${{COMPREPLY[@]}}"
done
"""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["quickstart", "ratio_sweep", "--chain.ratios="], done.stderr
