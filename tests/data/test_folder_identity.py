"""When a folder counts as another source: where it lies elsewhere, or its data have changed."""

import json

import pytest

from jaxloop.data.sources import identity


def test_a_folder_is_another_source_where_it_lies_elsewhere_or_a_file_has_changed(
    tmp_path, monkeypatch
):
    seen = set()
    for project in ("a", "b"):
        folder = tmp_path / project / "data" / "train"
        folder.mkdir(parents=True)
        (folder / "posts.jsonl").write_text(json.dumps({"text": "a post"}))
        monkeypatch.chdir(tmp_path / project)
        assert identity("data") == identity(str(folder.parent))
        seen.add(identity("data"))
    (folder / "posts.jsonl").write_text(json.dumps({"text": "other"}))
    seen.add(identity("data"))
    (folder / "more.jsonl").write_text(json.dumps({"text": "more"}))
    seen.add(identity("data"))
    assert len(seen) == 4
    (folder / ".lock").write_text("no data")
    assert identity("data") in seen


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "notes.md", "log/clean.log", "readme.txt"]
)
def test_a_folder_is_the_same_source_whatever_lies_beside_its_data(tmp_path, name):
    (tmp_path / "posts.jsonl").write_text(json.dumps({"text": "a post"}))
    before = identity(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("no data")
    assert identity(tmp_path) == before


@pytest.mark.parametrize(
    ("card", "data"),
    [
        ("---\nconfigs:\n- data_files: posts\n---", "posts"),
        ("---\ndataset_info:\n  features: []\n---", "posts.jsonl"),
        ("", "posts.xml"),
        ("", "state.json"),
        ("", "posts.jsonl.gz"),
    ],
)
def test_a_folder_is_another_source_where_what_decides_its_rows_has_changed(tmp_path, card, data):
    (tmp_path / "README.md").write_text(card)
    (tmp_path / data).write_text("one")
    seen = {identity(tmp_path)}
    (tmp_path / data).write_text("longer")
    seen.add(identity(tmp_path))
    (tmp_path / "README.md").write_text(card + "\nmore")
    seen.add(identity(tmp_path))
    assert len(seen) == (3 if card or data in ("posts.xml", "state.json") else 2)


def test_a_folder_of_several_kinds_has_an_identity(tmp_path):
    """Reading it is refused, in a sentence that names the domain."""
    for file in ("a.jsonl", "b.csv"):
        (tmp_path / file).write_text("{}")
    assert {"a.jsonl", "b.csv"} <= set(identity(tmp_path))
