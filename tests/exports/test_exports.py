"""What is exported is read back by the libraries it is for, and computes what it computed here."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from jaxloop import exports, lm
from jaxloop.config import SampleConfig
from jaxloop.exports import cards, models, target
from jaxloop.lm import family
from jaxloop.lm.family import GenerateOptions, GenerateTask
from jaxloop.lm.io.peft_files import PROVENANCE
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import init
from jaxloop.recursion import saved_run
from jaxloop.recursion.saved_run import ModelId
from jaxloop.runtime import checkpoint
from jaxloop.runtime.workdir import MARKER
from tests.lm.random_adapters import random_adapters
from tests.lm.tiny import opt_shapes
from tests.peers import peer
from tests.real_world.support import TOLERANCE, forward

datasets = peer("datasets")
hf = peer("transformers", "torch")
peft = peer("peft", "torch")
torch = peer("torch")

ADAPTED, WHOLE = "ratio-1_fit.mode-lora", "ratio-1_fit.mode-full"
TOKENS = np.random.default_rng(0).integers(3, 300, (2, 24)).astype(np.int32)
PROMPT = "### User:\nGo.\n### Assistant:\n"


@pytest.fixture(scope="module")
def base(run):
    return lm.load(run.parent / "base")


def weights(run, chain, generation=1):
    return saved_run.read_weights(run, ModelId(chain, generation))


def adapter(run, chain=ADAPTED):
    return lora.as_adapter(weights(run, chain), lm.LoraConfig(rank=8, alpha=24))


def of_torch(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(TOKENS).long()).logits.float().numpy()


def greedy(model, trained, options):
    """The greedy text of a model here, by its own generation of texts."""
    task = GenerateTask(key=jax.random.key(0), weights=trained, prompts=[PROMPT], rows=np.arange(1))
    settings = SampleConfig(decoder="greedy", max_new_tokens=12, slots=1)
    return family.generate(model, [task], settings, options)[0].texts[0]


def greedy_of_transformers(path):
    model = hf.AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# ---- models


def test_peft_reads_an_adapter_and_computes_the_same(run, base, tmp_path):
    (path,) = exports.export_run(run, "peft", tmp_path / "adapter", chain=ADAPTED)
    theirs = hf.AutoModelForCausalLM.from_pretrained(run.parent / "base")
    plain = of_torch(theirs)
    expected = of_torch(peft.PeftModel.from_pretrained(theirs, path))
    stacked = lora.stack([adapter(run)])
    found = np.asarray(forward(base.config, base.params, TOKENS[None], adapters=stacked))[0]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert np.abs(expected - plain).max() > 0.05  # the adapter does something
    about = json.loads((path / PROVENANCE).read_text())
    assert about["base_revision"] is None  # a directory of its own
    row = saved_run.read_ledger_row(run, ModelId(ADAPTED, 1))
    assert about["base_sha256"] == row["base_sha256"] and about["generation"] == 1
    # And it comes back in as it went out.
    again = lm.load_peft(path, base.config)
    for name, factors in adapter(run).items():
        for side in "ab":
            np.testing.assert_array_equal(again[name][side], factors[side])


def test_an_adapter_says_of_which_commit_of_the_hub_its_base_was(run, tmp_path, monkeypatch):
    """peft's own reader of the config, by which AutoPeftModel finds the base."""
    from huggingface_hub import ModelCard

    commit = "8330ca72" * 5
    snapshot = tmp_path / "snapshots" / commit
    shutil.copytree(run.parent / "base", snapshot)
    monkeypatch.setattr(models.huggingface, "locate", lambda *_: snapshot)
    (path,) = exports.export_run(run, "peft", tmp_path / "adapter", chain=ADAPTED)
    assert peft.PeftConfig.from_pretrained(path).revision == commit
    assert json.loads((path / PROVENANCE).read_text())["base_revision"] == commit
    assert ModelCard.load(path / "README.md").data.base_model == str(run.parent / "base")
    (path,) = exports.export_run(run, "hf-model", tmp_path / "whole", chain=ADAPTED)
    assert commit in (path / "README.md").read_text()


