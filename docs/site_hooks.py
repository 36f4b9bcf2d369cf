"""What mkdocs calls while it builds the site: the pages of configs and of metrics, made from the
configs, the schemas of the studies and the metrics themselves.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jaxloop import config, studies
from jaxloop.config import catalogue
from jaxloop.metrics import registry
from jaxloop.metrics.base import Range


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "configs.md", content=configs_page()))
    files.append(File.generated(config, "metrics.md", content=metrics_page()))
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


def metrics_page() -> str:
    """Return the page: every metric with its options, meaning, range and unit."""
    rows = ["| metric | options | what it is | range | unit |", "|---|---|---|---|---|"]
    meanings = registry.available()
    for name, metric in registry.REGISTRY.items():
        options = ", ".join(f"`{option}={value!r}`" for option, value in metric.options.items())
        cells = (f"`{name}`", options, meanings[name], _range(metric.range), metric.unit)
        escaped = (_without_links(cell).replace("|", "&#124;") for cell in cells)
        rows.append(f"| {' | '.join(escaped)} |")
    head = (
        "# Metrics",
        "`--metrics='self_bleu,distinct_n(n=2)'` says what a run measures; options stand in "
        "brackets. Formulas, sources, and the values of collapsed text are in the docstrings.",
    )
    return "\n\n".join((*head, "\n".join(rows))) + "\n"


def _range(bounds: Range) -> str:
    least, most = bounds
    if least is None:
        return "" if most is None else f"at most {most:g}"
    return f"at least {least:g}" if most is None else f"{least:g} to {most:g}"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _without_links(doc: str) -> str:
    """The docstring of a config as Markdown: lines that are indented stay code."""
    return doc.replace("<", "&lt;")
