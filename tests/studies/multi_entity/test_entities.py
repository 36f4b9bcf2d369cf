"""The multi-entity study on files: who reads whom, to the letter; measures; the command line."""

import dataclasses
import json
import re

import jax
import numpy as np
import pandas as pd
import pytest

from jaxloop import config, lm
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.main import main
from jaxloop.runtime import tables
from jaxloop.studies.common import models as base_models
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import measure
from jaxloop.studies.multi_entity import prepare as entities_setup
from jaxloop.studies.multi_entity import run as entities
from tests import drawings
from tests.encoders import letters

WORDS = (
    "the array of a function returns values shape matches input unless axis is given and result "
    "masked where data type float order copy view"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Question files one, two and other, a public file of texts, and a random one-layer model."""
    place = tmp_path_factory.mktemp("entities")
    rng = np.random.default_rng(0)

    def sentence(low, high):
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    everything = []
    for name in ("one", "two", "other"):
        rows = [
            {
                "question": sentence(2, 5),
                "answer": sentence(3, 9),
                "split": "test" if i % 5 == 0 else "train",
            }
            for i in range(60)
        ]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        everything += [row["question"] + " " + row["answer"] for row in rows]
    texts = [sentence(8, 16) for _ in range(60)]
    (place / "public.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
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
    lm.save(
        Model(
            model_config, init(jax.random.key(0), model_config), bpe.train(everything + texts, 300)
        ),
        place / "base",
    )
    return place


def settings(folder, *assignments, **sections):
    """Settings of a small study of the files `one` and `two`; a section given here is merged into
    it, `tasks` takes its place.
    """
    raw = {
        "study": "multi_entity",
        "entities": ("one", "two"),
        "tasks": {
            name: {"task": "qa", "source": f"{folder}/{name}.jsonl", "prompt": "{question}:"}
            for name in ("one", "two")
        },
        "public": {"task": "text", "source": f"{folder}/public.jsonl", "prompt_words": 3},
        "exchange": {
            "generations": 3,
            "size": 16,
            "synthetic": 10,
            "alphas": (0, 0.5),
            "betas": (0.5,),
            "control": None,
        },
        "models": {"pool": (f"{folder}/base",)},
        "fit": {
            "mode": "lora",
            "steps": 6,
            "batch_size": 8,
            "max_length": 32,
            "learning_rate": 5e-2,
            "length_buckets": 1,
            "warmup_steps": 1,
        },
        "sample": {"max_new_tokens": 8, "max_prompt": 16, "slots": 8},
        "measure": {"test_texts": 6, "probes": 0},
        "theory": {"designs": 2, "grid": 5},
        "run": {"keep_compiled": False, "devices": 1},
    }
    for name, value in sections.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) and name != "tasks" else value
    pairs = [a.split("=", 1) for a in assignments]
    return config.build(entities.CONFIG, config.override(raw, pairs, entities.CONFIG))


def ran(folder, root, *assignments, **sections):
    """Runs a study; its texts {(alpha, entity, generation): [texts]} and metrics."""
    s = settings(folder, *assignments, **sections)
    assert entities.run(s, root) == 0
    out = {}
    for chain in plan_chains.exchanges(entities_setup.prepare(s).chains):
        for generation in range(s.exchange.generations):
            table = tables.read_parquet(
                root / f"texts/chain={chain.id}/generation={generation:04d}.parquet"
            )
            for entity in range(len(s.entities)):
                mine = [
                    t for t, e in zip(table["text"], table["entity"], strict=True) if e == entity
                ]
                out[dict(chain.factors)["alpha"], entity, generation] = mine
    return out, pd.read_csv(root / "metrics.csv")


def losses_of(metrics, alpha, entity):
    rows = metrics[
        (metrics.alpha == alpha)
        & (metrics.entity == entity)
        & metrics.metric.str.startswith("task_loss(task=one")
    ]
    return rows.sort_values("generation")["value"].tolist()


# ---- who reads whom


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        leave_out_report(patch)
        return ran(folder, tmp_path_factory.mktemp("pair") / "run")


def leave_out_report(patch):
    """The report and the linear model in it take longer than the runs that are compared."""
    patch.setattr(entities.report, "write", lambda config, prepared, root, **_: root)


@pytest.fixture
def unreported(monkeypatch):
    leave_out_report(monkeypatch)


@pytest.mark.usefixtures("unreported")
def test_alpha_zero_has_exactly_no_effect_across_entities(folder, tmp_path, pair):
    texts, metrics = pair
    changed = {"one": {"task": "qa", "source": f"{folder}/one.jsonl", "prompt": "{question}:"}}
    changed |= {"two": {"task": "qa", "source": f"{folder}/other.jsonl", "prompt": "{question}:"}}
    others, other_metrics = ran(folder, tmp_path / "run", tasks=changed)
    for generation in range(3):
        assert texts[0.0, 0, generation] == others[0.0, 0, generation]
        assert texts[0.0, 1, generation] != others[0.0, 1, generation]
    # Where alpha is not zero, what the other entity trained on arrives one generation later.
    assert texts[0.5, 0, 0] == others[0.5, 0, 0] and texts[0.5, 0, 2] != others[0.5, 0, 2]
    assert (
        losses_of(metrics, 0.0, 0) == losses_of(other_metrics, 0.0, 0)
        and len(losses_of(metrics, 0.0, 0)) == 3
    )
    assert losses_of(metrics, 0.5, 0)[2] != losses_of(other_metrics, 0.5, 0)[2]


@pytest.mark.usefixtures("unreported")
def test_one_entity_is_a_chain_of_its_own_text_for_text(folder, tmp_path):
    """K = 1 against the same plan carried out by hand, and against an entity that reads itself
    alone beside another one.
    """
    from jaxloop.core.keys import chain_key, phase_key
    from jaxloop.lm import family
    from jaxloop.recursion import workflow as wf
    from jaxloop.recursion.plan import index_plan, on_host
    from jaxloop.recursion.sources import human_stream, sampling_prompts

    one = {"one": {"task": "qa", "source": f"{folder}/one.jsonl", "prompt": "{question}:"}}
    s = settings(folder, "exchange.alphas=0.5", "exchange.past=none", entities=("one",), tasks=one)
    prepared = entities_setup.prepare(s)
    assert entities.run(s, tmp_path / "run") == 0
    chain, data = prepared.chains[0], prepared.data
    model, fit, sample = (
        base_models.load_model(s.models, s.run, s.models.pool[0]),
        prepared.driver.fit,
        prepared.driver.sample,
    )
    options = dataclasses.replace(
        base_models.generate_options(s.fit), prompt_len=s.sample.max_prompt
    )
    written, weights = [], None
    for generation in range(3):
        plan = on_host(index_plan(chain.workflow, chain_key(0), generation, generations=3))
        stream = human_stream(chain, data, 3)
        texts, prompts = [], []
        for source, born, index in zip(plan.source, plan.generation, plan.position, strict=True):
            if source == wf.SYNTHETIC:
                prompt, text = written[born][index]
            else:
                d, row = (
                    (data["one"], stream[index]) if source == wf.HUMAN else (data["public"], index)
                )
                prompt, text = d.prompt(int(row)), d.texts[int(row)]
            texts.append(text)
            prompts.append(prompt)
        key = jax.random.fold_in(phase_key(chain_key(0), generation, "fit"), 0)
        task = family.FitTask(key, texts, prompts, None, weights)
        weights = family.fit(model, [task], fit, base_models.train_options(s.run))[0].weights
        asked = sampling_prompts(chain, data, generation, 0, 10)
        key = jax.random.fold_in(phase_key(chain_key(0), generation, "sample"), 0)
        said = family.generate(
            model, [family.GenerateTask(key, weights, asked, np.arange(10))], sample, options
        )[0].texts
        written.append(list(zip(asked, said, strict=True)))
        table = tables.read_parquet(
            tmp_path / f"run/texts/chain={chain.id}/generation={generation:04d}.parquet"
        )
        assert list(zip(table["prompt"], table["text"], strict=True)) == written[-1]
    beside, _ = ran(
        folder,
        tmp_path / "beside",
        "exchange.alphas=0.5",
        "exchange.past=none",
        "exchange.mixing=self_only",
    )
    for generation in range(3):
        assert beside[0.5, 0, generation] == [text for _, text in written[generation]]


@pytest.mark.slow
def test_entities_with_bases_of_their_own_and_full_fine_tuning(folder, tmp_path):
    model_config = ModelConfig(
        "gpt2",
        vocab_size=300,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=64,
        norm="layer",
        activation="gelu_new",
        gated=False,
        positions="learned",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )
    tokenizer = lm.load(folder / "base").tokenizer
    lm.save(
        Model(model_config, init(jax.random.key(1), model_config), tokenizer), tmp_path / "other"
    )
    pool = (str(folder / "base"), str(tmp_path / "other"))
    texts, metrics = ran(
        folder,
        tmp_path / "run",
        models={"pool": pool},
        fit={"mode": "full"},
        exchange={"alphas": (0.5,), "generations": 2},
    )
    assert len(texts[0.5, 1, 1]) == 10 and metrics.value.notna().all()
    ledger = pd.read_parquet(tmp_path / "run/ledger.parquet")
    assert dict(zip(ledger.entity, ledger.base, strict=True)) == dict(enumerate(pool))
    assert set(ledger[(ledger.generation == 1) & (ledger.source == "synthetic")].from_entity) == {
        0,
        1,
    }


# ---- measures


def gaps(metrics, alpha):
    """How much higher the loss on the other's task is than on the own, of each seed at the end."""
    ends = metrics[(metrics.generation == 2) & (metrics.alpha == alpha)]
    names = {name: f"task_loss(task={name})" for name in ("one", "two")}
    own = ends.entity.map({0: names["one"], 1: names["two"]}) == ends.metric
    losses = ends[ends.metric.isin(names.values())]
    mean = losses.groupby(["seed", own[losses.index]])["value"].mean().unstack()
    return (mean[False] - mean[True]).tolist()


def test_losses_similarity_and_the_page(folder, tmp_path, pair, monkeypatch):
    """Losses against `family.loss` one by one, similarity against cosines by hand, and the whole
    page from the files.
    """
    from jaxloop.lm import family
    from jaxloop.metrics import embed
    from jaxloop.runtime import weights_io

    drawings.sketch(monkeypatch)
    monkeypatch.setattr(embed, "embed", letters)
    monkeypatch.setattr(embed, "load_embedder", lambda model=None: letters)
    changes = {
        "measure": {
            "probes": 4,
            "similarity_every": 2,
            "metrics": ("text_length", "output_similarity"),
        },
        "exchange": {"seeds": (0, 1), "control": "self_only"},
    }
    _, metrics = ran(folder, tmp_path / "run", **changes)
    s = settings(folder, **changes)
    prepared = entities_setup.prepare(s)
    # Prompts that are answered besides change nothing of what is trained on.
    for chain in plan_chains.exchanges(prepared.chains):
        if chain.seed == 0:
            table = tables.read_parquet(
                tmp_path / f"run/texts/chain={chain.id}/generation=0002.parquet"
            )
            for entity in (0, 1):
                mine = [
                    t for t, e in zip(table["text"], table["entity"], strict=True) if e == entity
                ]
                alone = pair[0][dict(chain.factors)["alpha"], entity, 2]
                assert len(mine) == 10 + 3 * 4 and mine[:10] == alone
    chain = next(c for c in prepared.chains if dict(c.factors)["alpha"] == 0.5 and c.seed == 1)
    weights = weights_io.load_tree(
        tmp_path / "run", f"checkpoints/generation=0002/adapters/chain={chain.id},entity=1"
    )
    model = base_models.load_model(s.models, s.run, s.models.pool[0])
    for name, (some, prompts) in prepared.tests.items():
        result = family.loss(model, [family.LossTask(weights, some, prompts)], prepared.driver.fit)[
            0
        ]
        found = metrics[
            (metrics.chain == chain.id)
            & (metrics.entity == 1)
            & (metrics.generation == 2)
            & (metrics.metric == f"task_loss(task={name})")
        ]
        np.testing.assert_allclose(found.value, result.nll.sum() / result.tokens.sum(), rtol=1e-5)
    assert sorted(p.name for p in (tmp_path / "run/similarity").iterdir()) == [
        "generation=0000.parquet",
        "generation=0002.parquet",
    ]
    table = pd.read_parquet(tmp_path / "run/similarity/generation=0002.parquet")
    found = measure.completions(tmp_path / "run", chain, 2)
    for name in ("one", "two", "public"):
        a, b = (letters(some) for some in found.by_set[name])
        assert len(a) == 4
        cosine = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        row = table[(table.chain == chain.id) & (table.set == name)]
        np.testing.assert_allclose(row.value, cosine, rtol=1e-5)
        asked = tables.read_parquet(
            tmp_path / f"run/texts/chain={chain.id}/generation=0002.parquet"
        )
        assert set(prepared.data[name].prompts[:4]) <= set(asked["prompt"])
    page = (tmp_path / "run/report.html").read_text()
    for words in (
        "Transfer, damage, homogenisation",
        "Every model on every task",
        "Beside the linear model",
        "Beside the paper",
        "Completions in two dimensions",
    ):
        assert words in page
    summary = pd.read_csv(tmp_path / "run/effects.csv")
    assert set(summary.effect) - {"alike_since"} == {
        effect + against
        for effect in ("transfer", "transfer_share", "damage", "alike_losses", "alike_outputs")
        for against in ("", "_own_text")
    }
    counts = summary.set_index("effect")["n"]
    for name, alpha, mixing in (("", 0, "complete"), ("_own_text", 0.5, "self_only")):
        # A model that is no better at its own task has no gap of which there could be a share.
        there = all(gap > 0 for gap in gaps(metrics[metrics.mixing == mixing], alpha))
        assert counts.pop(f"transfer_share{name}") == (2 if there else 0)
    assert (counts == 2).all()
    assert set(summary.against[summary.effect == "transfer"]) == {"alpha = 0"}
    assert set(metrics.mixing[metrics.alpha == 0.5]) == {"complete", "self_only"}
    assert set(metrics.mixing[metrics.alpha == 0]) == {"complete"}
    # Transfer against own text by hand, from metrics.csv.
    by_hand = []
    for seed in (0, 1):
        ends = metrics[(metrics.generation == 2) & (metrics.alpha == 0.5) & (metrics.seed == seed)]
        cross = ends[
            ((ends.entity == 0) & (ends.metric == "task_loss(task=two)"))
            | ((ends.entity == 1) & (ends.metric == "task_loss(task=one)"))
        ]
        of = cross.groupby("mixing")["value"].mean()
        by_hand.append(of["self_only"] - of["complete"])
    row = summary[summary.effect == "transfer_own_text"]
    assert row.against.tolist() == ["own text"]
    np.testing.assert_allclose(row["mean"], np.mean(by_hand), rtol=1e-9)
    for words in ("against own text (the control)", "against alpha = 0 (the paper"):
        assert words in page
    theory = pd.read_csv(tmp_path / "run/theory.csv")
    columns = {"linear_transfer_own_text", "language_model_transfer_alpha_0"}
    columns |= {f"{of}_transfer_share_own_text" for of in ("linear", "language_model")}
    assert columns <= set(theory.columns)
    assert len(theory) == 2 and len(list((tmp_path / "run/figures").glob("*.png"))) >= 6


def test_equal_tasks_are_done_once_and_others_are_not(folder):
    seen = []

    def work(tasks):
        seen.append(len(tasks))
        return [task["x"].sum() for task in tasks]

    tasks = [
        {"x": np.arange(3), "t": ["a", "b"]},
        {"x": np.arange(3), "t": ["ab", ""]},
        {"x": np.arange(3), "t": ["a", "b"]},
        {"x": np.arange(3.0), "t": ["a", "b"]},
    ]
    assert entities_setup.once(work, tasks) == [3, 3, 3, 3] and seen == [3]
    assert entities_setup.once(work, []) == []
    marks = {
        entities_setup.fingerprint(x)
        for x in (
            None,
            0,
            "0",
            (),
            [[]],
            jax.random.key(0),
            jax.random.key(1),
            np.zeros((2, 1)),
            np.zeros((1, 2)),
        )
    }
    assert len(marks) == 9


# ---- settings


def test_the_disk_that_is_needed_counts_long_texts(folder):
    """As `tests/studies/common/test_plan_factors.py` measures them: two bytes a token."""
    short = settings(folder)
    prepared = entities_setup.prepare(short)
    long = short.replace(sample=short.sample.replace(max_new_tokens=1008))
    texts = len(prepared.chains) * 2 * 10 * 4  # of three generations and one that is being made
    grown = entities_setup.disk(long, prepared) - entities_setup.disk(short, prepared)
    assert grown == 2 * 1000 * texts


def test_weights_mixing_and_changing_settings_become_chains(folder):
    given = {"weights": ((0.25, 0.25, 0.5), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))}
    prepared = entities_setup.prepare(settings(folder, exchange=given))
    assert [prepared.settings_of[c.id] for c in prepared.chains] == [
        (0.5, 0.5),
        (1.0, 0.0),
        (0.0, 1.0),
    ]
    matrix = ((0.0, 1.0), (0.5, 0.5))
    s = settings(
        folder,
        exchange={
            "mixing": matrix,
            "alphas": (((0, 0), (0.5, 0), (0, 1)),),
            "betas": (0.5, (1, 0.5, 0)),
            "seeds": (3, 4),
        },
    )
    prepared = entities_setup.prepare(s)
    assert len(prepared.chains) == 4 and prepared.chains[0].workflow.mixing == matrix
    assert prepared.chains[2].workflow.exchange.alpha == (
        (0, 0),
        (0.5, 0),
        (0, 1),
    ) and prepared.chains[2].workflow.exchange.beta == (1, 0.5, 0)
    s = settings(folder, "exchange.alphas=0,1/4,1", "exchange.betas=0.5")
    assert s.exchange.alphas == (0, 0.25, 1) and s.exchange.betas == (0.5,)
    none = {
        "one": {"task": "none"},
        "two": {"task": "qa", "source": f"{folder}/two.jsonl", "prompt": "{question}:"},
    }
    s = settings(folder, tasks=none, exchange={"betas": (((0, 1),),), "initial_beta": (0, 1)})
    prepared = entities_setup.prepare(s)
    assert prepared.chains[0].workflow.exchange.private == (
        0,
        len(prepared.data["two"].texts),
    ) and prepared.chains[0].dataset == ("public", "two")


