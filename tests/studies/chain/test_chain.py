"""The chain study through the command line: a whole run with a real (random, one-layer) model, what
is refused before it, and its report.
"""

import dataclasses
import html
import json
import pathlib
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from jaxloop import cli, config, main
from jaxloop.recursion import backfill
from jaxloop.runtime import timings, workdir
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.chain import cost as chain_cost
from jaxloop.studies.chain import prepare, report
from jaxloop.studies.chain import run as chain
from jaxloop.studies.common import cost, models
from jaxloop.studies.common import run as common_run
from jaxloop.studies.common.run import PageInputs
from tests import drawings
from tests.command import call


def settings(place, *assignments):
    raw = config.read_file(str(place / "study.py"))
    return config.build(
        chain.CONFIG,
        config.override(raw, [tuple(a.split("=", 1)) for a in assignments], chain.CONFIG),
    )


@pytest.fixture(scope="module")
def heard(place):
    """What `--timings` heard of the run of the two chains, made once."""
    with timings.heard() as heard, pytest.MonkeyPatch.context() as patch:
        drawings.sketch(patch)
        code = cli.guarded(
            main.main,
            cli.parse(["jaxloop", f"--config={place / 'study.py'}", f"--workdir={place / 'run'}"]),
        )
    assert code == 0
    return heard


@pytest.fixture(scope="module")
def finished(place, heard):
    """The run directory of the two chains."""
    return place / "run"


def test_the_table_of_seconds_has_every_step_and_program(heard):
    steps = ["start and imports", "read and check", "fit", "sample", "measure", "report"]
    assert [step for step in steps if heard.steps[step] <= 0] == []
    table = heard.table()
    assert all(name in table for name in (*steps, "all programs"))


def test_a_run_leaves_what_the_readme_promises(finished):
    names = {p.name for p in finished.iterdir()}
    assert {
        "config.json",
        "ledger.parquet",
        "texts",
        "metrics.csv",
        "checkpoints",
        "figures",
        "report.html",
        "run.log",
    } <= names
    metrics = pd.read_csv(finished / "metrics.csv")
    assert list(metrics.columns) == [
        "study",
        "chain",
        "dataset",
        "ratio",
        "seed",
        "entity",
        "generation",
        "metric",
        "value",
    ]
    assert len(metrics) == 2 * 2 * 5 and metrics["value"].notna().all()
    assert set(metrics["metric"]) == {
        "self_bleu",
        "held_out_loss",
        "text_length",
        "memorised_ngrams(n=1)",
        "finished",
    }
    ledger = pd.read_parquet(finished / "ledger.parquet")
    second = ledger[ledger["generation"] == 1].groupby(["chain", "source"])["count"].sum().to_dict()
    half, whole = "ratio-0.5", "ratio-1"
    assert second == {(half, "human"): 8, (half, "synthetic"): 8, (whole, "synthetic"): 16}
    assert config.build(
        chain.CONFIG, json.loads((finished / "config.json").read_text())
    ).chain.ratios == (0.5, 1)
    figures = {p.stem for p in (finished / "figures").glob("*.png")}
    assert {"self_bleu", "held_out_loss", "text_length", "finished"} <= figures


def test_metrics_are_those_of_the_texts_and_of_the_model(place, finished):
    metrics = pd.read_csv(finished / "metrics.csv").set_index(["chain", "generation", "metric"])[
        "value"
    ]
    for name in ("ratio-0.5", "ratio-1"):
        for g in (0, 1):
            texts = read_parquet(finished / f"texts/chain={name}/generation={g:04d}.parquet")
            assert metrics[name, g, "text_length"] == pytest.approx(
                np.mean([len(t) for t in texts["text"][:8]]), rel=1e-12
            )
            assert metrics[name, g, "finished"] == np.mean(texts["finished"])
    # Both chains have one seed and so one generation 0; a random model of 300 tokens is near ln 300
    # nats per token.
    assert metrics["ratio-0.5", 0, "held_out_loss"] == metrics["ratio-1", 0, "held_out_loss"]
    assert metrics["ratio-1", 0, "held_out_loss"] == pytest.approx(np.log(300), abs=0.2)