def test_a_directory_that_is_called_as_a_model_of_the_hub_is_none():
    about = {"chain": "a", "generation": 1}
    ledger = {"steps": 1, "tokens_trained": 2, "real_share_train": 0.5}
    for on_hub, said in ((True, 'base_model: "models/gpt2"'), (False, "# A jaxloop run")):
        card = cards.of_model({}, "models/gpt2", about, ledger, "peft", on_hub=on_hub)
        assert said in card and ("base_model:" in card) == on_hub


def test_every_adapter_has_a_directory_of_its_own(run, tmp_path):
    with pytest.raises(ValueError, match=r"fit.mode-full has no adapter, .* --to=hf-model"):
        exports.export_run(run, "peft", tmp_path / "all")
    assert not (tmp_path / "all").exists()
    (path,) = exports.export_run(run, "peft", tmp_path / "one", chain=ADAPTED, generation=0)
    assert json.loads((path / PROVENANCE).read_text())["generation"] == 0


@pytest.mark.parametrize("chain", [ADAPTED, WHOLE])
def test_transformers_writes_the_same_greedy_text(run, base, tmp_path, chain):
    (path,) = exports.export_run(run, "hf-model", tmp_path / "model", chain=chain)
    model = hf.AutoModelForCausalLM.from_pretrained(path)
    if chain == ADAPTED:
        trained, options = adapter(run), GenerateOptions(lora=adapter(run).config)
        stacked = lora.stack([trained])
        found = np.asarray(forward(base.config, base.params, TOKENS[None], adapters=stacked))[0]
    else:
        trained, options = weights(run, chain), GenerateOptions()
        found = np.asarray(forward(base.config, trained, TOKENS))
    np.testing.assert_allclose(found, of_torch(model), atol=TOLERANCE, rtol=0)
    text = greedy(base, trained, options)
    assert len(text) > 3 and greedy_of_transformers(path) == text
    assert greedy_of_transformers(run.parent / "base") != text


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "qwen2"])
def test_merged_weights_of_other_architectures(architecture):
    """Projections are fused and transposed differently in each."""
    if architecture == "opt":
        config = opt_shapes()
        params = init(jax.random.key(0), config)
    else:
        config, params, *_ = lm.load(f"jaxloop/assets/bases/{architecture}")
    settings = lm.LoraConfig(rank=3, alpha=5, targets=("o", "down"))
    one = lora.split(random_adapters(config, settings), 0)
    merged = lora.merge(config, params, one)
    expected = forward(config, params, TOKENS[None], adapters=lora.stack([one]))[0]
    np.testing.assert_allclose(forward(config, merged, TOKENS), expected, atol=TOLERANCE, rtol=0)
    # On accelerators too: what is merged is rounded once, to the dtype of the weights.
    program = str(jax.make_jaxpr(functools.partial(lora.merge, config, adapter=one))(params))
    assert program.count("Precision.HIGHEST") == 2 * program.count("dot_general") > 0


@pytest.mark.slow
def test_half_as_many_bytes_in_bfloat16(run, base, tmp_path):
    (path,) = exports.export_run(run, "hf-model", tmp_path / "m", chain=WHOLE, dtype="bfloat16")
    model = hf.AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    found = np.asarray(forward(base.config, weights(run, WHOLE), TOKENS))
    np.testing.assert_allclose(found, of_torch(model), atol=0.1, rtol=0)


# ---- texts and tables


