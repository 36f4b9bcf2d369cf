"""Classifiers and sentence encoders as people bring them: each gives what the pipelines of
`transformers` give, or is refused in one sentence.
"""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from jaxloop.lm.encoder import files as encoder_files
from jaxloop.metrics.classifiers import class_memberships, load_classifier, predict, probabilities
from tests.peers import peer
from tests.real_world.support import RIGHT, Row, config, edit, make, refusal, tensors

torch = peer("torch")
hf = peer("transformers", "torch")

TEXTS = ["the cat sat", "a rat", "hat " * 9, "x"]
VOCAB = 300
BERT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=66,
)
CONFIGS = {
    "bert": lambda: hf.BertConfig(**BERT),
    "roberta": lambda: hf.RobertaConfig(**BERT | dict(type_vocab_size=1, pad_token_id=1)),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=66
    ),
    "qwen2": lambda: hf.Qwen2Config(**BERT | dict(num_key_value_heads=2, pad_token_id=1)),
}


def outputs(count):
    """Another number of outputs of the head."""

    def change(t):
        names = [
            k
            for k in t
            if k.startswith(
                ("classifier.weight", "classifier.bias", "classifier.out_proj", "score")
            )
        ]
        rng = np.random.default_rng(0)
        return t | {
            k: rng.standard_normal((count, *t[k].shape[1:]), np.float32)
            * (k.endswith("weight") + 0.1)
            for k in names
        }

    return tensors(change)


def labels(*names, **changes):
    return config(
        id2label={str(i): n for i, n in enumerate(names)},
        label2id={n: i for i, n in enumerate(names)},
        **changes,
    )


def int8(t):
    return {k: v.astype(np.int8) if v.ndim == 2 else v for k, v in t.items()}