@pytest.mark.parametrize(
    "sections, said",
    [
        (
            {"tasks": {"one": {"task": "none"}}},
            r"config.tasks.one.task = 'none': entity one has no private data, so its beta must "
            r"be 0 throughout, but initial_beta = 1",
        ),
        (
            {"tasks": {"one": {"task": "none"}}, "exchange": {"initial_beta": 0}},
            r"config.tasks.one.task = 'none': entity one has no private data, so its beta must "
            r"be 0 throughout, but beta = 0.5",
        ),
        (
            {"exchange": {"weights": ((0.5, 0.4, 0.2),)}},
            r"config.exchange.weights has \(0.5, 0.4, 0.2\): must be three weights .* that sum "
            r"to 1, not 1.1",
        ),
        (
            {"exchange": {"mixing": ((0.5, 0.4), (0, 1))}},
            r"config.exchange.mixing: rows must be non-negative and sum to 1",
        ),
        (
            {"exchange": {"mixing": "rign"}},
            r"config.exchange.mixing='rign': must be one of complete, ring",
        ),
        (
            {"exchange": {"alphas": (1.5,)}},
            r"config.exchange.alphas\[0\].* = 1.5 is not allowed: .*a number from 0 to 1",
        ),
        (
            {"exchange": {"alphas": ((0, 1),)}},
            r"config.exchange.alphas has a list of 2 generations: must be one number, or 3 of them",
        ),
        (
            {"exchange": {"alphas": (((0, 1, 1),),)}},
            r"config.exchange: alpha=.* must be a number, one per generation, or a row of 2 per "
            r"generation",
        ),
        (
            {"exchange": {"initial_beta": (1, 1, 1)}},
            r"config.exchange: initial_beta=.* must be a number or one per entity",
        ),
        (
            {"public": {"task": "bookcorps"}},
            r"config.public.task = 'bookcorps' is no task; did you mean 'bookcorpus'",
        ),
        (
            {"public": {"task": "none"}},
            r"config.public.task = 'none': the public corpus has weight 1 - beta, so every beta "
            r"must be 1",
        ),
        ({"entities": ("one", "one")}, r"config.entities = \('one', 'one'\) repeats a value"),
        (
            {"entities": ("one", "sicq")},
            r"config.entities has 'sicq', which is no known task and has no section "
            r"config.tasks.sicq; did you mean 'sciq'",
        ),
        ({"entities": ("one",)}, r"config.tasks.two is the corpus of no entity"),
        (
            {"models": {"pool": ("a", "b", "c")}},
            r"config.models.pool has 3 entries: must be one model for all, or one per entity \(2\)",
        ),
        (
            {"sample": {"max_new_tokens": 60}},
            r"config.sample.max_new_tokens: a prompt of 16 and a text of 60 tokens do not fit "
            r"the context of .*, which is 64",
        ),
        (
            {"measure": {"metrics": ("held_out_loss",)}},
            r"config.measure.metrics has 'held_out_loss', which needs losses: this study gives "
            r"texts only",
        ),
        (
            {"measure": {"metrics": ("output_similarity",)}},
            r"config.measure.probes = 0: metric 'output_similarity' needs at least two entities "
            r"that complete",
        ),
        (
            {"measure": {"test_texts": None}},
            r"config.public: task 'text': .* no test split: give a test source, or how many",
        ),
    ],
)
def test_refusals(folder, sections, said):
    if "tasks" in sections:
        sections["tasks"] = {
            **sections["tasks"],
            "two": {"task": "qa", "source": f"{folder}/two.jsonl", "prompt": "{question}:"},
        }
    with pytest.raises(ValueError, match=said) as error:
        entities_setup.prepare(settings(folder, **sections))
    assert "\n" not in str(error.value)


