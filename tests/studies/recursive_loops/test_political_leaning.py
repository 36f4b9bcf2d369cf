"""Lean by a classifier fitted on party labels: which texts it sees, and what it says of others."""

import numpy as np
import pytest

from jaxloop.studies.recursive_loops import political_leaning, sources
from tests.studies.recursive_loops import loops_study as ls


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    ls.build(tmp_path)
    return lambda **lean: (
        s := ls.settings(tmp_path, experiment="political", chain={"ratios": [0.75]}, lean=lean),
        sources.read(s, "posts", None),
    )


def test_the_classifier_sees_as_many_texts_of_each_side_which_no_chain_sees(
    source, tmp_path, monkeypatch
):
    settings, posts = source(fit_texts=40)
    rows, labels = political_leaning._labelled(settings, posts)
    party = np.array(posts.column("party"))
    assert len(rows) == 40 == len(set(rows.tolist())) and [
        labels.count(side) for side in ("left", "right")
    ] == [20, 20]
    assert all(
        (party[row] == "D") == (label == "left") for row, label in zip(rows, labels, strict=True)
    )
    monkeypatch.setattr(political_leaning, "_classifier", lambda *_: None)
    monkeypatch.setattr(
        political_leaning, "scorer", lambda *_: lambda texts: np.full(len(texts), 50.0)
    )
    free, lean = political_leaning.human(settings, posts, tmp_path)
    assert not set(free.tolist()) & set(rows.tolist()) and len(free) == 200 == len(lean)


def test_labels_that_are_missing_or_too_few_are_refused(source):
    settings, posts = source(label_column="side")
    with pytest.raises(ValueError, match="config.domains.posts: has no column 'side'; there are"):
        political_leaning._labelled(settings, posts)
    settings, posts = source(right="X")
    with pytest.raises(
        ValueError,
        match="config.political_leaning: column 'party' of posts has 120 texts labelled 'D' and 0 "
        "labelled 'X'; at least 20 of each",
    ):
        political_leaning._labelled(settings, posts)


@pytest.mark.slow
def test_texts_of_two_kinds_are_told_apart_and_answers_are_kept(source, tmp_path, monkeypatch):
    settings, posts = source(fit_texts=80)
    rows, lean = political_leaning.human(settings, posts, tmp_path)
    party = np.array(posts.column("party"))[rows]
    assert ((lean < 50) == (party == "D")).mean() > 0.95 and lean.min() >= 0 and lean.max() <= 100
    assert (tmp_path / "lean_classifier.json").exists()

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr("jaxloop.metrics.classifiers.probabilities", never)
    monkeypatch.setattr("jaxloop.metrics.classifier_training.fit_classifier", never)
    np.testing.assert_array_equal(political_leaning.human(settings, posts, tmp_path)[1], lean)


@pytest.mark.slow
def test_party_labels_of_real_tweets_are_learned(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    ls.build(tmp_path)
    domains = {
        "senate_tweets": {
            "recipe": "senator_tweets",
            "source": [str(shared("data/senate_tweets/tweets.jsonl"))],
            "keep": 1200,
        }
    }
    settings = ls.settings(
        tmp_path,
        experiment="political",
        domains=domains,
        chain={"ratios": [0.75]},
        political_leaning={"fit_texts": 600},
    )
    posts = sources.read(settings, "senate_tweets", None)
    rows, lean = political_leaning.human(settings, posts, tmp_path)
    party = np.array(posts.column("party"))[rows]
    known = np.isin(party, ("D", "R"))
    assert ((lean < 50) == (party == "D"))[known].mean() > 0.65
