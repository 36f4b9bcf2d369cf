"""Classifiers: directories against transformers, training on texts whose classes are known, reports
against scikit-learn, metrics.
"""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import classification_report, confusion_matrix

from jaxloop.data import duplicates
from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder import files as encoder_files
from jaxloop.metrics import classifier_fit, classifiers, registry
from jaxloop.metrics.classifier_training import fit_classifier, split_rows
from jaxloop.metrics.classifiers import (
    load_classifier,
    predict,
    probabilities,
    save_classifier,
)
from jaxloop.metrics.embed import default_model
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

SMALL = dict(
    vocab_size=30522,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=66,
)
CONFIGS = {
    "bert": lambda: hf.BertConfig(**SMALL),
    "albert": lambda: hf.AlbertConfig(**SMALL | dict(embedding_size=12, initializer_range=0.2)),
    "roberta": lambda: hf.RobertaConfig(**SMALL | dict(pad_token_id=0, type_vocab_size=1)),
    "mpnet": lambda: hf.MPNetConfig(**SMALL | dict(pad_token_id=0)),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=30522, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=66
    ),
    "qwen2": lambda: hf.Qwen2Config(**SMALL | dict(num_key_value_heads=1, pad_token_id=0)),
}
TEXTS = ["a cat sat on the mat", "", "taxes! 😀", "the senator " * 60, "one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder("bert", labels)`: a random sequence classifier with MiniLM's tokenizer, and its torch
    model; without labels, a bare encoder.
    """
    made = {}

    def get(name, labels=(), problem="single_label_classification"):
        if (name, labels, problem) not in made:
            path, config = tmp_path_factory.mktemp("classifiers"), CONFIGS[name]()
            torch.manual_seed(0)
            if labels:
                config.id2label, config.label2id, config.problem_type = (
                    dict(enumerate(labels)),
                    {v: i for i, v in enumerate(labels)},
                    problem,
                )
            model = (
                (hf.AutoModelForSequenceClassification if labels else hf.AutoModel)
                .from_config(config)
                .eval()
            )
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape) * 0.1)
            model.save_pretrained(path)
            tokenizer = hf.AutoTokenizer.from_pretrained(default_model())
            tokenizer.model_max_length = 40
            tokenizer.save_pretrained(path)
            made[name, labels, problem] = str(path), model, tokenizer
        return made[name, labels, problem]

    return get


def by_torch(model, tokenizer, texts):
    with torch.no_grad():
        return [
            model(
                **{
                    k: v
                    for k, v in tokenizer(
                        t, truncation=True, max_length=40, return_tensors="pt"
                    ).items()
                    if k != "token_type_ids"
                }
            ).logits[0]
            for t in texts
        ]


@pytest.mark.parametrize("name", ["bert", "albert", "distilbert"])
def test_directories_equal_transformers(folder, name):
    path, model, tokenizer = folder(name, ("left", "center", "right"))
    ours = load_classifier(path)
    found = probabilities(ours, TEXTS)
    expected = torch.stack(by_torch(model, tokenizer, TEXTS)).softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert predict(ours, TEXTS) == [("left", "center", "right")[i] for i in expected.argmax(1)]
    assert probabilities(ours, []).shape == (0, 3)


def test_texts_that_come_again_are_read_once(folder, monkeypatch):
    ours = load_classifier(folder("bert", ("left", "center", "right"))[0])
    read, known = [], {}

    def token_ids(encoder, texts):
        read.extend(texts)
        return encoders.token_ids(encoder, texts)

    monkeypatch.setattr(classifiers, "encoders", SimpleNamespace(**vars(encoders)))
    monkeypatch.setattr(classifiers.encoders, "token_ids", token_ids)
    first = probabilities(ours, TEXTS[:3] * 2, known=known)
    again = probabilities(ours, TEXTS, known=known)
    assert read == TEXTS
    alone = np.concatenate([probabilities(ours, [text]) for text in TEXTS])
    np.testing.assert_array_equal(again, alone)
    np.testing.assert_array_equal(first, alone[[0, 1, 2, 0, 1, 2]])
    monkeypatch.setattr(classifiers, "KNOWN_TEXTS", 2)
    np.testing.assert_array_equal(
        probabilities(ours, [*TEXTS, "new"], known=known)[: len(TEXTS)], alone
    )
    assert read[len(TEXTS) + len(TEXTS) :] == ["new"] and len(known) == 2


def test_classes_that_do_not_exclude_each_other(folder):
    path, model, tokenizer = folder("bert", ("toxic", "threat"), "multi_label_classification")
    found = probabilities(load_classifier(path), TEXTS)
    np.testing.assert_allclose(
        found, torch.stack(by_torch(model, tokenizer, TEXTS)).sigmoid().numpy(), atol=1e-4
    )


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_saved_encoders_load_in_transformers(folder, tmp_path, name):
    path, model, tokenizer = folder(name, ("a", "b", "c"))
    save_classifier(load_classifier(path), tmp_path / "saved")
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is type(model) and again.config.id2label == {0: "a", 1: "b", 2: "c"}
    read = hf.PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    assert read(TEXTS[0]).input_ids == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    np.testing.assert_array_equal(
        probabilities(load_classifier(str(tmp_path / "saved")), TEXTS),
        probabilities(load_classifier(path), TEXTS),
    )


# ---- training


def labelled(n, seed=0):
    """Texts of three topics, one of them rare; and their topics."""
    words = dict(
        sea="ship wave fish salt anchor",
        farm="cow field barn plough hay",
        city="tram street tower office crowd",
    )
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(words), n, p=[0.5, 0.38, 0.12]).tolist()
    return [
        " ".join(rng.choice([*words[label].split(), "the", "and", "some"], 6)) for label in labels
    ], labels


@pytest.mark.parametrize(
    ("train", "rate"),
    [("head", 0.03), ("all", 5e-3), pytest.param(1, 1e-2, marks=pytest.mark.slow)],
)
def test_training_learns_and_reports_what_it_reaches(folder, train, rate, tmp_path):
    texts, labels = labelled(240)
    fitted = fit_classifier(
        texts,
        labels,
        encoder=folder("bert")[0],
        train=train,
        learning_rate=rate,
        epochs=12,
        batch_size=16,
        max_length=16,
    )
    report, names = fitted.report, ["city", "farm", "sea"]
    assert fitted.classifier.labels == tuple(names) == tuple(report["labels"])
    assert report["test"]["macro_f1"] > 0.9 > 0.5 > report["majority"]["macro_f1"]
    assert len(report["log"]) == 12 and report["log"][0]["loss"] > report["log"][-1]["loss"]
    assert report["log"][report["best_epoch"] - 1]["macro_f1"] == max(
        e["macro_f1"] for e in report["log"]
    )
    json.dumps(report)

    target = np.array([names.index(label) for label in labels])
    groups = np.array(duplicates.groups(duplicates.keys(texts)))
    rows = split_rows(target, tuple(names), (0.7, 0.15, 0.15), 0, groups)
    training, test = rows.training, rows.test
    found = predict(fitted.classifier, [texts[i] for i in test])
    truth = [labels[i] for i in test]
    assert report["test"]["confusion"] == confusion_matrix(truth, found, labels=names).tolist()
    theirs = classification_report(truth, found, labels=names, output_dict=True, zero_division=0)
    assert report["test"]["macro_f1"] == pytest.approx(theirs["macro avg"]["f1-score"])
    assert report["test"]["by_class"]["city"]["recall"] == pytest.approx(theirs["city"]["recall"])
    dummy = (
        DummyClassifier()
        .fit(np.zeros((len(training), 1)), target[training])
        .predict(np.zeros((len(test), 1)))
    )
    assert report["majority"]["accuracy"] == pytest.approx((dummy == target[test]).mean())

    save_classifier(fitted.classifier, tmp_path / "saved")
    again = load_classifier(str(tmp_path / "saved"))
    assert again.labels == tuple(names)
    np.testing.assert_allclose(
        probabilities(again, texts[:5]), probabilities(fitted.classifier, texts[:5]), atol=1e-6
    )


@pytest.mark.slow
def test_an_encoder_whose_blocks_share_their_weights_is_trained(folder, tmp_path):
    """ALBERT: one layer stays one layer, and learns; what is saved is what transformers reads."""
    texts, labels = labelled(240)
    options = {"learning_rate": 1e-2, "epochs": 8, "batch_size": 16, "max_length": 16}
    fitted = fit_classifier(texts, labels, encoder=folder("albert")[0], train="all", **options)
    assert fitted.report["test"]["macro_f1"] > 0.9 > 0.5 > fitted.report["majority"]["macro_f1"]
    assert len(fitted.classifier.encoder.params["layers"]) == 1
    save_classifier(fitted.classifier, tmp_path / "saved")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = hf.PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    theirs = torch.stack(by_torch(model, tokenizer, texts[:5])).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(fitted.classifier, texts[:5]), theirs, atol=1e-4)


def test_only_the_last_blocks_are_trained(folder):
    texts, labels = labelled(60)
    before = encoder_files.load_encoder(folder("bert")[0]).params
    after = fit_classifier(
        texts,
        labels,
        encoder=folder("bert")[0],
        train=1,
        learning_rate=1e-2,
        epochs=1,
        batch_size=8,
        max_length=16,
    ).classifier.encoder.params
    same = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))  # noqa: E731
    assert same(before["layers"][0], after["layers"][0]) and same(before["embed"], after["embed"])
    assert not same(before["layers"][1], after["layers"][1])


def test_training_is_a_function_of_its_seed(folder):
    texts, labels = labelled(80)

    def fit(seed):
        options = {"encoder": folder("bert")[0], "epochs": 2, "max_length": 16, "seed": seed}
        return fit_classifier(texts, labels, **options).classifier.head["w"]

    first = fit(3)
    np.testing.assert_array_equal(fit(3), first)
    assert (fit(4) != first).any()


def test_the_sampler_draws_classes_equally_often():
    target = np.array([0] * 900 + [1] * 90 + [2] * 10)
    rows = np.concatenate(
        [
            classifier_fit.draw_batches(jax.random.key(i), target, 50, True).reshape(-1)
            for i in range(5)
        ]
    )
    counts = np.bincount(target[rows])
    assert (
        (counts - 5000 / 3) ** 2 / (5000 / 3)
    ).sum() < 13.8  # chi-square with 2 degrees of freedom at 0.001
    plain = classifier_fit.draw_batches(jax.random.key(0), target, 50, False).reshape(-1)
    assert sorted(plain) == list(range(1000))


def test_splits_are_stratified_and_disjoint():
    target = np.array([0] * 200 + [1] * 100 + [2] * 20)
    shares, alone = (0.7, 0.15, 0.15), np.arange(320)
    rows = split_rows(target, ("a", "b", "c"), shares, 0, alone)
    parts = [rows.training, rows.validation, rows.test]
    assert sorted(np.concatenate(parts)) == list(range(320))
    assert [np.bincount(target[p]).tolist() for p in parts] == [
        [140, 70, 14],
        [30, 15, 3],
        [30, 15, 3],
    ]
    # The last 120 rows repeat the first: every copy is where its first one is.
    copies = np.concatenate([alone, np.arange(120)])
    rows = split_rows(np.append(target, target[:120]), ("a", "b", "c"), shares, 0, copies)
    for found, part in zip((rows.training, rows.validation, rows.test), parts, strict=True):
        wanted = np.concatenate([part, 320 + part[part < 120]])
        assert sorted(found) == sorted(wanted)


def test_the_best_epoch_is_kept():
    scores = {0: 0.2, 1: 0.9, 2: 0.5, 3: 0.9}

    def train_epoch(state, epoch):
        return classifier_fit.TrainState(jax.numpy.int32(epoch), None), 1.0 - epoch

    start = classifier_fit.TrainState(jax.numpy.int32(-1), None)
    kept, log = classifier_fit.best_epoch(
        train_epoch, lambda weights: scores[int(weights)], start, 4
    )
    assert int(kept) == 1 and [e["macro_f1"] for e in log] == [0.2, 0.9, 0.5, 0.9]


def test_bad_training_input():
    fit = lambda texts, labels, **k: fit_classifier(texts, labels, encoder="/nowhere", **k)  # noqa: E731
    texts = [f"text {i}" for i in range(20)]
    with pytest.raises(ValueError, match="1 labels for 2 texts"):
        fit(["a", "b"], ["x"])
    with pytest.raises(ValueError, match="1 different class; at least 2"):
        fit(["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="class 'y' has 2 different texts; at least 7"):
        fit([*texts[:10], "p", "q", "P.", "q!"], ["x"] * 10 + ["y"] * 4)
    with pytest.raises(ValueError, match="train is 'some'"):
        fit(texts, ["x", "y"] * 10, train="some")
    with pytest.raises(ValueError, match="train is 0"):
        fit(texts, ["x", "y"] * 10, train=0)
    with pytest.raises(ValueError, match="three positive shares"):
        fit(texts, ["x", "y"] * 10, shares=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="directory /nowhere does not exist"):
        fit(texts, ["x", "y"] * 10)


@pytest.mark.slow
def test_party_of_senators(shared):
    """Senators' tweets: a head on frozen MiniLM embeddings tells the party far better than the
    majority.
    """
    with shared("data/senate_tweets/tweets.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::20][:3000]
    report = fit_classifier([r["text"] for r in rows], [r["party"] for r in rows]).report
    assert report["test"]["macro_f1"] > report["majority"]["macro_f1"] + 0.15


# ---- metrics


def test_metrics_of_many_chains(folder):
    path, model, tokenizer = folder("bert", ("left", "center", "right"))
    chains = [TEXTS, ["one"], []]
    options = f"model={path!r}, label='center'"
    found = registry.evaluate(
        [f"class_share({options})", f"class_probability({options})"], texts=chains
    )
    p = torch.stack(by_torch(model, tokenizer, TEXTS)).softmax(-1).numpy()
    share, mean = found.values()
    np.testing.assert_allclose(
        share, [(p.argmax(1) == 1).mean(), float(p[4].argmax() == 1), np.nan]
    )
    np.testing.assert_allclose(mean, [p[:, 1].mean(), p[4, 1], np.nan], atol=1e-4)
    (name,) = each = registry.evaluate_texts([f"class_probability({options})"], texts=chains)
    assert [len(values) for values in each[name]] == [5, 1, 0]
    renamed = registry.evaluate(
        [f"class_share(model={path!r}, label='b', labels=('a', 'b', 'c'))"], texts=chains
    )
    np.testing.assert_array_equal(*renamed.values(), share)


def test_a_text_has_a_class_of_those_that_do_not_exclude_each_other_from_one_half_on(
    folder, monkeypatch
):
    """As scikit-learn's multi-label predictions: the likeliest of unlikely classes is none."""
    path = folder("bert", ("toxic", "threat"), "multi_label_classification")[0]
    shares = np.array([[0.01, 0.002], [0.9, 0.95], [0.5, 0.1]], np.float32)
    monkeypatch.setattr(classifiers, "probabilities", lambda *_, **__: shares)
    for label, expected in (("toxic", [0, 1, 1]), ("threat", [0, 1, 0])):
        options = f"model={path!r}, label={label!r}"
        ((found,),) = registry.evaluate_texts(
            [f"class_share({options})"], texts=[["a", "b", "c"]]
        ).values()
        assert found.tolist() == expected


def test_toxicity_is_the_probability_of_its_class(folder):
    path, model, tokenizer = folder("bert", ("toxic", "threat"), "multi_label_classification")
    (found,) = registry.evaluate([f"toxicity(model={path!r})"], texts=[TEXTS]).values()
    assert found[0] == pytest.approx(
        torch.stack(by_torch(model, tokenizer, TEXTS)).sigmoid()[:, 0].mean().item(), abs=1e-4
    )


def test_bad_metric_options(folder):
    path = folder("bert", ("left", "center", "right"))[0]
    with pytest.raises(ValueError, match="the classifier has no model"):
        registry.evaluate(["class_share"], texts=[["x"]])
    with pytest.raises(
        ValueError, match="label is 'up'; the classes of .* are 'left', 'center', 'right'"
    ):
        registry.evaluate([f"class_share(model={path!r}, label='up')"], texts=[["x"]])
