"""Metrics of a chain study: every input that it can give, judges in its list, and `only=metrics`
after a run whose judge was down.
"""

import re
import shutil
import socket

import numpy as np
import pandas as pd
import pytest

from jaxloop import cli, config, main
from jaxloop.lm import family
from jaxloop.metrics import distances, lexical
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.sources import sampling_prompts
from jaxloop.runtime.tables import read_parquet
from jaxloop.runtime.weights_io import load_tree
from jaxloop.studies.chain import measure as chain_measure
from jaxloop.studies.chain import prepare
from jaxloop.studies.chain import run as chain
from jaxloop.studies.common import models
from tests import drawings
from tests.encoders import letters
from tests.metrics.server import Server, completion

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def judged(place, tmp_path_factory):
    """(words of a command, address, its judge's name, run directory): a study whose judge never
    answered, and which finished all the same.
    """
    folder = tmp_path_factory.mktemp("judged")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    judge = (
        f"judge_quality(url='http://127.0.0.1:{port}/v1', model='m', "
        f"cache='{folder / 'replies.sqlite'}')"
    )
    names = (
        "text_length,tail_mass(probability=0.0033),distinct_n_by_context(n=1),"
        f"reference_perplexity,own_perplexity,{judge}"
    )
    words = [
        "jaxloop",
        f"--config={place / 'study.py'}",
        f"--workdir={folder / 'run'}",
        f"--config.metrics={names}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        drawings.leave_out(patch)
        patch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)
        assert cli.guarded(main.main, cli.parse(words)) == 5
    return words, port, judge, folder / "run"


def table(run):
    return (
        pd.read_csv(run / "metrics.csv")
        .set_index(["chain", "generation", "metric"])["value"]
        .sort_index()
    )


def missing(values):
    """Metrics without a value, but for the count of unusable replies, which a judge has too."""
    names = set(values.index[values.isna()].get_level_values("metric"))
    return sorted(name for name in names if not name.startswith("judge_unparsable"))


def settings(words):
    command = cli.parse(words)
    return config.build(
        chain.CONFIG,
        config.override(config.read_file(command.config), command.overrides, chain.CONFIG),
    )


def test_a_judge_that_is_down_is_missing_and_everything_else_is_there(judged):
    _, _, judge, run = judged
    values = table(run)
    assert missing(values) == [judge] and len(values) == 2 * 2 * 8
    log = (run / "run.log").read_text()
    assert "did not answer" in log
    (line,) = [line for line in log.splitlines() if "scores are missing" in line]
    assert "4 of judge_quality; to fill them in: python -m jaxloop.main" in line
    assert line.endswith("--config.only=metrics")
    assert (run / "report.html").exists()


def test_every_input_is_what_it_says(judged):
    words, _, _, run = judged
    given, values = settings(words), table(run)
    prepared = prepare.prepare(given)
    model, (name,) = models.load_model(given.models, given.run, given.models.pool[0]), prepared.data
    source = prepared.sources[name]
    for one in prepared.chains:
        for g in (0, 1):
            written = read_parquet(run / f"texts/chain={one.id}/generation={g:04d}.parquet")
            weights = load_tree(run, f"checkpoints/generation={g:04d}/adapters/chain={one.id}")
            own, base, held = (
                family.loss(model, [family.LossTask(w, texts, prompts)], prepared.driver.fit)[0]
                for w, texts, prompts in (
                    (weights, written["text"][:8], written["prompt"][:8]),
                    (None, written["text"][:8], written["prompt"][:8]),
                    (weights, source.heldout, source.heldout_prompts),
                )
            )
            nats = np.concatenate(held.token_nll)
            assert (
                values[one.id, g, "tail_mass(probability=0.0033)"]
                == (nats > -np.log(0.0033)).mean()
            )
            assert 0 < values[one.id, g, "tail_mass(probability=0.0033)"] < 1
            assert values[one.id, g, "own_perplexity"] == pytest.approx(
                np.exp(own.nll.sum() / own.tokens.sum()), rel=1e-6
            )
            assert values[one.id, g, "reference_perplexity"] == pytest.approx(
                np.exp(base.nll.sum() / base.tokens.sum()), rel=1e-6
            )
            assert (
                values[one.id, g, "distinct_n_by_context(n=1)"]
                == lexical.distinct_n_by_context([written["text"][:8]], [written["prompt"][:8]], 1)[
                    0
                ]
            )
    assert set(source.heldout_prompts) == set(
        sampling_prompts(prepared.chains[0], prepared.data, 0, 0, 3)
    )


