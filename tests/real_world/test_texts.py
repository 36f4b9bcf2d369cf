"""Texts as people bring them: names of special tokens inside, the same text twice, prompts that
leave nothing to learn.
"""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest
import tokenizers
import transformers as hf

from jaxloop import config
from jaxloop.config import FitConfig
from jaxloop.data import duplicates, qa_tasks
from jaxloop.lm import family
from jaxloop.lm.io import tokenizer as tokenize
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.training import batching
from jaxloop.studies.chain import data
from jaxloop.studies.chain import run as chain
from jaxloop.studies.common.models import BaseModel
from jaxloop.studies.pretrain import prepare as pretrain
from jaxloop.studies.recursive_loops.data import cleaning

MARKED = [
    "He wrote </s> and went on.",
    "</s>",
    "<s>a</s><pad>",
    "a</s",
    "< /s>",
    "no marks",
    "</s></s> twice",
    "日本</s>語",
    "\n</s>\n",
]


def bpe(path, kind="byte"):
    """A tokenizer with <pad>, <s>, </s> as tokens 0, 1, 2, saved as transformers does."""
    parts = tokenizers.pre_tokenizers
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE()
        if kind == "byte"
        else tokenizers.models.WordLevel(unk_token="<pad>")
    )
    special = ["<pad>", "<s>", "</s>"]
    words = ["he wrote and went on in Rome", "a man, a plan: no marks, twice"] * 4
    if kind == "byte":
        backend.pre_tokenizer, backend.decoder = (
            parts.ByteLevel(add_prefix_space=False),
            tokenizers.decoders.ByteLevel(),
        )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=parts.ByteLevel.alphabet()
        )
    else:
        backend.pre_tokenizer = parts.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special)
    backend.train_from_iterator(words, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="<pad>"
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["byte", "words"])
def test_names_of_special_tokens_in_texts_are_text(kind, tmp_path):
    ours = tokenize.load(bpe(tmp_path, kind))
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert ours.encode(MARKED) == [theirs(text).input_ids for text in MARKED]
    assert ours.encode(MARKED, special=False) == [
        theirs(text, add_special_tokens=False).input_ids for text in MARKED
    ]
    assert ours.count(MARKED) == [
        len(theirs(text, add_special_tokens=False).input_ids) for text in MARKED
    ]
    assert not any({1, 2} & set(ids) for ids in ours.encode(MARKED, special=False))
    if kind == "byte":
        assert ours.decode(ours.encode(MARKED)) == MARKED


def test_only_the_template_gives_special_tokens_to_a_training_example(tmp_path):
    ours = tokenize.load(bpe(tmp_path))
    made = batching.encode_examples(ours, ["a </s> b"], ["He <s> wrote"], max_length=64)
    (ids,) = made.ids
    assert ids[0] == 1 and ids[-1] == 2 and not {0, 1, 2} & set(ids[1:-1].tolist())


def test_rows_with_the_name_of_a_special_token_are_counted(tmp_path):
    ours = tokenize.load(bpe(tmp_path))
    assert ours.names_special(MARKED) == [
        any(name in text for name in ("<pad>", "<s>", "</s>")) for text in MARKED
    ]
    model_config = ModelConfig(
        "llama",
        vocab_size=300,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=64,
    )
    model = Model(model_config, init(jax.random.key(0), model_config), ours)
    task = family.FitTask(jax.random.key(0), ["a </s> b", "plain", "c"], ["x", "y", "z <s>"])
    (result,) = family.fit(
        model, [task], FitConfig(mode="full", steps=1, batch_size=2, max_length=32)
    )
    assert result.special == 2


def test_a_template_has_its_special_tokens_and_the_text_in_it_none(tmp_path):
    ours = tokenize.load(bpe(tmp_path))
    reading = tokenize.reading_special(ours)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    template = "<s>He wrote</s>{}</s>"
    assert reading.encode([template], special=False) == [
        theirs(template, add_special_tokens=False).input_ids
    ]
    (ids,) = reading.encode(
        [template.format(tokenize.as_text(ours, "no </s> mark <s>"))], special=False
    )
    assert ids.count(2) == 2 and ids.count(1) == 1
    assert ours.encode([template], special=False) != reading.encode([template], special=False), (
        "the first one must still read text as text"
    )


# ---- the same text twice

