"""The config files that come with jaxloop: where they lie, how a name finds one, and the list of
them.

In a clone they lie in `configs/` beside the package; an installed wheel carries them inside it.
`--config=quickstart` and `--config=cluster_study:tiny` work from any folder; a path to a file of
one's own always comes first.
"""

import ast
import pathlib

import jaxloop

PACKAGE = pathlib.Path(jaxloop.__file__).parent


def shipped() -> pathlib.Path:
    """The folder of the shipped configs."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def locate(spec: str) -> tuple[pathlib.Path, str | None]:
    """(file, argument) of what stands after `--config=`: `path.py`, `path.py:argument`, or the name
    of a shipped config with or without `configs/`, `.py` and `:argument`. The file need not exist:
    then it is the path that was meant.
    """
    path, argument = _split(spec)
    if path.exists() or path.is_absolute():
        return path, argument
    parts = path.parts
    if len(parts) == 1 or (len(parts) == 2 and parts[0] == "configs"):
        found = shipped() / path.with_suffix(".py").name
        if found.exists():
            return found, argument
    return path, argument


def _split(spec: str) -> tuple[pathlib.Path, str | None]:
    if ".py:" in spec:
        path, argument = spec.split(".py:", 1)
        return pathlib.Path(path + ".py"), argument
    name, colon, argument = spec.partition(":")
    if (
        colon
        and not pathlib.Path(spec).exists()
        and not pathlib.PurePath(name).suffix
        and "/" not in name
        and "\\" not in name
    ):
        return pathlib.Path(name), argument
    return pathlib.Path(spec), None


def siblings(path: pathlib.Path) -> list[str]:
    """What a mistyped path may have meant: config files beside it, in `configs/` here, and the
    shipped ones by name.
    """
    folders = dict.fromkeys([path.parent, pathlib.Path("configs")])
    files = [str(p) for folder in folders for p in sorted(folder.glob("*.py"))]
    return files or [p.stem for p in _files(shipped())]


def rows() -> list[tuple[str, str]]:
    """(what to write after `--config=`, first line of its docstring) of every config: those in
    `configs/` here, then shipped ones of other names. The files are read, not executed.
    """
    here = pathlib.Path("configs")
    local = [(str(path), first_line(path)) for path in _files(here)]
    names = {pathlib.PurePath(name).stem for name, _ in local}
    return local + [
        (path.stem, first_line(path)) for path in _files(shipped()) if path.stem not in names
    ]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.py"))


def first_line(path: pathlib.Path) -> str:
    """The first line of a Python file's docstring, or in brackets why there is none."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no description)"
    except (SyntaxError, ValueError) as error:
        return f"(cannot be read: {' '.join(str(error).split())})"
    return doc.splitlines()[0]
