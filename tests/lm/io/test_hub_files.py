"""What is downloaded of a repository on the hub is enough, and no more than is read."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.hf_api import ModelInfo

from jaxloop import lm
from jaxloop.lm.io import hub_files, huggingface, tokenizer_files
from tests import hub, hub_tokenizers
from tests.peers import peer, require

torch = peer("torch")
hf = peer("transformers", "torch")

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    "The cat sat on the mat, and then the rat ran to the hat of 1984.",
    "A model that reads what another model wrote reads less each time!",
    "naïve café ☕ — and\nlines\tof   spaces",
]
OTHERS = (
    "README.md",
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "onnx/config.json",
    "original/consolidated.00.pth",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "openvino/tokenizer.json",
    "training_args.bin",
    "trainer_state.json",
)


def sentence_piece(folder):
    """A SentencePiece model (unigram) of some words and letters, as protobuf writes it."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    letters = sorted(set("".join(TEXTS)) - {" ", "\n", "\t"})
    words = ["▁the", "▁cat", "▁sat", "▁model", "ing", "▁"]
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    for piece in (*kinds, *words, *letters):
        score = -float(len(words) + 1) if piece in letters else -1.0
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = 2
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>"}
    hub_tokenizers.write_json(folder / "tokenizer_config.json", settings | {"pad_token": "<pad>"})


def layout(folder, kind):
    """A repository with the tokenizer's files of a kind, and with files that nobody reads."""
    folder.mkdir(exist_ok=True)
    if kind == "sentencepiece":
        sentence_piece(folder)
    elif kind == "vocab.txt":
        hub_tokenizers.write(hub_tokenizers.WordPiece(files=("vocab.txt",)), folder, TEXTS, 300)
    else:
        files = ("pair",) if kind == "pair" else ("json",)
        hub_tokenizers.write(hub_tokenizers.GPT2._replace(files=files), folder, TEXTS, 400)
    if kind == "jinja":
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        (folder / "chat_template.jinja").write_text(template)
    model = {"vocab.txt": "bert", "sentencepiece": "t5"}.get(kind, "gpt2")
    hub_tokenizers.write_json(folder / "config.json", {"model_type": model})
    for name in (*OTHERS, "model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


def served(monkeypatch, tmp_path, folder, **info):
    """The hub holds one repository, the folder; returns the files that are downloaded of it."""
    downloaded = []

    def files(patterns):
        target = tmp_path / "snapshot"
        for name in patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, target / name)
            downloaded.append(name)
        return str(target)

    def model_info(self, name, *, revision=None, files_metadata=False):
        found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        sizes = [
            {"rfilename": name, "size": info.get("size", (folder / name).stat().st_size)}
            for name in found
        ]
        return ModelInfo(id=name, sha="0" * 40, siblings=sizes)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, *, revision=None, allow_patterns=(), **more: files(allow_patterns),
    )
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file, revision=None: folder / file
    )
    return downloaded


def test_a_sentencepiece_model_needs_its_library(monkeypatch, tmp_path):
    folder = layout(tmp_path / "repository", "json")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="no tokenizer.json but tokenizer.model, .* 'jaxloop-lm.sentencepiece.'"
    ):
        tokenizer_files.read(folder)


@pytest.mark.parametrize("kind", ["json", "vocab.txt", "pair", "sentencepiece", "jinja"])
def test_a_tokenizer_is_made_of_what_is_downloaded(monkeypatch, tmp_path, kind):
    if kind == "sentencepiece":
        require("sentencepiece")
    folder = layout(tmp_path / "repository", kind)
    downloaded = served(monkeypatch, tmp_path, folder)
    path = huggingface.locate("me/model")
    own = {
        "json": {"tokenizer.json"},
        "vocab.txt": {"vocab.txt"},
        "pair": {"vocab.json", "merges.txt"},
        "sentencepiece": {"spiece.model"},
        "jinja": {"tokenizer.json", "chat_template.jinja"},
    }[kind]
    always = {"config.json", "model.safetensors", "tokenizer_config.json"}
    assert set(downloaded) - {"special_tokens_map.json"} == own | always
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    ours = tokenizer_files.read(path)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == expected and len(expected) > 5
        assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_of_the_weights_one_form_is_downloaded():
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    both = ["model.safetensors", index, *shards]
    assert hub_files.needed_files(both) == ["model.safetensors"]
    assert hub_files.needed_files([index, *shards, "other.safetensors"]) == [index, *shards]
    assert hub_files.needed_files(["a.safetensors", "adapter_model.safetensors"]) == [
        "a.safetensors"
    ]


