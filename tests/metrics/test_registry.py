"""Names, options, inputs and collapsed output, through the one call that the studies make."""

import inspect
import logging

import numpy as np
import pytest

from jaxloop import metrics
from jaxloop.metrics import base, bleu, lexical, registry, semantic

TEXTS = [
    ["the cat sat on the mat", "a dog ran, and ran", "it rained all day long"],
    ["same text"] * 3,
    ["one", "", "two words"],
]


def embed(texts):
    """Letter counts: a stand-in for an encoder."""
    return np.array(
        [[text.count(c) + 0.1 for c in "aeinorst"] for text in texts], np.float32
    ).reshape(-1, 8)


def project(points):
    return points[:, :2] + 0.01 * np.arange(len(points))[:, None]


def inputs(texts):
    chains = len(texts)
    pair = (np.ones(4), np.arange(1, 5))
    return {
        "texts": texts,
        "embeddings": embed,
        "projection": project,
        "reference_texts": ["a cat and a dog", "two words", "rain"],
        "contexts": [list(range(len(chain))) for chain in texts],
        "entity_embeddings": [np.ones((2, 3, 4))] * chains,
        "losses": [pair] * chains,
        "own_losses": [pair] * chains,
        "reference_losses": [pair] * chains,
        "token_nll": [[np.ones(3)]] * chains,
    }


# Metrics that ask a model of the user's; test_judges.py and test_classifiers.py try them with one.
ALONE = sorted(name for name, metric in metrics.REGISTRY.items() if "model" not in metric.options)


def by_options(name):
    """The name with options of which three texts are enough for a value."""
    if name == "distinct_n_size_matched":
        return f"{name}(size=2)"
    return f"{name}(k=1)" if "k" in metrics.REGISTRY[name].options else name


