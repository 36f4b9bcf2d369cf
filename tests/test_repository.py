"""The files around the package: what the README promises, `.ci/run` and the packaging must agree on."""

import os
import pathlib
import re
import subprocess
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
    wanted = project["dependencies"] + [r for extra in ("encoders", "test", "peers") for r in project["optional-dependencies"][extra]]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    names = {name.lower().replace("_", "-") for name in pinned}
    missing = [r for r in wanted if r.split(">")[0].split("[")[0].lower().replace("_", "-") not in names]
    assert not missing
    assert pinned["torch"] == "2.13.0"


def test_links_of_the_documents_lead_somewhere():
    for name in ("README.md", "BUILD.md", "configs/README.md"):
        path = ROOT / name
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text())
        assert [link for link in links if not (path.parent / link).exists()] == []
    assert "docs/quickstart.png" in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())


PYTHON = r"""#!/bin/sh
# Stands in for `python3 -m venv FOLDER`.
mkdir -p "$3/bin"
for name in pip python; do
  printf '#!/bin/sh\necho "%s $*" >> "$LOG"\n' $name > "$3/bin/$name"
  chmod +x "$3/bin/$name"
done
echo "$3" > "$LOG"
"""


def test_ci_runs_the_readmes_test_command_in_a_new_environment(tmp_path):
    """`.ci/run` with a `python3` whose environments only write down how they are called."""
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True, timeout=60)
    folder, *calls = (tmp_path / "log").read_text().splitlines()
    promised = readme_commands()[1].replace("'", "").split(" && .venv/bin/")[1:]
    assert calls == promised and calls[-1].startswith("python -m pytest")
    assert not pathlib.Path(folder).exists() and not pathlib.Path(folder).is_relative_to(ROOT)
