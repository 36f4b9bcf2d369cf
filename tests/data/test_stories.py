"""Stories and question-answer records: every layout on small files, and what is refused."""

import csv
import gc
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxloop.data.sentences import sentences
from jaxloop.data.stories import concatenate, read_qa, read_stories, word_topics
from tests.peers import require

FIVE = ["Tom had a dog.", "The dog ran.", "Tom ran too.", "They met Ann.", "All went home."]


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def table(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ("“Stop!” said he. Mr. J. Smith left.", ["“Stop!” said he.", "Mr. J. Smith left."]),
        ("It cost 3.50 that day. Then no one paid", ["It cost 3.50 that day.", "Then no one paid"]),
        ("“Who?” “Me.”", ["“Who?”", "“Me.”"]),
        ("Wait… What? e.g. this", ["Wait…", "What? e.g. this"]),
        ("", []),
        ('"Stop!" Tom said. He ran.', ['"Stop!" Tom said.', "He ran."]),
        (
            "“Why now?” My older brother asked. I ran.",
            ["“Why now?” My older brother asked.", "I ran."],
        ),
        ('"I am home." Ann said. She sat.', ['"I am home." Ann said.', "She sat."]),
        # Here the quotation is a sentence, and Ann begins another.
        ('"I am home." Ann said that to all.', ['"I am home."', "Ann said that to all."]),
        ('He cried "Stop!" She asked why.', ['He cried "Stop!"', "She asked why."]),
        ('She said "Go. Run. Now." They ran.', ['She said "Go. Run. Now."', "They ran."]),
        ("“My dog. It died.” He wept. All sat.", ["“My dog. It died.”", "He wept.", "All sat."]),
        # No quotation: inches, and a mark that nothing closes.
        ('A 3" nail. It fell. "Oh. He left.', ['A 3" nail.', "It fell.", '"Oh.', "He left."]),
        # A speech has sentences of its own.
        (
            f'"{"So be it. " * 40}Yes!" We left.',
            ['"So be it.', *["So be it."] * 39, 'Yes!"', "We left."],
        ),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_stories_keep_their_five_sentences_where_people_speak(tmp_path):
    story = [
        "Tom lost his cat.",
        '"Where is it?" Ann asked.',
        'He said "I do not know. It ran."',
        '"Look!" My sister yelled.',
        'The cat sat in the tree and Dr. Low said "Come down!"',
    ]
    frame = read_stories(jsonl(tmp_path / "s.jsonl", [{"text": " ".join(story)}]))
    assert frame["ending"].tolist() == [story[-1]]
    assert frame["beginning"].tolist() == [" ".join(story[:-1])]


def test_rocstories_as_its_files_have_it(tmp_path):
    header = ["storyid", "storytitle", *(f"sentence{i}" for i in range(1, 6))]
    path = table(
        tmp_path / "ROCStories.csv", header, [["a", "The dog", *FIVE], ["b", "", *reversed(FIVE)]]
    )
    frame = read_stories(path)
    assert frame["beginning"].tolist()[0] == " ".join(FIVE[:4]) and frame["ending"].tolist() == [
        FIVE[4],
        FIVE[0],
    ]
    assert frame["title"].tolist() == ["The dog", ""] and frame.attrs["report"]["stories"] == 2


def test_rocstories_as_the_hub_has_it_and_longer_prose(tmp_path):
    path = jsonl(
        tmp_path / "s.jsonl",
        [
            {"text": " ".join(FIVE)},
            {"text": " ".join(FIVE * 2 + FIVE[:2])},
            {"text": "Too short. Yes."},
        ],
    )
    frame = read_stories(path)
    assert (
        frame["ending"].tolist() == [FIVE[4], FIVE[4]]
        and frame.attrs["report"]["fewer than 5 sentences"] == 1
    )
    assert (
        len(read_stories(path, windows=True)) == 3
        and len(read_stories(path, windows=True, limit=2)) == 2
    )
    assert read_stories(path, windows=True, count=2)["beginning"].tolist()[:2] == [FIVE[0], FIVE[2]]
    whole = concatenate([frame, read_stories(path, count=3)])
    assert len(whole) == 4 and whole.attrs["report"]["rows"] == 6


@pytest.mark.parametrize(
    "rows, options, sentence",
    [
        (
            [{"body": "x"}],
            {},
            "story.text_column = 'text': '{path}' has neither it nor sentence1 to sentence5, but "
            "body.",
        ),
        (
            [{**{f"sentence{i}": "A b." for i in range(1, 6)}, "sentence3": " "}],
            {},
            "row 1 of '{path}' has no sentence3; a story needs 5 sentences.",
        ),
        ([{"text": "One. Two."}], {}, "'{path}' has no story of 5 sentences among its 1 rows."),
        ([{"text": "One. Two."}], {"count": 1}, "story.sentences = 1: must be at least 2"),
        (
            [{"text": "One.", "split": "test"}],
            {"split_column": "split"},
            "split = 'train': '{path}' has test in its column 'split'.",
        ),
        (
            [{"text": "One."}],
            {"split_column": "part"},
            "split_column = 'part': '{path}' has the columns text.",
        ),
    ],
)
def test_stories_that_are_refused(tmp_path, rows, options, sentence):
    path = jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        read_stories(path, **options)
    assert sentence.replace("{path}", str(path)) in str(caught.value) and "\n" not in str(
        caught.value
    )


HUB = {
    "document": {"id": "d1", "text": "The whole  book.", "summary": {"text": "A summary."}},
    "question": {"text": "Who?"},
    "answers": [{"text": "Ann"}, {"text": "she"}],
}


@pytest.mark.parametrize(
    "passage, expected", [("summary", "A summary."), ("full", "The whole book."), ("none", "")]
)
def test_narrativeqa_as_the_hub_has_it(tmp_path, passage, expected):
    frame = read_qa(jsonl(tmp_path / "n.jsonl", [HUB]), passage=passage)
    assert frame.iloc[0].tolist() == ["d1", expected, "Who?", "Ann"]


def test_narrativeqa_as_its_archive_has_it(tmp_path):
    header = ["document_id", "set", "question", "answer1", "answer2"]
    path = table(
        tmp_path / "qaps.csv",
        header,
        [["d1", "train", "Who?", "Ann", "she"], ["d2", "test", "Why?", "So", "so"]],
    )
    table(
        tmp_path / "summaries.csv",
        ["document_id", "set", "summary"],
        [["d1", "train", "Ann\nwins."], ["d2", "test", "Bob."]],
    )
    assert read_qa(path, split_column="set").iloc[0].tolist() == ["d1", "Ann wins.", "Who?", "Ann"]
    assert read_qa(path, split="test", split_column="set")["context"].tolist() == ["d2"]
    (tmp_path / "summaries.csv").write_text("document_id,text\nd1,Ann wins.\n")
    with pytest.raises(ValueError, match="summaries.csv has no column 'summary', but document_id"):
        read_qa(path, split_column="set")
    with pytest.raises(
        ValueError, match="tmp/d1.content, where NarrativeQA's script puts the text"
    ):
        read_qa(path, passage="full", split_column="set")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "d1.content").write_text("The  book.")
    assert read_qa(path, passage="full", split_column="set")["passage"].tolist() == ["The book."]


