"""All that is wrong is listed at once by `--validate`, data and models alike; labels, dates and the
room for clean rows are looked at before hours of work.
"""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxloop import config
from jaxloop.cli import EXIT_DISK_FULL
from jaxloop.runtime import atomic_io
from jaxloop.runtime.problems import Problems, noted, raise_all
from jaxloop.studies.bias_amplification import prepare as bias
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.diversity import prepare as diversity
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.multi_entity import prepare as entities
from jaxloop.studies.multi_entity.config import EntitiesConfig
from jaxloop.studies.recursive_loops import prepare as loops
from jaxloop.studies.recursive_loops import sources
from jaxloop.studies.recursive_loops.data import clean_files, cleaning
from tests.command import call
from tests.studies.bias_amplification import test_bias
from tests.studies.recursive_loops import loops_study as ls

# Nothing can be made below a file: a directory such as /none may exist on somebody's machine.
NONE, BAD, NOPE = (f"{__file__}/{name}" for name in ("none", "bad", "nope"))
NO_MODEL = f"directory {NONE} does not exist"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ls.build(tmp_path_factory.mktemp("loops"))


def said(prepare, settings):
    with pytest.raises(Problems) as caught:
        prepare(settings)
    return caught.value.lines


def holds(lines, *parts):
    for part in parts:
        assert any(part in line for line in lines), (part, lines)
    assert len(lines) == len(parts), lines


