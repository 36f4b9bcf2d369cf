"""Every study that reads files takes the options of csv files; a refusal names its own field."""

import csv
from types import SimpleNamespace

import pytest

from jaxloop import config
from jaxloop.studies.bias_amplification import articles as bias_data
from jaxloop.studies.bias_amplification import config as bias_config
from jaxloop.studies.diversity import records
from jaxloop.studies.diversity.config import QA, Story
from jaxloop.studies.multi_entity import config as entities_config
from jaxloop.studies.multi_entity import prepare as entities_setup
from jaxloop.studies.pretrain import prepare as pretrain
from jaxloop.studies.pretrain.config import PretrainConfig, PretrainData
from jaxloop.studies.recursive_loops import sources
from tests.studies.recursive_loops import loops_study

COUNT = 12


def write(path, columns):
    """A file whose texts are all enclosed, quotation marks in them escaped by backslashes."""
    with open(path, "w", newline="") as stream:
        writer = csv.writer(
            stream, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\", lineterminator="\n"
        )
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
    return str(path)


def said(i):
    return f'He said "{i} cats", and left.'


@pytest.fixture
def reads(tmp_path):
    """study -> (its section, a function from the options of that section to the texts that it
    reads).
    """
    texts = [said(i) for i in range(COUNT)]
    posts = write(tmp_path / "posts.csv", {"text": texts})
    pairs = write(
        tmp_path / "pairs.csv",
        {"question": [f"What {i}?" for i in range(COUNT)], "answer": texts, "passage": texts},
    )
    stories = write(tmp_path / "stories.csv", {f"sentence{k + 1}": texts for k in range(2)})
    articles = write(
        tmp_path / "articles.csv",
        {"title": texts, "body": texts, "bias": ["a", "b"] * (COUNT // 2)},
    )

    def of_bias(**options):
        data = bias_config.ArticlesConfig(
            source=articles,
            title_column="title",
            body_column="body",
            per_label=None,
            short="keep",
            **options,
        )
        read = bias_data.read_articles(data, Words(), 4)
        return read.chosen["body"].tolist()

    def of_loops(**options):
        domains = {"posts": {"source": [posts], "instruction": "Go."} | options}
        return list(
            sources.read(loops_study.settings(tmp_path, domains=domains), "posts", len).texts
        )

    def of_entities(**options):
        task = entities_config.Task(task="qa", source=pairs, test_split=None, **options)
        settings = SimpleNamespace(
            entities=(),
            public=task,
            measure=SimpleNamespace(test_texts=2),
            sample=SimpleNamespace(max_prompt=90),
            fit=SimpleNamespace(max_length=90),
        )
        tokenizer = SimpleNamespace(
            backend=None, count=lambda texts: [len(t.split()) for t in texts]
        )
        data, tests, _ = entities_setup._read(settings, {"base": (None, tokenizer)}, True)
        return [*data[entities_setup.PUBLIC].texts, *tests[entities_setup.PUBLIC][0]]

    def of_diversity(task):
        def read(**options):
            story = Story(
                sources=(stories,),
                sentences=2,
                test_split=None,
                test=2,
                **(options if task == "story" else {}),
            )
            qa = QA(
                source=pairs,
                passage="column",
                passage_column="passage",
                test_split=None,
                test=2,
                **(options if task == "qa" else {}),
            )
            tables = records.read(
                SimpleNamespace(story=story, qa=qa),
                task,
                lambda texts: [len(t.split()) for t in texts],
            )
            return [*tables.train["text"], *tables.test["text"]]

        return read

    def of_pretrain(**options):
        data = PretrainData(source=posts, held_out=0.3, **options)
        frame, _ = pretrain.read(PretrainConfig(data=data))
        return frame["text"].tolist()

    return {
        "bias": ("data", of_bias),
        "loops": ("domains.posts", of_loops),
        "entities": ("public", of_entities),
        "pretrain": ("data", of_pretrain),
        "story": ("story", of_diversity("story")),
        "qa": ("qa", of_diversity("qa")),
    }


class Words:
    """Texts to words and back."""

    def encode(self, texts):
        return [t.split() for t in texts]

    def decode(self, rows):
        return [" ".join(row) for row in rows]


@pytest.mark.parametrize("study", ["bias", "loops", "entities", "pretrain", "story", "qa"])
def test_options_of_csv_files(study, reads, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    section, read = reads[study]
    with pytest.raises(ValueError, match=rf"--config\.{section}\.csv_options=backslash") as caught:
        read()
    assert section == "data" or "--config.data." not in str(caught.value)
    with pytest.raises(ValueError, match=r"delimiter = ';;' is not allowed") as caught:
        read(csv_options=("backslash",), delimiter=";;")
    assert section == "data" or str(caught.value).startswith(f"config.{section}.delimiter = ")
    found = read(csv_options=("backslash",), delimiter="comma")
    assert {text.strip() for text in found} >= {said(i) for i in range(3, 6)} and all(
        text.strip() in map(said, range(COUNT)) for text in found
    )


def test_the_fields_are_those_of_the_readers():
    from jaxloop.data.dialect import OPTIONS

    assert config.CsvOptions.__args__[0].__args__ == OPTIONS