def test_held_out_texts_are_in_no_training_set(place, tmp_path):
    prepared = prepare.prepare(settings(place))
    name = next(iter(prepared.data))
    assert len(prepared.sources[name].heldout) == 8 and len(prepared.data[name].texts) == 192
    lines = [json.loads(line)["text"] for line in (place / "posts.jsonl").read_text().splitlines()]
    assert sorted(prepared.sources[name].heldout + list(prepared.data[name].texts)) == sorted(lines)
    other = prepare.prepare(settings(place, "chain.seeds=5,6"))
    assert (
        other.sources[name].heldout == prepared.sources[name].heldout
        and other.data[name].fingerprint == prepared.data[name].fingerprint
    )
    # Losses of other held-out texts are no values of the same run.
    held_out = prepared.sources[name].heldout[0]
    (tmp_path / "posts.jsonl").write_text(
        (place / "posts.jsonl")
        .read_text()
        .replace(json.dumps(held_out), json.dumps("x" + held_out))
    )
    changed = prepare.prepare(settings(place, f"data.source={tmp_path / 'posts.jsonl'}"))
    assert changed.data[name].fingerprint == prepared.data[name].fingerprint
    assert changed.data[name].held_out != prepared.data[name].held_out


def test_the_report_says_what_was_run(finished):
    page = (finished / "report.html").read_text()
    assert (
        "Two &lt;small&gt; chains" in page
        and "2 chains: r in {1/2, 1}, 1 seed, 2 generations" in page
    )
    assert page.count("<svg") == 5 and page.count('class="text') == 2 * 8 + 2 * 10
    first = read_parquet(finished / "texts/chain=ratio-1/generation=0000.parquet")["text"][0]
    words = [w for w in re.findall(r"[A-Za-z]+", first) if len(w) > 2]
    assert all(word in page for word in words)
    assert re.search(r"fingerprint [0-9a-f]{12}", page)


def test_the_code_that_the_report_offers_reads_the_files(finished, monkeypatch):
    page = (finished / "report.html").read_text()
    code = html.unescape(page[page.index(">import pathlib") + 1 :].split("</pre>")[0])
    monkeypatch.chdir(finished)
    names = {}
    exec(code, names)
    assert (
        len(names["metrics"]) == 20
        and len(names["ledger"]) == 5
        and len(names["texts"]) == 2 * 8 + 2 * 16
    )


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_again_changes_nothing_and_more_generations_go_on(
    place, finished, tmp_path, capsys
):
    copy = tmp_path / "moved"
    shutil.copytree(finished, copy)
    before = (copy / "metrics.csv").read_bytes()
    code, _, err = call(capsys, f"--config={place / 'study.py'}", f"--workdir={copy}")
    assert code == 0 and (copy / "metrics.csv").read_bytes() == before and "fit" not in err
    code, _, _ = call(
        capsys,
        f"--config={place / 'study.py'}",
        f"--workdir={copy}",
        "--config.chain.generations=3",
    )
    after = pd.read_csv(copy / "metrics.csv")
    assert code == 0 and after["generation"].max() == 2
    first = pd.read_csv(finished / "metrics.csv")
    pd.testing.assert_frame_equal(
        after[after["generation"] < 2].reset_index(drop=True), first, check_exact=True
    )
    assert "resumed after generation 1" in (copy / "report.html").read_text()


def test_another_config_is_refused_with_the_difference(place, finished, capsys):
    before = (finished / "config.json").read_bytes()
    code, out, err = call(
        capsys, f"--config={place / 'study.py'}", f"--workdir={finished}", "--config.fit.steps=3"
    )
    assert code == 2 and err.count("\n") == 1 and "fit.steps 2 -> 3" in err and out == ""
    assert (finished / "config.json").read_bytes() == before


def test_validate_says_what_was_found(place, capsys):
    code, out, _ = call(capsys, f"--config={place / 'study.py'}", "--validate")
    assert code == 0 and out.splitlines()[-1] == f"{place / 'study.py'} is valid"
    assert "192 human texts for the chains, 8 held out" in out
    assert "2 chains: r in {1/2, 1}, 1 seed, 2 generations; the longest needs 24 human texts" in out
    ignored = "chain.ratios: of no effect under workflow "
    assert ignored not in out
    words = ("--validate", "--config.chain.workflow=accumulate")
    _, out, _ = call(capsys, f"--config={place / 'study.py'}", *words)
    assert f"{ignored}'accumulate'\n" in out


