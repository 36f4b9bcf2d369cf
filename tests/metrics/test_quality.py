"""The text quality index: corruptions that do what they say, both variants by hand, and the
detector that comes with the toolkit.
"""

import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.metrics import detector_training, quality, registry
from jaxloop.metrics.classifiers import Classifier, load_classifier, probabilities
from jaxloop.metrics.detector_training import CLASSES, corrupt, corrupted, fit_detector
from jaxloop.metrics.quality import (
    default_detector,
    sentences,
    text_qualities,
    text_quality_index,
)
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

ROOT = Path(__file__).resolve().parents[2]
PROSE = """The function returns a new array with the same shape as the input. It raises an error
if the axis is out of bounds. Missing values are ignored when the mean is computed.
Each row of the table holds one observation and its weight. The default is to use all
of the available cores. A smaller step makes the result more accurate but takes
longer. If no seed is given, the generator is started from the clock. The method was
first described in a paper about the spread of diseases. Two lists are equal when
they hold the same elements in the same order. The file is closed as soon as the
block is left. It is an error to change the size of a dictionary while it is being
read. The first argument is the name of the column that should be sorted. Most of the
work is done in a separate thread, so the caller does not have to wait. The distance
between two points is the length of the line that joins them. This option has no
effect on other systems. Values that lie outside of the given range are set to the
nearest bound. The solver stops when the change of the solution is below the
tolerance. Every class has a method that gives its name as a string. The matrix must
be square and all of its eigenvalues must be positive. A warning is shown once for
each place from which the function is called."""
REAL = [" ".join(s.split()) for s in sentences(PROSE.replace("\n", " "))]


def rng(*seed):
    return np.random.default_rng(seed)


# ---- sentences and corruptions


def test_sentences():
    text = 'One. Is it two? "Three!" she said.\nFour\n\n  '
    assert sentences(text) == ["One.", "Is it two?", '"Three!', "she said.", "Four"]
    assert sentences("a. b.c", "period") == ["a", "b", "c"]
    assert sentences("") == sentences(" \n ") == sentences(" . ", "period") == []
    with pytest.raises(ValueError, match="split is 'word'; allowed are 'sentence' and 'period'"):
        sentences("x", "word")


@pytest.mark.parametrize("seed", range(3))
def test_corruptions_do_what_they_say(seed):
    for i, sentence in enumerate(REAL):
        words = sentence.split()
        assert corrupt(sentence, "clean", rng(seed, i)) == sentence
        noise = corrupt(sentence, "noise", rng(seed, i)).split()
        assert [len(w) for w in noise] == [len(w) for w in words] and set("".join(noise)) <= set(
            "abcdefghijklmnopqrstuvwxyz"
        )
        salad = corrupt(sentence, "word salad", rng(seed, i)).split()
        assert Counter(salad) == Counter(words) and salad != words
        pairs = Counter(zip(words, words[1:], strict=False))
        assert (
            sum((Counter(zip(salad, salad[1:], strict=False)) & pairs).values()) <= len(words) / 4
        )
        mild = corrupt(sentence, "mild gibberish", rng(seed, i)).split()
        kept = sum((Counter(mild) & Counter(words)).values())
        assert mild != words and kept >= len(words) / 2
        assert corrupt(sentence, "mild gibberish", rng(seed, i)).split() == mild
    with pytest.raises(ValueError, match="kind is 'spam'; allowed are clean, mild gibberish"):
        corrupt("x", "spam", rng(0))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("text", ["", "one", "!!! ???", "two words", "😀 مرحبا"])
def test_corruptions_of_what_is_hardly_a_sentence(kind, text):
    assert isinstance(corrupt(text, kind, rng(1)), str)


