"""Single models and many adapters from Python."""

import doctest
import importlib
import shutil

import jax
import numpy as np
import pytest

import jaxloop
from jaxloop.lm.io import huggingface
from jaxloop.lm.model import transformer
from jaxloop.lm.model.lora import Adapter
from tests.lm.tiny import first_layer
from tests.peers import peer

torch = peer("torch")
transformers = peer("transformers", "torch")
peft = peer("peft", "torch")

GPT2, LLAMA = "jaxloop/assets/bases/gpt2", "jaxloop/assets/bases/llama"
TEXTS = ["Returns the sorted values of a list.", "Raises an error for a missing key."] * 8
SETTINGS = {"steps": 3, "batch_size": 8, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def model():
    return first_layer(jaxloop.load(GPT2))


@pytest.fixture(scope="module")
def adapter(model):
    return jaxloop.finetune(model, TEXTS, **SETTINGS)


@pytest.mark.parametrize(
    "name", ["formulas", "loops", "measures", pytest.param("models", marks=pytest.mark.slow)]
)
def test_the_examples_of_docstrings(name, monkeypatch):
    monkeypatch.setattr(transformer, "UNROLL", 1)
    module = importlib.import_module(f"jaxloop.api.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_one_adapter_is_the_first_of_many(model, adapter):
    many = jaxloop.finetune_many(model, [TEXTS, TEXTS[::-1]], **SETTINGS)
    assert all(isinstance(one, Adapter) for one in many)
    for alone, among in zip(jax.tree.leaves(adapter), jax.tree.leaves(many[0]), strict=True):
        np.testing.assert_allclose(alone, among, rtol=0, atol=2e-6)
    assert not np.allclose(many[1]["qkv"]["b"], many[0]["qkv"]["b"])


def test_training_goes_on_from_an_adapter_and_lowers_the_loss(model, adapter):
    before = jaxloop.score(model, TEXTS[:2]).nll.sum()
    after = jaxloop.score(model, TEXTS[:2], adapter=adapter).nll.sum()
    further = jaxloop.finetune(model, TEXTS, adapter=adapter, **SETTINGS)
    assert jaxloop.score(model, TEXTS[:2], adapter=further).nll.sum() < after < before


def test_full_fine_tuning_gives_a_model(model):
    trained = jaxloop.finetune(model, TEXTS, mode="full", **SETTINGS)
    assert type(trained) is type(model) and trained.tokenizer is model.tokenizer
    assert jaxloop.score(trained, TEXTS).nll.sum() < jaxloop.score(model, TEXTS).nll.sum()


def test_texts_depend_on_seed_row_and_prompt_alone(model, adapter):
    ask = {"adapter": adapter, "max_new_tokens": 6, "temperature": 1.0}
    prompts = ["Returns", "Raises", "The"]
    texts = jaxloop.generate(model, prompts, seed=3, **ask)
    assert texts == jaxloop.generate(model, prompts, seed=3, **ask)
    assert texts != jaxloop.generate(model, prompts, seed=4, **ask)
    assert jaxloop.generate(model, prompts[:2], seed=3, **ask) == texts[:2]
    assert len(jaxloop.generate(model, 2, **ask)) == 2 and jaxloop.generate(model, [], **ask) == []


@pytest.mark.parametrize("base", [GPT2, LLAMA])
def test_adapters_and_merged_models_are_what_peft_and_transformers_compute(tmp_path, base):
    """Log-probabilities to 2e-4, the tolerance of every comparison of logits here."""
    model = first_layer(jaxloop.load(base))
    adapter = jaxloop.finetune(model, TEXTS, lora=jaxloop.LoraConfig(rank=4, alpha=32), **SETTINGS)
    jaxloop.save(jaxloop.merge(model, adapter), tmp_path / "merged")
    jaxloop.save(model, tmp_path / "base")
    jaxloop.save_adapter(model, adapter, tmp_path / "adapter")
    ours = jaxloop.score(model, TEXTS[:1], adapter=adapter)
    again = jaxloop.load_adapter(model, tmp_path / "adapter")
    assert jaxloop.score(model, TEXTS[:1], adapter=again).nll == pytest.approx(ours.nll, rel=1e-6)
    torch_base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with_adapter = peft.PeftModel.from_pretrained(torch_base, tmp_path / "adapter")
    tokenizer = model.tokenizer
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    ids = [start, *tokenizer.encode(TEXTS[:1], special=False)[0], tokenizer.eos]
    for theirs in (merged, with_adapter):
        with torch.no_grad():
            log_p = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1)
        nll = -log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
        np.testing.assert_allclose(ours.token_nll[0], nll, rtol=0, atol=2e-4)


def test_what_is_saved_of_a_model_of_the_hub_is_of_the_revision_that_was_loaded(
    tmp_path, monkeypatch, adapter
):
    """As transformers and peft read it; a directory of whatever name has no commit."""
    folder = tmp_path / "snapshots" / ("8330ca72" * 5)
    shutil.copytree(GPT2, folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert jaxloop.load(str(folder)).revision is None
    monkeypatch.setattr(
        huggingface, "locate", lambda name, revision: {"refs/pr/1": folder}[revision]
    )
    model = first_layer(jaxloop.load("me/model", revision="refs/pr/1"))
    jaxloop.save(jaxloop.merge(model, adapter), tmp_path / "merged")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert saved.chat_template == "{{ messages }}"
    jaxloop.save_adapter(model, adapter, tmp_path / "adapter")
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (config.base_model_name_or_path, config.revision) == ("me/model", folder.name)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template.jinja cannot be read \(it is not text"):
        jaxloop.load("me/model", revision="refs/pr/1")


def test_a_model_in_bfloat16_is_trained_scored_and_written_in_its_format(monkeypatch):
    """With more layers than are unrolled. Losses within 2 % of those of the same weights and
    adapter in float32; the adapter learns as much to 5 %.
    """
    monkeypatch.setattr(transformer, "UNROLL", 0)
    half = first_layer(jaxloop.load(LLAMA, dtype="bfloat16"))
    whole = half._replace(params=jax.tree.map(lambda w: w.astype("float32"), half.params))
    learned = jaxloop.finetune(half, TEXTS, config=jaxloop.FitConfig(**SETTINGS))
    score, before = jaxloop.score(half, TEXTS[:2], adapter=learned), jaxloop.score(whole, TEXTS[:2])
    exact = jaxloop.score(whole, TEXTS[:2], adapter=learned)
    np.testing.assert_allclose(score.nll, exact.nll, rtol=2e-2)
    exactly_learned = jaxloop.score(
        whole, TEXTS[:2], adapter=jaxloop.finetune(whole, TEXTS, **SETTINGS)
    )
    gained = before.nll - exact.nll
    np.testing.assert_allclose(gained, before.nll - exactly_learned.nll, rtol=5e-2)
    assert len(jaxloop.generate(half, 2, adapter=learned, max_new_tokens=4)) == 2
    with pytest.raises(ValueError, match="fit.dtype: float32 is not allowed for adapters"):
        jaxloop.finetune(half, TEXTS, dtype="float32", **SETTINGS)


def test_a_dtype_that_nobody_names_is_that_of_the_model(monkeypatch):
    """However the config was made; what reaches the training is looked at, nothing is trained."""
    half = jaxloop.load(LLAMA, dtype="bfloat16")
    asked = []

    def fit(model, tasks, settings):
        asked.append((settings.steps, settings.dtype))
        return []

    monkeypatch.setattr("jaxloop.api.models.family.fit", fit)
    plain = jaxloop.FitConfig()
    for one in (plain.replace(steps=5), plain.replace(dtype="float32", steps=5)):
        jaxloop.finetune_many(half, [TEXTS], config=one)
    assert asked == [(5, "bfloat16"), (5, "float32")]


def test_what_makes_no_sense_is_refused_in_a_sentence(model, adapter, tmp_path):
    llama = jaxloop.load(LLAMA)
    (tmp_path / "file").write_text("")
    for work, said in (
        (lambda: jaxloop.finetune(model, "text"), r"texts: is one string; a list"),
        (lambda: jaxloop.finetune(model, ["a", 3]), r"texts\[1\]: is of type int"),
        (lambda: jaxloop.finetune(model, []), r"texts: is empty"),
        (lambda: jaxloop.finetune_many(model, [TEXTS, [None]]), r"datasets\[1\]\[0\]: is of type"),
        (lambda: jaxloop.finetune(model, TEXTS, prompts=["a"]), r"prompts: there are 1 prompts"),
        (
            lambda: jaxloop.finetune(model, TEXTS, learning_rat=1),
            r"learning_rat: is no argument and no field of FitConfig; did you mean 'learning_rate'",
        ),
        (lambda: jaxloop.generate(model, 2, temperature=-1), r"temperature: -1 is not allowed"),
        (lambda: jaxloop.generate(model, "a"), r"prompts: is one string"),
        (lambda: jaxloop.generate(model, -1), r"prompts=-1: must be texts, or a number of at"),
        (
            lambda: jaxloop.generate(llama, 2, adapter=adapter),
            r"adapter: is of another model; .*, and jaxloop/assets/bases/llama needs \(4, 432, 16",
        ),
        (lambda: jaxloop.generate(model, 2, adapter={}), r"adapter: is of type dict; must be what"),
        (lambda: jaxloop.save(model, tmp_path), r"exists and is not an empty directory"),
        (lambda: jaxloop.save_adapter(model, adapter, tmp_path / "file"), r"exists and is not"),
        (lambda: jaxloop.load("no/such/model"), r"directory no/such/model does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            work()
    wider = jax.tree.map(lambda x: np.pad(x, [(0, 1), (0, 0), (0, 0)]), adapter)
    with pytest.raises(ValueError, match=r"another model; a of down has shape \(2, 640, 16\)"):
        jaxloop.merge(model, wider)
