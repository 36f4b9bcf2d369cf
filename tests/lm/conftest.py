"""Small random-weight checkpoints of every supported architecture, made with `transformers` once a
session.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxloop.lm.family import FitTask
from tests.lm import tiny
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

VOCAB, EOS, BOS, PAD = 320, 2, 1, 0
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
)
OPT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    ffn_dim=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    word_embed_proj_dim=32,
    do_layer_norm_before=True,
    dropout=0.0,
)
GPT2 = dict(
    vocab_size=VOCAB,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=64,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
ROPE = dict(rope_type="default", rope_theta=10000.0)
ROPE3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)

# One entry for every feature that some published checkpoint switches on.
CONFIGS = {
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2-inner": lambda: hf.GPT2Config(
        **GPT2 | dict(n_inner=40, activation_function="gelu", layer_norm_epsilon=1e-3)
    ),
    "opt": lambda: hf.OPTConfig(**OPT),  # 125m and 1.3b
    "opt-350m": lambda: hf.OPTConfig(
        **OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16)
    ),
    "opt-plain": lambda: hf.OPTConfig(
        **OPT | dict(_remove_final_layer_norm=True, enable_bias=False, activation_function="gelu")
    ),
    "llama": lambda: hf.LlamaConfig(
        **LLAMA
        | dict(
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters=ROPE3,
            rms_norm_eps=1e-5,
        )
    ),
    "smollm": lambda: hf.LlamaConfig(
        **LLAMA | dict(tie_word_embeddings=True, rope_parameters=ROPE)
    ),
    "falcon3": lambda: hf.LlamaConfig(
        **LLAMA
        | dict(
            num_key_value_heads=1, head_dim=16, rope_parameters=ROPE | dict(rope_theta=1000042.0)
        )
    ),
    "llama-bias": lambda: hf.LlamaConfig(
        **LLAMA | dict(attention_bias=True, mlp_bias=True, num_key_value_heads=2)
    ),
    "qwen2": lambda: hf.Qwen2Config(
        **LLAMA
        | dict(
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters=ROPE | dict(rope_theta=1e6),
        )
    ),
    "deep": lambda: hf.LlamaConfig(**LLAMA | dict(num_hidden_layers=10, num_key_value_heads=2)),
}


class Checkpoint(NamedTuple):
    path: Path
    torch: Any  # the torch.nn.Module


def write_tokenizer(path):
    """A byte-level BPE tokenizer of `VOCAB` tokens with <pad>, <s> and </s> as tokens 0 to 2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    words = [
        "the cat sat on the mat and then the rat ran to the hat",
        "a model that reads what another model wrote reads less each time",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(words * 4, trainer)
    hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="<pad>"
    ).save_pretrained(path)


def make(name: str, seed: int = 0, **changes):
    """The torch model of an entry of `CONFIGS`, every weight (norms and biases too) random and
    large enough to matter.
    """
    config = CONFIGS[name]()
    for field, value in dict(
        eos_token_id=EOS, bos_token_id=BOS, pad_token_id=PAD, **changes
    ).items():
        setattr(config, field, value)
    torch.manual_seed(seed)  # from_config draws too
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.15 if p.ndim > 1 else 0.3))
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint("llama")` is a saved directory and the torch model in it; made once."""
    made: dict[str, Checkpoint] = {}

    def get(name: str) -> Checkpoint:
        if name not in made:
            path = tmp_path_factory.mktemp("checkpoints") / name
            model = make(name)
            model.save_pretrained(path)
            write_tokenizer(path)
            made[name] = Checkpoint(path, model)
        return made[name]

    return get


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """`loaded("llama")` is our `Model` of that checkpoint; read once."""
    from jaxloop import lm

    models: dict[str, lm.Model] = {}
    return lambda name: (
        models[name] if name in models else models.setdefault(name, lm.load(checkpoint(name).path))
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A directory that holds only the files of the small tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def tiny_model():
    """The model of `tests/lm/tiny.py`."""
    return tiny.make_model()


@pytest.fixture(scope="session")
def fitted(tiny_model):
    """Three chains of `tiny_model`, fitted with keys 0, 1 and 2."""
    tasks = [FitTask(jax.random.key(i), tiny.TEXTS, tiny.PROMPTS) for i in range(3)]
    return tiny.fit(tiny_model, tasks)
