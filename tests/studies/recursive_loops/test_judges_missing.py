"""Judges that are down, late, or answer anything but a score, in whole experiments: exit codes, the
line that says what is missing, and the same command that fills it in.
"""

import socket

import numpy as np
import pandas as pd
import pytest

from jaxloop.studies.recursive_loops import cluster_table, sources
from tests.command import call
from tests.encoders import letters
from tests.metrics.server import Server, completion
from tests.studies.recursive_loops import loops_study as ls


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ls.build(tmp_path_factory.mktemp("judged"))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path, undrawn):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("jaxloop.metrics.embed.embed", letters)
    monkeypatch.setattr("jaxloop.metrics.endpoint.random.uniform", lambda *_: 0.0)
    monkeypatch.setattr(
        "jaxloop.studies.recursive_loops.data.clustering.project",
        lambda points, *_, **__: np.asarray(points[:, [2, 19]], np.float32),
    )
    monkeypatch.setattr(
        sources, "evaluation_map", lambda *_: lambda points: np.asarray(points[:, :2])
    )


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def judge(kind, port):
    return f"judge_{kind}(model='m', url='http://127.0.0.1:{port}/v1')"


def lean_by_topic(body, number):
    """Cats are of the left, stars of the right; a question that begins with "Hello" is a probe."""
    text = body["messages"][-1]["content"].lower()
    left = sum(word in text for word in ls.CATS)
    right = sum(word in text for word in ls.STARS)
    return completion("20" if left > right else "80")


@pytest.fixture
def go(capsys, tmp_path, place):
    def run(*words, expect, **changes):
        path = ls.write(tmp_path / "study.py", ls.raw(place, **changes))
        code, out, err = call(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}", *words)
        assert code == expect, err
        return tmp_path / "run", out, err

    return run


def metrics(root):
    table = pd.read_csv(root / "metrics.csv")
    return table.assign(metric=table["metric"].str.partition("(")[0])


@pytest.mark.slow
def test_a_judge_that_is_down_is_asked_again_by_the_same_command(go, port):
    changes = {"quality": judge("quality", port)}
    root, _, err = go(expect=5, **changes)
    table = metrics(root)
    assert table[table.metric == "judge_quality"]["value"].isna().all()
    assert table[table.metric == "text_length"]["value"].notna().all()
    (line,) = [line for line in err.splitlines() if "scores are missing" in line]
    assert "Connection refused" in line and "2 of judge_quality; to fill them in:" in line
    assert line.endswith("--config.only=metrics") and "until it does" in err
    chains = (root / "ledger.parquet").read_bytes()
    go("--config.only=metrics", expect=5, **changes)
    with Server(lambda body, number: completion("70"), port=port) as server:
        go(expect=0, **changes)
        asked = len(server.requests)
    table = metrics(root)
    assert set(table[table.metric == "judge_quality"]["value"]) == {70.0}
    assert set(table[table.metric == "judge_unparsable"]["value"]) == {0.0}
    assert asked > 0 and (root / "ledger.parquet").read_bytes() == chains
    go(expect=0, **changes)  # nothing is missing, nobody is asked


@pytest.mark.slow
def test_judge_later_asks_nothing_before_the_chains_are_done(go, port):
    changes = {"quality": judge("quality", port), "judge": "later"}
    _, _, err = go(expect=5, **changes)
    assert "until it does" not in err
    with Server(lambda body, number: completion("70"), port=port):
        root, _, _ = go("--config.only=metrics", expect=0, **changes)
    assert metrics(root).query("metric == 'judge_quality'")["value"].tolist() == [70.0, 70.0]


def test_validation_names_a_judge_that_is_down_with_all_else_that_is_wrong(go, tmp_path, port):
    _, _, err = go(
        "--validate",
        "--config.metrics=text_length,toxicity(model='/nowhere')",
        f"--config.models.pool={__file__}/none",
        f"--config.embedder={__file__}/nope",
        expect=2,
        quality=judge("quality", port),
    )
    said = err.splitlines()
    assert len(said) == 4 and all(line.startswith("jaxloop: ") for line in said)
    for part in (
        "config.metrics: model: directory /nowhere does not exist",
        f"config.models.pool: model: directory {__file__}/none does not exist",
        f"config.embedder: model: directory {__file__}/nope does not exist",
        "set config.judge=later to run the chains without it",
    ):
        assert part in err
    assert not (tmp_path / "run").exists()
    _, out, _ = go("--validate", expect=0, quality=judge("quality", port), judge="later")
    assert "disk: " in out


def political(port):
    return {
        "experiment": "political",
        "political_leaning": {"judge": judge("political_lean", port), "mixes": [100, 0]},
        "chain": {"ratios": [0.75], "size": 8, "eval_texts": 4},
    }