def test_plan_counts_what_a_run_does_and_writes_nothing(
    place, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, f"--config={place / 'study.py'}", "--plan")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    ledger = pd.read_parquet(finished / "ledger.parquet")
    models = ledger.drop_duplicates(["chain", "generation", "entity"])
    assert code == 0 and list(tmp_path.iterdir()) == []
    assert rows["texts to train on"] == str(ledger["count"].sum()) and rows[
        "texts to write"
    ] == str(models["items_sampled"].sum())
    assert float(rows["tokens to train on"].replace(",", "")) == pytest.approx(
        models["tokens_trained"].sum(), rel=0.1
    )
    longest = int(re.search(r"([\d,]+) at most", rows["tokens to write"])[1].replace(",", ""))
    assert int(models["tokens_sampled"].sum()) <= longest == 8 * models["items_sampled"].sum()
    assert "GB at most" in rows["disk"]
    assert re.search(r"FLOP/s trained, .*FLOP/s written", rows["measured with"]) and rows[
        "time in all"
    ].startswith("about ")


def test_planned_work_adds_up_over_models(place):
    one = settings(place, "fit.steps=none", "fit.epochs=2")
    prepared = prepare.prepare(one)
    work, name = chain_cost.workload(one, prepared), one.models.pool[0]
    alone = cost.costs(work)[name]
    # Per generation: 16 texts in each of two chains; two epochs read each text twice.
    assert alone.train_texts == 64 and alone.generated_texts == 2 * (8 + 16)
    assert alone.train_tokens == pytest.approx(2 * 64 * cost.lengths(work, name).trained)
    half = [dataclasses.replace(chain, bases=(*chain.bases, "other")) for chain in prepared.chains]
    assert cost.costs(dataclasses.replace(work, chains=half))[name].train_texts == 32


def model_without(place, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(place / "base", folder)
    change(folder)
    return f"--config.models.pool={folder}"


def no_eos(folder):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps({k: v for k, v in fields.items() if not k.startswith("eos")})
        )


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown_type(folder):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "mamba"}))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--config.data.text_column=txet"], r"data.text_column = 'txet': .*did you mean 'text'"),
        (
            ["--config.data.source={place}/post.jsonl"],
            r"data.source = .*post.jsonl.* no such file.*posts.jsonl",
        ),
        (["--config.data.source={tmp}/empty.jsonl"], r"data.source = .*the file is empty"),
        (["--config.data.source={tmp}/latin.txt"], r"data.source = .*not UTF-8 at line 1, byte 3"),
        (["--config.data.min_tokens=79"], r"data.source = .*the filters drop all of its 200 rows"),
        (
            ["--config.data.domain_column=kind", "--config.data.domains=evn"],
            r"data.domains: .*no row of the domain 'evn'; did you mean 'even'",
        ),
        (
            ["--config.chain.heldout_texts=200"],
            r"config.chain.heldout_texts = 200: .* has only 200 usable texts",
        ),
        (
            ["--config.chain.heldout_texts=0"],
            r"config.chain.heldout_texts = 0: metric 'held_out_loss' needs held-out texts",
        ),
        (
            [
                "--config.chain.size=4000",
                "--config.chain.ratios=1/8",
                "--config.chain.generations=20",
            ],
            r"config.data: 'posts' has .*\(rows: 200, .*, but chain .* needs 70,500 in 20 "
            r"generations; config.chain.size=\d+ would fit",
        ),
        (["--config.models.pool={tmp}/nowhere"], r"model: directory .*nowhere does not exist"),
        (["--config.models.pool={tmp}"], r"model: .* has no config.json"),
        (
            ["--config.sample.max_new_tokens=60"],
            r"config.sample.max_new_tokens: prompt of \d+ and text of 60 tokens do not fit .* 64 "
            r"tokens",
        ),
        (
            ["--config.fit.max_length=65"],
            r"config.fit.max_length: training text tokens do not fit .* 64 tokens",
        ),
        (
            ["--config.fit.max_length=9"],
            r"config.fit.max_length = 9 leaves no room for text after the prompt",
        ),
        (["--config.run.platform=tpu"], r"platform=tpu: this machine has none"),
        (["--config.run.devices=99"], r"devices=99: this run can use 1 to \d+ cpu devices"),
        (
            ["--config.metrics=self_blue"],
            r"metrics holds 'self_blue', which is no metric; the nearest name is 'self_bleu'",
        ),
        (
            ["--config.metrics=output_similarity"],
            r"config.metrics has 'output_similarity', which needs entity_embeddings: .* of study "
            r"'multi_entity' do$",
        ),
        (["--config.metrics=distinct_n(m=2)"], r"metrics holds .* has no option 'm'; it takes n"),
        (["--config.metrics=cosine_diversity", "--config.embedder={tmp}/nowhere"], r"nowhere"),
        (
            ["--config.fit.lora.targets=query"],
            r"lora.targets: 'query' is not a projection of llama",
        ),
        (
            ["--config.sample.decoder=beam", "--config.sample.num_beams=1"],
            r"config.sample: num_beams: 1 is not allowed; .* one beam is greedy decoding",
        ),
    ],
)
def test_refusals_before_anything_is_compiled_or_written(place, tmp_path, capsys, words, said):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    words = [w.format(place=place, tmp=tmp_path) for w in words]
    code, out, err = call(
        capsys, f"--config={place / 'study.py'}", f"--workdir={tmp_path / 'run'}", *words
    )
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("jaxloop: ") and re.search(said, err)
    assert not (tmp_path / "run").exists()


