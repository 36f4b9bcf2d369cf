"""Subsets by quality and length of each domain, and which clusters meet in a mixture."""

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop import config
from jaxloop.config.files import read_file
from jaxloop.studies.recursive_loops import chains, subsets
from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.config import LoopsConfig
from tests.studies.recursive_loops import loops_study

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"


def paper(name):
    return config.build(LoopsConfig, read_file(str(CONFIGS / f"{name}.py")))


def planned(settings):
    return chains.plan(settings, subsets.placeholders(settings))


def ratios_of(settings):
    """{subset: ratios of its chains}."""
    found = {}
    for one in planned(settings):
        found.setdefault(one.subset.name, []).append(one.factors["ratio"])
    return {name: sorted(set(ratios)) for name, ratios in found.items()}


def test_the_quality_splits_are_those_of_the_released_code():
    settings = paper("quality_splits")
    found = ratios_of(settings)
    every = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1]
    assert found == {
        **{f"{d}.{q}": every for d in ("webis_reddit", "100M_tweets") for q in (20, 40, 60, 80)},
        "reddit_submissions.20": every[3:],
        **{f"reddit_submissions.{q}": every for q in (40, 60, 80)},
        "senator_tweets.Q51": every[4:],
        "senator_tweets.80": every[4:],
    }
    assert len(planned(settings)) == 365


def test_the_length_splits_are_those_of_the_released_code():
    found = ratios_of(paper("length_splits"))
    words = ("short", "medium", "long")
    assert [name for name in found if name.startswith("webis")] == [
        f"webis_reddit.{word}" for word in words
    ]
    assert [name for name in found if name.startswith("senator")] == [
        "senator_tweets.short",
        "senator_tweets.long",
    ]
    assert found["senator_tweets.long"] == [0.75, 1.0] and len(found["100M_tweets.long"]) == 6


def source(texts):
    return SimpleNamespace(name="posts", texts=texts)


def split_settings(folder, experiment, **own):
    return loops_study.settings(
        folder, experiment=experiment, splits={"levels": [20, 80], "domains": {"posts": own}}
    )


def test_joined_scores_make_one_subset(tmp_path, monkeypatch):
    settings = split_settings(tmp_path, "quality_splits", levels=[80], joined={"Q51": [40, 60]})
    scores = np.array([20, 40, 60, 80, np.nan, 60.0])
    monkeypatch.setattr(loops_data, "quality", lambda *_: scores)
    found = subsets.splits(settings, source(["a"] * 6))
    assert [s.name for s in found] == ["posts.Q51", "posts.80"]
    assert [s.parts[0][1].tolist() for s in found] == [[1, 2, 5], [3]]
    assert found[0].about == {"size": 3, "mean": pytest.approx(160 / 3)}


def test_lengths_without_texts_of_a_quality(tmp_path, monkeypatch):
    settings = split_settings(tmp_path, "length_splits", quantiles=2, without=[20])
    scores = np.array([20, 40, np.nan, 80, 20, 60.0])
    monkeypatch.setattr(loops_data, "quality", lambda *_: scores)
    found = subsets.splits(settings, source(["a" * n for n in (1, 2, 3, 4, 5, 6)]))
    assert [s.factors["length_level"] for s in found] == ["short", "long"]
    assert [s.parts[0][1].tolist() for s in found] == [[1, 2], [3, 5]]


@pytest.mark.parametrize(
    ("experiment", "own", "match"),
    [
        ("quality_splits", {"without": [20]}, "posts.without .* only subsets by length"),
        ("quality_splits", {"joined": {"low": [20, 40]}}, "a score stands in two subsets"),
        ("quality_splits", {"ratios": {"30": [0.5]}}, "ratios has '30', which is no subset"),
        ("length_splits", {"ratios": {"long": [0.3]}}, "has 0.3, which config.chain.ratios has"),
        ("quality_splits", {"levels": []}, "one of them says how quality is cut"),
    ],
)
def test_splits_that_cannot_be_are_refused(tmp_path, experiment, own, match):
    with pytest.raises(ValueError, match=match):
        split_settings(tmp_path, experiment, **own)


def test_a_split_of_no_domain_is_refused(tmp_path):
    with pytest.raises(ValueError, match="splits.domains.post: .* did you mean 'posts'"):
        loops_study.settings(
            tmp_path, experiment="quality_splits", splits={"domains": {"post": {}}}
        )


def test_mixtures_are_paired_at_random():
    settings = paper("multi_domain")
    found = [
        [int(one.subset.factors[f"cluster.{d}"][1:]) for d in settings.domains]
        for one in planned(settings)[::2]
    ]
    pairs = np.array(found)
    assert [sorted(column) for column in pairs.T] == [list(range(200))] * 3
    # Of 200 random pairs one is expected to have the same number; P(more than 6) < 1e-4.
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (pairs[:, i] == pairs[:, j]).sum() <= 6
        assert abs(np.corrcoef(pairs[:, i], pairs[:, j])[0, 1]) < 0.25
    again = [one.subset.factors for one in planned(paper("multi_domain"))[::2]]
    assert again == [one.subset.factors for one in planned(settings)[::2]]


def test_mixtures_in_the_order_of_the_draw():
    settings = paper("multi_domain")
    drawn = settings.model_copy(
        update={"clusters": settings.clusters.model_copy(update={"pairing": "drawn"})}
    )
    factors = [one.subset.factors for one in planned(drawn)]
    assert all(len(set(of_chain.values())) == 1 for of_chain in factors)