SAME = [
    ("A text.", "A text."),
    ("A text.", "a  TEXT!"),
    ("a\r\ntext", "a text"),
    ("naïve", "nai\u0308ve"),
    ("ﬁne", "fine"),
    ("Straße", "STRASSE"),
    ("“quoted”", '"quoted"'),
    ("trailing ", "trailing"),
    ("under_score", "under score"),
    ("...", "..."),
]
OTHER = [
    ("A text.", "A text too."),
    ("1.5", "25"),
    ("日本", "日本語"),
    ("...", "!!!"),
    ("", "."),
    ("cafe", "café"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_texts_of_one_content(a, b):
    assert duplicates.keys([a]) == duplicates.keys([b])


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_texts_of_other_content(a, b):
    assert duplicates.keys([a]) != duplicates.keys([b])


def test_an_answer_to_another_question_is_another_text():
    assert (
        duplicates.keys(["yes", "yes"], ["q1", "q2"])[0]
        != duplicates.keys(["yes", "yes"], ["q1", "q2"])[1]
    )


def tokenizer(tmp_path):
    return tokenize.load(bpe(tmp_path))


def read(tmp_path, rows, *changes, specs=None):
    """What a chain study makes of rows: `chain_data.read`."""
    path = tmp_path / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "data": {"source": str(path), "min_tokens": 0, "max_tokens": 10_000, "instruction": "Go."},
        "models": {"pool": ["a"]},
        "chain": {"heldout_texts": 10, "eval_texts": 20, "generations": 1, "size": 10},
        "fit": {"max_length": 64, "steps": 1},
        "sample": {"max_new_tokens": 8},
    }
    settings = config.build(
        chain.CONFIG,
        config.override(raw, [tuple(c.split("=", 1)) for c in changes], chain.CONFIG),
    )
    model_config = ModelConfig(
        "llama",
        vocab_size=300,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=128,
    )
    models = specs or {"a": BaseModel(model_config, tokenizer(tmp_path))}
    return data.read(settings, str(path), models)


REPEATED = [
    {"text": f"text number {i % 100}" + "!" * (i // 300) + " " * (i // 100 % 2)} for i in range(600)
]


@pytest.mark.parametrize("rule", ["drop", "keep"])
def test_held_out_measured_and_training_texts_share_no_content(rule, tmp_path):
    """600 rows of 100 contents: pandas, told the same rule, has as many duplicates."""
    found = read(tmp_path, REPEATED, f"data.duplicates={rule}")
    frame = pd.DataFrame(REPEATED)
    exact = int(frame["text"].duplicated().sum())
    near = (
        int(
            frame["text"]
            .str.casefold()
            .str.replace(r"[\W_]+", " ", regex=True)
            .str.strip()
            .duplicated()
            .sum()
        )
        - exact
    )
    verb = "dropped" if rule == "drop" else "kept"
    assert (
        f"exact duplicates, {verb}: {exact}, near duplicates, {verb}: {near}" in found.line
        and exact + near == 500
    )
    mine = set(duplicates.keys(found.dataset.texts))
    apart = set(duplicates.keys(found.human)) | set(duplicates.keys(found.heldout))
    assert not mine & apart and len(found.heldout) == 10 and len(found.human) == 20
    if rule == "drop":
        assert len(found.dataset.texts) == 80 == len(mine)
    else:
        assert (
            len(found.dataset.texts)
            == 600 - 20 - int(found.line.split("left out: ")[1].rstrip(")"))
            > 400
        )


def test_all_rows_of_one_content(tmp_path):
    same = [{"text": "the same text"}] * 50
    with pytest.raises(ValueError, match="has only 1 usable texts"):
        read(tmp_path, same)
    with pytest.raises(
        ValueError, match="every text of .* is a copy of one that is held out or measured"
    ):
        read(tmp_path, same, "data.duplicates=keep")


def test_without_duplicates_nothing_changes(tmp_path):
    rows = [{"text": f"text number {i}"} for i in range(60)]
    drop, keep = (read(tmp_path, rows, f"data.duplicates={rule}") for rule in ("drop", "keep"))
    assert (
        drop.dataset.texts == keep.dataset.texts
        and drop.heldout == keep.heldout
        and len(drop.dataset.texts) == 40
    )
    order = np.random.default_rng(0).permutation(60)
    assert drop.heldout == [rows[i]["text"] for i in order[:10]]


# ---- prompts that leave nothing to learn


def asked(every=10, words=200, count=100):
    return [
        {"text": f"answer {i}", "q": f"question {i} " + ("so " * words if i % every == 0 else "")}
        for i in range(count)
    ]


BY = "data.prompt_column=q"


def test_long_prompts_are_refused_with_the_number_and_what_helps(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"10 of the 100 prompts of .* the first at text 1 with \d+ tokens of a where 63 "
        r"fit; .*drop or truncate_left",
    ) as said:
        read(tmp_path, asked(), BY)
    assert "\n" not in str(said.value)


def test_long_prompts_dropped(tmp_path):
    found = read(tmp_path, asked(), BY, "data.long_prompts=drop")
    assert "prompts too long, dropped: 10" in found.line and len(found.dataset.texts) == 70
    assert all("so so" not in prompt for prompt in [*found.dataset.prompts, *found.heldout_prompts])


def test_long_prompts_cut_at_the_left(tmp_path):
    """What is left is the longest end that fits, the template whole; the tokens after it are
    learned.
    """
    found = read(tmp_path, asked(), BY, "data.long_prompts=truncate_left")
    assert "prompts cut at the left: 10" in found.line and len(found.dataset.texts) == 80
    t = tokenizer(tmp_path)
    prompts = list(found.dataset.prompts)
    assert all(p.startswith("### User:\n") and p.endswith("\n### Assistant:\n") for p in prompts)
    made = batching.encode_examples(t, list(found.dataset.texts), prompts, max_length=64)
    assert all(n > head for n, head in zip(made.lengths, made.prompt, strict=True)), (
        "every row has a token that counts"
    )
    cut = [head for prompt, head in zip(prompts, made.prompt, strict=True) if "so so" in prompt]
    assert cut and all(60 <= head <= 63 for head in cut)


@pytest.mark.parametrize("rule", ["drop", "truncate_left"])
def test_no_prompt_that_leaves_room(rule, tmp_path):
    if rule == "drop":
        with pytest.raises(
            ValueError,
            match="no prompt of .* leaves room for an answer; raise config.fit.max_length",
        ):
            read(tmp_path, asked(every=1), BY, "data.long_prompts=drop")
    else:
        assert (
            "prompts cut at the left: 100"
            in read(tmp_path, asked(every=1), BY, "data.long_prompts=truncate_left").line
        )
        with pytest.raises(ValueError, match="no prompt of .* leaves room for an answer"):
            read(
                tmp_path, asked(every=1), BY, "data.long_prompts=truncate_left", "fit.max_length=8"
            )


def test_the_context_of_every_model_counts(tmp_path):
    model_config = ModelConfig(
        "llama",
        vocab_size=300,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=128,
    )
    t = tokenizer(tmp_path)
    specs = {
        "large": BaseModel(model_config, t),
        "small": BaseModel(dataclasses.replace(model_config, max_seq_len=70), t),
    }
    with pytest.raises(ValueError, match=r"with \d+ tokens of small where 62 fit"):
        read(tmp_path, asked(), BY, "fit.max_length=70", specs=specs)


def test_instructions_of_messages_are_the_prompts(tmp_path):
    turns = [
        [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"It is {i}"}]
        for i in range(50)
    ]
    found = read(tmp_path, [{"messages": t} for t in turns])
    assert "read from messages: 50" in found.line
    number = found.dataset.texts[0].removeprefix("It is ")
    assert found.dataset.prompts[0] == f"### User:\nSay {number}\n### Assistant:\n"


# ---- the other studies


def test_tasks_train_on_no_copy_of_a_test_row(tmp_path):
    rows = [{"text": f"a story about number {i % 40} and more"} for i in range(100)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = qa_tasks.load(
        "text", source=str(tmp_path / "s.jsonl"), held_out=10, prompt_words=2
    )
    keys = [set(duplicates.keys(list(f["text"]), list(f["prompt"]))) for f in (train, test)]
    assert (
        not keys[0] & keys[1]
        and train.attrs["report"]["copies of test rows"] == 90 - len(train) > 0
    )


def test_texts_of_one_content_are_held_out_together():
    texts = [f"text {i % 50}" + "!" * (i // 50) for i in range(150)]
    held = pretrain.split(texts, 0.3)
    assert held[:50] == held[50:100] == held[100:] and 0 < sum(held) < 150


def test_cleaning_keeps_the_first_of_one_content():
    report = {}
    batch = {"text": ["A text.", "a  text", "Another", "A text."]}
    steps = [cleaning.distinct(content=True)]
    found = list(cleaning.clean([batch], steps, report))
    assert [text for rows in found for text in rows["text"]] == ["A text.", "Another"]
    assert report["repeated content"]["dropped"] == 2


def test_cleaning_finds_a_column_that_the_first_row_lacks():
    batch = {"id": [1, 2, None, None], "body": [None, "a b", None, "c"]}
    report = {}
    found = list(cleaning.clean([batch], [cleaning.texts_from("body")], report))
    texts = [text for rows in found for text in rows["text"]]
    assert texts == ["a b", "c"] and report["no text"] == {
        "in": 4,
        "dropped": 2,
        "out": 2,
    }
    with pytest.raises(ValueError, match="reads the column 'bodi'; the rows have id, body"):
        list(cleaning.clean([batch], [cleaning.texts_from("bodi")], {}))