def narrativeqa(folder, kind, rows, documents, size):
    """`rows` questions about `documents` full texts of `size` characters, in one of its forms."""
    texts = [(f"word{d} of book {d} " * size)[:size] for d in range(documents)]
    book = [i * documents // rows for i in range(rows)]
    if kind == "archive":
        (folder / "tmp").mkdir()
        for d, text in enumerate(texts):
            (folder / "tmp" / f"doc{d}.content").write_text(text)
        lines = [[f"doc{d}", "train", f"q {i}", f"a {i}", "b"] for i, d in enumerate(book)]
        header = ["document_id", "set", "question", "answer1", "answer2"]
        return table(folder / "qaps.csv", header, lines)
    stream = [
        {
            "document": {"id": f"doc{d}", "text": texts[d], "summary": {"text": f"about {d}"}},
            "question": {"text": f"q {i}"},
            "answers": [{"text": f"a {i}"}],
        }
        for i, d in enumerate(book)
    ]
    if kind == "jsonl":
        return jsonl(folder / "n.jsonl", stream)
    table_of = pa.Table.from_pylist(stream)
    if kind == "parquet":
        pq.write_table(table_of, folder / "n.parquet")
        return folder / "n.parquet"
    datasets = require("datasets")[0]
    datasets.Dataset(table_of).save_to_disk(folder / "written")
    return folder / "written"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "archive", "save_to_disk"])
