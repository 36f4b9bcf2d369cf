"""The bias study through the command line with small random models: chains against transformers,
what a run leaves, what is refused.
"""

import dataclasses
import html
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest

from jaxloop import cli, config, lm, main
from jaxloop.data import load_texts
from jaxloop.data.sentences import sentences
from jaxloop.lm import family as lm_family
from jaxloop.lm.generation.decode_loop import decode
from jaxloop.lm.io import bpe
from jaxloop.lm.training.gradient_constraint import GradientConstraint
from jaxloop.metrics.embed import default_model
from jaxloop.recursion.driver import refuse_another_study
from jaxloop.recursion.finalise import about_run
from jaxloop.recursion.run import effective
from jaxloop.runtime.tables import read_parquet
from jaxloop.runtime.weights_io import load_tree, save_tree
from jaxloop.studies.bias_amplification import neuron_figures
from jaxloop.studies.bias_amplification import run as bias
from jaxloop.studies.bias_amplification.articles import examples
from jaxloop.studies.bias_amplification.chains import distinct_models
from jaxloop.studies.bias_amplification.family import on_token_ids, token_codec
from jaxloop.studies.bias_amplification.neuron_study import neuron_study
from tests import drawings
from tests.command import call
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

ROOT = pathlib.Path(__file__).resolve().parents[3]
LABELS = ("From the Right", "From the Left", "From the Center")
WORDS = {
    "From the Right": "taxes freedom border market law order family church guns growth".split(),
    "From the Left": (
        "climate workers union health rights justice schools equality welfare reform".split()
    ),
    "From the Center": (
        "vote senate report meeting budget today members session office week".split()
    ),
}


def sequence_classifier(folder, kind, labels):
    """Save a random classifier with MiniLM's tokenizer."""
    torch.manual_seed(0)
    size = dict(vocab_size=30522, max_position_embeddings=130)
    if kind == "roberta":
        c = hf.RobertaConfig(
            **size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=0,
            type_vocab_size=1,
        )
    else:
        c = hf.DistilBertConfig(**size, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    c.id2label, c.label2id = dict(enumerate(labels)), {v: i for i, v in enumerate(labels)}
    model = hf.AutoModelForSequenceClassification.from_config(c)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.2)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(default_model()).save_pretrained(folder)


def gpt2(folder, texts, *, width, layers, heads, context, vocab):
    """Save a random GPT-2 with a byte-level tokenizer, as `transformers` does; its torch model."""
    tokenizer = bpe.train(texts, vocab)
    torch.manual_seed(1)
    ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos, pad_token_id=tokenizer.pad)
    model = hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=context,
            **ids,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    model.save_pretrained(folder)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    return model.eval()