def test_what_a_refusal_of_too_few_texts_names_is_the_most_that_fits(place):
    few = ["chain.ratios=1/8,1", "chain.size=40", "chain.generations=10"]
    with pytest.raises(ValueError) as refused:
        prepare.prepare(settings(place, *few))
    found = re.findall(r"config.(chain.(?:size|generations))=(\d+)", str(refused.value))
    assert [field for field, _ in found] == ["chain.size", "chain.generations"]
    for field, most in found:
        prepare.prepare(settings(place, *few, f"{field}={most}"))
        with pytest.raises(ValueError, match="needs .* in .* generations; "):
            prepare.prepare(settings(place, *few, f"{field}={int(most) + 1}"))


@pytest.mark.parametrize(
    "change, said",
    [
        (no_eos, "has no EOS token"),
        (pickled, "never unpickled"),
        (unknown_type, "model_type 'mamba'"),
    ],
)
def test_refused_models(place, tmp_path, capsys, change, said):
    code, out, err = call(
        capsys,
        f"--config={place / 'study.py'}",
        f"--workdir={tmp_path / 'run'}",
        model_without(place, tmp_path, change),
    )
    assert code == 2 and out == "" and err.count("\n") == 1 and said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "assignments, count, expected",
    [
        (["chain.workflow=replace"], 1, dict(synthetic=16, human=0, window=1)),
        (["chain.workflow=accumulate"], 1, dict(synthetic=16, real="always", train=None)),
        (["chain.workflow=accumulate_subsample"], 1, dict(real="always", train=16)),
        (["chain.workflow=preserve", "chain.share=1/4"], 1, dict(preserved=4)),
        (
            ["chain.workflow=window", "chain.window=3", "chain.ratios=1/2"],
            1,
            dict(window=3, synthetic=8, human=8),
        ),
        (
            [
                "chain.workflow=external",
                "chain.external={place}/posts.jsonl",
                "chain.share=1/4",
                "chain.ratios=1/2",
            ],
            1,
            dict(external=4, synthetic=6),
        ),
        (["chain.first_size=24", "chain.ratios=1/2"], 1, dict(initial=24, train=16)),
        (["chain.start=scratch"], 2, dict(start="scratch")),
        (["chain.factors.sample.temperature=1,1.5"], 4, {}),
        (["chain.factors.size=16,32", "chain.seeds=0,1,2"], 12, {}),
        (["chain.factors.bases={place}/base"], 2, {}),
        (["chain.factors.fit.max_grad_norm=none,1"], 4, {}),
    ],
)
def test_every_workflow_and_factor_becomes_chains(place, assignments, count, expected):
    prepared = prepare.prepare(settings(place, *(a.format(place=place) for a in assignments)))
    assert len(prepared.chains) == count == len({c.id for c in prepared.chains})
    for name, value in expected.items():
        assert getattr(prepared.chains[0].workflow, name) == value


def test_the_bases_in_the_box_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in chain.CONFIG().models.pool:
        assert (pathlib.Path(models.model_path(name)) / "model.safetensors").exists()
    assert models.model_path("../other/model") == "../other/model"