def test_full_documents_are_held_once(tmp_path, kind):
    """600 questions about 20 books; a copy per question would take thirty times as much."""
    rows, documents, size = 600, 20, 40_000
    source = narrativeqa(tmp_path, kind, rows, documents, size)
    read_qa(source, passage="summary" if kind != "archive" else "none")  # imports
    gc.collect()
    tracemalloc.start()
    frame = read_qa(source, passage="full")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(frame) == rows and frame["context"].nunique() == documents
    assert len({id(text) for text in frame["passage"]}) == documents
    assert min(map(len, frame["passage"])) > 0.99 * size
    assert held < 1.2 * documents * size + 2**20
    # The blocks that are read come on top: some MB, however many rows there are.
    assert peak < rows * size / 2


def test_multiple_choice_and_plain_columns(tmp_path):
    hub = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    path = jsonl(tmp_path / "arc.jsonl", [{"question": "q", "choices": ["x", "y"], "gold": 1}, hub])
    assert read_qa(path, passage="none")["answer"].tolist() == ["y", "y"]
    rows = [
        {"q": "one", "a": ["1", "I"], "p": "P"},
        {"q": "two", "a": "2", "p": "P"},
        {"q": "three", "a": "3", "p": "Q"},
    ]
    frame = read_qa(
        jsonl(tmp_path / "c.jsonl", rows),
        passage="column",
        question_column="q",
        answer_column="a",
        passage_column="p",
    )
    assert frame["context"].tolist() == ["passage-0", "passage-0", "passage-1"] and frame[
        "answer"
    ].tolist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    "row, options, sentence",
    [
        (
            {"question": "Who is it?", "answer": " "},
            {},
            "record 1 of '{path}' ('Who is it?') has no answer; every record needs one.",
        ),
        ({"question": "Who?", "answer": []}, {}, "('Who?') has no answer"),
        ({"question": "Who?", "answer": None}, {}, "('Who?') has no answer"),
        ({**HUB, "answers": []}, {}, "('Who?') has no answer"),
        ({"question": "q", "choices": ["x", "y"], "gold": 7}, {}, "('q') has no answer"),
        ({"question": "", "answer": "x"}, {}, "record 1 of '{path}' has no question"),
        (
            {"question": "q", "reply": "x"},
            {},
            "'{path}' has no column 'answer', but question, reply.",
        ),
        (
            {"question": "q", "answer": "x"},
            {"context_column": "doc"},
            "'{path}' has no column 'doc'",
        ),
        (
            {**HUB, "document": {"id": "d1", "summary": None}},
            {},
            "document 'd1' has none; choose another of none, summary, full, column.",
        ),
        (
            {"question": "q", "answer": "x"},
            {"passage": "all"},
            "qa.passage = 'all': must be one of none, summary, full, column.",
        ),
    ],
)
def test_records_that_are_refused(tmp_path, row, options, sentence):
    path = jsonl(tmp_path / "r.jsonl", [row])
    with pytest.raises(ValueError) as caught:
        read_qa(path, **options)
    assert sentence.replace("{path}", str(path)) in str(caught.value) and "\n" not in str(
        caught.value
    )


def test_word_topics_are_words_of_several_texts_and_of_their_own():
    texts = (
        ["the wolf howled"] * 2
        + ["a lamb bleated"] * 2
        + [f"number{i} stands alone here" for i in range(40)]
    )
    topics, of = word_topics(texts, 4)
    assert set(topics) == {"wolf", "howled", "lamb", "bleated"}
    assert (
        {topics[t] for t in of[:2]} <= {"wolf", "howled"}
        and {topics[t] for t in of[2:4]} <= {"lamb", "bleated"}
        and set(of[4:]) == {-1}
    )
    with pytest.raises(ValueError, match="share only 4 words, 9 topics are needed"):
        word_topics(texts, 9)


def test_real_data(shared):
    stories = read_stories(shared("data/aesop_fables/fables.jsonl"), windows=True, count=3)
    assert len(stories) > 300 and (stories["ending"].str.len() > 0).all()
    records = read_qa(
        shared("data/narrativeqa/narrativeqa.jsonl"), passage="column", passage_column="passage"
    )
    assert len(records) == 50 and records["context"].nunique() == 47
    arc = read_qa(shared("data/arc/arc.jsonl"), passage="none", split_column="split")
    assert len(arc) == 3370 and arc.iloc[0]["answer"] == "a bacterial population in the bloodstream"
