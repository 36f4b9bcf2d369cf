"""Directories as they lie on the hub, with random weights of the real architectures at a reduced
width, and files of datasets with the columns that the real ones have.

`model(folder, "unsloth/Llama-3.2-1B", texts)` and `dataset(folder, "webis/tldr-17", texts)` write
one below the folder, under its name on the hub, and return where it is. transformers writes the
weights and config.json, so tests that use this need the extra `peers`.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import hub_tokenizers
from tests.peers import peer, require

torch = peer("torch")
hf = peer("transformers", "torch")

LABELS_OF_TOXICITY = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")


class Entry(NamedTuple):
    """A repository of the hub.

    Attributes:
        config: (transformers, sizes) -> its config at a reduced width.
        head: the class that is saved, an `AutoModel...` of transformers.
        tokenizer: what cuts its texts.
        dtype: of the tensors on the hub.
        extra: writes what the repository holds beside.
    """

    config: Callable[[Any, dict], Any]
    head: str
    tokenizer: hub_tokenizers.Bpe | hub_tokenizers.WordPiece | hub_tokenizers.Unigram
    dtype: str = "float32"
    extra: Callable[[Path], None] = lambda path: None


def _llama(**own):
    """A Llama config: heads as wide as a quarter of the width, `own` fields of the repository."""

    def config(hf, size):
        fields = dict(
            vocab_size=size["vocab"],
            hidden_size=size["width"],
            intermediate_size=3 * size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=size["width"] // 4,
            max_position_embeddings=size["positions"],
            rms_norm_eps=1e-5,
        )
        return hf.LlamaConfig(**fields | own | _ids(size))

    return config


def _qwen2(**own):
    def config(hf, size):
        fields = dict(
            vocab_size=size["vocab"],
            hidden_size=size["width"],
            intermediate_size=3 * size["width"],
            num_hidden_layers=size["layers"],
            max_window_layers=size["layers"],
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=size["positions"],
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
            rms_norm_eps=1e-6,
        )
        return hf.Qwen2Config(**fields | own | _ids(size))

    return config


def _gpt2(hf, size):
    return hf.GPT2Config(
        vocab_size=size["vocab"],
        n_embd=size["width"],
        n_layer=size["layers"],
        n_head=4,
        n_positions=size["positions"],
        **_ids(size),
    )


def _opt(**own):
    def config(hf, size):
        return hf.OPTConfig(
            vocab_size=size["vocab"],
            hidden_size=size["width"],
            ffn_dim=4 * size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=4,
            max_position_embeddings=size["positions"],
            **{"word_embed_proj_dim": size["width"]}
            | {k: v(size) if callable(v) else v for k, v in own.items()}
            | _ids(size),
        )

    return config


def _bert(name, **own):
    """BERT, ALBERT, RoBERTa or MPNet; `labels` of a classifier."""
    labels = own.pop("labels", ())

    def config(hf, size):
        offset = 0 if name in ("BertConfig", "AlbertConfig") else 2
        fields = dict(
            vocab_size=size["vocab"],
            hidden_size=size["width"],
            intermediate_size=4 * size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=4,
            max_position_embeddings=512 + offset,
        )
        return _labelled(getattr(hf, name)(**fields | own | _ids(size)), labels)

    return config


def _labelled(config, labels):
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    return config


def _distilbert(labels=()):
    def config(hf, size):
        made = hf.DistilBertConfig(
            vocab_size=size["vocab"],
            dim=size["width"],
            hidden_dim=4 * size["width"],
            n_layers=size["layers"],
            n_heads=4,
            max_position_embeddings=512,
        )
        return _labelled(made, labels)

    return config


def _ids(size):
    return {f"{name}_token_id": size["ids"].get(name) for name in ("bos", "eos", "pad")}


def _sentence(pooling: str, limit: int, dense: int = 0, normalize: bool = False):
    """The files of sentence-transformers around a transformer; dense: outputs of a last layer."""

    def write(path: Path) -> None:
        width = json.loads((path / "config.json").read_text())["hidden_size"]
        kinds = ["Transformer", "Pooling", *["Dense"] * bool(dense), *["Normalize"] * normalize]
        folders = [
            "",
            "1_Pooling",
            *[f"2_Dense_{dense}"] * bool(dense),
            *["2_Normalize"] * normalize,
        ]
        hub_tokenizers.write_json(
            path / "modules.json",
            [
                dict(idx=i, name=str(i), path=folder, type=f"sentence_transformers.models.{kind}")
                for i, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
            ],
        )
        hub_tokenizers.write_json(
            path / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": width,
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
                "pooling_mode_max_tokens": False,
            },
        )
        hub_tokenizers.write_json(
            path / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}
        )
        hub_tokenizers.write_json(
            path / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None}
        )
        if dense:
            _dense_layer(path / f"2_Dense_{dense}", width, dense)

    return write


def _dense_layer(folder: Path, inputs: int, outputs: int) -> None:
    (save_file,) = [require("safetensors.torch")[0].save_file]
    activation = "torch.nn.modules.linear.Identity"
    settings = dict(in_features=inputs, out_features=outputs, bias=True)
    hub_tokenizers.write_json(
        folder / "config.json", settings | {"activation_function": activation}
    )
    weight = torch.randn(outputs, inputs) / math.sqrt(inputs)
    save_file(
        {"linear.weight": weight, "linear.bias": torch.zeros(outputs)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _stella(path: Path) -> None:
    """stella_en_1.5B_v5: model code of its own, attention in both directions, 1024 outputs."""
    _sentence("mean", 512, dense=1024)(path)
    settings = json.loads((path / "config.json").read_text())
    settings.pop("is_causal", None)
    code = {"AutoModel": "modeling_qwen.Qwen2Model"}
    hub_tokenizers.write_json(path / "config.json", settings | {"auto_map": code})
    (path / "modeling_qwen.py").write_text('raise SystemExit("the code of a repository ran")\n')


def _albert_of_2019(path: Path) -> None:
    """Fields that the repository has and no longer does anything with."""
    settings = json.loads((path / "config.json").read_text())
    old = dict(down_scale_factor=1, gap_size=0, net_structure_type=0, num_memory_blocks=0)
    hub_tokenizers.write_json(path / "config.json", settings | old)


_ROPE3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_CAUSAL, _LABELS, _BARE = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
_LLAMA32 = Entry(
    _llama(tie_word_embeddings=True, rope_parameters=_ROPE3),
    _CAUSAL,
    hub_tokenizers.LLAMA3,
    "bfloat16",
)
_LLAMA31 = Entry(
    _llama(tie_word_embeddings=False, rope_parameters=_ROPE3 | {"factor": 8.0}),
    _CAUSAL,
    hub_tokenizers.LLAMA3,
    "bfloat16",
)
_GPT2_ENTRY = Entry(_gpt2, _CAUSAL, hub_tokenizers.GPT2)

REPOSITORIES: dict[str, Entry] = {
    "unsloth/Llama-3.2-1B": _LLAMA32,
    "meta-llama/Llama-3.2-1B": _LLAMA32,
    "meta-llama/Llama-3.1-8B": _LLAMA31,
    "unsloth/Qwen2.5-1.5B": Entry(
        _qwen2(tie_word_embeddings=True), _CAUSAL, hub_tokenizers.QWEN2, "bfloat16"
    ),
    "HuggingFaceTB/SmolLM-1.7B": Entry(
        _llama(num_key_value_heads=4, tie_word_embeddings=True),
        _CAUSAL,
        hub_tokenizers.GPT2._replace(first=True),
        "bfloat16",
    ),
    "tiiuae/Falcon3-1B-Base": Entry(
        _llama(
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=1000042.0),
        ),
        _CAUSAL,
        hub_tokenizers.FALCON3,
        "bfloat16",
    ),
    "gpt2": _GPT2_ENTRY,
    "openai-community/gpt2": _GPT2_ENTRY,
    "openai-community/gpt2-xl": _GPT2_ENTRY,
    "facebook/opt-1.3b": Entry(_opt(), _CAUSAL, hub_tokenizers.OPT, "float16"),
    # Post-norm, and embeddings of half the width.
    "facebook/opt-350m": Entry(
        _opt(do_layer_norm_before=False, word_embed_proj_dim=lambda size: size["width"] // 2),
        _CAUSAL,
        hub_tokenizers.OPT,
        "float16",
    ),
    "unitary/toxic-bert": Entry(
        _bert("BertConfig", labels=LABELS_OF_TOXICITY, problem_type="multi_label_classification"),
        _LABELS,
        hub_tokenizers.WordPiece(("vocab.txt",)),
    ),
    "wu981526092/bias_classifier_roberta": Entry(
        _bert("RobertaConfig", labels=("LABEL_0", "LABEL_1", "LABEL_2"), type_vocab_size=1),
        _LABELS,
        hub_tokenizers.ROBERTA,
    ),
    "madhurjindal/autonlp-Gibberish-Detector-492513457": Entry(
        _distilbert(("clean", "mild gibberish", "noise", "word salad")),
        _LABELS,
        hub_tokenizers.WordPiece(kind="DistilBertTokenizer"),
    ),
    "distilbert-base-uncased": Entry(
        _distilbert(), _BARE, hub_tokenizers.WordPiece(kind="DistilBertTokenizer")
    ),
    "albert/albert-base-v2": Entry(
        _bert("AlbertConfig", embedding_size=16, hidden_act="gelu_new"),
        _BARE,
        hub_tokenizers.Unigram(),
        extra=_albert_of_2019,
    ),
    "bert-base-uncased": Entry(_bert("BertConfig"), _BARE, hub_tokenizers.WordPiece()),
    "roberta-base": Entry(_bert("RobertaConfig", type_vocab_size=1), _BARE, hub_tokenizers.ROBERTA),
    "microsoft/mpnet-base": Entry(
        _bert("MPNetConfig"), _BARE, hub_tokenizers.WordPiece(kind="MPNetTokenizer")
    ),
    "sentence-transformers/all-mpnet-base-v2": Entry(
        _bert("MPNetConfig"),
        _BARE,
        hub_tokenizers.WordPiece(kind="MPNetTokenizer"),
        extra=_sentence("mean", 384, normalize=True),
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Entry(
        _bert("BertConfig"),
        _BARE,
        hub_tokenizers.WordPiece(),
        extra=_sentence("mean", 256, normalize=True),
    ),
    "dunzhang/stella_en_1.5B_v5": Entry(
        _qwen2(tie_word_embeddings=False), _BARE, hub_tokenizers.QWEN2, extra=_stella
    ),
}


def _as_published(path: Path) -> None:
    """Writes the fields of transformers 5 as transformers 4 wrote them, with which the
    repositories were made.
    """
    settings = json.loads(path.read_text())
    rope = settings.pop("rope_parameters", None)
    if rope:
        settings["rope_theta"] = rope.pop("rope_theta")
        settings["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    settings["torch_dtype"] = settings.pop("dtype")
    hub_tokenizers.write_json(path, settings | {"transformers_version": "4.47.0"})


def model(
    folder: Path,
    name: str,
    texts: Sequence[str],
    *,
    width: int = 32,
    layers: int = 2,
    vocab: int = 512,
    positions: int = 1024,
    seed: int = 0,
) -> Path:
    """Writes `folder`/NAME as a snapshot of the repository NAME holds it, and returns its path.

    texts: what the tokenizer is trained on, which has `vocab` tokens at most. Embeddings have more
    rows than that, as most real ones do. Weights are random, larger than at an initialisation, so
    that what a model writes depends on what it reads.
    """
    entry, path = REPOSITORIES[name], folder / name
    path.mkdir(parents=True)
    made = hub_tokenizers.write(entry.tokenizer, path, texts, vocab)
    named = hub_tokenizers.named(entry.tokenizer)
    ids = {part: made.token_to_id(token) for part, token in named.items()}
    rows = 64 * math.ceil((made.get_vocab_size() + 1) / 64)
    size = dict(width=width, layers=layers, vocab=rows, positions=positions, ids=ids)
    torch.manual_seed(seed)
    random = getattr(hf, entry.head).from_config(entry.config(hf, size)).eval()
    with torch.no_grad():
        for parameter in random.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    random.to(getattr(torch, entry.dtype)).save_pretrained(path)
    _as_published(path / "config.json")
    entry.extra(path)
    (path / "README.md").write_text(f"# {name}\n")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    return path
