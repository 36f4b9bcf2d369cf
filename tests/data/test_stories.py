"""Stories and question-answer records: every layout on small files, and what is refused."""

import csv
import json

import pytest

from jaxloop.data.stories import concatenate, read_qa, read_stories, sentences, word_topics

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
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


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
    with pytest.raises(
        ValueError, match="tmp/d1.content, where NarrativeQA's script puts the text"
    ):
        read_qa(path, passage="full", split_column="set")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "d1.content").write_text("The  book.")
    assert read_qa(path, passage="full", split_column="set")["passage"].tolist() == ["The book."]


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
