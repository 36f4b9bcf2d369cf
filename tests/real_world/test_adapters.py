"""Adapters as people bring them: each computes what `peft` computes with it, or is refused in one
sentence.
"""

import numpy as np
import pytest

from jaxloop import lm
from jaxloop.lm.model import lora as adapters
from tests.lm.conftest import make as torch_model
from tests.lm.conftest import write_tokenizer
from tests.peers import peer
from tests.real_world.support import (
    RIGHT,
    TOLERANCE,
    Row,
    edit,
    forward,
    make,
    refusal,
    tensors,
    write,
)

torch = peer("torch")
hf = peer("transformers", "torch")
peft = peer("peft", "torch")

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def by_peft(**settings):
    """An adapter that peft writes, with random factors, in place of the one in the directory."""

    def change(path):
        base = hf.AutoModelForCausalLM.from_pretrained(path.parent / "base")
        given = (
            dict(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            | settings
        )
        torch.manual_seed(0)
        model = peft.get_peft_model(base, peft.LoraConfig(**given))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        model.save_pretrained(path)

    return change


def config(**changes):
    return edit(CONFIG, **changes)


def of_file(function):
    return tensors(function, FILE)


ROWS = [
    Row("plain", "llama", (by_peft(),), RIGHT),
    Row(
        "rank_pattern",
        "llama",
        (by_peft(rank_pattern={"q_proj": 2, "layers.1.self_attn.v_proj": 7}),),
        RIGHT,
    ),
    Row("alpha_pattern", "llama", (by_peft(alpha_pattern={"v_proj": 3.0}),), RIGHT),
    Row(
        "both patterns",
        "qwen2",
        (
            by_peft(
                target_modules=LINEAR,
                rank_pattern={"mlp.*": 2, r"layers\.1\..*q_proj": 6},
                alpha_pattern={"o_proj": 1},
            ),
        ),
        RIGHT,
    ),
    Row("rslora", "llama", (by_peft(use_rslora=True),), RIGHT),
    Row(
        "rslora with patterns",
        "llama",
        (by_peft(use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"v_proj": 2}),),
        RIGHT,
    ),
    Row("layers_to_transform", "llama", (by_peft(layers_to_transform=[1]),), RIGHT),
    Row(
        "layers_to_transform, a number and a pattern",
        "qwen2",
        (by_peft(layers_to_transform=0, layers_pattern="layers"),),
        RIGHT,
    ),
    Row(
        "layers_to_transform of GPT-2",
        "gpt2",
        (
            by_peft(
                target_modules=["c_attn", "c_proj"],
                layers_to_transform=[0],
                layers_pattern=["h"],
                fan_in_fan_out=True,
            ),
        ),
        RIGHT,
    ),
    Row(
        "layers_to_transform, patterns and a layer that there is not",
        "llama",
        (by_peft(layers_to_transform=[1, 7], layers_pattern=["h", "layers"]),),
        RIGHT,
    ),
    Row(
        "exclude_modules",
        "llama",
        (by_peft(target_modules=LINEAR, exclude_modules=["layers.0.mlp.up_proj", "k_proj"]),),
        RIGHT,
    ),
    Row(
        "exclude_modules, a pattern",
        "llama",
        (by_peft(target_modules=LINEAR, exclude_modules=r".*layers\.1\.mlp.*"),),
        RIGHT,
    ),
    Row(
        "target_modules, a pattern", "llama", (by_peft(target_modules=r".*\.(q|down)_proj"),), RIGHT
    ),
    Row(
        "target_modules by their whole names",
        "llama",
        (by_peft(target_modules=["model.layers.1.self_attn.q_proj", "v_proj"]),),
        RIGHT,
    ),
    Row("all linear modules", "opt", (by_peft(target_modules="all-linear"),), RIGHT),
    Row(
        "rank and alpha of the defaults",
        "llama",
        (by_peft(r=8, lora_alpha=8), config(r=..., lora_alpha=...)),
        RIGHT,
    ),
    Row("targets of the defaults", "llama", (by_peft(), config(target_modules=None)), RIGHT),
    Row("a Gaussian start", "llama", (by_peft(init_lora_weights="gaussian"),), RIGHT),
    Row("an orthogonal start", "llama", (by_peft(init_lora_weights="orthogonal"),), RIGHT),
    Row(
        "half precision",
        "llama",
        (by_peft(), of_file(lambda t: {k: v.astype(np.float16) for k, v in t.items()})),
        RIGHT,
    ),
    # More than A and B.
    Row(
        "activated LoRA",
        "llama",
        (by_peft(alora_invocation_tokens=[5, 6]),),
        "alora_invocation_tokens = .* is not supported",
    ),
    Row(
        "DoRA",
        "llama",
        (by_peft(use_dora=True),),
        "use_dora = True is not supported; allowed: False",
    ),
    Row(
        "modules_to_save",
        "llama",
        (by_peft(modules_to_save=["lm_head"]),),
        "modules_to_save = .'lm_head'. is not supported",
    ),
    Row("biases", "llama", (by_peft(lora_bias=True),), "lora_bias = True"),
    Row("trained biases", "llama-bias", (by_peft(bias="lora_only"),), "bias = 'lora_only'"),
    *(
        Row(
            f"a start by {start}",
            "llama",
            (by_peft(), config(init_lora_weights=start)),
            f"init_lora_weights = '{start}' is not supported",
            "takes the start out of the base's weights",
        )
        for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica")
    ),
    Row(
        "trained tokens",
        "llama",
        (by_peft(trainable_token_indices=[3, 4]),),
        "trainable_token_indices = ",
    ),
    Row(
        "repeated layers",
        "llama",
        (by_peft(), config(layer_replication=[[0, 2], [1, 2]])),
        "layer_replication = ",
    ),
    Row(
        "an adapter of the head",
        "smollm",
        (by_peft(target_modules=["q_proj", "lm_head"]),),
        "'base_model.model.lm_head.* is not a projection of llama",
    ),
    Row(
        "an adapter of the embeddings",
        "llama",
        (by_peft(target_modules=["q_proj", "embed_tokens"]),),
        "embed_tokens.* is not a projection",
    ),
    Row(
        "another method",
        "llama",
        (by_peft(), config(peft_type="LOHA")),
        "peft_type = 'LOHA' is not supported; allowed: 'LORA'",
    ),
    *(
        Row(f"{k} = {v!r}", "llama", (by_peft(), config(**{k: v})), f"{k} = ")
        for k, v in dict(
            use_qalora=True,
            arrow_config={"x": 1},
            kasa_config={"beta": 1.0},
            monteclora_config={},
            use_bdlora=True,
            megatron_config={"a": 1},
            target_parameters=["experts"],
            something_new=3,
            r="4",
            r_=2.5,
            lora_alpha="16",
            use_rslora="yes",
            lora_dropout="0",
            target_modules=7,
            layers_pattern=3,
        ).items()
        if k != "r_"
    ),
    Row(
        "a dropout of everything",
        "llama",
        (by_peft(), config(lora_dropout=1.0)),
        "lora_dropout = 1.0 is not supported; allowed: .* below 1",
    ),
    Row(
        "a rank that the file does not have",
        "llama",
        (by_peft(), config(r=5)),
        r"has shape \(4, 32\); \(5, 32\) is expected",
    ),
    Row(
        "a target without factors",
        "llama",
        (by_peft(), config(target_modules=["q_proj", "v_proj", "o_proj"])),
        "o_proj has no factors",
        "leaves it at its start",
    ),
    Row(
        "factors without a target",
        "llama",
        (by_peft(), config(target_modules=["q_proj"])),
        "v_proj has factors in .* peft would leave them out",
        "leaves them out",
    ),
    Row(
        "a layer without factors",
        "llama",
        (by_peft(), of_file(lambda t: {k: v for k, v in t.items() if "layers.0." not in k})),
        "layers.0.* has no factors",
    ),
    Row(
        "quantised factors",
        "llama",
        (by_peft(), of_file(lambda t: t | {Q0: t[Q0].astype(np.int8)})),
        "is stored as I8",
    ),
    Row("no JSON", "llama", (by_peft(), write(CONFIG, "<html>")), "it is a web page"),
    Row("cut short", "llama", (by_peft(), write(FILE, b"abc")), "cannot be read"),
]


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            path = tmp_path_factory.mktemp("bases") / name
            torch_model(name).save_pretrained(path)
            write_tokenizer(path)
            made[name] = path, lm.load(path)
        return made[name]

    return get


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore")  # peft warns of what some rows ask for
def test_an_adapter_is_right_or_refused(row, bases, tmp_path):
    folder, base = bases(row.model)
    (tmp_path / "base").symlink_to(folder)
    (tmp_path / "empty").mkdir()
    path = make(row, tmp_path / "empty", tmp_path / "adapter")
    if row.ours != RIGHT:
        with pytest.raises(ValueError) as caught:
            lm.load_peft(path, base.config)
        refusal(caught.value, row.ours)
        return
    tokens = np.random.default_rng(0).integers(3, 320, (2, 24)).astype(np.int32)
    adapter = lm.load_peft(path, base.config)
    found = np.asarray(
        forward(base.config, base.params, tokens[None], adapters=adapters.stack([adapter]))
    )[0]
    theirs = peft.PeftModel.from_pretrained(
        hf.AutoModelForCausalLM.from_pretrained(folder), path
    ).eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert (
        np.abs(expected - np.asarray(forward(base.config, base.params, tokens))).max() > 0.1
    )  # the adapter does something
    lm.save_peft(tmp_path / "saved", base.config, adapter)
    again = peft.PeftModel.from_pretrained(
        hf.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "saved"
    ).eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            again(input_ids=torch.from_numpy(tokens).long()).logits.numpy(),
            expected,
            atol=TOLERANCE,
            rtol=0,
        )
