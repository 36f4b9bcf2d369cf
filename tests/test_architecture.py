"""Which module may import which, read from the imports themselves, those inside functions and under
`TYPE_CHECKING` included.
"""

import ast
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxloop"

# From the top down: a package imports only what stands below it.
LAYERS = (
    ("main",),
    ("cli", "api"),
    ("compare", "exports", "results"),
    ("studies",),
    ("metrics", "simulators", "reporting", "accelerators", "trackers"),
    ("lm", "recursion", "data"),
    ("core", "runtime", "config"),
)
# Within a layer packages do not know each other, but for these.
SIDEWAYS = {
    ("accelerators", "metrics"),
    ("core", "runtime"),
    ("trackers", "reporting"),
    ("lm", "recursion"),  # the language-model family has the types of `recursion.family`
}
# What studies share. No study imports another.
COMMON = "common"
# Modules that answer `--list`, `--help` and a typo in a config import nothing but these and the
# standard library.
LIGHT = ("absl", "ml_collections", "pydantic", "pydantic_core", "rich", "jaxloop")


class Import(NamedTuple):
    source: str
    target: str
    line: int
    in_function: bool
    comment: bool


def _modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths]
    return dict(zip((n.removesuffix(".__init__") for n in names), paths, strict=True))


MODULES = _modules()


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports: `from a import b` is a.b where that is a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    full = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else str(node.module) for name in full]


def _imports(module: str, source: str) -> list[Import]:
    lines = source.splitlines()
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                near = lines[max(child.lineno - 5, 0) : child.end_lineno]
                comment = any("#" in line for line in near)
                for target in _targets(child):
                    found.append(Import(module, target, child.lineno, inside, comment))
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


ALL = [i for module, path in MODULES.items() for i in _imports(module, path.read_text("utf-8"))]
INTERNAL = [i for i in ALL if i.target.split(".")[0] == "jaxloop"]


def _package(module: str) -> str:
    return (module.split(".") + [""])[1]


def _layer(module: str) -> int | None:
    return next((k for k, names in enumerate(LAYERS) if _package(module) in names), None)


def _where(i: Import) -> str:
    return f"{i.source}:{i.line} imports {i.target}"


def _wrong_direction(i: Import) -> bool:
    source, target = _layer(i.source), _layer(i.target)
    if source is None or target is None or _package(i.source) == _package(i.target):
        return False
    if source == target:
        return (_package(i.source), _package(i.target)) not in SIDEWAYS
    return source > target


def test_every_package_has_its_layer():
    known = {name for names in LAYERS for name in names}
    assert {_package(module) for module in MODULES} - {""} == known


def test_imports_point_down():
    assert [_where(i) for i in INTERNAL if _wrong_direction(i)] == []


def _study(module: str) -> str | None:
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["studies"] and len(parts) > 2 else None


def _foreign_study(i: Import) -> bool:
    source, target = _study(i.source), _study(i.target)
    return None not in (source, target) and target not in (source, COMMON)


def test_no_study_imports_another():
    assert [_where(i) for i in INTERNAL if _foreign_study(i)] == []


def _circle(arrows: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, in order; empty where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def walk(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for target in sorted(arrows[module]):
            if circle := walk(target):
                return circle
        path.pop()
        done.add(module)
        return []

    return next((c for c in map(walk, sorted(arrows)) if c), [])


def test_no_module_imports_itself_by_way_of_others():
    arrows: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in INTERNAL:
        if i.target in MODULES and i.target != i.source:
            arrows[i.source].add(i.target)
    assert _circle(arrows) == []


def test_imports_inside_functions_say_why():
    assert [_where(i) for i in ALL if i.in_function and not i.comment] == []


def _is_light(module: str) -> bool:
    if module in ("jaxloop", "jaxloop.main", "jaxloop.studies"):
        return True
    return module.startswith(("jaxloop.cli", "jaxloop.config")) or _is_study_config(module)


def _is_study_config(module: str) -> bool:
    """config.py of a study, and the files of its sections, such as split_config.py."""
    return _study(module) is not None and module.endswith((".config", "_config"))


@pytest.mark.parametrize("module", list(filter(_is_light, MODULES)))
def test_the_command_line_imports_nothing_heavy(module):
    light = {*sys.stdlib_module_names, *LIGHT}
    top = [i for i in ALL if i.source == module and not i.in_function]
    assert [_where(i) for i in top if i.target.split(".")[0] not in light] == []


@pytest.mark.parametrize(
    "module", [*filter(_is_study_config, MODULES), f"jaxloop.studies.{COMMON}.factors"]
)
def test_the_config_of_a_study_imports_configs_alone(module):
    shared = (f"jaxloop.studies.{COMMON}.{name}" for name in ("config", "factors"))
    allowed = ("jaxloop.config", *shared)
    targets = [i for i in INTERNAL if i.source == module and not i.in_function]
    heavy = [i for i in targets if not i.target.startswith(allowed)]
    # A name of a module follows it where one is imported from it.
    assert [
        _where(i)
        for i in heavy
        if not (_is_study_config(i.target) or _is_study_config(i.target.rpartition(".")[0]))
    ] == []


def _public_functions(tree: ast.Module):
    """Functions and methods whose name, and whose class's name, has no leading underscore."""
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    for node in itertools.chain(tree.body, *(c.body for c in classes)):
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
            yield node


def _unannotated(node: ast.FunctionDef) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
    names = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    return names + ([] if node.returns else ["return"])


def test_public_functions_are_annotated():
    missing = []
    scripts = {f"scripts.{path.stem}": path for path in (ROOT / "scripts").glob("*.py")}
    for module, path in (MODULES | scripts).items():
        for node in _public_functions(ast.parse(path.read_text("utf-8"))):
            if names := _unannotated(node):
                missing.append(f"{module}.{node.name}: {', '.join(names)}")
    assert missing == []


def test_files_are_short():
    paths = itertools.chain(PACKAGE.rglob("*.py"), (ROOT / "scripts").rglob("*.py"))
    lengths = {p.relative_to(ROOT): len(p.read_text("utf-8").splitlines()) for p in paths}
    assert {str(path): length for path, length in lengths.items() if length > 500} == {}


def test_a_circle_and_a_wrong_direction_would_be_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    source = "def f():\n    from jaxloop.studies import common\n"
    (one,) = _imports("jaxloop.core.keys", source)
    assert one.in_function and not one.comment and _wrong_direction(one)
    assert not _wrong_direction(one._replace(source="jaxloop.cli"))
    assert _foreign_study(
        one._replace(source="jaxloop.studies.chain.run", target="jaxloop.studies.theory.run")
    )
    (node,) = _public_functions(ast.parse("def f(x, y: int): ...\ndef _g(z): ..."))
    assert _unannotated(node) == ["x", "return"]