def test_human_texts_are_annotated_before_anything_is_written(go, tmp_path, port):
    _, _, err = go(expect=2, **political(port))
    assert "the mixes are made of the lean of human texts" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_annotation_that_breaks_off_goes_on_where_it_was(go, tmp_path, port):
    def some(body, number):
        return lean_by_topic(body, number) if number <= 60 else (404, {}, b"")

    with Server(some, port=port) as server:
        _, _, err = go(expect=5, **political(port))
        first = len(server.requests)
    assert "the same command goes on from there" in err and "Traceback" not in err
    with Server(lean_by_topic, port=port) as server:
        root, _, _ = go(expect=0, **political(port))
        # 240 human texts, and the few that the two chains wrote.
        assert len(server.requests) < 240 - 50 + 40 and first >= 60
    assert pd.read_parquet(root / "text_scores.parquet")["value"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["I cannot rate this post.", "", "The post is about a sofa."])
def test_replies_that_are_no_score_are_counted_and_not_taken_for_neutral(go, port, reply):
    human = {row["text"] for row in ls.posts()}

    def prose(body, number):
        known = body["messages"][-1]["content"] in human
        return lean_by_topic(body, number) if known else completion(reply)

    with Server(prose, port=port):
        root, _, err = go(expect=0, **political(port))
    assert "replies of m are no score" in err
    table = metrics(root)
    assert set(table[table.metric == "unparsable_share"]["value"]) == {1.0}
    for name in ("neutral_share", "not_political_share", "left_share", "political_lean"):
        assert table[table.metric == name]["value"].isna().all()
    by_generation = pd.read_csv(root / "tables/lean_by_generation.csv")
    written = by_generation[by_generation["generation"] >= 0]
    assert written["non_political"].isna().all() and (written["no_score"] == 1).all()


@pytest.mark.slow
def test_the_lean_of_generated_text_is_filled_in(go, port):
    with Server(lean_by_topic, port=port):
        go("--config.chain.generations=1", expect=0, **political(port))
    _, _, err = go("--config.chain.generations=2", expect=5, **political(port))
    assert "text_scores.parquet" in err and "political_lean" in err
    with Server(lean_by_topic, port=port):
        root, _, _ = go("--config.chain.generations=2", expect=0, **political(port))
    table = metrics(root)
    assert table[table.metric.isin(("political_lean", "left_share"))]["value"].notna().all()


@pytest.mark.slow
def test_quality_of_clusters_may_come_after_the_chains(go, port, place):
    changes = {
        "experiment": "clusters",
        "clusters": {
            "count": 9,
            "min_size": 24,
            "fit_rows": 200,
            "per_clustering": 5,
            "methods": ["kmeans-5", "gmm-5", "kmeans-10"],
            "min_distances": [0.01],
            "noise": ["kept"],
        },
        "properties": {"texts": 20, "lexical_texts": 10, "map_rows": 200},
        "quality": judge("quality", port),
    }
    _, _, err = go(expect=2, **changes)
    assert "config.judge=later asks for it after the chains" in err
    root, _, err = go(expect=5, judge="later", **changes)
    assert "9 of quality in properties.csv" in err
    assert pd.read_csv(root / "properties.csv")["quality"].isna().all()

    def by_length(body, number):
        return completion(str(len(body["messages"][0]["content"]) % 100))

    with Server(by_length, port=port):
        go(expect=0, judge="later", **changes)
    assert pd.read_csv(root / "properties.csv")["quality"].notna().all()
    cluster_table.check_properties(root)


@pytest.mark.slow
def test_half_of_the_answers_are_kept_and_the_score_is_missing_until_the_rest_is_there(go, port):
    def half(body, number):
        return completion("40") if number <= 5 else (500, {}, b"")

    changes = {"quality": judge("quality", port)}
    with Server(half, port=port):
        root, _, err = go(expect=5, **changes)
    assert "replies are there and are not asked for again" in err
    assert metrics(root).query("metric == 'judge_quality'")["value"].isna().any()
    with Server(lambda body, number: completion("40"), port=port):
        go(expect=0, **changes)
    assert set(metrics(root).query("metric == 'judge_quality'")["value"]) == {40.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "delay", "said"),
    [
        ("slow", 1.5, "silence for 0.2 s"),
        ("busy", 0.0, "status 429 and asks to be left alone for 3,600 s"),
    ],
)
def test_a_judge_that_is_slow_or_busy_is_one_sentence(go, port, kind, delay, said):
    def reply(body, number):
        return (429, {"Retry-After": "3600"}, b"") if kind == "busy" else completion("70")

    quality = judge("quality", port).replace(")", ", timeout=0.2)")
    with Server(reply, delay=delay, port=port):
        root, _, err = go(expect=5, quality=quality)
        assert said in err and "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "scores are missing" in line]
        assert "2 of judge_quality; to fill them in:" in line
    with Server(lambda body, number: completion("70"), port=port):
        go("--config.only=metrics", expect=0, quality=quality)
    assert set(metrics(root).query("metric == 'judge_quality'")["value"]) == {70.0}