def test_several_datasets_are_several_lines(place, tmp_path):
    (tmp_path / "posts.jsonl").write_bytes((place / "posts.jsonl").read_bytes())
    prepared = prepare.prepare(
        settings(place, f"chain.factors.dataset={place}/posts.jsonl,{tmp_path}/posts.jsonl")
    )
    assert list(prepared.data) == ["posts-0", "posts-1"] and len(prepared.chains) == 4
    assert {dict(c.factors)["dataset"] for c in prepared.chains} == {"posts-0", "posts-1"}


def test_a_source_called_external_is_not_taken_for_the_texts_from_outside(place, tmp_path):
    human, outside = tmp_path / "external.jsonl", tmp_path / "written.jsonl"
    lines = (place / "posts.jsonl").read_text().splitlines()
    human.write_text("\n".join(lines[:100]))
    outside.write_text("\n".join(lines[100:]))
    words = ("chain.workflow=external", f"chain.external={outside}", f"data.source={human}")
    prepared = prepare.prepare(settings(place, *words, "chain.share=1/4", "chain.ratios=1/2"))
    (chain,) = prepared.chains
    texts = {text for line in lines[:100] for text in (json.loads(line)["text"],)}
    assert chain.dataset != chain.external
    assert set(prepared.data[chain.dataset].texts) < texts
    assert not texts & set(prepared.data[chain.external].texts)


@pytest.mark.parametrize(
    "factors, said",
    [
        ("fit.max_length=32,65", "config.fit.max_length: training text tokens do not fit"),
        ("sample.max_new_tokens=8,64", "config.sample.max_new_tokens: prompt of"),
        ("fit.max_length=48,1", "config.fit.max_length = 1 leaves no room"),
        ("fit.batch_size=4,1000000000", "config.models.pool: one chain of"),
    ],
)
def test_values_of_factors_are_checked_as_those_of_the_config(place, factors, said):
    """Chains run group after group, so that a run would end where the first of them begins."""
    with pytest.raises(ValueError, match=said):
        prepare.prepare(settings(place, f"chain.factors.{factors}"))


def test_a_value_that_no_chain_has_is_not_checked(place):
    words = ("fit.max_length=100", "chain.factors.fit.max_length=32,48")
    assert len(prepare.prepare(settings(place, *words)).chains) == 4


@pytest.mark.usefixtures("undrawn")
def test_values_of_one_reference_are_not_taken_for_those_of_another(place, finished, tmp_path):
    """Three calls that measure: with a reference A, without any, and with B."""
    first, other = tmp_path / "A", tmp_path / "B"
    for copy in (first, other):
        shutil.copytree(place / "base", copy)
    run = tmp_path / "run"
    shutil.copytree(finished, run)

    def measure(metrics, reference):
        return chain.run(
            settings(place, f"metrics={metrics}", "only=metrics", f"reference={reference}"), run
        )

    def known():
        table = pd.read_csv(run / "metrics.csv")
        return table[table["metric"] == "reference_perplexity"]["value"].tolist()

    assert measure("reference_perplexity", first) == 0
    values = known()
    assert len(values) == 4 and np.isfinite(values).all()
    assert measure("text_length", "none") == 0
    assert json.loads((run / "config.json").read_text())["reference"] == str(first)
    for reference in (other, "none", place / "base"):
        said = f"the values of reference_perplexity in .* are of '{first}'"
        with pytest.raises(ValueError, match=said):
            measure("text_length,reference_perplexity", reference)
    assert known() == values
    # The run itself, which needs no reference, goes on with its own metrics.
    assert chain.run(settings(place), run) == 0
    with pytest.raises(ValueError, match="was made with another config .*metrics"):
        chain.run(settings(place, "metrics=word_entropy"), run)


