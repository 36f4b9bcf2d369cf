"""Encoders as data: the block of `ModelConfig` with what encoders add around it.

BERT, ALBERT, RoBERTa, MPNet and DistilBERT are post-norm blocks with learned positions and a norm
on the embeddings. Any decoder of `ModelConfig` is an encoder too, causal or (as in embedding models
made from Qwen2) with attention in both directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxloop.lm.encoder import dropout_json
from jaxloop.lm.io import huggingface, json_fields
from jaxloop.lm.io.config_json import FIXED, HARMLESS, activation, check_quantised, config_fields
from jaxloop.lm.model.config import ModelConfig

POOLINGS = (
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
)  # in the order in which several are joined


@dataclass(frozen=True)
class EncoderConfig:
    """Everything static about an encoder.

    core              the blocks: width, layers, heads, norms, activation, positions
    token_types       rows of the token-type table; 0: there is none
    embed_norm        whether the summed embeddings are normalised
    relative_buckets  buckets of MPNet's relative position bias, over distances to
                      `relative_distance`; 0: no bias
    embedding_size    width of the embeddings, which a linear layer takes to that of the blocks
                      (ALBERT); 0: they have it already
    layer_groups      layers whose weights all blocks share, in runs of equal length (ALBERT); 0:
                      each block has its own
    causal            whether a token sees only those before it
    head              "" none; "pooler": tanh layer on the first token, then labels (BERT);
                      "dense": the same inside the head (RoBERTa, MPNet);
                      "relu": DistilBERT's; "last": labels from the last token (decoders)
    labels            names of the classes; () without a head
    multi_label       the classes do not exclude each other, or there is one: probabilities are
                      sigmoids, not a softmax
    head_dropout      dropout of what the head reads, in training
    """

    core: ModelConfig
    token_types: int = 0
    embed_norm: bool = True
    relative_buckets: int = 0
    relative_distance: int = 128
    embedding_size: int = 0
    layer_groups: int = 0
    causal: bool = False
    head: str = ""
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    head_dropout: float = 0.0

    @property
    def stored_layers(self) -> int:
        """Layers that have weights."""
        return self.layer_groups or self.core.num_layers

    def layer_of(self, block: int) -> int:
        """Return which of the layers that have weights a block is, as transformers counts them."""
        return int(block / (self.core.num_layers / self.stored_layers))


_HEADS = {
    "bert": "pooler",
    "albert": "pooler",
    "roberta": "dense",
    "mpnet": "dense",
    "distilbert": "relu",
}
_READ_AS = {"xlm-roberta": "roberta", "camembert": "roberta"}
ARCHITECTURES = (*_HEADS, *_READ_AS)
_DISTILBERT = dict(
    hidden_size="dim",
    num_attention_heads="n_heads",
    num_hidden_layers="n_layers",
    intermediate_size="hidden_dim",
    hidden_act="activation",
)


def head_kind(config: EncoderConfig) -> str:
    """Return the kind of classification head that the architecture's own code has (see
    `EncoderConfig.head`).
    """
    return _HEADS.get(config.core.architecture, "last")


def read_encoder_config(
    path: str | Path, *, head: bool = False, labels: Sequence[str] | None = None
) -> EncoderConfig:
    """Return the `EncoderConfig` of a directory's config.json, with its sequence-classification
    head if `head`.

    labels: names of the classes in the order of the head's outputs; by default those of the config.
    Raises ValueError, naming the field, for anything that would not be computed exactly.
    """
    file = Path(path) / "config.json"
    c = json_fields.read_json(file)
    check_quantised(c, str(file))
    kind = _READ_AS.get(str(c.get("model_type")), c.get("model_type"))
    try:
        config = _BUILDERS[kind](c) if kind in _BUILDERS else _decoder(Path(path), c)
    except KeyError as error:
        raise ValueError(
            f"model: config.json of {path} has no field {error.args[0]!r}, which {kind} models need"
        ) from None
    if not head:
        return config
    found, independent = read_labels(c, path)
    if labels is not None and len(labels) != len(found):
        raise ValueError(
            f"labels: {len(labels)} names for the {len(found)} classes of {path}; one each is "
            "needed"
        )
    found = found if labels is None else tuple(map(str, labels))
    return replace(config, head=head_kind(config), labels=found, multi_label=independent)


def read_labels(c: dict[str, Any], path: str | Path) -> tuple[tuple[str, ...], bool]:
    """(names of the classes in the order of the outputs, whether their probabilities are sigmoids)
    of a classifier's config.json, as the pipelines of `transformers` take it: one output is a
    sigmoid.

    Raises ValueError for names that do not number 0, 1, 2, ..., for two of one name, and for a
    regression, whose outputs are no probabilities.
    """
    listed, count = json_fields.mapping(c, "id2label"), json_fields.integer(c, "num_labels", None)
    if not listed:
        listed = {str(i): f"LABEL_{i}" for i in range(2 if count is None else count)}
    if sorted(listed) != sorted(map(str, range(len(listed)))) or not all(
        isinstance(name, str) for name in listed.values()
    ):
        raise ValueError(
            f"model: id2label = {json_fields.short(listed)} of {path} must give every number "
            f"from 0 to {len(listed) - 1} a name"
        )
    if count not in (None, len(listed)):
        raise ValueError(
            f"model: num_labels = {count} of {path}, but id2label names {len(listed)} classes; "
            "they must agree"
        )
    names = tuple(listed[str(i)] for i in range(len(listed)))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"model: id2label of {path} names two classes {twice!r}; every class needs its own name"
        )
    kind = json_fields.choice(
        c, "problem_type", ("single_label_classification", "multi_label_classification"), None
    )
    if kind == "single_label_classification" and len(names) == 1:
        raise ValueError(
            f"model: problem_type = {kind!r} of {path} needs at least two classes, and id2label "
            "names one"
        )
    return names, kind == "multi_label_classification" or len(names) == 1


# Fields that do not change what an encoder gives, beside those of every model.
_HARMLESS = HARMLESS | frozenset(
    """pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type directionality tie_word_embeddings
    sinusoidal_pos_embds tie_weights_ qa_dropout seq_classif_dropout padding
    function_to_apply""".split()
)
_FIXED = FIXED | {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_causal": (False,),
}
# Fields of ALBERT of which one value alone is computed, or that do nothing.
_ALBERT_FIXED: dict[str, tuple] = {
    "inner_group_num": (1,),
    "net_structure_type": (0,),
    "gap_size": (0,),
    "num_memory_blocks": (0,),
    "down_scale_factor": (1,),
    "layers_to_keep": ([],),
}
_NAMES = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "hidden_act",
)


def _core(
    c: dict,
    kind: str,
    offset: int = 0,
    more: tuple[str, ...] = ("layer_norm_eps", "type_vocab_size"),
    **names: str,
) -> ModelConfig:
    """`names`: the config's own name of a field where it is not BERT's; `more`: fields that only
    some of the architectures have.
    """
    own = {field: names.get(field, field) for field in _NAMES}
    fixed = _FIXED if "layer_norm_eps" in more else _FIXED | {"layer_norm_eps": (1e-12,)}
    json_fields.check_known(
        c,
        {*_HARMLESS, *own.values(), *more, "vocab_size", "max_position_embeddings"},
        fixed,
        f"{kind} models",
    )
    d, heads, layers, mlp = (
        json_fields.integer(c, own[f])
        for f in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    )
    if d % heads:
        raise ValueError(
            f"model: {own['hidden_size']} = {d} is not a multiple of "
            f"{own['num_attention_heads']} = {heads}, as it must be"
        )
    return ModelConfig(
        architecture=kind,
        vocab_size=json_fields.integer(c, "vocab_size"),
        d_model=d,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        d_ff=mlp,
        max_seq_len=json_fields.integer(c, "max_position_embeddings", low=1 + offset) - offset,
        norm="layer",
        norm_eps=json_fields.number(c, "layer_norm_eps", 1e-12, low=0),
        norm_first=False,
        final_norm=False,
        activation=activation(c, own["hidden_act"], "gelu"),
        gated=False,
        positions="learned",
        position_offset=offset,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        init_scale=json_fields.number(c, "initializer_range", 0.02, low=0),
        dropout=dropout_json.block_rates(c, kind),
    )


def _bert(c: dict) -> EncoderConfig:
    return EncoderConfig(
        _core(c, "bert"),
        token_types=json_fields.integer(c, "type_vocab_size", 2),
        head_dropout=dropout_json.head_rate(c, "bert"),
    )


def _albert(c: dict) -> EncoderConfig:
    own = ("layer_norm_eps", "type_vocab_size", "embedding_size", "num_hidden_groups")
    json_fields.check_known(
        {name: value for name, value in c.items() if name in _ALBERT_FIXED},
        set(),
        _ALBERT_FIXED,
        "albert models",
    )
    # The library's own default of the activation is not BERT's.
    plain = {"hidden_act": "gelu_new"} | {n: v for n, v in c.items() if n not in _ALBERT_FIXED}
    core = _core(plain, "albert", 0, own)
    groups = json_fields.integer(c, "num_hidden_groups", 1)
    if groups > core.num_layers:
        raise ValueError(
            f"model: num_hidden_groups = {groups} is more than num_hidden_layers = "
            f"{core.num_layers}; every group needs a layer"
        )
    return EncoderConfig(
        core,
        token_types=json_fields.integer(c, "type_vocab_size", 2),
        embedding_size=json_fields.integer(c, "embedding_size", 128),
        layer_groups=groups,
        head_dropout=dropout_json.head_rate(c, "albert"),
    )


def _roberta(c: dict) -> EncoderConfig:
    return EncoderConfig(
        _core(c, "roberta", json_fields.integer(c, "pad_token_id", 1, low=0) + 1),
        token_types=json_fields.integer(c, "type_vocab_size", 1),
        head_dropout=dropout_json.head_rate(c, "roberta"),
    )


def _mpnet(c: dict) -> EncoderConfig:
    core = _core(
        c,
        "mpnet",
        json_fields.integer(c, "pad_token_id", 1, low=0) + 1,
        ("layer_norm_eps", "relative_attention_num_buckets"),
    )
    return EncoderConfig(
        core,
        relative_buckets=json_fields.integer(c, "relative_attention_num_buckets", 32),
        head_dropout=dropout_json.head_rate(c, "mpnet"),
    )


def _distilbert(c: dict) -> EncoderConfig:
    return EncoderConfig(
        _core(c, "distilbert", 0, (), **_DISTILBERT),
        head_dropout=dropout_json.head_rate(c, "distilbert"),
    )


_BUILDERS = {
    "bert": _bert,
    "albert": _albert,
    "roberta": _roberta,
    "mpnet": _mpnet,
    "distilbert": _distilbert,
}


def _decoder(path: Path, c: dict) -> EncoderConfig:
    """A decoder as an encoder: both directions where its config says `is_causal: false`, or names
    gte-Qwen2's own model code, whose default that is.
    """
    code = str((c.get("auto_map") or {}).get("AutoModel", ""))
    if code and not code.endswith("modeling_qwen.Qwen2Model"):
        raise ValueError(
            f"model: {path} runs its own code {code!r}, which is not supported; models that "
            "transformers runs itself are"
        )
    both = c.get("is_causal") is False or bool(code) and c.get("is_causal") is None
    return EncoderConfig(
        huggingface.read_model_config(path, causal=False), embed_norm=False, causal=not both
    )


def encoder_config_fields(config: EncoderConfig) -> dict:
    """Return the config.json of an encoder with its classification head, as `transformers` reads
    it.
    """
    core = config.core
    extra = dict(
        id2label={str(i): name for i, name in enumerate(config.labels)},
        label2id={name: i for i, name in enumerate(config.labels)},
    )
    extra |= dict(
        problem_type="multi_label_classification"
        if config.multi_label
        else "single_label_classification"
    )
    classes = {
        "bert": "Bert",
        "albert": "Albert",
        "roberta": "Roberta",
        "mpnet": "MPNet",
        "distilbert": "DistilBert",
    }
    if core.architecture not in classes:
        plain = config_fields(core)
        name = (
            plain["architectures"][0]
            .replace("ForCausalLM", "ForSequenceClassification")
            .replace("LMHeadModel", "ForSequenceClassification")
        )
        return plain | extra | dict(architectures=[name], is_causal=config.causal)
    shape = dict(
        hidden_size=core.d_model,
        num_hidden_layers=core.num_layers,
        num_attention_heads=core.num_heads,
        intermediate_size=core.d_ff,
        hidden_act=core.activation,
        max_position_embeddings=core.max_seq_len + core.position_offset,
        layer_norm_eps=core.norm_eps,
        initializer_range=core.init_scale,
        **dropout_json.fields(core, config.head_dropout),
    )
    if core.architecture == "distilbert":
        shape = {
            _DISTILBERT.get(name, name): value
            for name, value in shape.items()
            if name != "layer_norm_eps"
        }
    elif core.architecture == "mpnet":
        shape |= dict(relative_attention_num_buckets=config.relative_buckets)
    else:
        shape |= dict(type_vocab_size=config.token_types)
    if core.architecture == "albert":
        shape |= dict(embedding_size=config.embedding_size, num_hidden_groups=config.layer_groups)
    pad = core.position_offset - 1 if core.position_offset else 0
    return dict(
        model_type=core.architecture,
        architectures=[f"{classes[core.architecture]}ForSequenceClassification"],
        vocab_size=core.vocab_size,
        pad_token_id=pad,
        **shape,
        **extra,
    )