def test_datasets_loads_the_texts_with_their_card(run, tmp_path):
    (path,) = exports.export_run(run, "hub-dataset", tmp_path / "data", licence="CC-BY-4.0")
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(path), split="train", cache_dir=cache)
    stored = [
        pd.read_parquet(file).assign(chain=file.parent.name.removeprefix("chain="))
        for file in sorted((run / "texts").rglob("*.parquet"))
    ]
    expected = pd.concat(stored)
    found = loaded.to_pandas()
    keys = ["chain", "generation", "entity", "row"]
    assert len(found) == len(expected) == 96
    pairs = (
        table.sort_values(keys)[[*keys, "text", "prompt", "tokens", "finished"]].to_dict("list")
        for table in (found, expected)
    )
    assert next(pairs) == next(pairs)
    assert set(found["ratio"]) == {0.5, 1.0} and set(found["fit.mode"]) == {"lora", "full"}
    assert set(found["base"]) == {str(run.parent / "base")}
    values = datasets.load_dataset(str(path), "metrics", split="train", cache_dir=cache)
    assert values.num_rows == len(pd.read_csv(run / "metrics.csv"))
    card = datasets.load_dataset_builder(str(path), cache_dir=cache)
    assert card.config.name == "texts"


def test_a_card_says_what_the_texts_are(run, tmp_path):
    from huggingface_hub import DatasetCard, ModelCard

    (path,) = exports.export_run(run, "hub-dataset", tmp_path / "data", chain=ADAPTED)
    card = DatasetCard.load(path / "README.md")
    assert card.data.license == "other" and "synthetic" in card.data.tags
    for words in ("**Every text here is synthetic**", "posts.jsonl", "not stated", "/base`"):
        assert words in card.text
    stated = exports.export_run(run, "hub-dataset", tmp_path / "stated", licence="CC BY 4.0")[0]
    assert DatasetCard.load(stated / "README.md").data.license == "cc-by-4.0"
    (adapted,) = exports.export_run(run, "peft", tmp_path / "adapter", chain=ADAPTED)
    card = ModelCard.load(adapted / "README.md")
    assert card.data.library_name == "peft" and "from_pretrained" in card.text


def test_licences_of_sources_that_come_with_jaxloop():
    found = cards.licences({"data": {"source": "jaxloop:gsm8k"}}, "proprietary")
    assert [(source, hub) for source, _, hub in found] == [("jaxloop:gsm8k", "mit")]
    several = {
        "a": {"sources": ["docs", "jaxloop:emotions", "jaxloop:fables", "jaxloop:speeches"]},
        "b": {"source": "mine.csv"},
        "chain": {"factors": {"dataset": ["docs"]}},
    }
    hubs = {source: hub for source, _, hub in cards.licences(several, "CC0-1.0")}
    assert hubs == {
        "docs": "other",
        "jaxloop:emotions": "cc-by-4.0",
        "jaxloop:fables": "cc0-1.0",
        "jaxloop:speeches": "other",
        "mine.csv": "cc0-1.0",
    }


def test_sources_are_those_that_a_run_reads():
    """Not those of defaults that something stands in place of; and those that tasks have."""
    chain = {"study": "chain", "data": {"source": "docs"}}
    assert cards.sources(chain) == ["docs"]
    factors = {"factors": {"dataset": ["jaxloop:fables", "mine.csv"]}}
    assert cards.sources(chain | {"chain": factors}) == ["jaxloop:fables", "mine.csv"]
    entities = {
        "study": "multi_entity",
        "entities": ["sciq", "mine"],
        "tasks": {"mine": {"task": "qa", "source": "mine.jsonl"}},
        "public": {"task": "bookcorpus", "source": None},
    }
    assert cards.sources(entities) == ["allenai/sciq", "mine.jsonl", "bookcorpus/bookcorpus"]
    diversity = {
        "study": "diversity",
        "tasks": ["qa"],
        "qa": {"source": "deepmind/narrativeqa", "outside": "gpt4.jsonl"},
        "story": {"sources": ["mintujupally/ROCStories"]},
    }
    assert cards.sources(diversity) == ["deepmind/narrativeqa", "gpt4.jsonl"]


