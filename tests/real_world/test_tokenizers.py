"""Tokenizers as people bring them: each gives the ids that `transformers` gives, the same ones
every time, or is refused in one sentence.
"""

import json
from pathlib import Path

import jax
import pytest
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from jaxloop import lm
from jaxloop.lm.io import tokenizer
from jaxloop.lm.model.config import ModelConfig, init
from tests.real_world.support import RIGHT, Row, config, edit, refusal, remove, write

TEXTS = [
    "the cat sat",
    " the cat",
    "a</s>b <s>",
    "x <new> y",
    "a<|im_end|>b",
    "hat's 12345 \n\n  x",
    "Ⅷ é",
    "",
    "the hat<new>",
]
TRAINED = [
    "the cat sat on the mat and then the rat ran to the hat",
    "a model that reads what another model wrote reads less each time",
]
SIZE = 301


def token(text, special=False, **flags):
    return (
        dict(
            content=text,
            lstrip=False,
            rstrip=False,
            normalized=False,
            single_word=False,
            special=special,
        )
        | flags
    )


ALL = {str(i): token(text, True) for i, text in enumerate(("<pad>", "<s>", "</s>"))}


def trained():
    """A byte-level BPE of 301 tokens, with <pad>, <s> and </s> as tokens 0, 1 and 2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TRAINED * 4,
        trainers.BpeTrainer(
            vocab_size=SIZE,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=letters,
            show_progress=False,
        ),
    )
    return backend


def settings(**changes):
    return edit("tokenizer_config.json", **changes)


def backend(function):
    """Changes the tokenizer of tokenizer.json."""

    def change(path: Path) -> None:
        made = Tokenizer.from_file(str(path / "tokenizer.json"))
        function(made)
        made.save(str(path / "tokenizer.json"))

    return change


def bos_first(made):
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )


def lots(made):
    made.model.dropout = 0.5


def padded(made):
    made.enable_padding(length=12)
    made.enable_truncation(3)


def lower(made):
    made.normalizer = normalizers.Lowercase()


def ordinary(path):
    """Special tokens as tokenizer.json of converted models may have them."""
    made = json.loads((path / "tokenizer.json").read_text())
    for entry in made["added_tokens"]:
        entry["special"] = False
    (path / "tokenizer.json").write_text(json.dumps(made))


def words(path):
    model = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (path / "tokenizer.json").unlink()


CLASSES = [
    ("PreTrainedTokenizerFast", "llama"),
    ("LlamaTokenizerFast", "llama"),
    ("GPT2Tokenizer", "gpt2"),
    ("GPT2TokenizerFast", "opt"),
    ("Qwen2Tokenizer", "qwen2"),
    (..., "gpt2"),
    (..., "qwen2"),
    (..., "llama"),
]
KINDS = [
    ("plain", (), RIGHT),
    (
        "a token in added_tokens_decoder alone",
        (settings(added_tokens_decoder=ALL | {"301": token("<new>")}),),
        RIGHT,
    ),
    (
        "a special one",
        (settings(added_tokens_decoder=ALL | {"301": token("<|im_end|>", True)}),),
        RIGHT,
    ),
    (
        "one that takes the space before it",
        (settings(added_tokens_decoder=ALL | {"301": token("<new>", lstrip=True)}),),
        RIGHT,
    ),
    ("a token in added_tokens.json alone", (edit("added_tokens.json", **{"<new>": 301}),), RIGHT),
    ("two of them", (edit("added_tokens.json", **{"<|im_end|>": 302, "<new>": 301}),), RIGHT),
    (
        "a special one in added_tokens.json",
        (
            edit("added_tokens.json", **{"<|im_end|>": 301}),
            settings(extra_special_tokens=["<|im_end|>"]),
        ),
        RIGHT,
    ),
    (
        "named in special_tokens_map.json",
        (
            edit("special_tokens_map.json", eos_token="<|im_end|>"),
            edit("added_tokens.json", **{"<|im_end|>": 301}),
        ),
        RIGHT,
    ),
    ("a space before every text", (settings(add_prefix_space=True),), RIGHT),
    ("add_bos_token", (settings(add_bos_token=True),), RIGHT),
    ("add_eos_token", (settings(add_eos_token=True),), RIGHT),
    ("BOS by the post-processor", (backend(bos_first),), RIGHT),
    (
        "an end that a word of the vocabulary is",
        (settings(eos_token="</s>", pad_token={"content": "<pad>", "__type": "AddedToken"}),),
        RIGHT,
    ),
    ("special tokens that the file calls ordinary", (ordinary,), RIGHT),
    ("padding and truncation in the file", (backend(padded),), "once"),
    ("merges dropped at random", (backend(lots),), "once"),
    ("lower case by the file", (backend(lower),), RIGHT),
    (
        "an id that is taken",
        (settings(added_tokens_decoder=ALL | {"7": token("<new>")}),),
        "gives the token '<new>' the id 7, the tokenizer itself 301",
    ),
    (
        "an id with a gap",
        (edit("added_tokens.json", **{"<new>": 400}),),
        "gives the token '<new>' the id 400, the tokenizer itself 301",
    ),
    (
        "an id as text",
        (edit("added_tokens.json", **{"<new>": "301"}),),
        "<new> = '301' is not supported; allowed: a whole number",
    ),
]
ROWS = [
    *(
        Row(f"{name}, {kind} as {label}", kind, (settings(tokenizer_class=label), *changes), ours)
        for name, changes, ours in KINDS
        for label, kind in CLASSES
    ),
    Row(
        "vocabulary and merges",
        "gpt2",
        (words, settings(unk_token="</s>", tokenizer_class="GPT2Tokenizer")),
        RIGHT,
    ),
    Row(
        "cut short",
        "llama",
        (
            lambda p: (
                (p / "tokenizer.json").write_text((p / "tokenizer.json").read_text()[:500]) and None
            ),
        ),
        "tokenizer.json cannot be read .it is not JSON",
    ),
    Row(
        "a Git LFS pointer",
        "llama",
        (write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0"),),
        "it is a Git LFS pointer",
    ),
    Row("a web page", "llama", (write("tokenizer.json", "<!DOCTYPE html>"),), "it is a web page"),
    Row(
        "another JSON",
        "llama",
        (write("tokenizer.json", "{}"),),
        "is no file of the tokenizers library",
    ),
    Row(
        "settings that are no JSON",
        "llama",
        (write("tokenizer_config.json", "{,"),),
        "tokenizer_config.json cannot be read .it is not JSON",
    ),
    Row(
        "an end that is no number",
        "llama",
        (config(eos_token_id="2"),),
        "eos_token_id = '2' is not supported; allowed: token ids",
    ),
    Row("no tokenizer", "llama", (remove("tokenizer.json"),), "has no tokenizer.json"),
]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    trained().save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_tokenizer_is_right_or_refused(row, saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(saved.read_bytes())
    edit("tokenizer_config.json", eos_token="</s>", bos_token="<s>", pad_token="<pad>")(tmp_path)
    config(model_type=row.model, eos_token_id=2)(tmp_path)
    for change in row.changes:
        change(tmp_path)
    if row.ours not in (RIGHT, "once"):
        with pytest.raises(ValueError) as caught:
            tokenizer.load(tmp_path)
        refusal(caught.value, row.ours)
        return
    ours = tokenizer.load(tmp_path)
    found = ours.encode(TEXTS)
    assert found == ours.encode(TEXTS) == [ours.encode([text])[0] for text in TEXTS]
    if row.ours == "once":  # what transformers draws, pads or cuts is not what a chain may do
        (tmp_path / "tokenizer.json").write_bytes(saved.read_bytes())
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    split = (
        ours.backend.encode_special_tokens
    )  # whether the name of a special token in a text is that token or text
    assert found == [theirs(text, split_special_tokens=split).input_ids for text in TEXTS]
    assert ours.decode(found) == [theirs.decode(ids, skip_special_tokens=True) for ids in found]


CLOSED = [
    (
        "an end",
        processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        ),
        [1],
    ),
    (
        "an end twice",
        processors.TemplateProcessing(
            single="<s> $A </s> </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        ),
        [1],
    ),
    (
        "another token",
        processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 0)]),
        [],
    ),
    ("RoBERTa", processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), [1]),
    ("BERT", processors.BertProcessing(("</s>", 2), ("<s>", 1)), [1]),
    (
        "the end before the text",
        processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)]),
        [2],
    ),
]


@pytest.mark.parametrize(
    ("processor", "start"), [row[1:] for row in CLOSED], ids=[row[0] for row in CLOSED]
)
def test_nothing_is_put_behind_a_prompt(processor, start, saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(saved.read_bytes())
    edit(
        "tokenizer_config.json",
        eos_token="</s>",
        bos_token="<s>",
        tokenizer_class="PreTrainedTokenizerFast",
    )(tmp_path)
    plain = hf.AutoTokenizer.from_pretrained(tmp_path)
    backend(lambda made: setattr(made, "post_processor", processor))(tmp_path)
    texts = [text for text in TEXTS if text]
    assert tokenizer.load(tmp_path).encode(texts) == [
        start + plain(text, split_special_tokens=True, add_special_tokens=False).input_ids
        for text in texts
    ]


def test_an_end_that_only_the_config_names_is_no_token_of_a_text(saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(saved.read_bytes())
    ordinary(tmp_path)
    config(eos_token_id=2)(tmp_path)
    ours = tokenizer.load(tmp_path)
    (ids,) = ours.encode(["a</s>b"])
    assert (
        2 not in ids
        and ours.decode([ids]) == ["a</s>b"]
        and ours.names_special(["a</s>b"]) == [True]
    )


def test_words_without_a_token_are_refused_in_one_sentence(tmp_path):
    Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="<unk>")).save(
        str(tmp_path / "tokenizer.json")
    )
    edit("tokenizer_config.json", eos_token="</s>")(tmp_path)
    ours = tokenizer.load(tmp_path)
    assert ours.encode(["the"]) == [[1]]
    with pytest.raises(ValueError) as caught:
        ours.encode(["rat"])
    refusal(caught.value, r"tokenizer: a text cannot be encoded .Missing \[UNK\] token")


# ---- where a text ends

ENDS = [
    (
        "a list in generation_config.json",
        {"generation_config.json": dict(eos_token_id=[15, 2])},
        (15, 2),
    ),
    ("a list in config.json", {"config.json": dict(eos_token_id=[2, 15])}, (2, 15)),
    (
        "generation_config.json before config.json",
        {"generation_config.json": dict(eos_token_id=9), "config.json": dict(eos_token_id=[2, 15])},
        (9,),
    ),
    (
        "a chat model: the tokenizer's own first",
        {
            "generation_config.json": dict(eos_token_id=[15, 2]),
            "tokenizer_config.json": dict(eos_token="</s>"),
        },
        (2, 15),
    ),
    ("the tokenizer alone", {"tokenizer_config.json": dict(eos_token="</s>")}, (2,)),
    (
        "null",
        {"generation_config.json": dict(eos_token_id=None), "config.json": dict(eos_token_id=[7])},
        (7,),
    ),
]


@pytest.mark.parametrize(("name", "files", "ends"), ENDS, ids=[name for name, *_ in ENDS])
def test_every_end_of_the_first_file_that_names_one_stops(name, files, ends, saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(saved.read_bytes())
    for file, values in files.items():
        edit(file, **values)(tmp_path)
    found = tokenizer.load(tmp_path)
    assert found.ends == ends and found.eos == ends[0]
    if (
        "generation_config.json" in files
        and files["generation_config.json"]["eos_token_id"] is not None
    ):
        theirs = hf.GenerationConfig.from_pretrained(tmp_path).eos_token_id
        assert set(ends) == set(theirs if isinstance(theirs, list) else [theirs])
    config = ModelConfig(
        "llama",
        vocab_size=320,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=24,
        max_seq_len=32,
    )
    lm.save(lm.Model(config, init(jax.random.key(0), config), found), tmp_path / "saved")
    again = lm.load(tmp_path / "saved").tokenizer
    assert (again.ends, again.pad, again.bos) == (found.ends, found.pad, found.bos)
    theirs = hf.GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id
    assert tuple(theirs if isinstance(theirs, list) else [theirs]) == ends