@pytest.mark.slow
def test_modules_of_a_sentence_encoder_are_downloaded(monkeypatch, tmp_path):
    name = "dunzhang/stella_en_1.5B_v5"
    folder = hub.model(tmp_path, name, TEXTS)
    (folder / "2_Dense_8192").mkdir()
    (folder / "2_Dense_8192/model.safetensors").write_bytes(b"")
    downloaded = served(monkeypatch, tmp_path, folder)
    found = hub_files.download(name)
    assert (found / "2_Dense_1024/model.safetensors").exists()
    assert not any("8192" in file for file in downloaded)


def refused(said, name="me/model", revision=None):
    with pytest.raises(ValueError, match=said) as caught:
        huggingface.locate(name, revision)
    assert "Error" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_used_is_not_downloaded(monkeypatch, tmp_path):
    folder = layout(tmp_path / "repository", "json")
    downloaded = served(monkeypatch, tmp_path, folder, size=10**16)
    refused("me/model needs .* in the hub's cache .*, whose disk has .* free; make room, or")
    (folder / "model.safetensors").unlink()
    downloaded = served(monkeypatch, tmp_path, folder)
    refused("me/model has no safetensors on the hub but pytorch_model.bin, which is never unpick")
    refused("revision 'main' of me/model has no safetensors .* 'refs/pr/NUMBER'", revision="main")
    assert downloaded == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "me/model. is gated on the hub: ask for access"),
        ("RevisionNotFoundError", "me/model. has no such revision on the hub"),
        ("RepositoryNotFoundError", "nor a model on the hub that can be seen without a token"),
        ("OfflineModeIsEnabled", "'me/model' is neither a directory here nor reachable on the hub"),
    ],
)
def test_what_the_hub_says_is_said_in_one_sentence(monkeypatch, kind, said):
    error = type(kind, (Exception,), {})

    def model_info(*args, **more):
        raise error("a long story\nof several lines")

    def no_copy(*args, **more):
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_copy)
    refused(said, revision="r")


def test_a_copy_in_the_cache_is_read_without_the_hub(monkeypatch, tmp_path):
    def model_info(*args, **more):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **more: str(tmp_path))
    assert huggingface.locate("me/model") == tmp_path


# ---- scripts/convert_weights.py


def convert(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/convert_weights.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def pickled(folder, name, shards=1):
    """A repository of OPT or GPT-2 as in the days before safetensors."""
    path = hub.model(folder, name, TEXTS)
    model = hf.AutoModelForCausalLM.from_pretrained(path)
    state = model.state_dict()
    (path / "model.safetensors").unlink()
    names = list(state)
    files = [f"pytorch_model-0000{i + 1}-of-0000{shards}.bin" for i in range(shards)]
    files = ["pytorch_model.bin"] if shards == 1 else files
    for i, file in enumerate(files):
        torch.save({n: state[n] for n in names[i::shards]}, path / file)
    if shards > 1:
        where = {n: files[i % shards] for i, n in enumerate(names)}
        hub_tokenizers.write_json(
            path / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where}
        )
    return path, model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shards"), [("facebook/opt-350m", 1), ("gpt2", 2)])
def test_pickled_weights_are_converted(tmp_path, name, shards):
    path, model = pickled(tmp_path, name, shards)
    with pytest.raises(ValueError, match="no .*safetensors but pytorch_model.* never unpickled"):
        lm.load(path)
    done = convert(path, tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "new").glob("*.bin"))
    ours = lm.load(tmp_path / "new")
    ids = np.array([ours.tokenizer.encode(TEXTS[:1])[0]])
    with torch.no_grad():
        expected = model.float().eval()(torch.tensor(ids)).logits[0].numpy()
    found = np.asarray(lm.forward(ours.config, ours.params, ids))[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    again = convert(path, tmp_path / "new")
    assert again.returncode == 2 and "is there already" in again.stderr


class Bad:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.slow
def test_a_pickle_that_holds_code_is_refused(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    done = convert(tmp_path / "old", tmp_path / "new")
    assert done.returncode == 2 and "has no pytorch_model.bin" in done.stderr
    torch.save({"w": Bad()}, tmp_path / "old/pytorch_model.bin")
    done = convert(tmp_path / "old", tmp_path / "new")
    assert done.returncode == 2 and "unpickled" not in done.stdout
    assert "torch's loader for weights alone refuses it" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.glob("new*"))