def test_a_run_without_metrics_has_its_factors_and_no_table_of_metrics(tmp_path):
    from tests.recursion import unigram as u
    from tests.recursion.test_driver import go

    specs, data, settings = u.study(1)
    go(tmp_path / "run", specs, data, settings, measure=None)
    written = tmp_path / f"run/texts/chain={specs[0].id}/generation=0000.parquet"
    shutil.copy(written, written.with_name("generation=0001.parquet"))  # not finished yet
    exports.export_run(tmp_path / "run", "csv", tmp_path / "csv")
    assert set(pd.read_csv(tmp_path / "csv" / "texts.csv")["chain"]) == {one.id for one in specs}
    (path,) = exports.export_run(tmp_path / "run", "hub-dataset", tmp_path / "data")
    texts = pd.read_parquet(path / "data" / "texts.parquet")
    assert len(texts) == len(pd.read_csv(tmp_path / "csv" / "texts.csv"))
    factors = texts.drop_duplicates("chain").set_index("chain")[["ratio", "seed"]]
    assert factors.to_dict("index") == {chain.id: dict(chain.factors) for chain in specs}
    info = datasets.load_dataset_builder(str(path), cache_dir=str(tmp_path / "cache"))
    assert list(info.builder_configs) == ["texts"]
    assert "| ratio | 1/4, 1 |" in (path / "README.md").read_text()


def test_pandas_reads_the_csv_files(run, tmp_path):
    exports.export_run(run, "csv", tmp_path / "csv")
    tables = {path.name: pd.read_csv(path) for path in (tmp_path / "csv").iterdir()}
    assert set(tables) == {"metrics.csv", "ledger.csv", "losses.csv", "texts.csv"}
    pd.testing.assert_frame_equal(tables["metrics.csv"], pd.read_csv(run / "metrics.csv"))
    ledger = pd.read_parquet(run / "ledger.parquet")
    np.testing.assert_array_equal(tables["ledger.csv"]["steps"], ledger["steps"])
    np.testing.assert_array_equal(tables["ledger.csv"]["loss"], ledger["loss"])
    texts = tables["texts.csv"]
    assert len(texts) == 96
    file = run / f"texts/chain={ADAPTED}/generation=0001.parquet"
    mine = texts[(texts["chain"] == ADAPTED) & (texts["generation"] == 1)]["text"]
    expected = [t.replace("\r", "\x1a000d") for t in pd.read_parquet(file)["text"]]
    assert mine.fillna("").tolist() == expected


# ---- refusals


