"""Cluster properties against the packages that the paper used, on the same draws, and what is
refused.
"""

import numpy as np
import pytest
import sacrebleu
import scipy.special
import scipy.stats
from sklearn.metrics.pairwise import cosine_distances
from sklearn.mixture import GaussianMixture

from jaxloop.studies.recursive_loops import properties as pr
from jaxloop.studies.recursive_loops.analysis.regression import CANDIDATES, PROPERTIES


@pytest.fixture(scope="module")
def cluster():
    rng = np.random.default_rng(0)
    words = (
        "the cat sat on a good warm mat while terrible rain fell over every small town in spring"
    ).split()
    texts = [" ".join(rng.choice(words, rng.integers(4, 12))) for _ in range(300)]
    points = rng.normal(size=(300, 8)).astype(np.float32)
    return {
        "texts": texts,
        "embeddings": points,
        "projection": rng.normal(size=(300, 2)),
        "quality": rng.integers(0, 100, 300) * 1.0,
    }


def test_names_are_those_of_the_regressions():
    assert set(PROPERTIES) == set(pr.FINAL)
    assert (
        tuple(CANDIDATES) == pr.NAMES[:-1]
        and len(CANDIDATES) == 14
        and pr.NAMES[-1] == "negentropy"
    )


def test_against_other_packages(cluster):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts, found = cluster["texts"], pr.cluster_properties(**cluster, lexical_sample=40)
    assert found["text_length"] == pytest.approx(np.mean([len(t) for t in texts]), rel=1e-12)
    vocabulary = [w for t in texts for w in t.split()]
    counts = np.unique(vocabulary, return_counts=True)[1]
    assert found["vocabulary_size"] == len(counts)
    assert found["word_entropy"] == pytest.approx(scipy.stats.entropy(counts), rel=1e-9)
    ratios = [len(set(t[:150].split())) / len(t[:150].split()) for t in texts]
    assert found["type_token_ratio"] == pytest.approx(np.mean(ratios), rel=1e-9)
    analyser = SentimentIntensityAnalyzer()
    assert found["positivity"] == pytest.approx(
        np.mean([analyser.polarity_scores(t)["compound"] for t in texts]), abs=1e-9
    )
    assert found["quality"] == pytest.approx(cluster["quality"].mean(), rel=1e-12)

    rng = np.random.default_rng(0)
    pr.draw(300, pr.SAMPLE, rng, False)
    few = [texts[i] for i in pr.draw(300, 40, rng, False)]
    metric = sacrebleu.BLEU(effective_order=True)
    scores = [
        metric.sentence_score(t, few[:i] + few[i + 1 :]).score / 100 for i, t in enumerate(few)
    ]
    assert found["lexical_diversity"] == pytest.approx(1 - np.mean(scores), abs=1e-9)

    distance = cosine_distances(cluster["embeddings"].astype(np.float64))
    off = distance[~np.eye(300, dtype=bool)]
    assert found["cosine_diversity"] == pytest.approx(off.mean(), rel=1e-6)
    ranked = np.sort(np.where(np.eye(300, dtype=bool), np.inf, distance), axis=1)
    assert (found["k_near"], found["k_far"]) == (2, 30)
    assert found["knn_cosine_diversity_near"] == pytest.approx(ranked[:, :2].mean(), rel=1e-5)
    assert found["knn_cosine_diversity_far"] == pytest.approx(ranked[:, :30].mean(), rel=1e-5)

    plane = cluster["projection"]
    assert found["gaussian_aic"] == pytest.approx(
        GaussianMixture(1).fit(plane).aic(plane), rel=1e-6
    )
    away = np.sort(np.linalg.norm(plane[:, None] - plane[None], axis=-1), axis=1)[:, 30]
    entropy = (
        scipy.special.psi(300) - scipy.special.psi(30) + np.log(np.pi) + 2 * np.log(2 * away).mean()
    )
    assert found["kl_entropy_far"] == pytest.approx(entropy, rel=1e-9)
    assert abs(found["negentropy"]) < 0.3  # a Gaussian cloud; its AIC is far from 0
    assert np.isnan(found["toxicity"])


def test_a_projection_may_be_a_function(cluster):
    called = []

    def project(points):
        called.append(len(points))
        return points[:, :2]

    found = pr.cluster_properties(
        cluster["texts"],
        embeddings=cluster["embeddings"],
        projection=project,
        sample=100,
        replace=True,
    )
    assert called[0] < 100  # 100 draws with replacement hold fewer different texts
    assert np.isfinite([found["gaussian_aic"], found["kl_entropy_far"]]).all()
    assert found["sample"] == 100
    assert np.isfinite(
        pr.cluster_properties(
            cluster["texts"], embeddings=cluster["embeddings"], projection=project, sample=100
        )["kl_entropy_near"]
    )
    assert called[1] == 100


def test_draws():
    rng = np.random.default_rng(0)
    many = pr.draw(80_000, 10_000, rng, True)
    expected = 80_000 * (1 - (1 - 1 / 80_000) ** 10_000) / 10_000
    assert len(np.unique(many)) / 10_000 == pytest.approx(
        expected, abs=0.005
    ) and expected == pytest.approx(0.94, abs=0.002)
    assert pr.draw(300, 10_000, rng, False).tolist() == list(range(300))
    assert len(set(pr.draw(1000, 400, rng, replace=False))) == 400
    assert len(set(pr.draw(300, 10_000, rng, replace=True))) < 300
    assert pr.neighbours(10_000) == pr.neighbours(50_000) == (50, 1000)
    assert pr.neighbours(4) == (2, 3)


def test_same_seed_same_values(cluster):
    one, two, other = (pr.cluster_properties(**cluster, sample=50, seed=s) for s in (3, 3, 4))
    np.testing.assert_equal(one, two)
    assert one["text_length"] != other["text_length"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["a", "b"]}, "texts holds 2, the properties of a cluster need at least 4."),
        ({"quality": [1.0]}, "quality has 1 rows for 300 texts, one row each is needed."),
        ({"sample": 2}, "sample is 2, a whole number of at least 4 is needed."),
        (
            {"lexical_sample": True},
            "lexical_sample is True, a whole number of at least 4 is needed.",
        ),
    ],
)
def test_refused(cluster, changes, message):
    with pytest.raises(ValueError) as error:
        pr.cluster_properties(**(cluster | changes))
    assert str(error.value) == message
