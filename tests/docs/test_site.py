"""The site: its commands make sense, its refusals are real, it names what is public, it builds."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

import jaxloop
from jaxloop import cli, config, studies
from jaxloop.results import expectations, measures
from jaxloop.runtime.workdir import open_workdir
from jaxloop.studies.common.config import UNSTORED
from tests.command import call
from tests.peers import require

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
COMMAND = re.compile(r"^ +(?:\$ )?jaxloop (.+?)(?: +#.*)?$", re.MULTILINE)


def _commands():
    texts = [(page, page.read_text(encoding="utf-8")) for page in [*PAGES, ROOT / "README.md"]]
    found = [(page.stem, line) for page, text in texts for line in COMMAND.findall(text)]
    return [pytest.param(line, id=f"{page}: {line}") for page, line in found if line[0] != ":"]


@pytest.mark.parametrize("line", _commands())
def test_commands_of_the_pages_make_sense(line):
    if line.startswith("--config"):
        return  # a refusal of the README, in flags
    command = cli.parse(["jaxloop", *shlex.split(line.rstrip("\\"))])
    if command.config is None:
        return
    raw = config.read_file(command.config)
    schema = studies.config_of(raw["study"])
    if "generatons" not in line:  # a typo that a page shows
        config.build(schema, config.override(raw, command.overrides, schema))


def test_the_refusals_on_the_page_of_questions_are_real(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = jaxloop.load_config("quickstart")
    stored = settings.model_dump(mode="json", exclude=set(UNSTORED))
    with open_workdir(Path("runs/first"), stored, console=False):
        pass
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    \$ jaxloop (.+)\n    (jaxloop: .+)$", page, re.MULTILINE)
    assert len(shown) >= 5
    for words, line in shown:
        code, _, err = call(capsys, *shlex.split(words))
        assert (code, err.splitlines()[-1].replace(f"{tmp_path}/", "")) == (2, line)


def test_the_expectations_on_the_page_of_runs_can_be_read(tmp_path):
    page = (ROOT / "docs" / "how-to" / "runs.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.toml").write_text(shown, encoding="utf-8")
    read = expectations.read(tmp_path / "mine.toml")
    # Two seeds, which keep 0.84 and 0.86 of generation 0.
    rows = [
        {"chain": f"c{seed}", "seed": seed, "ratio": 1.0, "generation": g}
        | {
            "entity": 0,
            "metric": "cosine_diversity",
            "value": 1.0 if g == 0 else 0.84 + 0.02 * seed,
        }
        for seed in (0, 1)
        for g in range(10)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "metrics.csv", index=False)
    estimate = measures.measure(tmp_path, read.claims[0].measure)
    assert estimate.value == pytest.approx(-0.15)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_python_that_a_newcomer_reads_runs(page, caplog):
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"(?ms)^(    import jaxloop\n.*?jaxloop\.generate\(.*?\n)", text)
    exec(textwrap.dedent(code), {})
    assert "nothing is learned" not in caplog.text


def test_every_public_name_is_on_the_page_of_the_api():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = {*jaxloop.__all__} - {"__version__", "workflows"}
    assert {name for name in names if not re.search(rf"\b{name}\b", page)} == set()


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
    assert [page for page in pages if f": {page}\n" not in menu] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    require("mkdocs", "mkdocstrings", "material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "finetune" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    fields = (tmp_path / "site" / "configs" / "index.html").read_text(encoding="utf-8")
    assert "chain.generations" in fields and "ratio_sweep" in fields
    metrics = (tmp_path / "site" / "metrics" / "index.html").read_text(encoding="utf-8")
    assert "<code>distinct_n</code>" in metrics and "nats/token" in metrics