def test_every_class_has_sentences_of_its_own():
    texts, labels = corrupted(REAL, seed=3)
    assert Counter(labels) == dict.fromkeys(CLASSES, len(REAL) // 4)
    assert [t for t, label in zip(texts, labels, strict=True) if label == "clean"] == REAL[::4]
    assert corrupted(REAL, seed=3) == (texts, labels) and corrupted(REAL, seed=4)[0] != texts


# ---- the index

SHARES = {
    "A clean one.": (0.9, 0.1, 0, 0),
    "Mild a bit.": (0.3, 0.6, 0.1, 0),
    "salad word.": (0, 0.2, 0.8, 0),
    "xq zzv.": (0, 0, 0.3, 0.7),
}


@pytest.fixture
def known(monkeypatch):
    """A detector with known probabilities."""
    monkeypatch.setattr(quality, "_detector", lambda path: Classifier(None, CLASSES))
    monkeypatch.setattr(
        quality,
        "probabilities",
        lambda _, texts, known: np.array([SHARES[t] for t in texts], np.float32).reshape(-1, 4),
    )


def test_both_variants_by_hand(known):
    clean, mild, salad, noise = SHARES
    chains = [[f"{clean} {mild}", noise, ""], [salad], []]
    np.testing.assert_allclose(text_quality_index(chains), [(2.5 + 0 + 0) / 3, 1, np.nan])
    np.testing.assert_allclose(
        text_quality_index(chains, variant="confidence"),
        [((2.7 + 1.2) / 2) / 3, 0.8, np.nan],
        rtol=1e-6,
    )
    each = text_qualities(chains, variant="confidence")
    np.testing.assert_allclose(each[0], [(2.7 + 1.2) / 2, 0, 0], rtol=1e-6)
    assert [len(values) for values in each] == [3, 1, 0]
    np.testing.assert_allclose(text_qualities([clean, noise])[0], [3, 0])
    with pytest.raises(ValueError, match="variant is 'mean'; allowed are 'class' and 'confidence'"):
        text_quality_index(chains, variant="mean")


def test_a_detector_of_other_classes_is_refused(monkeypatch):
    quality._detector.cache_clear()
    monkeypatch.setattr(
        quality, "load_classifier", lambda path: Classifier(None, ("spam", "clean"))
    )
    with pytest.raises(
        ValueError,
        match="detector: the class 'spam' of somewhere has no quality value; known are clean, "
        "mild gibberish",
    ):
        text_quality_index([["x"]], detector="somewhere")
    quality._detector.cache_clear()


# ---- the detector


def test_the_detector_grades_real_sentences_and_their_corruptions():
    names = ["text_quality_index", "text_quality_index(variant='confidence')"]
    chains = [
        [corrupt(s, kind, rng(seed, i)) for seed in range(8) for i, s in enumerate(REAL)]
        for kind in CLASSES
    ]
    for values, step in zip(
        registry.evaluate(names, texts=chains).values(), (0.2, 0.1), strict=True
    ):
        assert (
            values[0] > values[1] + step
            and values[1] > values[2] + 2 * step
            and values[2] > values[3] + 5 * step
        )
    index = registry.evaluate(
        names[:1], texts=[*chains, [], [""], ["😀 مرحبا שלום"], ["word " * 200_000]]
    )[names[0]]
    assert index[0] > 2.3 and index[3] < 0.2
    assert np.isnan(index[4]) and index[5] == 0 and 0 <= index[6] <= 3 and 0 <= index[7] <= 3
    np.testing.assert_array_equal(
        registry.evaluate(names[:1], texts=chains[:1])[names[0]], index[:1]
    )


def test_the_detector_is_a_model_of_transformers():
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        default_detector(), dtype=torch.float32
    ).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(default_detector())
    ours = load_classifier(str(default_detector()))
    assert set(ours.labels) == set(CLASSES) == set(model.config.id2label.values())
    found = probabilities(ours, REAL[:3])
    for text, shares in zip(REAL, found, strict=False):
        with torch.no_grad():
            expected = model(
                **tokenizer(
                    text, truncation=True, max_length=ours.encoder.limit, return_tensors="pt"
                )
            ).logits.softmax(-1)[0]
        np.testing.assert_allclose(shares, expected.numpy(), atol=1e-4)


def test_the_detector_is_small_and_its_card_says_what_it_reaches():
    files = {path.name: path.stat().st_size for path in default_detector().iterdir()}
    assert sum(files.values()) < 3e6 and {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    } <= set(files)
    card = (default_detector() / "README.md").read_text(encoding="utf8")
    assert "python scripts/train_detector.py --out jaxloop/assets/detector" in card
    rows = re.findall(
        r"^\| (clean|mild gibberish|noise|word salad) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| "
        r"([\d,]+) \|",
        card,
        re.MULTILINE,
    )
    assert len(rows) == 8  # two confusion matrices
    for at in (0, 4):
        counts = np.array([[int(n.replace(",", "")) for n in row[1:]] for row in rows[at : at + 4]])
        assert counts.sum() > 1000 and np.trace(counts) / counts.sum() > 0.7


def test_the_script_begins_with_the_first_blocks_of_a_base(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # where it finds _root, as when it is run
    from scripts import train_detector

    base = str(ROOT / "jaxloop/assets/bases/qwen2")
    whole = lm.load(base)
    first = lm.load(train_detector.first_blocks(base, 1, tmp_path / "encoder"))
    assert first.config.num_layers == 1 < whole.config.num_layers
    for ours, theirs in zip(
        jax.tree.leaves(first.params["layers"]),
        jax.tree.leaves(whole.params["layers"]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs[:1])


MANY = [f"{s[:-1]} in case {i}." for i, s in enumerate(REAL * 6)]


def test_a_detector_is_trained_on_sentences_and_corruptions_of_them(monkeypatch):
    given = []
    monkeypatch.setattr(
        detector_training, "fit_classifier", lambda *rows, **more: given.append((*rows, more))
    )
    fit_detector([*MANY, "too short", MANY[0]], epochs=20, seed=3)
    ((texts, labels, settings),) = given
    assert (texts, labels) == corrupted(MANY, 3) and set(labels) == {*CLASSES}
    assert settings == {"encoder": None, "train": 2, "seed": 3, "epochs": 20}


@pytest.mark.slow
def test_training_a_detector():
    report = fit_detector([*MANY, "too short"], train="head", epochs=20).report
    assert sum(report["counts"].values()) == len(MANY)
    assert report["test"]["macro_f1"] > 0.5 > report["majority"]["macro_f1"]
    assert np.shape(report["test"]["confusion"]) == (4, 4)


def test_too_few_sentences_are_refused():
    with pytest.raises(
        ValueError,
        match="real: 20 different sentences of four words or more; at least 100 are needed",
    ):
        fit_detector([*REAL, *REAL, "three short words"])
