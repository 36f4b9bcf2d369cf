"""What mkdocs calls while it builds the site: the page of configs, made from the configs themselves
and from the schemas of the studies.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jaxloop import config, studies
from jaxloop.config import catalogue


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "configs.md", content=configs_page()))
    return files


def configs_page() -> str:
    """Return the page: every shipped config with its description, every field of every study."""
    parts = [
        "# Configs",
        "A config is a Python file whose `get_config()` names what differs from the defaults. "
        "`jaxloop run NAME` runs it; `jaxloop run NAME --chain.size=100` changes a field; "
        "`jaxloop fields NAME` prints its fields.",
        "## Those that come with jaxloop",
    ]
    for name in catalogue.names():
        doc = _docstring(catalogue.shipped() / f"{name}.py")
        parts += [f"### `{name}`", _without_links(doc)]
    for name, entry in studies.STUDIES.items():
        parts += [
            f"## Fields of study `{name}`",
            f"{entry.line[0].upper()}{entry.line[1:]}.",
            config.reference(studies.config_of(name)),
        ]
    return "\n\n".join(parts) + "\n"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _without_links(doc: str) -> str:
    """The docstring of a config as Markdown: lines that are indented stay code."""
    return doc.replace("<", "&lt;")