def test_the_first_model_of_the_pool_is_the_reference_where_none_is_named(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(common_run, "run_study", lambda steps, config, workdir, argv: config)
    monkeypatch.setattr(backfill, "measured", lambda root: ["finished", "reference_perplexity"])
    made = settings(place, "metrics=reference_perplexity")
    (tmp_path / workdir.MARKER).write_text("{}")
    (tmp_path / workdir.CONFIG).write_text(made.model_dump_json(exclude={"only"}))
    named = made.replace(reference=made.models.pool[0], only="metrics")
    assert chain.run(named, tmp_path) == named
    with pytest.raises(ValueError, match=f"are of '{made.models.pool[0]}'"):
        chain.run(named.replace(reference="other"), tmp_path)


def test_settings_reach_the_family(place):
    changes = (
        "fit.lora.rank=3",
        "fit.lora.targets=q_proj,v_proj",
        "fit.max_grad_norm=none",
        "fit.epochs=none",
        "fit.schedule=cosine",
    )
    s = settings(place, *changes, "run.chains_per_program=2")
    family, driver = models.family(s.models, s.fit, s.run), prepare.prepare(s).driver
    fit, sample = driver.fit, driver.sample
    assert (
        fit.lora.rank,
        fit.lora.targets,
        fit.max_grad_norm,
        fit.steps,
        fit.schedule,
    ) == (3, ("q_proj", "v_proj"), None, 2, "cosine")
    assert family.train_options.chains_per_program == 2
    assert family.generate_options.lora == fit.lora and (
        sample.max_new_tokens,
        sample.slots,
        sample.min_p,
        sample.temperature,
    ) == (8, 8, 0.2, 1.5)


# ---- the report from files alone


def written(root, metrics, **options):
    metrics.to_csv(root / "metrics.csv", index=False)
    common = {
        "title": "t",
        "subtitle": "s",
        "failed": {},
    }
    empty = {"run_info": [], "config": {}, "versions": []}
    page = PageInputs(**{name: options.pop(name, value) for name, value in empty.items()})
    return report.write(root, page=page, **(common | options)).read_text()


def rows(generations=3, **columns):
    base = {
        "study": "chain",
        "chain": "a",
        "dataset": "NA",
        "ratio": 1.0,
        "seed": 0,
        "entity": 0,
        "metric": "text_length",
    }
    return pd.DataFrame(
        [base | columns | {"generation": g, "value": 10.0 - g} for g in range(generations)]
    )


def test_report_of_a_data_set_called_na_and_of_missing_values(tmp_path):
    metrics = pd.concat(
        [
            rows(),
            rows(chain="b", dataset="null"),
            rows(chain="b", dataset="null", metric="quality").assign(value=np.nan),
        ]
    )
    page = written(tmp_path, metrics)
    assert "dataset = NA" in page and "dataset = null" in page and ">nan<" not in page
    assert (tmp_path / "figures" / "quality.png").exists()


def test_report_names_failures_and_hides_keys(tmp_path, monkeypatch):
    fake = "sk-planted0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", fake)
    failed = {"a": {"generation": 2, "reason": f"no answer for {fake}"}}
    page = written(
        tmp_path,
        rows(),
        failed=failed,
        run_info=[("command", f"x --key={fake}")],
        config={"k": fake},
    )
    assert (
        fake not in page
        and "1 of 1 chain did not finish" in page
        and "a, generation 2: no answer for (hidden)" in page
    )


def test_report_of_a_study_whose_chains_all_stopped_at_once(tmp_path):
    failed = {"a": {"generation": 0, "reason": "the training loss is not finite"}}
    page = written(tmp_path, rows().iloc[:0], failed=failed)
    assert "1 of 1 chain did not finish" in page and "What was run" in page


def test_report_of_chains_without_texts(tmp_path):
    page = written(tmp_path, rows(generations=1))
    assert "What was written" not in page
    assert "What was written" in written(tmp_path, rows())


def test_replaced_weights_refuse_the_resume_and_are_in_the_ledger(
    place, finished, tmp_path, capsys
):
    """The same path and names, other numbers in it: neither config nor texts show it."""
    from safetensors.numpy import load_file, save_file

    base = next(iter(json.loads((finished / "config.json").read_text())["models"]["pool"]))
    file = (
        place / base if not pathlib.Path(base).is_absolute() else pathlib.Path(base)
    ) / "model.safetensors"
    known = json.loads((finished / "config.json").read_text())["identity"]
    assert set(pd.read_parquet(finished / "ledger.parquet")["base_sha256"]) == {
        known[f"models.pool {base}"]
    }
    assert (
        "files of models.pool" in (finished / "report.html").read_text()
        and "training appends" in (finished / "report.html").read_text()
    )
    shutil.copytree(finished, tmp_path / "run")
    before = file.read_bytes()
    try:
        save_file({k: v + np.asarray(1, v.dtype) for k, v in load_file(file).items()}, file)
        code, out, err = call(
            capsys,
            f"--config={place / 'study.py'}",
            f"--workdir={tmp_path / 'run'}",
            "--config.chain.generations=3",
        )
    finally:
        file.write_bytes(before)
    assert (
        code == 2
        and err.count("\n") == 1
        and "was made with other files of models.pool" in err
        and out == ""
    )