def refusal(*args, **options):
    with pytest.raises(ValueError) as caught:
        exports.export_run(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_with_something_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for kind in exports.KINDS:
        options = {} if kind in ("csv", "hub-dataset") else {"chain": ADAPTED}
        said = refusal(run, kind, tmp_path / "full", **options)
        assert said.endswith("is not empty; give a new or an empty directory")
        assert "is no directory" in refusal(run, kind, tmp_path / "full" / "mine.txt", **options)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    exports.export_run(run, "csv", tmp_path / "empty")
    assert "is not empty" in refusal(run, "csv", tmp_path / "empty")


def test_an_export_that_breaks_off_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        with target.written(tmp_path / "out") as work:
            (work / "a").write_text("a")
            raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_a_sentence(run, tmp_path):
    out = tmp_path / "out"
    assert "did you mean peft?" in refusal(run, "pefft", out)
    assert "belongs to --to=hub-dataset" in refusal(run, "peft", out, licence="mit")
    assert "must be a whole number" in refusal(run, "peft", out, generation="x")
    assert "must be float32 or bfloat16" in refusal(run, "hf-model", out, dtype="int8")
    assert "name one with --chain" in refusal(run, "hf-model", out)
    assert "has no such chain; did you mean" in refusal(run, "peft", out, chain=ADAPTED[:-1])
    assert "is not finished; the run has 0 to 1" in refusal(
        run, "peft", out, chain=ADAPTED, generation=7
    )
    assert "entity=3: the chain's" in refusal(run, "peft", out, chain=ADAPTED, entity=3)
    assert "no such directory" in refusal(tmp_path / "none", "csv", out)
    assert not out.exists()


def test_a_run_of_another_version_a_damaged_one_and_one_without_its_base(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    marker = (copy / MARKER).read_text()
    (copy / MARKER).write_text(json.dumps({"format": 2, "jaxloop": "8.0"}))
    assert "format 2, of a later version of jaxloop (8.0)" in refusal(copy, "csv", tmp_path / "o")
    (copy / MARKER).write_text(marker)
    file = copy / saved_run.read_ledger_row(copy, ModelId(ADAPTED, 1))["checkpoint"]
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert "fails its SHA-256" in refusal(copy, "peft", tmp_path / "o", chain=ADAPTED)


def test_a_base_that_has_changed_since_is_refused(run, tmp_path):
    weights_file = run.parent / "base" / "model.safetensors"
    before = weights_file.read_bytes()
    tensors = load_file(weights_file)
    try:
        first = next(iter(tensors))
        save_file(tensors | {first: tensors[first] + 1}, weights_file, metadata={"format": "pt"})
        said = refusal(run, "peft", tmp_path / "o", chain=ADAPTED)
        assert "was trained on other files of" in said
    finally:
        weights_file.write_bytes(before)


def test_models_that_are_no_language_models(tmp_path):
    from tests.recursion import unigram as u
    from tests.recursion.test_driver import go

    chains, data, settings = u.study(2)
    go(tmp_path / "run", chains, data, settings)
    said = refusal(tmp_path / "run", "peft", tmp_path / "o", chain=chains[0].id)
    assert "is no language model" in said
    exports.export_run(tmp_path / "run", "csv", tmp_path / "csv")
    exports.export_run(tmp_path / "run", "hub-dataset", tmp_path / "data")
    assert (tmp_path / "run" / checkpoint.DIRECTORY).is_dir()


def test_the_command_says_what_it_wrote(run, tmp_path):
    words = [str(run), "--to=peft", str(tmp_path / "a"), f"--chain={ADAPTED}", "--generation=0"]
    assert exports.run_action(words) == str(tmp_path / "a")
    for words, said in (
        ([str(run), "x"], "export: --to is missing"),
        ([str(run), "--to=csv"], "not 1 words"),
        ([str(run), "--to=csv", "x", "--wibble"], "export --wibble: is not understood"),
    ):
        with pytest.raises(ValueError, match=said):
            exports.run_action(words)


def test_places_of_selected_texts_and_values_that_are_nan_come_out_as_they_went_in(tmp_path):
    from tests.recursion import test_selection as selection

    specs = selection.chains(("quality", "none"), seeds=(0,))
    selection.go(tmp_path / "run", specs, generations=2)
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    metrics.loc[0, "value"] = float("nan")
    metrics["judge"] = metrics["chain"].map({specs[0].id: "short"})  # the other chain has none
    metrics.to_csv(tmp_path / "run" / "metrics.csv", index=False, na_rep="nan")
    (path,) = exports.export_run(tmp_path / "run", "hub-dataset", tmp_path / "data")
    texts = pd.read_parquet(path / "data" / "texts.parquet")
    for generation in range(2):
        file = tmp_path / f"run/texts/chain={specs[0].id}/generation={generation:04d}.parquet"
        rows = texts[(texts["chain"] == specs[0].id) & (texts["generation"] == generation)]
        stored = pd.read_parquet(file)["selected"]
        assert rows["selected"].tolist() == stored.tolist() and {-1, 0} < set(stored)
    assert texts[texts["chain"] == specs[1].id]["selected"].isna().all()
    judges = dict(zip(texts["chain"], texts["judge"].fillna("-"), strict=True))
    assert judges == {specs[0].id: "short", specs[1].id: "-"}
    assert "| judge | none, short |" in (path / "README.md").read_text()
    assert "`selected` is the place" in (path / "README.md").read_text()
    values = pd.read_parquet(path / "data" / "metrics.parquet")["value"]
    assert values.dtype == float and values.isna().tolist() == [True, *[False] * (len(values) - 1)]
    (path,) = exports.export_run(tmp_path / "run", "hub-dataset", tmp_path / "one", generation=1)
    for name in ("texts", "metrics"):
        assert set(pd.read_parquet(path / "data" / f"{name}.parquet")["generation"]) == {1}


def test_the_current_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (Path("."), tmp_path):
        with pytest.raises(ValueError, match="is the current directory"):
            target.check(place)