def test_entities(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text("\n".join(json.dumps({"question": "why"}) for _ in range(4)))
    raw = {
        "study": "multi_entity",
        "entities": ["one"],
        "tasks": {"one": {"task": "qa", "source": str(path)}},
        "public": {"task": "text", "source": "/nowhere.jsonl"},
        "exchange": {"mixing": "no_such"},
        "models": {"pool": [NONE]},
        "measure": {"metrics": ["text_length", f"toxicity(model='{BAD}')"], "embedder": NOPE},
    }
    holds(
        said(entities.prepare, config.build(EntitiesConfig, raw)),
        "config.exchange.mixing",
        f"config.models.pool: model: {NO_MODEL}",
        f"directory {BAD} does not exist",
        "config.tasks.one: ",
        "config.public",
    )


def test_articles(tmp_path):
    test_bias.write_articles(tmp_path / "articles.csv", 10, 24)
    raw = {
        "study": "bias",
        "data": {"source": str(tmp_path / "articles.csv"), "per_label": 20},
        "models": {"pool": [NONE]},
        "classifier": {"model": BAD, "target": "From the Right"},
        "measure": {"metrics": ["toxicity(model='/worse')"]},
    }
    holds(
        said(bias.prepare, config.build(BiasConfig, raw)),
        NO_MODEL,
        "config.classifier.model: ",
        "directory /worse does not exist",
        "config.data.per_label = 20",
    )
    raw["data"]["per_label"] = 4
    raw["classifier"]["target"] = "Nobody"
    raw["classifier"]["model"] = None
    raw["measure"] = {}
    holds(
        said(bias.prepare, config.build(BiasConfig, raw)),
        NO_MODEL,
        "config.classifier.target = 'Nobody' is not a label",
    )


def test_a_date_that_is_none_is_named(tmp_path):
    rows = [
        {"text": f"post {i}", "party": "D" if i % 2 else "R", "who": "a", "when": "2020-01-01"}
        for i in range(9)
    ]
    rows[6]["when"] = "some day"
    pd.DataFrame(rows).to_csv(tmp_path / "posts.csv", index=False)
    raw = {
        "study": "bias",
        "data": {
            "source": str(tmp_path / "posts.csv"),
            "body_column": "text",
            "label_column": "party",
            "author_column": "who",
            "date_column": "when",
        },
        "models": {"pool": [NONE]},
        "classifier": {"target": "D"},
    }
    holds(
        said(bias.prepare, config.build(BiasConfig, raw)),
        NO_MODEL,
        "config.data.date_column = 'when': 'some day', of the 7. article",
    )


def test_diversity(tmp_path):
    (tmp_path / "qa.jsonl").write_text(json.dumps({"question": {"text": "why"}}))
    raw = {
        "study": "diversity",
        "models": {"pool": [NONE]},
        "story": {"sources": ["/nowhere.jsonl"]},
        "qa": {"source": str(tmp_path / "qa.jsonl")},
        "distances": {"embedder": NOPE},
        "generated": {"levels": [0], "ratios": [1.0], "qa": [12], "story": [12]},
        "generator": {"url": "http://127.0.0.1:9/v1", "served": "x"},
    }
    lines = said(diversity.prepare, config.build(DiversityConfig, raw))
    story = "config.story: data.source = '/nowhere.jsonl': there is no such file"
    holds(lines, f"config.models.pool: model: {NO_MODEL}", NOPE, story, "config.qa: ")


# ---- labels


def political(place, source, **changes):
    domains = {"posts": {"source": [str(source)], "instruction": "Go."}}
    leaning = {"mixes": [100, 0], "fit_texts": 40, **changes}
    return ls.settings(place, experiment="political", domains=domains, political_leaning=leaning)


def test_labels_of_the_first_rows_are_looked_at(place, tmp_path):
    source = place / "posts.jsonl"
    with pytest.raises(ValueError, match="config.domains.posts: has no column 'side'; there are"):
        sources.check(political(place, source, label_column="side"), "posts")
    with pytest.raises(ValueError, match="column 'party' has 'R', 'D' in its first 240 rows, and"):
        sources.check(political(place, source, left="Left", right="Right"), "posts")
    assert "first row" in sources.check(political(place, source), "posts")


def test_too_few_labels_are_refused_before_a_run_begins(place):
    with pytest.raises(ValueError, match="120 texts labelled 'D' and 0 labelled 'X'; at least 20"):
        loops.prepare(political(place, place / "posts.jsonl", right="X"))


def test_a_bad_label_far_down_is_named_with_column_and_row(place, tmp_path):
    rows = ls.posts(3000)
    rows[2500]["party"] = ["D", "R"]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = political(place, tmp_path / "long.jsonl")
    assert "first row" in sources.check(settings, "posts")
    with pytest.raises(ValueError, match=r"column 'party' holds list .* in row 2501 of .*long"):
        sources.read(settings, "posts", lambda texts: [30] * len(texts))


def test_labels_of_several_types_are_read_as_text():
    assert cleaning.check_labels([1, "D", None, True], "party", "f") == ["1", "D", None, "True"]


# ---- room on the disk


def test_the_room_of_clean_rows_is_estimated_from_what_is_read(tmp_path):
    table = pa.table({"text": [f"{i} words " * 9 for i in range(5000)], "id": range(5000)})
    pq.write_table(table, tmp_path / "a.parquet")
    size = (tmp_path / "a.parquet").stat().st_size
    (tmp_path / "a.jsonl").write_text("x" * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(b"x" * 100)
    room = clean_files.room_needed
    assert size < room([tmp_path / "a.parquet"], ["text", "id"]) < 2 * size
    assert room([tmp_path / "a.parquet"], ["id"]) < room([tmp_path / "a.parquet"], ["text"])
    assert room([tmp_path / "a.jsonl"], ["text"]) == 1000
    assert room([tmp_path / "a.jsonl.gz", "owner/dataset"], ["text"]) == 200
    assert room([tmp_path / "a.jsonl"], ["text"], limit=0) == 0


def test_a_disk_too_small_for_cleaning_is_said_first(place, capsys, tmp_path, monkeypatch):
    path = ls.write(tmp_path / "study.py", ls.raw(place))
    free = lambda path: atomic_io.shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)  # noqa: E731
    monkeypatch.setattr(atomic_io.shutil, "disk_usage", free)
    words = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    code, _, err = call(capsys, *words)
    assert (
        code == EXIT_DISK_FULL
        and err.count("\n") == 1
        and "cleaning config.domains.posts needs" in err
    )
    code, _, err = call(capsys, *words, "--validate", f"--config.models.pool={NONE}")
    assert code == 2 and err.count("\n") == 2 and NO_MODEL in err and "disk full: cleaning" in err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_alone_stays_one():
    problems = []
    with noted(problems):
        raise atomic_io.DiskFull(28, "disk full: x needs 3 GB")
    with pytest.raises(atomic_io.DiskFull, match="x needs 3 GB"):
        raise_all(problems)