def test_values_are_those_of_the_functions():
    names = [
        "self_bleu",
        "distinct_n(n=2)",
        "cosine_diversity",
        "type_token_ratio(characters=4)",
        "text_length",
    ]
    found = metrics.evaluate(names, texts=TEXTS, embeddings=embed)
    assert list(found) == names
    for name, want in zip(
        names,
        (
            bleu.mean_self_bleu(TEXTS),
            lexical.distinct_n(TEXTS, 2),
            [semantic.cosine_diversity(embed(chain)) for chain in TEXTS],
            lexical.type_token_ratio(TEXTS, 4),
            lexical.text_length(TEXTS),
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(found[name], want)


@pytest.mark.parametrize("name", ALONE)
def test_every_metric_is_documented_and_evaluates_within_its_range(name):
    metric = metrics.REGISTRY[name]
    assert len(metrics.available()[name]) > 30
    assert set(metric.needs) <= set(base.INPUTS)
    assert all(default is not inspect.Parameter.empty for default in metric.options.values())
    found = metrics.evaluate([by_options(name)], **inputs(TEXTS))[by_options(name)]
    assert found.shape == (3,) and found.dtype == np.float64
    least, largest = metric.range
    known = found[~np.isnan(found)]
    assert known.size
    assert (least is None or (known >= least - 1e-9).all()) and (
        largest is None or (known <= largest + 1e-9).all()
    )


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    "chain",
    [[], ["one text"], ["", "", ""], ["all alike"] * 60, ["😀 مرحبا"] * 2],
    ids=["none", "one", "empty", "alike", "emoji"],
)
def test_collapsed_output_never_fails_and_leaves_the_other_chains_alone(name, chain):
    healthy = TEXTS[0]
    name = by_options(name)
    found = metrics.evaluate([name], **inputs([healthy, chain, healthy]))[name]
    alone = metrics.evaluate([name], **inputs([healthy]))[name][0]
    assert np.isfinite(alone) or name == "output_similarity"  # of one entity there is none
    np.testing.assert_array_equal(found[[0, 2]], [alone, alone])
    assert found.shape == (3,)


def test_values_of_texts_and_their_mean_agree():
    names = [
        name
        for name in ALONE
        if metrics.REGISTRY[name].per_text and set(metrics.REGISTRY[name].needs) == {"texts"}
    ]
    assert {"self_bleu", "type_token_ratio", "text_length", "repetition", "positivity"} <= set(
        names
    )
    texts = [chain for chain in TEXTS if all(chain)]
    each, mean = metrics.evaluate_texts(names, texts=texts), metrics.evaluate(names, texts=texts)
    for name in names:
        assert [len(values) for values in each[name]] == [len(chain) for chain in texts]
        np.testing.assert_allclose([values.mean() for values in each[name]], mean[name], atol=1e-12)
    with pytest.raises(ValueError, match="'word_entropy', which single texts do not have"):
        metrics.evaluate_texts(["word_entropy"], texts=TEXTS)


def test_texts_are_embedded_once_and_only_if_asked_for():
    calls = []

    def counted(texts):
        calls.append(len(texts))
        return embed(texts)

    metrics.evaluate(["self_bleu", "text_length"], texts=TEXTS, embeddings=counted)
    assert calls == []
    found = metrics.evaluate(
        ["cosine_diversity", "frechet_distance", "kl_entropy(k=1)"],
        **{**inputs(TEXTS), "embeddings": counted},
    )
    assert calls == [3, 9]  # the reference, then all chains
    np.testing.assert_allclose(
        found["cosine_diversity"], [semantic.cosine_diversity(embed(chain)) for chain in TEXTS]
    )
    assert metrics.needs(["self_bleu"]) == {"texts"}
    assert metrics.needs(["kl_entropy", "length_kl"]) == {
        "projection",
        "embeddings",
        "texts",
        "reference_texts",
    }


def test_every_chain_may_have_its_own_reference():
    first, second = (
        ["a cat and a dog", "two words", "rain"],
        ["trees", "it rained on them", "stone", "tar"],
    )
    names = ["frechet_distance", "sliced_wasserstein", "length_kl"]
    calls = []

    def counted(texts):
        calls.append(len(texts))
        return embed(texts)

    found = metrics.evaluate(
        names, texts=TEXTS, embeddings=counted, reference_texts=[first, second, first]
    )
    assert calls == [3, 4, 9]
    for chain, reference in enumerate((first, second, first)):
        alone = metrics.evaluate(
            names, texts=[TEXTS[chain]], embeddings=embed, reference_texts=reference
        )
        assert [found[name][chain] for name in names] == [alone[name][0] for name in names]
    with pytest.raises(
        ValueError, match="different numbers of chains: embeddings 3, reference_embeddings 2"
    ):
        metrics.evaluate(
            ["mmd2"],
            embeddings=[embed(chain) for chain in TEXTS],
            reference_embeddings=[embed(first), embed(second)],
        )


def test_every_chain_may_have_its_own_projection():
    points = [embed(chain) for chain in TEXTS[::2]]
    doubled = lambda x: 2 * project(x)  # noqa: E731
    found = metrics.evaluate(["gaussian_aic"], embeddings=points, projection=[project, doubled])[
        "gaussian_aic"
    ]
    for chain, to in enumerate((project, doubled)):
        assert (
            found[chain]
            == metrics.evaluate(["gaussian_aic"], embeddings=[points[chain]], projection=to)[
                "gaussian_aic"
            ][0]
        )
    with pytest.raises(ValueError, match="different numbers of chains: projection 1, embeddings 2"):
        metrics.evaluate(["gaussian_aic"], embeddings=points, projection=[project])


@pytest.mark.parametrize(
    "name, says",
    [
        ("distinct_n(n=0)", "n is 0"),
        ("kl_entropy(k=0)", "k is 0"),
        ("tail_mass(probability=1)", "probability is 1"),
        ("mmd2(kernel='x')", "kernel = 'x' is not allowed: one of"),
        ("text_quality_index(split='word')", "split is 'word'"),
        ("kl_entropy(k=50.0)", "k = 50.0 is not allowed: a whole number."),
        ("kl_entropy(k=-60)", "k is -60, a whole number of at least 1 is needed."),
        (
            "type_token_ratio(characters=150.0)",
            "characters = 150.0 is not allowed: a whole",
        ),
        ("mmd2(unbiased='no')", "unbiased = 'no' is not allowed: true or false."),
        ("gaussian_aic(regularisation=-1)", "regularisation is -1, at least 0 is needed."),
        ("judge_quality", "the quality judge has no model"),
        ("judge_quality(model='m', url='ftp://x')", "endpoint.url is 'ftp://x'"),
        ("toxicity(model='/nowhere')", "directory /nowhere does not exist"),
        ("self_blue", "nearest name is 'self_bleu'"),
    ],
)
def test_what_would_be_refused_later_is_refused_before(name, says):
    with pytest.raises(ValueError) as error:
        registry.check(["text_length", name])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_checking_asks_no_endpoint_and_every_metric_alone_passes(monkeypatch, tmp_path):
    monkeypatch.setattr("jaxloop.metrics.endpoint._request", lambda *_: pytest.fail("asked"))
    registry.check(
        [f"judge_quality(model='m', url='http://127.0.0.1:9/v1', cache='{tmp_path / 'c'}')", *ALONE]
    )


def test_embeddings_may_be_given_for_chains_of_unequal_size():
    ragged = [embed(TEXTS[0]), embed(TEXTS[1][:2])]
    found = metrics.evaluate(["cosine_diversity", "knn_cosine_diversity(k=2)"], embeddings=ragged)
    np.testing.assert_allclose(
        found["cosine_diversity"], [semantic.cosine_diversity(chain) for chain in ragged]
    )
    assert (
        np.isnan(found["knn_cosine_diversity(k=2)"][1])
        and found["knn_cosine_diversity(k=2)"][0] > 0
    )
    none = metrics.evaluate(["cosine_diversity"], texts=[], embeddings=embed)
    assert none["cosine_diversity"].shape == (0,)


def test_a_metric_whose_backend_is_down_is_missing_and_the_others_are_computed(monkeypatch, caplog):
    def down(texts):
        raise metrics.Unavailable("connection refused")

    monkeypatch.setitem(metrics.REGISTRY, "judge", metrics.Metric("judge", down, ("texts",)))
    with caplog.at_level(logging.WARNING):
        found = metrics.evaluate(["judge", "text_length"], texts=TEXTS)
    assert np.isnan(found["judge"]).all() and found["judge"].shape == (3,)
    assert found["text_length"][1] == 9
    assert "metric judge is missing: connection refused" in caplog.text


@pytest.mark.parametrize(
    "names, given, says",
    [
        (
            ["self_blue"],
            {},
            "metrics holds 'self_blue', which is no metric; the nearest name is 'self_bleu'.",
        ),
        (["vocabulary"], {}, "the nearest name is 'vocabulary_size'."),
        ([7], {}, "metrics holds '7', which is no metric"),
        ("self_bleu", {}, "metrics is the string 'self_bleu', a list of names is needed."),
        (["self_bleu", "self_bleu"], {}, "metrics names 'self_bleu' twice"),
        (["distinct_n(m=2)"], {}, "distinct_n has no option 'm'; it takes n."),
        (["text_length(n=2)"], {}, "text_length has no option 'n'; it takes no option."),
        (["knn_cosine_diversity(k='5')"], {}, "k = '5' is not allowed: a whole number."),
        (["length_kl(bins=True)"], {}, "bins = True is not allowed: a whole number."),
        (["mmd2(bandwidth=[1])"], {}, "bandwidth = [1] is not allowed: a number or none."),
        (["length_kl(smoothing=1e999)"], {}, "smoothing = inf is not allowed: a number."),
        (["mmd2(unbiased=0)"], {}, "unbiased = 0 is not allowed: true or false."),
        (["kl_entropy(constant='book')"], {}, "constant = 'book' is not allowed: one of package,"),
        (["class_share(labels='ab')"], {}, "labels = 'ab' is not allowed: a list, each text or"),
        (["distinct_n(2)"], {}, "options are needed in the form distinct_n(name=value)."),
        (["distinct_n(n=open('x'))"], {}, "options are needed in the form"),
        (["distinct_n(n=0)"], {"texts": TEXTS}, "n is 0, a whole number of at least 1 is needed."),
        (["cosine_diversity"], {"texts": TEXTS}, "metric 'cosine_diversity' needs embeddings"),
        (
            ["kl_entropy"],
            {"texts": TEXTS, "embeddings": embed},
            "metric 'kl_entropy' needs projection",
        ),
        (["kl_entropy"], {"projection": project}, "metric 'kl_entropy' needs embeddings"),
        (
            ["self_bleu"],
            {"texts": ["a", "b"]},
            "texts holds strings, one list of strings for each chain is needed.",
        ),
        (
            ["self_bleu"],
            {"texts": [["a", None]]},
            r"texts[0][1] is NoneType None, a string is needed.",
        ),
        (
            ["cosine_diversity"],
            {"embeddings": embed},
            "embeddings is a function, so texts are needed to embed.",
        ),
        (
            ["cosine_diversity"],
            {"texts": TEXTS, "embeddings": lambda t: embed(t)[1:]},
            "embeddings returned 8 rows for 9 texts",
        ),
        (
            ["cosine_diversity"],
            {"embeddings": np.full((2, 5, 3), np.nan)},
            "hold NaN or infinity, finite numbers are needed.",
        ),
        (
            ["self_bleu", "held_out_loss"],
            {"texts": TEXTS, "losses": [([1.0], [1])]},
            "different numbers of chains: texts 3, losses 1.",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(names, given, says):
    with pytest.raises(ValueError) as error:
        metrics.evaluate(names, **given)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_old_name_of_an_option_is_accepted_with_a_warning(caplog):
    old, new = (f"text_quality_index({name}='confidence')" for name in ("reading", "variant"))
    registry._warn_of_old_option.cache_clear()
    with caplog.at_level(logging.WARNING):
        (request, again), (current,) = registry.validate([old, f" {old}"]), registry.validate([new])
    assert request == again == current and request.options == {"variant": "confidence"}
    assert caplog.text.count("the option reading is now called variant") == 1
    with pytest.raises(ValueError, match="old and the current name of one option"):
        registry.validate(["text_quality_index(reading='class', variant='class')"])


def test_every_group_lists_its_metrics_and_no_name_is_given_twice():
    names = [metric.name for group in registry.GROUPS for metric in group.METRICS]
    assert sorted(names) == sorted(set(names)) == sorted(registry.REGISTRY)