def test_only_metrics_fills_in_what_is_missing_and_trains_nothing(judged, tmp_path, monkeypatch):
    words, port, judge, run = judged
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = table(copy)
    files = {
        path: path.read_bytes()
        for name in ("ledger.parquet", "config.json", "texts")
        for path in [copy / name, *(copy / name).rglob("*.parquet")]
        if path.is_file()
    }
    words = [w if not w.startswith("--workdir") else f"--workdir={copy}" for w in words]
    for name in ("fit", "generate"):
        monkeypatch.setattr(family, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    with Server(lambda body, number: completion("70"), port=port):
        assert cli.guarded(main.main, cli.parse([*words, "--config.only=metrics"])) == 0
    after = table(copy)
    assert missing(after) == [] and set(after.xs(judge, level="metric")) == {70.0}
    rest = [not name.startswith("judge_") for name in before.index.get_level_values("metric")]
    pd.testing.assert_series_equal(after[rest], before[rest], check_exact=True)
    assert {path: path.read_bytes() for path in files} == files
    assert (
        "filled in 8 values of 2 finished generations; 0 are missing"
        in (copy / "run.log").read_text()
    )
    assert (copy / "report.html").read_bytes() != (run / "report.html").read_bytes()
    # The run goes on from there as if nothing had been missing.
    monkeypatch.undo()
    assert cli.guarded(main.main, cli.parse(words)) == 0
    pd.testing.assert_series_equal(table(copy), after, check_exact=True)


def test_only_metrics_measures_what_the_run_did_not_ask_for(judged, tmp_path):
    words, _, judge, run = judged
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    changed = [
        *words[:2],
        f"--workdir={copy}",
        "--config.metrics=text_length,word_entropy,held_out_loss",
    ]
    with pytest.raises(SystemExit) as refused:
        cli.guarded(main.main, cli.parse(changed))
    assert refused.value.code == 2
    assert cli.guarded(main.main, cli.parse([*changed, "--config.only=metrics"])) == 0
    values = table(copy)
    assert missing(values) == [judge] and {"word_entropy", "held_out_loss"} <= set(
        values.index.get_level_values("metric")
    )
    assert values["ratio-1", 0, "held_out_loss"] == pytest.approx(np.log(300), abs=0.2)


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--config.only=metrics"],
            "config.only = 'metrics': .* holds no run whose metrics could be filled in",
        ),
        (["--config.only=texts"], "config.only = 'texts' is not allowed: one of metrics"),
        (["--config.metrics=judge_quality"], "the quality judge has no model"),
        (["--config.metrics=judge_quality(model='m', url='host:80')"], "endpoint.url is 'host:80'"),
        (
            ["--config.metrics=class_share(model='/nowhere', label='x')"],
            "directory /nowhere does not exist",
        ),
        (["--config.metrics=tail_mass(probability=2)"], "probability is 2"),
        (
            ["--config.metrics=tail_mass", "--config.chain.heldout_texts=0"],
            "metric 'tail_mass' needs held-out texts",
        ),
        (
            ["--config.metrics=reference_perplexity", "--config.reference=/nowhere"],
            "directory /nowhere does not exist",
        ),
    ],
)
def test_refusals(place, tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as refused:
        cli.guarded(
            main.main,
            cli.parse(
                [
                    "jaxloop",
                    f"--config={place / 'study.py'}",
                    f"--workdir={tmp_path / 'run'}",
                    *words,
                ]
            ),
        )
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and re.search(said, error)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_sets(place, tmp_path):
    """Settings of chains on two data sets, and their human texts' embeddings by name."""
    lines = (place / "posts.jsonl").read_text().splitlines()
    (tmp_path / "first.jsonl").write_text("\n".join(lines[:110]))
    (tmp_path / "second.jsonl").write_text("\n".join(lines[110:]))

    def make(metrics):
        sources = (
            f"--config.chain.factors.dataset={tmp_path / 'first.jsonl'},{tmp_path / 'second.jsonl'}"
        )
        return [
            "jaxloop",
            f"--config={place / 'study.py'}",
            f"--workdir={tmp_path / 'run'}",
            sources,
            "--config.chain.ratios=1",
            f"--config.metrics={metrics}",
        ]

    return make, tmp_path / "run"


def test_each_chain_is_compared_with_its_own_data_set(two_sets, monkeypatch):
    monkeypatch.setattr(chain_measure, "embed", letters)
    make, run = two_sets
    words = make("frechet_distance,length_kl")
    prepared = prepare.prepare(settings(words))
    measure = chain_measure.measuring(settings(words), prepared, run)
    outcomes = [
        outcome(chain, [f"text {i} of {chain.id}" * (1 + i) for i in range(8)])
        for chain in prepared.chains
    ]
    found = measure(None, 0, outcomes, settings(words).metrics)
    for o in outcomes:
        human = prepared.sources[o.chain.dataset].human
        expected = distances.frechet_distance(letters(o.texts), letters(human))
        assert found[o.chain.id, 0]["frechet_distance"] == pytest.approx(float(expected), rel=1e-5)
    assert (
        len({values["frechet_distance"] for values in found.values()})
        == 2
        == len({values["length_kl"] for values in found.values()})
    )


def outcome(chain, texts):
    return ModelOutput(
        chain,
        0,
        chain.bases[0],
        None,
        texts,
        ["Go."] * len(texts),
        np.ones(len(texts), int),
        np.ones(len(texts), bool),
    )


@pytest.mark.slow
def test_the_evaluation_map_is_fitted_once_per_data_set_and_kept_with_the_run(
    two_sets, monkeypatch
):
    from jaxloop.metrics import umap

    make, run = two_sets
    words = make("kl_entropy(k=2),gaussian_aic")
    assert cli.guarded(main.main, cli.parse(words)) == 0
    values = table(run)
    assert (
        values.notna().all()
        and len({values[c, 0, "gaussian_aic"] for c in values.index.levels[0]}) == 2
    )
    maps = {p.name: p.read_bytes() for p in (run / "maps").iterdir()}
    assert set(maps) == {"first.npz", "second.npz"}
    one = umap.load_map(run / "maps/first.npz")
    assert one.points.shape == (110 - 8, 384)
    monkeypatch.setattr(umap, "fit_map", lambda *_: pytest.fail("fitted again"))
    assert cli.guarded(main.main, cli.parse([*words, "--config.chain.generations=3"])) == 0
    assert {p.name: p.read_bytes() for p in (run / "maps").iterdir()} == maps
