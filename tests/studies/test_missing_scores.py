"""Scores that are missing at the end of the other papers' studies: the exit code, the line that
says so, and the commands that fill them in, after which the tables are those of an undisturbed run.
"""

import socket

import pandas as pd
import pytest

from jaxloop.runtime import checkpoint
from jaxloop.studies import MISSING_SCORES
from tests.command import call
from tests.metrics.server import Server, completion
from tests.studies.bias_amplification import test_bias
from tests.studies.diversity import diversity_place, test_diversity
from tests.studies.multi_entity import test_entities

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Fixtures.
folder, world, place = test_entities.folder, test_bias.world, test_diversity.place
ONLY = "--config.only=metrics"


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)


def by_length(body, number):
    """A judge whose score depends on the text."""
    return completion(str(len(body["messages"][0]["content"]) % 101))


def judge(port, tmp_path, name):
    cache = tmp_path / f"{name}.sqlite"
    return f"judge_quality(model='m', url='http://127.0.0.1:{port}/v1', cache='{cache}')"


def tables(root):
    """{file: its text} of all tables that a run leaves, without the names of judges' caches."""
    paths = [*root.glob("*.csv"), *root.glob("tables/*"), *root.glob("base.json")]
    texts = {str(path.relative_to(root)): path.read_text() for path in paths}
    return {name: text.replace(str(root.parent), "") for name, text in texts.items()}


def fills_in(capsys, tmp_path, port, words, *, field):
    """A study whose judge is down ends with code 5 and one line; what fills it in gives the tables
    of a run whose judge was there.
    """

    def go(name, *more):
        metrics = f"--config.{field}={judge(port, tmp_path, 'replies')},text_length"
        code, _, err = call(capsys, *words, f"--workdir={tmp_path / name}", metrics, *more)
        return code, err

    code, err = go("run")
    assert code == MISSING_SCORES, err
    (line,) = [line for line in err.splitlines() if "scores are missing" in line]
    assert "Connection refused" in line and "of judge_quality; to fill them in:" in line
    assert line.endswith(ONLY)
    assert go("run", ONLY)[0] == MISSING_SCORES
    ledger = (tmp_path / "run" / "ledger.parquet").read_bytes()
    code, err = go("again")
    assert code == MISSING_SCORES, err
    with Server(by_length, port=port) as server:
        code, err = go("run", ONLY)
        assert code == 0 and server.requests, err
        code, err = go("again")
        assert code == 0, err
        code, err = go("undisturbed")
        assert code == 0 and "scores are missing" not in err, err
    assert (tmp_path / "run" / "ledger.parquet").read_bytes() == ledger
    expected = tables(tmp_path / "undisturbed")
    values = pd.read_csv(tmp_path / "undisturbed" / "metrics.csv")
    scores = values[values["metric"].str.startswith("judge_quality")]["value"]
    assert len(scores) and scores.notna().all() and scores.nunique() > 1
    for name in ("run", "again"):
        found = tables(tmp_path / name)
        assert found.keys() == expected.keys()
        for file, text in expected.items():
            assert found[file] == text, (name, file)


def test_entities_whose_judge_was_down(folder, capsys, tmp_path, port):
    config = tmp_path / "study.py"
    raw = test_entities.settings(folder, "exchange.generations=2").model_dump(mode="json")
    config.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({raw!r})\n"
    )
    fills_in(capsys, tmp_path, port, [f"--config={config}"], field="measure.metrics")


def test_articles_whose_judge_was_down(world, capsys, tmp_path, port):
    words = [
        f"--config={world[0] / 'study.py'}",
        "--config.chain.generations=2",
        "--config.chain.setups=greedy,nucleus",
        "--config.chain.seeds=0",
        "--config.measure.detector=none",
        "--config.neurons.measure=false",
    ]
    fills_in(capsys, tmp_path, port, words, field="measure.metrics")


def test_losses_of_trained_models_are_had_again(place, capsys, tmp_path):
    """No judge scores anything in a study of diversity: what can be missing are losses."""
    with diversity_place.endpoint(diversity_place.Answers()) as url:
        words = [
            f"--config={place / 'study.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.generator.url={url}",
            "--config.tasks=story",
            "--config.seeds=0",
        ]
        code, _, err = call(capsys, *words)
        assert code == 0, err
        expected = tables(tmp_path / "run")
        path = tmp_path / "run" / checkpoint.finished(0) / "metrics.parquet"
        whole = pd.read_parquet(path)
        chain = whole["chain"].iloc[0]
        whole.loc[whole["chain"] == chain, "value"] = float("nan")
        whole.to_parquet(path, index=False)
        checkpoint.add_files(tmp_path / "run", 0, [f"{checkpoint.finished(0)}/metrics.parquet"])
        code, _, err = call(capsys, *words, ONLY)
        assert code == 0 and "filled in 2 values" in err, err
        assert tables(tmp_path / "run") == expected
