"""The files around the package: what the README promises, `.ci/run` and the packaging must agree on."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def readme_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    python3 -m venv")]


def test_readme_opens_with_two_self_contained_commands():
    quickstart, test = readme_commands()[:2]
    for command in (quickstart, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ")
    assert quickstart.endswith(".venv/bin/python -m jaxloop.main --config=configs/quickstart.py --workdir=runs/first")
    assert test.endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")


def test_every_direct_dependency_is_pinned_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for extra in ("api", "test") for r in project["optional-dependencies"][extra]]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    names = {name.lower().replace("_", "-") for name in pinned}
    missing = [r for r in wanted if r.split(">")[0].split("[")[0].lower().replace("_", "-") not in names]
    assert not missing
    assert pinned["torch"] == "2.13.0"
