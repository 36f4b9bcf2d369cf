"""Configs by name from any folder, and the other project called `jaxloop`."""

import ast
import importlib.metadata
import re
import shutil

import pytest

from jaxloop import config
from jaxloop.config import catalogue
from jaxloop.runtime import environment
from tests.command import call


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart.py", "configs/quickstart.py", "configs/quickstart"]
)
def test_a_shipped_config_is_found_by_name_from_any_folder(empty, name):
    assert config.read_file(name)["title"] == "Collapse in five minutes"


@pytest.mark.parametrize(
    "name", ["ratio_sweep:tiny", "ratio_sweep.py:tiny", "configs/ratio_sweep.py:tiny"]
)
def test_a_shipped_config_takes_an_argument(empty, name):
    assert config.read_file(name)["tokens"] == "model"


def test_a_file_of_ones_own_comes_first(empty):
    own = (
        '"""Mine."""\nfrom ml_collections import ConfigDict\ndef get_config():\n    return '
        'ConfigDict(dict(title="mine"))\n'
    )
    (empty / "configs").mkdir()
    (empty / "configs" / "quickstart.py").write_text(own)
    assert config.read_file("configs/quickstart.py") == {"title": "mine"}
    names = [name for name, _ in catalogue.rows()]
    assert "configs/quickstart.py" in names and "quickstart" not in names and "ratio_sweep" in names


def test_every_shipped_config_is_described_in_one_sentence(empty):
    lines = dict(catalogue.rows())
    assert len(lines) > 15 and {n: line for n, line in lines.items() if line[-1] not in ".?)"} == {}


def test_a_mistyped_name_says_which_was_meant(empty):
    for wrong in ("quickstat", "quickstat.py", "configs/quickstat.py"):
        with pytest.raises(
            ValueError, match=rf"--config={wrong}: there is no file .*did you mean .*quickstart"
        ):
            config.read_file(wrong)
    with pytest.raises(ValueError, match="or one of those that --list shows"):
        config.read_file("elsewhere/zzzzzzzz.py")
    for path in ("nosuch", "configs/nosuch.py", "runs/nosuch.py"):
        with pytest.raises(ValueError, match="or one of those that --list shows"):
            config.read_file(path)


# Of `bench` the argument is a field, which its schema checks.
WITH_ARGUMENTS = sorted(path for path in catalogue.shipped().glob("*.py") if path.stem != "bench")


@pytest.mark.parametrize("path", WITH_ARGUMENTS, ids=lambda path: path.stem)
def test_a_wrong_argument_is_refused_with_those_that_the_config_has(path):
    """Every argument that its description names; no name of an exception of Python's."""
    with pytest.raises(ValueError, match=f"--config={path.stem}:nosuch: ") as caught:
        config.read_file(f"{path.stem}:nosuch")
    said = str(caught.value)
    named = re.findall(r"`:(\w+)`", ast.get_docstring(ast.parse(path.read_text())) or "")
    arguments = [name for name in named if name in path.read_text().split('"""', 2)[2]]
    if "takes no argument" not in said:
        assert "'nosuch'" in said and len(arguments) >= 1
        assert [name for name in arguments if name not in said] == []
    assert "Error" not in said and "\n" not in said


def test_models_of_shipped_configs_are_found_from_any_folder(empty, capsys):
    code, out, err = call(capsys, "--config=pretrain", "--fields")
    assert code == 0, err
    from jaxloop.studies.common.models import model_path

    for name in config.read_file("quickstart")["models"]["pool"]:
        assert (catalogue.PACKAGE / "assets").as_posix() in model_path(name)


class Other(importlib.metadata.Distribution):
    """A distribution that is called jaxloop."""

    def __init__(self, summary):
        self.summary = summary

    def read_text(self, filename):
        return (
            f"Metadata-Version: 2.1\nName: jaxloop\nVersion: 0.0.1\nSummary: {self.summary}\n"
            if filename == "METADATA"
            else None
        )

    def locate_file(self, path):
        return path


def test_the_other_project_of_this_name_is_detected(monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.metadata,
        "distributions",
        lambda name: [Other(environment.SUMMARY), Other("Another library.")],
    )
    code, out, err = call(capsys, "--list")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert (
        "'jaxloop' 0.0.1 (Another library.) is installed beside 'jaxloop-lm'" in err
        and "pip uninstall -y jaxloop jaxloop-lm" in err
    )
    monkeypatch.setattr(
        importlib.metadata, "distributions", lambda name: [Other(environment.SUMMARY)]
    )  # a clone from before the new name
    assert call(capsys, "--list")[0] == 0


def test_the_name_is_that_of_pyproject():
    import tomllib

    path = catalogue.PACKAGE.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    assert (project["name"], project["description"]) == (
        environment.DISTRIBUTION,
        environment.SUMMARY,
    )
    assert (
        environment.how_to_install("encoders") == "pip install 'jaxloop-lm[encoders]'"
        and "encoders" in project["optional-dependencies"]
    )


def test_inside_a_wheel_the_configs_lie_in_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "jaxloop"
    shutil.copytree(catalogue.shipped(), package / "configs")
    monkeypatch.setattr(catalogue, "PACKAGE", package)
    assert catalogue.shipped() == package / "configs"
    assert catalogue.locate("quickstart") == (package / "configs" / "quickstart.py", None)