def write_articles(path, each, words):
    """A CSV with the columns of Webis-Bias-Flipper-18."""
    rng, rows = np.random.default_rng(0), []
    for i in range(each * len(LABELS)):
        label = LABELS[i % len(LABELS)]
        lines = [
            " ".join(rng.choice(WORDS[label] + ["the", "of", "and"], words // 2)) for _ in range(2)
        ]
        rows.append(
            dict(
                story_id=i,
                bias=label,
                original_title=" ".join(rng.choice(WORDS[label], 4)),
                original_body="\n".join(lines),
            )
        )
    pd.DataFrame(rows).to_csv(path, index=False)
    return [f"title: {r['original_title']}\nbody: {r['original_body']}" for r in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Articles, a base, a classifier, a detector and a config of a small study in a folder; the
    base's torch model.
    """
    folder = tmp_path_factory.mktemp("bias")
    texts = write_articles(folder / "articles.csv", 10, 24)
    (folder / "base").mkdir()
    torch_model = gpt2(folder / "base", texts, width=16, layers=1, heads=2, context=64, vocab=320)
    sequence_classifier(folder / "classifier", "roberta", ("LABEL_0", "LABEL_1", "LABEL_2"))
    sequence_classifier(
        folder / "detector", "distilbert", ("clean", "mild gibberish", "word salad", "noise")
    )
    (folder / "study.py").write_text(f'''"""A small study of bias."""
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.study = "bias"
    c.data = ConfigDict(dict(source="{folder}/articles.csv", per_label=4))
    c.models = ConfigDict(dict(pool=("{folder}/base",)))
    c.chain = ConfigDict(dict(generations=3, seeds=(0, 1), block=12, share=0.25))
    c.chain.setups = ("greedy", "nucleus", "preserve")
    c.fit = ConfigDict(dict(epochs=1.0, batch_size=8, learning_rate=1e-2, max_length=32))
    c.sample = ConfigDict(dict(max_new_tokens=6, slots=16))
    c.classifier = ConfigDict(dict(model="{folder}/classifier", target="From the Right"))
    c.classifier.labels = {LABELS!r}
    c.measure = ConfigDict(dict(detector="{folder}/detector", metrics=("text_length",)))
    c.gradient_constraint = ConfigDict(dict(direction="fit", gam=50.0, brake=1e4))
    c.gradient_constraint.toward = "From the Right"
    c.gradient_constraint.away = "From the Left"
    c.neurons = ConfigDict(dict(permutations=9))
    c.run = ConfigDict(dict(keep_compiled=False, keep=None, devices=1, chains_per_program=1))
    return c
''')
    return folder, torch_model


def settings(world, *assignments):
    raw = config.read_file(str(world[0] / "study.py"))
    return config.build(
        bias.CONFIG,
        config.override(raw, [tuple(a.split("=", 1)) for a in assignments], bias.CONFIG),
    )


@pytest.fixture(scope="module")
def finished(world):
    """The run directory of the small study, and how many decoding programs it compiled."""
    before = decode._cache_size()
    return ran(world[0], "run"), decode._cache_size() - before


def ran(folder, name, *words):
    """The directory of a run of the small study."""
    words = [f"--config={folder / 'study.py'}", f"--workdir={folder / name}", *words]
    with pytest.MonkeyPatch.context() as patch:
        drawings.sketch(patch)
        # Drawn by tests of its own.
        patch.setattr(neuron_figures, "png", lambda figure: b"")
        assert cli.guarded(main.main, cli.parse(["jaxloop", *words])) == 0
    return folder / name


def test_a_run_leaves_articles_neurons_tables_and_a_page(finished):
    root, _ = finished
    names = {p.name for p in root.iterdir()}
    assert {
        "ledger.parquet",
        "metrics.csv",
        "texts",
        "articles",
        "neurons",
        "tables",
        "figures",
        "base.json",
        "direction.safetensors",
        "report.html",
    } <= names
    metrics = pd.read_csv(root / "metrics.csv")
    assert metrics["chain"].nunique() == 6 and set(metrics["generation"]) == {0, 1, 2}
    wide = metrics.pivot_table(index=["chain", "generation"], columns="metric", values="value")
    assert np.allclose(wide[[f"share({label})" for label in LABELS]].sum(axis=1), 1)
    assert {
        "text_quality_index",
        "text_quality_index(released)",
        "perplexity_base",
        "perplexity_own",
        "projection",
        "bias_component",
        "text_length",
    } <= set(wide)
    assert (
        wide.notna().all().all()
        and (wide["text_quality_index(released)"] <= wide["text_quality_index"].max()).all()
    )
    one = pd.read_parquet(root / "articles/chain=setup-greedy_seed-0/generation=0001.parquet")
    assert (
        len(one) == 12
        and (one["label"] == "From the Right").mean()
        == wide.loc[("setup-greedy_seed-0", 1), "share(From the Right)"]
    )
    page = html.unescape(
        re.sub(r"<svg.*?</svg>", "", (root / "report.html").read_text(), flags=re.DOTALL)
    )
    for said in (
        "Transitions",
        "then From the Left",
        "paired error of one chain",
        "Real articles in training",
        "Neurons",
        "The paper's values",
        "Perplexity under the base",
        "not fine-tuned",
    ):
        assert said in page
    assert {
        "amplification.csv",
        "transitions.csv",
        "changes.csv",
        "real_shares.csv",
        "neurons_counts.csv",
        "classifiers.csv",
        "references.csv",
    } <= {p.name for p in (root / "tables").iterdir()}
    shares = pd.read_csv(root / "tables" / "real_shares.csv").set_index(["setup", "generation"])
    assert shares.loc[("preserve", 1), ["of_real", "of_mix"]].tolist() == [3 / 12, 3 / 15]
    known = pd.read_csv(root / "tables" / "references.csv").set_index(["of", "metric"])["value"]
    real = known["real articles"]
    assert real[real.index.str.startswith("share(")].sum() == pytest.approx(1)
    assert known[("base", "share(From the Right)")] <= 1


def test_setups_that_train_alike_share_generation_0_and_replicates_differ(finished):
    root, _ = finished
    weights = {
        name: load_tree(root, f"checkpoints/generation=0000/adapters/chain=setup-{name}")
        for name in ("greedy_seed-0", "nucleus_seed-0", "preserve_seed-0", "greedy_seed-1")
    }

    def same(a, b):
        leaves = zip(jax.tree.leaves(weights[a]), jax.tree.leaves(weights[b]), strict=True)
        return all(np.array_equal(x, y) for x, y in leaves)

    assert (
        same("greedy_seed-0", "preserve_seed-0")
        and same("greedy_seed-0", "nucleus_seed-0")
        and not same("greedy_seed-0", "greedy_seed-1")
    )

    def text(chain):
        path = root / f"texts/chain=setup-{chain}/generation=0000.parquet"
        return read_parquet(path, ["text"])["text"]

    assert text("greedy_seed-0") == text("preserve_seed-0") != text("nucleus_seed-0")


def test_prompts_of_all_lengths_share_one_program_per_decoder(world, finished):
    prepared = bias.prepare(settings(world))
    assert len({len(p) for mine in prepared.prompts.values() for p in mine}) > 3
    assert finished[1] == 2  # greedy and nucleus


def test_articles_are_what_transformers_continues_block_by_block(world, finished):
    """Generation 1 is what torch continues greedily, block by block, with the weights on disk."""
    folder, _ = world
    prepared = bias.prepare(settings(world))
    model = lm.load(folder / "base")
    weights = load_tree(
        finished[0], "checkpoints/generation=0001/adapters/chain=setup-greedy_seed-0"
    )
    lm.save(model._replace(params=jax.tree.map(jax.numpy.asarray, weights)), folder / "generation1")
    reference = hf.AutoModelForCausalLM.from_pretrained(folder / "generation1").eval()
    written = read_parquet(finished[0] / "texts/chain=setup-greedy_seed-0/generation=0001.parquet")
    chosen = prepared.articles.chosen.set_index("id")

    def encode(text):
        return model.tokenizer.encode([text], special=False)[0]

    for name, text, tokens in list(
        zip(written["prompt"], written["text"], written["tokens"], strict=True)
    )[:4]:
        title, body = chosen.loc[name, "title"], chosen.loc[name, "body"]
        ids = encode(body)
        new, count = [], 0
        for block in [
            encode(f"title: {title}"),
            *(ids[at : at + 12] for at in range(0, len(ids), 12)),
        ]:
            made = reference.generate(
                torch.tensor([block]),
                attention_mask=torch.ones(1, len(block)),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=model.tokenizer.pad,
            )
            made = made[0, len(block) :].tolist()
            count += len(made)
            new += [t for t in made if t != model.tokenizer.eos]
        assert (
            text == f"title: {title}\nbody: {model.tokenizer.decode([new])[0]}" and tokens == count
        )


def test_training_is_that_of_the_family_on_the_lines_of_the_articles(world, finished):
    """Generation 1 goes on from generation 0's weights, on generation 0's articles, without EOS:
    the family, called directly, makes the same weights.
    """
    s = settings(world)
    prepared = bias.prepare(s)
    chain = next(c for c in prepared.chains if c.id == "setup-greedy_seed-0")
    model, code = lm.load(world[0] / "base"), token_codec(prepared.tokenizer)
    texts = read_parquet(
        finished[0] / "texts/chain=setup-greedy_seed-0/generation=0000.parquet", ["text"]
    )["text"]
    from jaxloop.core.keys import phase_key
    from jaxloop.recursion.plan import index_plan, on_host

    order = on_host(index_plan(chain.workflow, chain.key, 1, generations=3)).position.tolist()
    rows = [
        ids for i in order for ids in examples(texts[i], "released", code, code.start, code.blank)
    ]
    assert not any(model.tokenizer.eos in ids for ids in rows if ids != (code.blank,))
    key = jax.random.fold_in(phase_key(chain.key, 1, "fit"), 0)
    start = load_tree(finished[0], "checkpoints/generation=0000/adapters/chain=setup-greedy_seed-0")
    task = lm_family.FitTask(key, [e[1:] for e in rows], [e[:1] for e in rows], None, start)
    found = lm_family.fit(
        on_token_ids(model, ends=False), [task], effective(prepared.driver.fit, chain.fit)
    )[0]
    kept = load_tree(finished[0], "checkpoints/generation=0001/adapters/chain=setup-greedy_seed-0")
    for a, b in zip(jax.tree.leaves(found.weights), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_perplexities_are_those_of_torch(world, finished):
    _, torch_model = world
    prepared = bias.prepare(settings(world))
    table = pd.read_parquet(
        finished[0] / "articles/chain=setup-nucleus_seed-1/generation=0002.parquet"
    )
    texts = read_parquet(
        finished[0] / "texts/chain=setup-nucleus_seed-1/generation=0002.parquet", ["text"]
    )["text"]
    for text, found in list(zip(texts, table["perplexity_base"], strict=True))[:4]:
        values = []
        for piece in re.split(r"\n\s*\n", text):
            ids = torch.tensor([prepared.tokenizer.encode([piece], special=False)[0][:64]])
            if ids.shape[1] > 1:
                with torch.no_grad():
                    values.append(float(torch_model(ids, labels=ids).loss.exp()))
        assert found == pytest.approx(np.mean(values), rel=1e-3)


@pytest.mark.slow
def test_the_brake_holds_the_weights_back_and_the_papers_loss_is_said_not_to(world):
    root = ran(world[0], "held", "--config.chain.setups=greedy,constrained,braked")
    metrics = pd.read_csv(root / "metrics.csv").pivot_table(
        index=["setup", "generation"], columns="metric", values="value"
    )
    assert (
        metrics.loc[("constrained", 0), "bias_component"]
        != metrics.loc[("greedy", 0), "bias_component"]
    )
    held = metrics["bias_component"]
    for generation in range(3):
        # What leads away from the bias is let be.
        assert held[("braked", generation)] < 0.05 * abs(held[("greedy", generation)]), held
    page = " ".join((root / "report.html").read_text(encoding="utf-8").split())
    assert "It penalises the slope, not the component" in page
    last = held[("braked", 2)], held[("greedy", 2)]
    side = "further" if last[0] > last[1] else "less far"
    assert f"Here braked ends {side} along it than greedy: {last[0]:.4g} against" in page
    ledger = pd.read_parquet(root / "ledger.parquet")
    said = {
        chain: json.loads(fit)["constraint"]
        for chain, fit in zip(ledger["chain"], ledger["fit"], strict=True)
    }
    assert said["setup-greedy_seed-0"] is None and said["setup-constrained_seed-0"] == {
        "lam": 0.0,
        "gam": 50.0,
        "per": "direction",
    }


def test_neurons_on_disk_give_the_study_of_the_report(finished):
    root, _ = finished
    versions = [
        (c.parent.name.removeprefix("chain="), int(c.stem.split("=")[1]))
        for c in sorted((root / "neurons").rglob("*.parquet"))
    ]
    assert len(versions) == 6 * 3
    read = [
        pd.read_parquet(root / f"neurons/chain={c}/generation={g:04d}.parquet") for c, g in versions
    ]
    shares = (
        pd.read_csv(root / "metrics.csv")
        .query("metric == 'share(From the Right)'")
        .set_index(["chain", "generation"])["value"]
    )
    study = neuron_study(
        {"weight": np.stack([t["weight"].to_numpy().reshape(1, 16) for t in read])},
        {"bias": 100 * shares.loc[versions].to_numpy()},
        [chain for chain, _ in versions],
        [generation for _, generation in versions],
        permutations=0,
        modes=("differences",),
    )
    tests = pd.read_parquet(root / "tables" / "neurons_tests.parquet").query(
        "mode == 'differences' and relation == 'weight-bias'"
    )
    np.testing.assert_allclose(tests["slope"], study.tests["slope"], rtol=1e-9)


@pytest.mark.slow
def test_a_base_and_a_classifier_are_made_of_articles_that_no_chain_sees(world, tmp_path, capsys):
    words = [
        "--config.data.per_label=1",
        "--config.chain.setups=greedy,accumulate",
        "--config.chain.seeds=0",
        "--config.adapt.articles=2",
        "--config.measure.quality=false",
    ]
    words += [
        "--config.classifier.model=none",
        "--config.classifier.labels=",
        "--config.classifier.train=head",
        "--config.classifier.epochs=1",
        "--config.gradient_constraint.direction=none",
    ]
    words += [
        "--config.neurons.measure=false",
        "--config.chain.variant=paper",
        "--config.measure.base=false",
        "--config.chain.generations=2",
        "--config.classifier.max_length=32",
    ]
    code, _, said = call(
        capsys, f"--config={world[0] / 'study.py'}", f"--workdir={tmp_path / 'run'}", *words
    )
    assert code == 0, said
    fits = json.loads((tmp_path / "run/classifier/fits.json").read_text())
    assert sum(fits[0]["counts"].values()) == 30 - 3 - 2 and sum(fits[0]["split"]) == 25
    base, adapted = lm.load(world[0] / "base"), lm.load(tmp_path / "run/base")
    assert (
        not np.array_equal(base.params["embed"], adapted.params["embed"])
        and adapted.tokenizer.eos == base.tokenizer.eos
    )
    assert "macro-F1 of guessing the largest class" in (tmp_path / "run/report.html").read_text()


def test_the_plan_counts_and_writes_nothing(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setups = "--config.chain.setups=greedy,nucleus,preserve,constrained,braked"
    code, out, _ = call(capsys, f"--config={world[0] / 'study.py'}", setups, "--plan")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert (
        rows["models"] == "30 versions, 26 of them different"
    )  # two seeds with one generation 0 for three setups, one for the constrained
    assert "FLOP to train" in rows["arithmetic"] and "GB at most" in rows["disk"]


@pytest.mark.parametrize("variant", ["", ":classifier", ":center", ":constrained"])
def test_the_published_plan_needs_neither_models_nor_articles(variant, tmp_path):
    """Hours of named cards, from the published shapes of GPT-2, and what is assumed."""
    s = config.build(
        bias.CONFIG, config.read_file(f"{ROOT}/configs/bias_amplification.py{variant}")
    )
    s = s.model_copy(update={"models": s.models.model_copy(update={"pool": (f"{tmp_path}/gpt2",)})})
    rows = bias.plan(s)
    assumed = [line for name, line in rows if name == "assumed"]
    assert "published shapes" in assumed[0] and "'data_public.csv' is not here" in assumed[1]
    named = dict(rows)
    assert {f"time on one {card}" for card in ("h100", "h200", "a100")} <= set(named)
    assert re.fullmatch(
        r"at least .* by its limits \(.* to train, .* to write\), about .* at 30% of them",
        named["time on one h100"],
    )
    assert "1,518 articles" in assumed[1] or variant == ":center"


def test_a_plan_without_the_model_counts_about_what_one_with_it_counts(world, tmp_path):
    """Shapes and articles are here, the tokenizer is not: tokens by characters."""
    whole = dict(bias.plan(settings(world)))
    published = settings(world, f"models.pool={tmp_path}/gpt2")
    rows = dict(bias.plan(published))
    assert rows["models"] == whole["models"] and "published shapes" in rows["assumed"]
    assert "articles of" not in rows["assumed"]
    with pytest.raises(ValueError, match="does not exist"):
        bias.plan(settings(world, f"models.pool={tmp_path}/gpt3"))


def test_a_study_goes_on_in_its_own_directory_alone(world, tmp_path):
    """The fit settings of this study have a field that others lack."""
    prepared = bias.prepare(settings(world))

    def about(fit):
        run = SimpleNamespace(
            root=tmp_path,
            chains=prepared.chains,
            data={},
            fingerprints={},
            environment={},
            settings=dataclasses.replace(prepared.driver, fit=fit),
        )
        return run, about_run(run, {})

    fit = prepared.driver.fit
    run, now = about(fit)
    # As it is read back from the disk.
    refuse_another_study(run, json.loads(json.dumps(now)), now)
    _, other = about(fit.replace(constraint=GradientConstraint()))
    with pytest.raises(ValueError, match="holds another study .fit.constraint"):
        refuse_another_study(run, other, now)


def test_the_papers_66_versions_are_62_models(world):
    s = settings(
        world,
        "chain.setups=greedy,beam,nucleus,overfit,preserve,accumulate",
        "chain.seeds=42",
        "chain.generations=11",
        "gradient_constraint.direction=none",
    )
    assert distinct_models(bias.prepare(s).chains, 11) == 62


def one_class(folder, tmp_path):
    """Articles of one label, and of three of which those of two are short."""
    table = pd.read_csv(folder / "articles.csv")
    table[table["bias"] == LABELS[0]].to_csv(tmp_path / "one.csv", index=False)
    short = table["bias"] != LABELS[0]
    table.loc[short, ["original_title", "original_body"]] = "a", "of"
    table.to_csv(tmp_path / "long_of_one.csv", index=False)


def directions(folder, tmp_path):
    """Directions of the base's shapes: without length, without end, and of another base."""
    weights = lm.load(folder / "base").params
    for name, value in (("zero", 0.0), ("endless", np.inf), ("run_before/direction", 1.0)):
        tree = jax.tree.map(lambda x, value=value: np.full(x.shape, value, np.float32), weights)
        save_tree(tmp_path, name, tree)
    stored = {"identity": {"models.pool there/base": "abc" * 20}}
    (tmp_path / "run_before/config.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--config.data.source={tmp}/one.csv"],
            r"config.data.label_column = 'bias': the 10 articles have the one label 'From the "
            r"Right'",
        ),
        (
            ["--config.chain.block=200"],
            r"config.data.short = 'refuse': article \d+ \('.*'\) and \d+ others are shorter than "
            r"a block of 200 tokens",
        ),
        (
            ["--config.classifier.labels=Right,Left,Center"],
            r"its classes are 'Right', 'Left', 'Center', the data's labels are .*classifier.labels",
        ),
        (
            ["--config.classifier.target=Right"],
            r"config.classifier.target = 'Right' is not a label of the data",
        ),
        (
            ["--config.classifier.model=none"],
            r"config.classifier.model = none: 6 articles labelled .* at least 7 are needed",
        ),
        (["--config.chain.generations=1"], r"lags"),
        (["--config.neurons.tensor=up"], r"tensor='up'"),
        (
            ["--config.neurons.scheme=seeds"],
            r"config.neurons.scheme = 'seeds': 2 seeds give 2 arrangements .* needs at least 4 "
            r"seeds in each setup; add chain.seeds or set it to 'none'",
        ),
        (
            ["--config.neurons.scheme=chains"],
            r"config.neurons.scheme = 'chains': the setups of one seed share",
        ),
        (
            ["--config.sample.max_new_tokens=60"],
            r"config.chain.block = 12: prompts of up to \d+ tokens and 60 new ones do not fit "
            r"the context",
        ),
        (["--config.fit.max_length=65"], r"config.fit.max_length = 65: exceeds the context"),
        (
            ["--config.measure.metrics=held_out_loss"],
            r"config.measure.metrics has 'held_out_loss', which needs losses",
        ),
        (
            ["--config.gradient_constraint.direction={tmp}/none.safetensors"],
            r"config.gradient_constraint.direction = .* is no .safetensors file of weights, "
            r"nor 'fit'",
        ),
        (
            ["--config.gradient_constraint.direction={tmp}/other.safetensors"],
            r"direction: \['embed'\] has shape \(2, 2\)",
        ),
        (
            ["--config.gradient_constraint.direction={tmp}/zero.safetensors"],
            r"config.gradient_constraint.direction = .*zero.safetensors': direction: its norm is "
            r"0.0; it must point somewhere",
        ),
        (
            ["--config.gradient_constraint.direction={tmp}/endless.safetensors"],
            r"direction: its norm is (inf|nan); it must point somewhere",
        ),
        (
            ["--config.gradient_constraint.direction={tmp}/run_before/direction.safetensors"],
            r"direction.safetensors': is of a run with another base, there/base \(SHA-256 "
            r"abcabcabcabc, this run's has [0-9a-f]+\); fit it anew with 'fit', or take",
        ),
        (
            ["--config.data.source={tmp}/long_of_one.csv", "--config.data.short=drop"],
            r"config.data.label_column = 'bias': of the articles that are not shorter than a "
            r"block of 12 tokens all have the one label 'From the Right'; at least two",
        ),
        (
            ["--config.gradient_constraint.toward=Right"],
            r"config.gradient_constraint.toward = 'Right': no chosen article has this label",
        ),
        (["--config.adapt.articles=19"], r"config.adapt.articles = 19: 18 articles are left"),
        (["--config.models.pool={tmp}/nowhere"], r"model: directory .*nowhere does not exist"),
    ],
)
def test_refusals_before_anything_is_compiled_or_written(world, tmp_path, capsys, words, said):
    one_class(world[0], tmp_path)
    save_tree(tmp_path, "other", {"embed": np.ones((2, 2), np.float32)})
    directions(world[0], tmp_path)
    words = [w.format(tmp=tmp_path) for w in words]
    code, out, err = call(
        capsys, f"--config={world[0] / 'study.py'}", f"--workdir={tmp_path / 'run'}", *words
    )
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert err.startswith("jaxloop: ") and re.search(said, err), err
    assert not (tmp_path / "run").exists()


