"""Recursive-loops experiments end to end through the command line, with random one-layer models;
what they leave, and going on after a kill.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.reporting import scores
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.common import published_models
from jaxloop.studies.common import report as common_report
from jaxloop.studies.recursive_loops import interventions, scales, sources
from tests.command import call
from tests.encoders import letters
from tests.studies.recursive_loops import loops_study as ls


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ls.build(tmp_path_factory.mktemp("loops"))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxloop.metrics.embed.embed", letters)
    monkeypatch.setattr("jaxloop.metrics.embed.load_embedder", lambda name: letters)
    monkeypatch.setattr(
        "jaxloop.studies.recursive_loops.data.clustering.project",
        lambda points, *_, **__: np.asarray(points[:, [2, 19]], np.float32),
    )
    monkeypatch.setattr(
        sources, "evaluation_map", lambda *_: lambda points: np.asarray(points[:, :2])
    )


def go(capsys, place, tmp_path, *words, expect=0, **changes):
    path = ls.write(tmp_path / "study.py", ls.raw(place, **changes))
    code, out, err = call(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}", *words)
    assert code == expect, err
    return tmp_path / "run"


def texts_of(root, chain, generation):
    return read_parquet(root / f"texts/chain={chain}/generation={generation:04d}.parquet")


@pytest.mark.usefixtures("sketched")
def test_interventions_are_reported_against_the_matched_control(place, tmp_path, capsys):
    policies = {"policies": ["random", "quality"], "written": 2.0}
    chain = {"seeding": "paired", "seeds": [0, 1, 2], "generations": 3}
    root = go(
        capsys,
        place,
        tmp_path,
        experiment="interventions",
        interventions=policies,
        chain=chain,
        fit={"learning_rate": 0.05},
        quality="text_length",
    )
    names = {p.name for p in root.iterdir()}
    assert {
        "chains.csv",
        "cleaning.csv",
        "subsets.csv",
        "metrics.csv",
        "interventions.csv",
        "ledger.parquet",
        "texts",
        "report.html",
    } <= names
    chains = pd.read_csv(root / "chains.csv")
    assert (
        len(chains) == 6
        and set(chains.status) == {"ok"}
        and {"dataset", "ratio", "seed", "selection"} <= set(chains.columns)
    )
    ids = {(row.selection, row.seed): row.chain for row in chains.itertuples()}
    assert (
        texts_of(root, ids["random", 0], 0)["text"] == texts_of(root, ids["quality", 0], 0)["text"]
    )
    chosen = texts_of(root, ids["quality", 0], 0)
    scored = np.array([len(text) for text in chosen["text"]])
    assert (
        scored[np.asarray(chosen["selected"]) >= 0].min()
        >= scored[np.asarray(chosen["selected"]) < 0].max()
    )
    table = pd.read_csv(root / "interventions.csv").set_index("metric")
    relative = scores.relative_by_chain(common_report.read_metrics(root)).set_index(
        ["metric", "chain"]
    )["value"]
    for metric in ("text_length", "cosine_diversity"):
        pair = [
            [relative[metric, ids[policy, seed]] for seed in range(3)]
            for policy in ("quality", "random")
        ]
        test = scipy.stats.ttest_rel(*pair)
        assert table.loc[metric, "n"] == 3 and table.loc[metric, "difference"] == pytest.approx(
            np.subtract(*pair).mean(), rel=1e-9
        )
        assert table.loc[metric, "p"] == pytest.approx(test.pvalue, rel=1e-9)
        low, high = test.confidence_interval()
        assert (table.loc[metric, "low"], table.loc[metric, "high"]) == pytest.approx(
            (low, high), rel=1e-9
        )
    assert "Difference from the random control" in (root / "report.html").read_text()
    page = (root / "findings.html").read_text()
    assert (
        "selection by quality minus the matched random control, relative to generation 0" in page
        and "3 pairs" in page
    )


@pytest.mark.usefixtures("undrawn")
def test_models_that_share_a_pool_are_measured_together(place, tmp_path, capsys):
    chain = {"models": [1, 2], "size": 16, "contribution": 0.5, "eval_texts": 7}
    root = go(capsys, place, tmp_path, experiment="models_per_generation", chain=chain)
    metrics = pd.read_csv(root / "metrics.csv")
    assert (
        set(metrics.entity) == {0}
        and metrics.groupby(["chain", "generation"]).size().nunique() == 1
    )
    for generation in (0, 1):
        both = texts_of(root, "models-2", generation)
        first = [both["text"][i] for i in range(len(both["text"])) if both["row"][i] < 4]
        assert len(first) == 8 and sorted(set(both["entity"])) == [0, 1]
        value = metrics.query(
            f"chain == 'models-2' and generation == {generation} and metric == 'text_length'"
        )["value"].item()
        lengths = [len(t) for t in first]
        # Seven of these eight: the mean of all but one.
        assert any(value == pytest.approx((sum(lengths) - one) / 7, abs=1e-9) for one in lengths)
    before = (root / "metrics.csv").read_bytes()
    again = go(capsys, place, tmp_path, experiment="models_per_generation", chain=chain)
    assert (again / "metrics.csv").read_bytes() == before


CLUSTERS = dict(
    count=8,
    min_size=50,
    fit_rows=200,
    methods=["kmeans-5", "gmm-5", "kmeans-10"],
    min_distances=[0.1],
)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_cluster_study_leaves_what_the_regressions_read_and_goes_on(tmp_path, capsys):
    place = ls.build(tmp_path)
    # A word with a sentiment: a property that is the same for every cluster is refused.
    (place / "posts.jsonl").write_text((place / "posts.jsonl").read_text().replace("sofa", "happy"))
    changes = dict(
        experiment="clusters",
        clusters=CLUSTERS,
        properties={"texts": 40, "lexical_texts": 20},
        chain={"ratios": [0.5]},
    )
    root = go(capsys, place, tmp_path, **changes)
    chains, properties = pd.read_csv(root / "chains.csv"), pd.read_csv(root / "properties.csv")
    assert len(chains) == 8 and set(chains.cluster) == {f"c{i:03}" for i in range(8)} == set(
        properties.cluster
    )
    final = [
        "cosine_diversity",
        "lexical_diversity",
        "gaussian_aic",
        "quality",
        "positivity",
        "text_length",
    ]
    assert properties[final].notna().all().all() and (properties["size"] >= 50).all()
    members = pd.read_parquet(root / "members.parquet")
    assert (
        members.groupby("cluster").size().tolist()
        == properties.set_index("cluster")["size"].tolist()
    )
    assert not members.duplicated().any()
    page = (root / "report.html").read_text()
    assert "Overlap of clusters" in page and "Cleaning" in page
    first = pd.read_csv(root / "metrics.csv")
    code, _, err = call(
        capsys,
        f"--config={tmp_path / 'study.py'}",
        f"--workdir={root}",
        "--config.chain.generations=3",
    )
    assert code == 0, err
    after = pd.read_csv(root / "metrics.csv")
    pd.testing.assert_frame_equal(
        after[after.generation < 2].reset_index(drop=True), first, check_exact=True
    )


@pytest.mark.usefixtures("undrawn")
def test_a_chain_that_stops_is_named_counted_and_skipped(place, tmp_path, capsys, monkeypatch):
    from jaxloop.lm import family

    original = family.fit

    def fit(model, tasks, settings, options):
        return [
            r._replace(loss=r.loss * np.nan, finite=False) if i == 0 else r
            for i, r in enumerate(original(model, tasks, settings, options))
        ]

    monkeypatch.setattr(family, "fit", fit)
    root = go(capsys, place, tmp_path, expect=3, chain={"ratios": [0.25, 0.5], "generations": 2})
    status = pd.read_csv(root / "chains.csv").set_index("chain")["status"]
    # Chain by chain the first of the living is struck: one in each generation.
    assert status.str.contains("training loss of entity 0 is not finite").tolist() == [True, True]
    assert status.str.extract(r"generation (\d)")[0].tolist() == ["0", "1"]


@pytest.mark.usefixtures("undrawn")
def test_lean_of_every_text_is_kept_with_that_of_the_human_texts(place, tmp_path, capsys):
    # A judge that scores by length: enough to follow numbers through the files.
    changes = dict(
        experiment="political",
        political_leaning={"judge": "text_length", "mixes": [100, 0]},
        chain={"ratios": [0.75], "size": 8, "eval_texts": 4},
    )
    lengths = [len(row["text"]) for row in ls.posts()]
    if min(sum(n < 50 for n in lengths), sum(n > 50 for n in lengths)) < 10:
        pytest.fail("the posts of this test have no two sides")
    root = go(capsys, place, tmp_path, **changes)
    table = pd.read_parquet(root / "text_scores.parquet")
    chains = pd.read_csv(root / "chains.csv")
    assert set(chains["mix"]) == {"100l0r", "0l100r"} and set(table.generation) == {-1, 0, 1}
    human = table[table.generation == -1].merge(chains, on="chain").groupby("mix")["value"]
    assert human.max()["100l0r"] < 50 < human.min()["0l100r"] and human.size().tolist() == [8, 8]
    metrics = pd.read_csv(root / "metrics.csv")
    for (chain, generation), values in table[table.generation >= 0].groupby(
        ["chain", "generation"]
    )["value"]:
        row = metrics.query(
            f"chain == '{chain}' and generation == {generation} and metric == 'political_lean'"
        )
        assert row["value"].item() == pytest.approx(values.mean()) and len(values) == 4


@pytest.mark.usefixtures("undrawn")
def test_interventions_without_pairs_have_no_error(place, tmp_path, capsys):
    policies = {"policies": ["random", "diversity"]}
    root = go(
        capsys,
        place,
        tmp_path,
        experiment="interventions",
        interventions=policies,
        chain={"seeding": "paired"},
    )
    table = pd.DataFrame(interventions.paired_differences(root))
    assert (
        (table["n"] == 1).all() and table["se"].isna().all() and table["difference"].notna().any()
    )


# ---- rehearsal


def reduced(folder, name):
    """A random-weight model of a real architecture at reduced width, with the tokenizer of this
    test.
    """
    import jax

    from jaxloop import lm
    from jaxloop.lm.io import config_json, huggingface, tokenizer
    from jaxloop.lm.model.config import init

    fields = published_models.by_hub_id(name)
    small = dict(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        head_dim=8,
        max_position_embeddings=128,
    )
    groups = fields["num_attention_heads"] // fields["num_key_value_heads"]
    small |= dict(num_attention_heads=4, num_key_value_heads=max(1, 4 // groups))
    model_config = config_json.parse_config({**fields, **small})
    target = folder / "models" / name.split("/")[1]
    target.parent.mkdir(exist_ok=True)
    lm.save(
        huggingface.Model(
            model_config, init(jax.random.key(0), model_config), tokenizer.load(folder / "base")
        ),
        target,
    )
    return str(target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rehearsal_of_the_paper_scale_cluster_study(place, tmp_path):
    """The config of the paper's scale with its four architectures at reduced width: it plans,
    clusters, trains, is killed, and goes on.
    """
    config = pathlib.Path(__file__).parents[3] / "configs" / "cluster_study.py"
    pool = ",".join(reduced(place, name) for name in scales.POOL)
    words = [
        f"--config.models.pool={pool}",
        "--config.models.revisions=()",
        "--config.tokens=model",
        "--config.models.dtype=float32",
    ]
    for i, name in enumerate(("webis_reddit", "100M_tweets", "reddit_submissions", "wikipedia")):
        words += [
            f"--config.domains.{name}.recipe=plain",
            f"--config.domains.{name}.source={place}/{('posts', 'other')[i % 2]}.jsonl",
        ]
        words += [f"--config.domains.{name}.instruction=Write."]
    words += [
        "--config.clusters.count=3",
        "--config.clusters.min_size=60",
        "--config.clusters.fit_rows=200",
        "--config.clusters.methods=kmeans-5,gmm-5",
    ]
    words += [
        "--config.clusters.min_distances=0.01",
        "--config.clusters.noise=kept",
        "--config.properties.texts=40",
        "--config.properties.lexical_texts=20",
    ]
    words += [
        "--config.properties.map_rows=100",
        "--config.properties.toxicity=none",
        "--config.quality=type_token_ratio",
        "--config.embedder=none",
    ]
    words += [
        "--config.language=none",
        "--config.chain.generations=4",
        "--config.chain.size=16",
        "--config.chain.eval_texts=8",
        "--config.fit.dtype=float32",
    ]
    words += [
        "--config.fit.max_length=48",
        "--config.sample.max_new_tokens=8",
        "--config.fit.length_buckets=1",
        "--config.run.keep_compiled=false",
    ]
    command = [sys.executable, "-m", "jaxloop.main", f"--config={config}", *words]
    environment = os.environ | {"JAXLOOP_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    planned = subprocess.run(
        [*command, "--plan"], capture_output=True, text=True, env=environment, check=False
    )
    assert planned.returncode == 0 and "24 chains: 12 clusters" in planned.stdout, planned.stderr
    root = tmp_path / "run"
    first = subprocess.Popen(
        [*command, f"--workdir={root}"],
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (root / "checkpoints" / "generation=0001").exists():
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(
        [*command, f"--workdir={root}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0 and "going on after generation" in done.stderr, done.stderr
    metrics = pd.read_csv(root / "metrics.csv")
    assert (
        metrics.groupby("chain")["generation"].max().tolist() == [3] * 24
        and len(pd.read_csv(root / "properties.csv")) == 12
    )
    shutil.rmtree(root)
