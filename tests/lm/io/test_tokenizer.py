"""Tokenizers against those of `transformers`, special tokens, hostile text."""

import json

import numpy as np
import pytest
import transformers as hf

from jaxloop.lm.generation import prompt
from jaxloop.lm.io import tokenizer

TEXTS = [
    "the cat sat on the mat",
    "",
    " leading",
    "naïve façade — 日本語 🙂",
    "line\nbreak\r\n\ttab",
    "x" * 300,
    "NUL \x00 inside",
    "<script>alert(1)</script>",
]


@pytest.fixture
def folder(tokenizer_folder):
    return tokenizer_folder


def test_encoding_equals_that_of_transformers(folder):
    ours, theirs = tokenizer.load(folder), hf.AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXTS) == [theirs(t).input_ids for t in TEXTS]
    assert (ours.eos, ours.bos, ours.pad, ours.vocab_size) == (2, 1, 0, len(theirs))
    assert ours.count(TEXTS) == [len(theirs(t, add_special_tokens=False).input_ids) for t in TEXTS]


def test_decoding_gives_the_text_back_without_special_tokens(folder):
    t = tokenizer.load(folder)
    ids = t.encode(TEXTS)
    assert t.decode(ids) == TEXTS
    assert t.decode([[t.bos, *i, t.eos, t.pad] for i in ids]) == TEXTS
    assert t.decode([np.asarray(i, np.int32) for i in ids]) == TEXTS
    assert t.decode([[], [t.eos]]) == ["", ""]
    assert t.decode([[*ids[0], 10**6]]) == [
        TEXTS[0]
    ]  # embedding tables are often padded beyond the tokenizer


def test_lone_surrogates_are_read_as_the_replacement_character(folder):
    t = tokenizer.load(folder)
    assert t.decode(t.encode(["a\ud800b", "\udc00"])) == ["a\ufffdb", "\ufffd"]


def test_a_text_does_not_depend_on_the_others_of_its_batch(folder):
    t = tokenizer.load(folder)
    file = json.loads((folder / "tokenizer.json").read_text())
    assert t.encode(TEXTS) == [t.encode([x])[0] for x in TEXTS]
    assert file["padding"] is None and len({len(i) for i in t.encode(TEXTS)}) > 3


def test_padding_and_truncation_of_the_file_are_switched_off(folder, tmp_path):
    backend = tokenizer.load(folder).backend
    backend.enable_padding(length=40)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert tokenizer.load(tmp_path).encode(TEXTS) == tokenizer.load(folder).encode(TEXTS)


def write(path, folder, files):
    (path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for name, values in files.items():
        (path / name).write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"eos_token_id": 2}}, (2, None, 2)),
        (
            {
                "generation_config.json": {"eos_token_id": [5, 6]},
                "config.json": {"eos_token_id": 2, "pad_token_id": 0},
            },
            (5, None, 0),
        ),
        (
            {
                "tokenizer_config.json": {
                    "eos_token": "</s>",
                    "bos_token": {"content": "<s>"},
                    "pad_token": None,
                }
            },
            (2, 1, 2),
        ),
        (
            {
                "config.json": {"eos_token_id": None, "pad_token_id": -1},
                "tokenizer_config.json": {"eos_token": "</s>", "pad_token": "<pad>"},
            },
            (2, None, 0),
        ),
    ],
)
def test_special_tokens_are_found_where_checkpoints_keep_them(files, expected, folder, tmp_path):
    t = tokenizer.load(write(tmp_path, folder, files))
    assert (t.eos, t.bos, t.pad) == expected


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"config.json": {"eos_token_id": [2, 15]}}, (2, 15)),
        (
            {
                "generation_config.json": {"eos_token_id": [15, 2, 15]},
                "config.json": {"eos_token_id": 5},
            },
            (15, 2),
        ),
        # A chat model's tokenizer says which of them closes a turn: training appends that one.
        (
            {
                "generation_config.json": {"eos_token_id": [15, 2]},
                "tokenizer_config.json": {"eos_token": "</s>"},
            },
            (2, 15),
        ),
        # What stops `generate` wins over a tokenizer that says otherwise.
        (
            {
                "generation_config.json": {"eos_token_id": 15},
                "tokenizer_config.json": {"eos_token": "</s>"},
            },
            (15,),
        ),
        (
            {
                "generation_config.json": {"eos_token_id": []},
                "config.json": {"eos_token_id": [7, 8]},
            },
            (7, 8),
        ),
        (
            {
                "generation_config.json": {},
                "config.json": {},
                "tokenizer_config.json": {"eos_token": "</s>"},
            },
            (2,),
        ),
    ],
)
def test_every_end_is_read_in_the_order_of_generate(files, ends, folder, tmp_path):
    t = tokenizer.load(write(tmp_path, folder, files))
    assert t.ends == ends and t.eos == ends[0]


@pytest.mark.parametrize(
    "files",
    [{}, {"config.json": {"eos_token_id": None}}, {"tokenizer_config.json": {"bos_token": "<s>"}}],
)
def test_a_tokenizer_without_eos_is_refused(files, folder, tmp_path):
    with pytest.raises(ValueError, match="has no EOS token"):
        tokenizer.load(write(tmp_path, folder, files))


def test_a_directory_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        tokenizer.load(tmp_path)


def test_vocabulary_and_merges_without_tokenizer_json_as_opt_has_them(folder, tmp_path):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n"
        + "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    )
    special = dict(bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(special | dict(tokenizer_class="GPT2Tokenizer", add_bos_token=True))
    )
    (tmp_path / "config.json").write_text(
        json.dumps(dict(model_type="opt", eos_token_id=2, bos_token_id=2, pad_token_id=0))
    )
    t, theirs = tokenizer.load(tmp_path), hf.AutoTokenizer.from_pretrained(tmp_path)
    assert t.eos == t.bos == 2
    assert t.encode(TEXTS) == [theirs(x).input_ids for x in TEXTS]


def test_a_closing_eos_is_not_part_of_a_prompt(folder):
    from tokenizers.processors import TemplateProcessing

    t = tokenizer.load(folder)
    plain = t.encode(TEXTS)
    t.backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert t.encode(TEXTS) == [[1, *i] for i in plain]
    assert t.encode(TEXTS, special=False) == plain


def test_the_prompt_template_is_that_of_the_study():
    assert prompt.render("Write a tweet.") == "### User:\nWrite a tweet.\n### Assistant:\n"
    assert prompt.render("{instruction} {x}") == "### User:\n{instruction} {x}\n### Assistant:\n"