def test_variants_of_the_shipped_config_are_valid_settings():
    generations = dict.fromkeys(("", ":classifier", ":center", ":constrained"), 11)
    for variant, expected in (generations | {":tiny": 5, ":small": 7}).items():
        raw = config.read_file(f"{ROOT}/configs/bias_amplification.py{variant}")
        assert config.build(bias.CONFIG, raw).chain.generations == expected
    with pytest.raises(ValueError, match="variant 'large' is not allowed"):
        config.read_file(f"{ROOT}/configs/bias_amplification.py:large")


def test_the_tiny_config_reads_presidents_speeches():
    raw = config.read_file(f"{ROOT}/configs/bias_amplification.py:tiny")
    s = config.build(bias.CONFIG, config.override(raw, [("measure.quality", "false")], bias.CONFIG))
    prepared = bias.prepare(s)
    counts = prepared.articles.chosen["label"].value_counts().to_dict()
    assert counts == {"D": s.data.per_label, "R": s.data.per_label} and len(prepared.chains) == 24
    # Without a column of titles the first sentence is the title, and no part of the body.
    parts = [sentences(text) for text in load_texts("jaxloop:speeches")["text"]]
    whole = {(" ".join(rest)[:40], first[:40]) for first, *rest in parts}
    rows = zip(prepared.articles.chosen["body"], prepared.articles.chosen["title"], strict=True)
    assert all((body[:40], title[:40]) in whole for body, title in rows)


