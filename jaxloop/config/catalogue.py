"""The config files that come with jaxloop: where they are, and how a name finds one.

In a clone they are in `configs/` beside the package; an installed wheel carries them inside it.
`--config=quickstart` and `--config=cluster_study:tiny` work from any folder; a path to a file of
one's own always comes first.
"""

import ast
import pathlib

import jaxloop

PACKAGE = pathlib.Path(jaxloop.__file__).parent


def shipped() -> pathlib.Path:
    """Return the folder of the shipped configs."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def locate(spec: str) -> tuple[pathlib.Path, str | None]:
    """Return the file and the argument that `--config=` names.

    The file need not exist: then it is the path that was probably meant.

    Args:
        spec: `path.py`, `path.py:argument`, or the name of a shipped config with or without
            `configs/`, `.py` and `:argument`.
    """
    path, argument = _split(spec)
    if path.exists() or path.is_absolute():
        return path, argument
    parts = path.parts
    if len(parts) == 1 or (len(parts) == 2 and parts[0] == "configs"):
        file = shipped() / path.with_suffix(".py").name
        if file.exists():
            return file, argument
    return path, argument


def _split(spec: str) -> tuple[pathlib.Path, str | None]:
    if ".py:" in spec:
        path, argument = spec.split(".py:", 1)
        return pathlib.Path(path + ".py"), argument
    name, colon, argument = spec.partition(":")
    is_path = pathlib.PurePath(name).suffix or "/" in name or "\\" in name
    if colon and not is_path and not pathlib.Path(spec).exists():
        return pathlib.Path(name), argument
    return pathlib.Path(spec), None


def siblings(path: pathlib.Path) -> list[str]:
    """Return the names of configs that a mistyped path may have meant.

    They are the config files beside it and in `configs/` here, or else the shipped ones.
    """
    folders = dict.fromkeys([path.parent, pathlib.Path("configs")])
    files = [str(p) for folder in folders for p in sorted(folder.glob("*.py"))]
    return files or [p.stem for p in _files(shipped())]


def names() -> list[str]:
    """Return the names of the shipped configs."""
    return [path.stem for path in _files(shipped())]


def paths() -> list[str]:
    """Return the paths of the config files in `configs/` here."""
    return [str(path) for path in _files(pathlib.Path("configs"))]


def rows() -> list[tuple[str, str]]:
    """Return (what to write after `--config=`, first line of its docstring) of every config.

    Configs in `configs/` here come first, then shipped ones with other names. The files are read,
    not executed.
    """
    local = _files(pathlib.Path("configs"))
    names = {path.stem for path in local}
    others = [path for path in _files(shipped()) if path.stem not in names]
    return [
        *((str(path), first_line(path)) for path in local),
        *((path.stem, first_line(path)) for path in others),
    ]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.py"))


def first_line(path: pathlib.Path) -> str:
    """Return the first line of a Python file's docstring, or in brackets why it has none."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no description)"
    except (SyntaxError, ValueError) as error:
        return f"(cannot be read: {' '.join(str(error).split())})"
    return doc.splitlines()[0]
