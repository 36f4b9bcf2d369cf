"""What a newcomer has: a clone and no network. Configs that need no hub are valid there, as are the
documents' commands.
"""

import json
import pathlib
import re
import shlex

import pytest

from jaxloop import config
from jaxloop.studies import STUDIES
from tests import fresh
from tests.compiler import short_way

DOCUMENTS = ("README.md", "configs/README.md")
# Checks many command lines in one process, as the command line does. Many configs read the same
# texts with the same tokenizer: their tokens are counted once.
MANY = """
import contextlib, io, json, sys
from jaxloop import cli, main
from jaxloop.lm.io.tokenizer import Tokenizer

counted, count = {}, Tokenizer.count

def once(tokenizer, texts):
    asked = tokenizer.eos, tokenizer.vocab_size, *texts
    if asked not in counted:
        counted[asked] = count(tokenizer, texts)
    return counted[asked]

Tokenizer.count = once
answers = []
for words in json.load(open(sys.argv[1])):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.guarded(main.main, cli.parse(["jaxloop", *words]))
        except SystemExit as end:
            code = end.code
    answers.append([code, out.getvalue(), err.getvalue()])
json.dump([cli.__file__, answers], open(sys.argv[2], "w"))
"""


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m jaxloop.main …` in the code blocks of a document, lines
    that end in a backslash joined.
    """
    lines = [
        line.strip() for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")
    ]
    parts = [part for line in lines for part in line.split(" && ")]
    found = [re.fullmatch(r"(?:\.venv/bin/)?python -m jaxloop\.main (.*)", part) for part in parts]
    return [shlex.split(match[1], comments=True) for match in found if match]


def inline(text: str) -> list[list[str]]:
    """The same of those that stand within a sentence, between backquotes."""
    return [shlex.split(words) for words in re.findall(r"`python -m jaxloop\.main ([^`]*)`", text)]


def checked(words: list[str]) -> list[str]:
    """A command that runs a study, made to check it and stop."""
    actions = {"--validate", "--plan", "--list", "--env", "--fields", "--help"}
    return words if actions & set(words) else [*words, "--validate"]


def users_own(words: list[str]) -> set[str]:
    """The files and model directories that a command takes for granted: its user's own."""
    values = [
        value
        for word in words
        if word.startswith("--config.")
        for value in word.partition("=")[2].split(",")
    ]
    return {value for value in values if value.endswith(".jsonl") or value.startswith("path/to/")}


def validated(name: str) -> list[str]:
    """The command that checks a config."""
    path = name.replace(":", ".py:") if ":" in name else f"{name}.py"
    return [f"--config=configs/{path}", "--validate"]


def ask(folder, asked: list[list[str]]) -> dict[tuple[str, ...], list]:
    """{arguments: (exit code, stdout, stderr)} of commands in a clone."""
    place = fresh.clone(folder)
    for name in set().union(*map(users_own, asked)):
        if name.endswith(".jsonl"):
            line = (
                "Number {n} of the posts that their writer read again, found good enough, and put "
                "in a file for others."
            )
            rows = [
                json.dumps({column: line.format(n=n) for column in ("text", "body")})
                for n in range(3000)
            ]
            (place / name).write_text("\n".join(rows) + "\n")
        else:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(place / "jaxloop/assets/bases/llama")
    (folder / "asked.json").write_text(json.dumps(asked))
    done = fresh.python(
        place,
        *("-c", MANY, folder / "asked.json", folder / "answers.json"),
        timeout=280,
        **short_way(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, found = json.loads((folder / "answers.json").read_text())
    assert pathlib.Path(where).is_relative_to(place)
    return {tuple(words): answer for words, answer in zip(asked, found, strict=True)}


# One config of each kind of study.
KINDS = (
    "quickstart",
    "pretrain",
    "histogram",
    "bench",
    "ratio_sweep:tiny",
    "multi_entity:tiny",
    "bias_amplification:tiny",
    "diversity:tiny",
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What is answered to a config of each kind, and to the documents' commands."""
    texts = [(fresh.ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    asked = [checked(words) for text in texts for words in [*commands(text), *inline(text)]]
    return ask(tmp_path_factory.mktemp("fresh"), [*map(validated, KINDS), *asked])


def refused(answers) -> dict:
    return {
        words: answer
        for words, answer in answers.items()
        if "--validate" in words and answer[0] != 0
    }


def test_a_config_of_each_kind_is_valid(answers):
    files = {path.stem for path in (fresh.ROOT / "configs").glob("*.py")}
    assert {name.split(":")[0] for name in fresh.names()} == files - {*fresh.NEED_FILES}
    kinds = {config.read_file(f"configs/{name.split(':')[0]}.py")["study"] for name in KINDS}
    assert kinds == {*STUDIES} and {*KINDS} <= {*fresh.names()}
    assert refused(answers) == {}
    said = answers[("--config=configs/quickstart.py", "--validate")][1]
    assert "configs/quickstart.py is valid" in said and "human texts for the chains" in said


@pytest.mark.slow
def test_every_config_that_needs_no_hub_is_valid(tmp_path):
    assert refused(ask(tmp_path, [*map(validated, fresh.names())])) == {}


def test_the_commands_of_the_documents_are_accepted(answers):
    for name in DOCUMENTS:
        text = (fresh.ROOT / name).read_text(encoding="utf-8")
        found = [*commands(text), *inline(text)]
        assert len(found) >= 2
        for words in found:
            assert answers[tuple(checked(words))][0] == 0, (
                name,
                words,
                answers[tuple(checked(words))],
            )
        # None is missed because it is written in another way.
        assert text.count("-m jaxloop.main") == len(found)


def test_the_configs_that_the_documents_name_are_there():
    for name in DOCUMENTS:
        text = (fresh.ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"`(?:configs/)?(\w+\.py(?::\w+)?)`", text)) - {"FILE.py"}
        assert len(named) > 5
        for path in sorted(named):
            assert config.read_file(f"{fresh.ROOT}/configs/{path}")["study"]