def test_no_data_can_be_said_on_the_command_line(folder):
    with pytest.raises(
        ValueError, match="entity one has no private data, so its beta must be 0 throughout"
    ):
        entities_setup.prepare(settings(folder, "tasks.one.task='none'"))


def test_an_empty_private_corpus_is_refused_by_the_command(folder, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text('{"question": "q", "answer": "a", "split": "test"}\n')
    (tmp_path / "study.py").write_text(f"""from ml_collections import ConfigDict
def get_config():
    return ConfigDict({settings(folder, **{"public": {"limit": None}}).model_dump()!r})
""")
    from jaxloop import cli

    words = [
        "jaxloop",
        f"--config={tmp_path}/study.py",
        f"--workdir={tmp_path}/run",
        f"--config.tasks.one.source={tmp_path}/empty.jsonl",
    ]
    with pytest.raises(SystemExit) as end:
        cli.guarded(main, cli.parse(words))
    err = capsys.readouterr().err
    assert (
        end.value.code == 2
        and err.count("\n") == 1
        and re.search(r"config.tasks.one: task 'qa': '.*empty.jsonl' leaves no row", err)
    )
    assert not (tmp_path / "run").exists()


def test_the_config_is_the_papers():
    raw = config.read_file("configs/multi_entity.py")
    s = config.build(entities.CONFIG, raw)
    assert (
        s.exchange.size,
        s.fit.steps,
        s.fit.batch_size,
        s.fit.learning_rate,
        s.fit.max_length,
        s.exchange.generations,
    ) == (12_500, 100, 4, 8e-6, 512, 15)
    assert (
        s.entities == ("sciq", "gsm8k")
        and len(plan_chains.weights_of(s)) == 9
        and s.fit.warmup_steps == int(np.ceil(0.025 * 100))
    )
    assert config.build(
        entities.CONFIG, config.read_file("configs/multi_entity.py:three")
    ).entities == ("sciq", "gsm8k", "arc")
    tiny = config.build(entities.CONFIG, config.read_file("configs/multi_entity.py:tiny"))
    assert (
        len(tiny.entities) == 3
        and len(plan_chains.weights_of(tiny)) == 9
        and len(tiny.exchange.seeds) == 3
        and tiny.exchange.generations == 6
    )
    with pytest.raises(ValueError, match="scale 'huge' is none of paper, three, llama, tiny"):
        config.read_file("configs/multi_entity.py:huge")


def test_plan_counts_and_measures(folder):
    rows = dict(entities.plan(settings(folder)))
    assert rows["chains"].startswith("2 chains of 2 entities") and rows["models"].startswith(
        "4 in every generation, 12 in all"
    )
    assert rows["test rows to score"] == f"{18 * 4 * 3:,}" and "time in all" in rows
    assert "of these, controls" not in rows


@pytest.mark.parametrize(
    "scale, millions, models, controls",
    [("paper", "331.2", 450, 12), ("three", "331.2", 675, 18), ("llama", "1,235.8", 450, 12)],
)
def test_plan_at_full_scale_needs_neither_models_nor_data(scale, millions, models, controls):
    s = config.build(entities.CONFIG, config.read_file(f"configs/multi_entity.py:{scale}"))
    rows = dict(entities.plan(s))
    assert (
        rows["models"].startswith(f"{models // 15} in every generation, {models} in all")
        and "of which 100 x 4 are trained on" in rows["rows drawn"]
    )
    assert rows[f"model {s.models.pool[0]}"].endswith(f"{millions} M parameters") and rows[
        "device-hours"
    ].endswith("H100-hours")
    assert {f"time on one {card}" for card in ("h100", "h200", "a100")} <= set(rows)
    assert rows["texts to write"] == f"{models * (2500 + 200 * (len(s.entities) + 1)):,}"
    # alpha = 1 is one setting after generation 0: 4 controls a model beside 7 others.
    assert rows["of these, controls"].startswith(f"{controls} in every generation")
    assert "+57% to train" in rows["of these, controls"]
