"""The corpora that come with jaxloop: what is in the box is what ORIGIN.md says, and can be made
again.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from jaxloop import config
from jaxloop.data import corpora, docs, docs_extraction, load_texts, qa_tasks, sources, stories
from jaxloop.data.digest import digest_texts, fingerprint
from jaxloop.studies.chain import prepare
from jaxloop.studies.chain import run as chain
from jaxloop.studies.recursive_loops.data import recipes

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 3_500_000


def script():
    spec = importlib.util.spec_from_file_location(
        "make_corpora", ROOT / "scripts" / "make_corpora.py"
    )
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(
            spec.origin.removesuffix("make_corpora.py")
        )  # where it finds _root, as when it is run
        spec.loader.exec_module(module)
    return module


MAKE = script()


# ---- what is in the box


@pytest.mark.parametrize("name", corpora.index())
def test_a_corpus_is_what_its_index_says(name):
    said, path = corpora.index()[name], corpora.FOLDER / f"{name}.parquet"
    frame = pd.read_parquet(path)
    columns = frame.to_dict("list")
    assert (len(frame), list(frame), path.stat().st_size) == (
        said["rows"],
        said["columns"],
        said["bytes"],
    )
    assert digest_texts(MAKE.texts(columns)) == said["fingerprint"]
    assert len(set(MAKE.texts(columns))) == len(frame) and not frame.isna().any(axis=None)
    if "text" in columns:
        assert fingerprint(frame) == said["fingerprint"]


def test_origin_names_every_corpus_with_its_rows_columns_and_fingerprint():
    lines = (corpora.FOLDER / "ORIGIN.md").read_text(encoding="utf-8").splitlines()
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    found = {
        row[0]: (row[1], row[2], row[7]) for row in table if len(row) == 8 and row[0] != "name"
    }
    assert found == {
        name: (f"{said['rows']:,}", ", ".join(said["columns"]), said["fingerprint"])
        for name, said in corpora.index().items()
    }
    versions = {row[0]: row[1] for row in table if len(row) == 3 and row[0] != "library"}
    assert versions == {
        k: v for name in corpora.DOCS for k, v in corpora.index()[name]["libraries"].items()
    }
    assert set(versions) == set(docs.LIBRARIES)
    licences = (corpora.FOLDER / "LICENSES.txt").read_text(encoding="utf-8")
    assert [name for name, version in versions.items() if f"{name} {version}" not in licences] == []


def test_all_corpora_together_are_small_and_hold_no_other_file():
    files = {path.name: path.stat().st_size for path in corpora.FOLDER.iterdir()}
    assert set(files) == {
        "ORIGIN.md",
        "LICENSES.txt",
        "index.json",
        *(f"{name}.parquet" for name in corpora.index()),
    }
    assert sum(files.values()) <= LIMIT


def test_speeches_are_passages_of_both_parties():
    frame = corpora.load("speeches")
    assert frame["text"].str.split().str.len().between(40, 80).all()
    assert set(frame["party"]) == {"D", "R"} and frame["party"].value_counts().min() > 1000
    assert frame.groupby("president")["party"].nunique().eq(1).all() and frame["year"].min() == 1981
    assert frame["speech"].value_counts().index.tolist() == [
        "State of the Union address",
        "Inaugural address",
    ]


def test_private_and_public_books_are_different_ones():
    novels, adventures = (set(corpora.load(name)["book"]) for name in ("novels", "adventures"))
    assert len(novels) == len(adventures) == 2 and not novels & adventures


def test_no_text_holds_an_unwanted_word():
    for name in corpora.names():
        if name not in corpora.DOCS:
            assert all(map(MAKE.decent, MAKE.texts(corpora.load(name).to_dict("list"))))
    words = {
        word
        for text in corpora.load("emotions")["text"]
        for word in MAKE._WORD.findall(text.lower())
    }
    assert len(words) > 3000 and not {MAKE._hashed(word) for word in words} & MAKE.IN_COMMENTS


# ---- docs


def test_docs_is_read_in_a_moment_and_needs_no_library(monkeypatch):
    monkeypatch.setattr(docs, "versions", dict)
    docs.load()
    begin = time.process_time()
    frame = docs.load()
    assert time.process_time() - begin < 1
    assert list(frame) == ["text", "domain", "module", "id"] and frame["id"].is_unique
    assert list(dict.fromkeys(frame["domain"])) == list(docs.LIBRARIES)


def test_docs_from_what_is_installed_is_refused_at_once_where_a_library_is_not(monkeypatch):
    there = {name: "1" for name in docs.LIBRARIES if name != "nltk"}
    monkeypatch.setattr(docs, "versions", lambda: there)
    monkeypatch.setattr(
        docs_extraction,
        "build",
        lambda libraries: pytest.fail("extracted before the names were looked at"),
    )
    said = (
        r"docs:installed: the library nltk is not installed here; install it, or read 'docs', "
        r"which needs none\.$"
    )
    for ask in (
        lambda: docs.load_installed(["scipy", "nltk"]),
        lambda: load_texts("docs:installed:nltk"),
        lambda: load_texts("docs:installed", domains=docs.HELD_OUT),
        lambda: next(sources.rows("docs:installed:nltk,scipy")),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
    with pytest.raises(
        ValueError, match="docs:installed: 'nltkk' is not one of its libraries .did you mean 'nltk'"
    ):
        load_texts("docs:installed:nltkk")
    with pytest.raises(
        ValueError, match="docs: 'nltkk' is not one of its libraries .did you mean 'nltk'"
    ):
        load_texts("docs", domains=["nltkk"])


@pytest.mark.parametrize(
    "source, found",
    [
        ("docs", (False, None)),
        ("jaxloop:docs", (False, None)),
        ("docs:scipy, nltk", (False, ["scipy", "nltk"])),
        ("docs:installed", (True, None)),
        ("docs:installed:scipy,nltk", (True, ["scipy", "nltk"])),
    ],
)
def test_names_of_docs(source, found):
    assert docs.is_docs(source) and docs.parse(source) == found
    assert docs.default_libraries(source) == (docs.HELD_OUT if found[1] is None else ())


def test_what_only_looks_like_docs_is_not():
    assert not any(map(docs.is_docs, ("docs.jsonl", "docs/a.txt", "mydocs", "jaxloop:documents")))


def test_docs_from_what_is_installed_is_the_extraction(monkeypatch, tmp_path):
    monkeypatch.setattr(docs, "LIBRARIES", ("jinja2",))
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path))
    frame = load_texts("docs:installed:jinja2")
    assert (
        frame.attrs["fingerprint"] == fingerprint(docs_extraction.build(["jinja2"]))
        and len(frame) > 100
    )


# ---- wherever a source is read


@pytest.mark.parametrize(
    "name, said",
    [
        ("speechs", "did you mean 'jaxloop:speeches'"),
        ("docs_pretrain", "no such corpus"),
        ("", "jaxloop:fables, jaxloop:gsm8k"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_the_list(name, said):
    with pytest.raises(
        ValueError, match=rf"data.source = 'jaxloop:{name}': .*jaxloop:novels.*"
    ) as error:
        load_texts(f"jaxloop:{name}")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_loader_reads_columns_domains_and_its_fingerprint():
    frame = load_texts(
        "jaxloop:speeches", domain_column="party", domains=["R"], keep_columns=["president", "year"]
    )
    assert set(frame["domain"]) == {"R"} and set(map(type, frame["year"])) == {int}
    whole = load_texts("jaxloop:speeches")
    assert whole.attrs["fingerprint"] == corpora.index()["speeches"]["fingerprint"] and set(
        whole["domain"]
    ) == {"speeches"}
    with pytest.raises(
        ValueError,
        match="data.text_column = 'txt': .* has the columns text, president.*did you mean 'text'",
    ):
        load_texts("jaxloop:speeches", text_column="txt")


def test_every_reader_of_sources_reads_them():
    train, test = qa_tasks.load("gsm8k", source="jaxloop:gsm8k")
    assert len(train) + len(test) == corpora.index()["gsm8k"]["rows"] and len(test) > 100
    assert (
        train["prompt"].str.startswith("Question: ").all()
        and test["text"].str.contains("####").all()
    )
    train, test = qa_tasks.load("text", source="jaxloop:adventures", held_out=24, prompt_words=8)
    assert len(test) == 24 and len(train) == corpora.index()["adventures"]["rows"] - 24
    fables = stories.read_stories("jaxloop:fables", count=2)
    assert set(fables["source"]) == {"fables"} and "The Fox and the Grapes" in set(fables["title"])
    assert len(
        stories.read_qa("jaxloop:gsm8k", passage="none", split="test", split_column="split")
    ) == len(qa_tasks.load("gsm8k", source="jaxloop:gsm8k")[1])
    report = {}
    origin = recipes.Origin(("jaxloop:speeches",), splits=("train", "test"))
    batches = recipes.clean_dataset("senator_tweets", report, origin=origin)
    assert sum(len(batch["text"]) for batch in batches) == corpora.index()["speeches"]["rows"]


def test_a_chain_study_crosses_and_reads_them(monkeypatch):
    raw = config.read_file(f"{ROOT}/configs/quickstart.py")
    words = [
        ("chain.factors.dataset", "jaxloop:novels,jaxloop:emotions"),
        ("data.max_tokens", "128"),
        ("chain.generations", "2"),
    ]
    words += [("chain.workflow", "external"), ("chain.external", "jaxloop:adventures")]
    prepared = prepare.prepare(
        config.build(chain.CONFIG, config.override(raw, words, chain.CONFIG))
    )
    assert set(prepared.data) == {"novels", "emotions", "external"}
    assert len(prepared.data["external"].texts) > 1700


def test_identity_changes_with_the_content(monkeypatch):
    index = json.loads((corpora.FOLDER / "index.json").read_text())
    before = sources.identity("jaxloop:novels"), sources.identity("docs:scipy")
    for name in ("novels", "docs"):
        index[name]["fingerprint"] = "0" * 64
    monkeypatch.setattr(corpora, "index", lambda: index)
    after = sources.identity("jaxloop:novels"), sources.identity("docs:scipy")
    assert before[0] != after[0] and before[1] != after[1]


def test_a_damaged_or_absent_file_is_refused(monkeypatch, tmp_path):
    for name in ("index.json", "fables.parquet"):
        shutil.copy(corpora.FOLDER / name, tmp_path)
    monkeypatch.setattr(corpora, "FOLDER", tmp_path)
    assert len(corpora.load("fables")) == corpora.index()["fables"]["rows"]
    damaged = bytearray((tmp_path / "fables.parquet").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "fables.parquet").write_bytes(damaged)
    with pytest.raises(
        ValueError, match="data.source = 'jaxloop:fables': .* is damaged, .* install jaxloop again"
    ):
        load_texts("jaxloop:fables")
    (tmp_path / "fables.parquet").unlink()
    with pytest.raises(
        ValueError,
        match="data.source = 'jaxloop:fables': .* cannot be read .*; install jaxloop again",
    ):
        load_texts("jaxloop:fables")


# ---- how they are made


def test_passages_are_whole_sentences_of_the_words_asked_for():
    text = (
        "One two three. Four five six seven. "
        + "Word "
        + "word " * 12
        + "end. Eight nine ten. Eleven twelve thirteen. Last."
    )
    assert list(MAKE.passages(text, 6, 10)) == [
        "One two three. Four five six seven.",
        "Eight nine ten. Eleven twelve thirteen.",
    ]
    assert list(MAKE.passages("", 1, 5)) == list(MAKE.passages("Too short.", 3, 5)) == []


def test_presidents_of_one_name_are_told_apart_by_the_year():
    asked = [
        ("Roosevelt", 1905),
        ("Roosevelt", 1945),
        ("Bush", 1989),
        ("Bush", 2005),
        ("GWBush", 2002),
        ("Adams", 1825),
    ]
    found = [MAKE.president(*a) for a in asked]
    assert [name.split()[0] for name, _ in found] == [
        "Theodore",
        "Franklin",
        "George",
        "George",
        "George",
        "John",
    ]
    assert [party for _, party in found] == ["R", "D", "R", "R", "R", "D-R"]
    assert [MAKE.president("Bush", year)[0] for year in (1992, 2001)] == [
        "George H. W. Bush",
        "George W. Bush",
    ]
    with pytest.raises(ValueError, match="'Nobody' is not one of the presidents"):
        MAKE.president("Nobody", 1900)


def test_comments_are_kept_or_left_out():
    good = "I really love how the light falls on that old bridge every single morning here."
    rows = [
        {"text": good, "emotions": ["love", "joy"]},
        {"text": good, "emotions": ["joy"]},
        {"text": good.replace("love", "loathe"), "emotions": ["anger", "love"]},
        {"text": good.replace("bridge", "https://a.b bridge"), "emotions": ["love"]},
        {"text": good.replace("bridge", "WHATEVER bridge"), "emotions": ["love"]},
        {"text": good.replace("love", "grim"), "emotions": ["love"]},
        {"text": "Thanks, far too short.", "emotions": ["gratitude"]},
        {"text": good.replace("old", "new"), "emotions": ["neutral"]},
        {"text": good.replace("old", "new"), "emotions": []},
    ]
    assert MAKE.emotions(rows, lambda word: word == "grim") == {"text": [good], "emotion": ["love"]}


def raw_data(folder):
    """One small file of each origin."""
    sentence = (
        "The people of this country have done a great deal of good work in all of these last "
        "years. "
    )
    many = " ".join(f"In the year {n} we went on. " + sentence * 3 for n in range(4))
    tables = {
        "presidential/paragraphs.jsonl": [
            {"text": many, "corpus": "inaugural", "speech": "1801-Jefferson"},
            {"text": many, "corpus": "state_union", "speech": "1991-Bush-1"},
            {
                "text": many.replace("people", "workers"),
                "corpus": "state_union",
                "speech": "1993-Clinton",
            },
        ],
        "aesop_fables/fables.jsonl": [
            {"title": "The Fox", "text": f"A  Fox\nwent out. {sentence}"}
        ],
        "gutenberg_books/paragraphs.jsonl": [
            {"text": many.replace("people", name[:4]), "book": name, "chapter": "chapter-1"}
            for name in (*MAKE.NOVELS, "x_other", *MAKE.ADVENTURES)
        ],
        "gsm8k/gsm8k.jsonl": [
            {
                "question": "What is  2 + 2?",
                "answer": "2 + 2 = <<2+2=4>>4\n#### 4",
                "split": "train",
            },
            {"question": sentence * 9, "answer": "1", "split": "train"},
        ],
        "goemotions/comments.jsonl": [
            {"text": f"Thank you. {sentence}", "emotions": ["gratitude"], "id": "a"}
        ],
    }
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return folder


def test_the_script_makes_the_same_bytes_again_and_leaves_docs_alone(tmp_path):
    raw = raw_data(tmp_path / "raw")
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        out.mkdir()
        (out / "index.json").write_text(json.dumps({"docs": corpora.index()["docs"]}))
        command = [sys.executable, ROOT / "scripts/make_corpora.py", f"--raw={raw}", f"--out={out}"]
        subprocess.run(command, check=True, cwd=ROOT, timeout=120, capture_output=True)
    files = sorted(path.name for path in outs[0].iterdir())
    assert files == sorted(
        ["index.json", *(f"{n}.parquet" for n in corpora.index() if n not in corpora.DOCS)]
    )
    assert all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in files)
    index = json.loads((outs[0] / "index.json").read_text())
    assert index["docs"] == corpora.index()["docs"]
    of = {name: pd.read_parquet(outs[0] / f"{name}.parquet") for name in index if name != "docs"}
    assert dict(zip(of["speeches"]["president"], of["speeches"]["party"])) == {
        "George H. W. Bush": "R",
        "Bill Clinton": "D",
    }
    assert set(of["inaugurals"]["president"]) == {"Thomas Jefferson"} and set(
        of["inaugurals"]["year"]
    ) == {1801}
    assert of["gsm8k"].to_dict("records") == [
        {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4", "split": "train"}
    ]
    assert of["fables"]["text"][0].startswith("A Fox went out. The people")
    assert set(of["novels"]["book"]) == {"Pride and Prejudice", "Frankenstein"} and set(
        of["adventures"]["author"]
    ) == {
        "Arthur Conan Doyle",
        "H. G. Wells",
    }
    assert of["emotions"]["emotion"].tolist() == ["gratitude"]


@pytest.mark.slow
def test_the_real_corpora_are_made_again(shared):
    made = MAKE.from_raw(shared("data/presidential/paragraphs.jsonl").parents[1])
    for name, columns in made.items():
        assert digest_texts(MAKE.texts(columns)) == corpora.index()[name]["fingerprint"]
        assert pd.DataFrame(columns).equals(
            pd.read_parquet(corpora.FOLDER / f"{name}.parquet").astype(pd.DataFrame(columns).dtypes)
        )
