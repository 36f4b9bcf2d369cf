"""The documents: their links, the files and extras that they name, and commands that can be typed
one after another.
"""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from jaxloop import cli
from jaxloop.reporting.figures import TITLES
from tests.test_fresh_clone import commands

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "configs" / "README.md"]
)
# Made by the site from the configs themselves.
GENERATED = ("docs/configs.md", "docs/metrics.md")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text_of(path)):
        file, _, anchor = link.partition("#")
        place = (path.parent / file).resolve() if file else path
        if place.is_relative_to(ROOT) and name_of(place) in GENERATED:
            continue
        assert place.exists(), link
        assert not anchor or anchor in anchors(place), link


def files_of_the_project() -> list[str]:
    folders = ("jaxloop", "tests", "scripts", "configs", "docs", "examples", "findings", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [f"/{name_of(path)}" for path in [*inside, *ROOT.glob("*")]]


def test_files_of_the_project_that_a_document_names_are_there():
    """Whatever a document calls by the name of a module, a script, a page or a folder of ours."""
    files = files_of_the_project()
    # Names of users' own files, and of what an earlier version had.
    others = {"mine.py", "mine.toml", "FILE.py", "FILE.toml"}
    missing = []
    for path in DOCUMENTS:
        for name in re.findall(
            r"`([\w./-]+\.(?:py|toml|sh|md|ipynb)|jaxloop/[\w/]+/)`", text_of(path)
        ):
            name = name.rstrip("/")
            if name not in others and not any(file.endswith(f"/{name}") for file in files):
                missing.append((name_of(path), name))
    assert missing == []


def test_every_extra_is_in_the_table_of_the_build_instructions():
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    table = text_of(ROOT / "BUILD.md").split("| extra | brings |")[1].split("\n\n")[0]
    named = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert named == set(project["optional-dependencies"])


def runs() -> list[tuple[str, str, frozenset[str]]]:
    """(document, run directory, config and changed fields) of every run that a document shows."""
    found = []
    for path in DOCUMENTS:
        # Questions show refusals, pods one run under many launchers, results what was run.
        if path.name in ("faq.md", "pods.md", "CHANGELOG.md") or "results" in path.parts:
            continue
        text = text_of(path)
        shown = [["jaxloop", *words] for words in commands(text)]
        for line in re.findall(r"^ +jaxloop ((?:run|quickstart)\b.*)$", text, re.MULTILINE):
            shown.append(["jaxloop", *shlex.split(line, comments=True)])
        for line in re.findall(r"`jaxloop (run .*?--workdir=runs.*?)`", text):
            shown.append(["jaxloop", *shlex.split(line)])
        for words in shown:
            if not {"--list", "--env", "--help"} & set(words):
                command = cli.parse(words)
                if command.action == "run":
                    settings = {f"{name}={value}" for name, value in command.overrides}
                    config = Path(str(command.config).replace(".py", "")).name
                    found.append((name_of(path), str(command.workdir), settings | {config}))
        for config, folder, changes in re.findall(
            r'jaxloop\.run\("(\w+)", "([^"]+)"(?:, (\{.*?\}))?\)', text
        ):
            changed = ast.literal_eval(changes or "{}").items()
            settings = {f"{name}={value}" for name, value in changed}
            found.append((name_of(path), folder, settings | {config}))
    return [(document, folder, frozenset(what)) for document, folder, what in found]


def test_no_two_commands_ask_for_different_runs_in_one_directory():
    """Who types a document's commands one after another would be refused: a run directory belongs
    to one config. More generations may be asked for later, by another number than the config's.
    """
    found = runs()
    assert len(found) >= 12
    first: dict[str, tuple[str, frozenset[str]]] = {}
    for document, folder, what in found:
        plain = frozenset(word for word in what if not word.startswith("chain.generations="))
        if folder == "runs/first":  # the README's first command, with the config's own number
            plain = what
        known, settings = first.setdefault(folder, (document, plain))
        assert plain == settings, (folder, known, document)


def test_notebooks_name_the_unit_of_a_metric_that_they_draw():
    _, unit = TITLES["text_length"]
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        for label in re.findall(r'text_length.*?ylabel=\\"(.*?)\\"', text_of(path), re.DOTALL):
            assert label == unit, path.name


def test_what_is_not_on_a_package_index_is_installed_from_the_clone():
    """`jaxloop-lm[EXTRA]` adds an extra to what is installed; nothing else asks for it."""
    templates = [path for path in (ROOT / "docs" / "how-to" / "pods").iterdir() if path.is_file()]
    for path in [*DOCUMENTS, *templates]:
        assert not re.search(r"pip install (?:-\S+ )*'?jaxloop-lm(?!\[)", text_of(path)), path
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    setup = text_of(ROOT / "docs" / "how-to" / "pods" / "skypilot.yaml")
    (asked,) = re.findall(r"'\.\[([\w,-]+)\]'", setup)
    assert "workdir: ." in setup and set(asked.split(",")) <= set(extras)