ONE, TWO, MULTI = (
    labels("toxic"),
    labels("no", "yes"),
    dict(problem_type="multi_label_classification"),
)
ROWS = [
    Row("one output", "bert", (outputs(1), ONE), RIGHT),
    Row("one output of RoBERTa", "roberta", (outputs(1), ONE), RIGHT),
    Row("one output of a decoder", "qwen2", (outputs(1), ONE), RIGHT),
    Row(
        "one output, said to be of several classes",
        "distilbert",
        (outputs(1), labels("toxic", **MULTI)),
        RIGHT,
    ),
    Row("two outputs", "bert", (outputs(2), TWO), RIGHT),
    Row("two outputs, no names", "bert", (outputs(2), config(id2label=..., label2id=...)), RIGHT),
    Row(
        "three outputs, their number alone",
        "bert",
        (outputs(3), config(id2label=..., label2id=..., num_labels=3)),
        RIGHT,
    ),
    Row(
        "two outputs that do not exclude each other",
        "roberta",
        (outputs(2), labels("a", "b", **MULTI)),
        RIGHT,
    ),
    Row(
        "said to be one of several",
        "bert",
        (outputs(3), labels("a", "b", "c", problem_type="single_label_classification")),
        RIGHT,
    ),
    Row(
        "a regression",
        "bert",
        (outputs(1), labels("score", problem_type="regression")),
        "problem_type = 'regression' is not supported",
        "gives scores",
    ),
    Row(
        "one output, one of several",
        "bert",
        (outputs(1), labels("x", problem_type="single_label_classification")),
        "needs at least two classes",
    ),
    Row(
        "a gap in the names",
        "bert",
        (outputs(2), config(id2label={"0": "a", "2": "b"})),
        "must give every number from 0 to 1 a name",
        "a key is missing",
    ),
    Row(
        "names for more classes than outputs",
        "bert",
        (outputs(2), labels("a", "b", "c")),
        r"classifier.weight has shape .* is expected",
    ),
    Row(
        "one name twice",
        "bert",
        (outputs(2), config(id2label={"0": "a", "1": "a"})),
        "names two classes 'a'",
        "one hides the other",
    ),
    Row("numbers as names", "bert", (outputs(2), config(id2label={"0": 1, "1": 2})), "id2label = "),
    Row(
        "another number of labels",
        "bert",
        (outputs(2), labels("a", "b", num_labels=5)),
        "num_labels = 5 .* id2label names 2 classes",
        "LABEL_0 to LABEL_4",
    ),
    Row("int8 weights", "bert", (outputs(2), TWO, tensors(int8)), "is stored as I8", "casts them"),
    Row(
        "int8 weights of a decoder",
        "qwen2",
        (outputs(2), TWO, tensors(int8)),
        "is stored as I8",
        "casts them",
    ),
    Row(
        "quantization_config",
        "roberta",
        (outputs(2), TWO, config(quantization_config=dict(quant_method="gptq"))),
        "quantised .gptq",
    ),
    Row(
        "relative positions",
        "bert",
        (outputs(2), TWO, config(position_embedding_type="relative_key")),
        "position_embedding_type = 'relative_key'",
    ),
    Row(
        "a field of another model",
        "bert",
        (outputs(2), TWO, config(embedding_size=16)),
        "embedding_size = 16 is not a field of bert",
    ),
    Row(
        "a number as text",
        "bert",
        (outputs(2), TWO, config(layer_norm_eps="1e-12")),
        "layer_norm_eps = '1e-12' is not supported",
    ),
    Row(
        "fields that change nothing",
        "bert",
        (
            outputs(2),
            TWO,
            config(
                gradient_checkpointing=False,
                pooler_type="x",
                hidden_dropout_prob=0.3,
                position_embedding_type="absolute",
                classifier_dropout=None,
                _num_labels=2,
                padding="max_length",
            ),
        ),
        RIGHT,
    ),
    Row(
        "tokens beyond the table",
        "bert",
        (outputs(2), TWO, edit("added_tokens.json", **{"<new>": VOCAB})),
        "has token '<new>' with id 300, .* 300 rows",
    ),
    Row(
        "an adapter beside it",
        "bert",
        (outputs(2), TWO, edit("adapter_config.json", r=4)),
        "holds an adapter too",
    ),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`folder("bert")`: a saved random sequence classifier with a tokenizer of 300 tokens; made
    once.
    """
    made = {}

    def get(name):
        if name not in made:
            path = tmp_path_factory.mktemp("classifiers") / name
            torch.manual_seed(0)
            model = hf.AutoModelForSequenceClassification.from_config(CONFIGS[name]())
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape) * 0.1)
            model.save_pretrained(path)
            made[name] = write_tokenizer(path)
        return made[name]

    return get


def write_tokenizer(path):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "<pad>", "</s>", "<unk>"]
    texts = [
        "the cat sat on the mat and then the rat ran to the hat",
        "a model that reads what another model wrote reads less each time",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(texts * 4, trainer)
    while backend.get_vocab_size() < VOCAB:
        backend.add_tokens([f"<spare{backend.get_vocab_size()}>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(path / "tokenizer.json"))
    edit(
        "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        pad_token="<pad>",
        model_max_length=60,
    )(path)
    return path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_classifier_is_right_or_refused(row, folder, tmp_path):
    path = make(row, folder(row.model), tmp_path / "model")
    if row.ours != RIGHT:
        with pytest.raises(ValueError) as caught:
            load_classifier(str(path))
        refusal(caught.value, row.ours)
        return
    ours = load_classifier(str(path))
    found = probabilities(ours, TEXTS)
    theirs = hf.pipeline(
        "text-classification", str(path), top_k=None, device="cpu", dtype=torch.float32
    )
    for text, row_found in zip(TEXTS, found, strict=True):
        expected = {
            entry["label"]: entry["score"]
            for entry in theirs([text], return_token_type_ids=False)[0]
        }
        assert list(expected) == sorted(
            ours.labels, key=lambda label: -expected[label]
        )  # the same names
        np.testing.assert_allclose(
            row_found, [expected[label] for label in ours.labels], atol=1e-4, rtol=0
        )
    assert np.ptp(found[:, 0]) > 2e-4


def test_a_class_of_one_output_has_the_texts_with_half_its_probability(folder, tmp_path):
    row = ROWS[0]
    path = str(make(row, folder(row.model), tmp_path / "model"))
    classifier = load_classifier(path)
    shares = probabilities(classifier, TEXTS)[:, 0]
    with pytest.raises(
        ValueError, match="has one output, 'toxic', so it chooses between no classes"
    ):
        predict(classifier, TEXTS)
    assert (
        class_memberships([TEXTS], model=path, label="toxic")[0].tolist()
        == (shares >= 0.5).astype(float).tolist()
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ((tensors(int8),), "is stored as I8"),
        ((config(quantization_config=dict(quant_method="awq")),), "quantised .awq"),
        ((edit("added_tokens.json", **{"<new>": VOCAB}),), "has token '<new>' with id 300"),
    ],
)
def test_sentence_encoders_refuse_what_no_library_should_guess(changes, match, folder, tmp_path):
    """Not `Unsupported`, after which sentence-transformers would be asked."""
    path = make(Row("", "bert", changes, match), folder("bert"), tmp_path / "model")
    with pytest.raises(ValueError, match=match) as caught:
        encoder_files.load_encoder(path)
    assert not isinstance(caught.value, encoder_files.Unsupported)
    refusal(caught.value, match)