# ---- the published study, with random weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """1,518 articles with the columns of the published data, a GPT-2 of 12 layers and reduced
    width, random classifier and detector.
    """
    folder = tmp_path_factory.mktemp("published")
    texts = write_articles(folder / "data_public.csv", 520, 150)
    (folder / "gpt2").mkdir()
    gpt2(folder / "gpt2", texts[:200], width=24, layers=12, heads=2, context=1024, vocab=512)
    sequence_classifier(folder / "classifier", "roberta", ("LABEL_0", "LABEL_1", "LABEL_2"))
    sequence_classifier(
        folder / "detector", "distilbert", ("clean", "mild gibberish", "word salad", "noise")
    )
    return folder


def command(folder, workdir, *more):
    here = [
        f"--config={ROOT}/configs/bias_amplification.py",
        f"--config.data.source={folder}/data_public.csv",
        f"--config.models.pool={folder}/gpt2",
    ]
    here += [
        f"--config.classifier.model={folder}/classifier",
        f"--config.measure.detector={folder}/detector",
        "--config.classifier.max_length=128",
        "--config.run.chains_per_program=none",
    ]
    return [
        sys.executable,
        "-m",
        "jaxloop.main",
        *here,
        *([f"--workdir={workdir}"] if workdir else []),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_published_config_plans_starts_is_killed_and_resumes(published, tmp_path):
    variables = os.environ | {"JAXLOOP_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    def run(words):
        return subprocess.run(
            words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=2400
        )

    planned = run(command(published, None, "--plan"))
    assert planned.returncode == 0, planned.stderr
    assert (
        "1,518 in every generation" in planned.stdout
        and "264 versions, 248 of them different" in planned.stdout
    )
    less = [
        "--config.data.per_label=1",
        "--config.chain.seeds=42",
        "--config.chain.generations=3",
        "--config.fit.epochs=1",
        "--config.chain.overfit_epochs=2",
    ]
    less += ["--config.neurons.permutations=9", "--config.chain.beams=2"]
    process = subprocess.Popen(
        command(published, tmp_path / "killed", *less),
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "killed" / "run.log"
    while not (log.exists() and "generation 1 of 3: sample" in log.read_text()):
        assert process.poll() is None
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("killed", "whole"):
        done = run(command(published, tmp_path / name, *less))
        assert done.returncode == 0, done.stderr
    same = [
        "metrics.csv",
        "tables/amplification.csv",
        *(
            str(p.relative_to(tmp_path / "whole"))
            for p in (tmp_path / "whole/texts").rglob("*.parquet")
        ),
    ]
    for name in same:
        assert (tmp_path / "killed" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes(), name
    assert (tmp_path / "killed" / "report.html").exists()
