"""Metrics that are filled in later: from texts on disk alone, sealed like the rest, and nothing is
trained or sampled.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxloop.recursion import driver
from jaxloop.recursion.backfill import backfill
from jaxloop.recursion.finalise import read_metrics
from jaxloop.recursion.sources import human_texts
from jaxloop.runtime import checkpoint
from jaxloop.runtime.signals import Stop, Stopped
from jaxloop.runtime.workdir import open_workdir
from tests.recursion import unigram as u

NAMES = ("distinct", "judge", "total")


def measure(model, generation, outcomes, names=NAMES, *, down=False):
    """Metric "judge" asks a service that may be down; "total" needs the model's own counts."""
    out = {}
    for o in outcomes:
        words = " ".join(o.texts).split()
        values = {
            "distinct": len(set(words)) / max(len(words), 1),
            "judge": np.nan if down else float(len(words) + len(o.prompts)),
            "finished": 1.0,
        }
        if "total" in names:
            values["total"] = (
                np.nan if down else float(o.weights["counts"].sum() + model.prior.sum())
            )
        out[o.chain.id, o.entity] = values
    return out


def down(*args):
    return measure(*args, down=True)


def run(path, study, measure):
    with open_workdir(path, {"a": 1}, console=False) as place:
        return driver.run(u.Unigram(), *study, place.path, measure=measure, progress=False)


def go(path, study, family=None, **options):
    with open_workdir(path, {"a": 1}, console=False) as place:
        return backfill(
            family or u.Unigram(),
            *study,
            place.path,
            **dict(measure=measure, names=NAMES, of_weights=("total",), progress=False) | options,
        )


def table(path):
    return (
        pd.read_csv(path / "metrics.csv")
        .set_index(["chain", "generation", "metric"])["value"]
        .sort_index()
    )


def test_missing_metrics_are_those_of_a_run_that_had_them(tmp_path):
    chains, data, settings = u.study(4)
    study = chains, data, dataclasses.replace(settings, keep=None)
    run(tmp_path / "healthy", study, measure)
    run(tmp_path / "down", study, down)
    assert table(tmp_path / "down").isna().sum() == 2 * 4 * 4
    family = u.Unigram()
    done = go(tmp_path / "down", study, family)
    assert (done.generations, done.failed, done.computed, done.missing, done.unavailable) == (
        4,
        {},
        32,
        0,
        (),
    )
    assert not family.fits and not family.samples
    pd.testing.assert_series_equal(
        table(tmp_path / "down"), table(tmp_path / "healthy"), check_exact=True
    )
    # Sealed like the rest; a second call finds nothing to do, and the run itself goes on and keeps
    # what was filled in.
    assert checkpoint.scan(tmp_path / "down").last == 3
    before = (tmp_path / "down/metrics.csv").read_bytes()
    assert (
        go(tmp_path / "down", study, measure=None).computed == 0
        and (tmp_path / "down/metrics.csv").read_bytes() == before
    )
    longer = chains, data, dataclasses.replace(study[2], generations=5)
    run(tmp_path / "down", longer, measure)
    run(tmp_path / "healthy", longer, measure)
    pd.testing.assert_series_equal(
        table(tmp_path / "down"), table(tmp_path / "healthy"), check_exact=True
    )


def test_metrics_of_weights_that_are_gone_stay_missing_and_are_named(tmp_path):
    study = u.study(4)
    run(tmp_path / "run", study, down)
    done = go(tmp_path / "run", study)
    values = table(tmp_path / "run")
    assert done.unavailable == ("total",) and (done.computed, done.missing) == (
        4 * 4 + 4 * 2,
        4 * 2,
    )
    total = values[values.index.get_level_values("metric") == "total"]
    assert (
        total.isna() == (total.index.get_level_values("generation") < 2)
    ).all()  # two generations of weights are kept
    family = u.Unigram()
    go(tmp_path / "run", study, family, names=("distinct", "judge"))
    assert family.loads == []


def test_new_names_are_added_and_values_that_exist_are_left_alone(tmp_path):
    study = u.study(3)
    run(tmp_path / "run", study, u.measure)
    before = table(tmp_path / "run")
    go(tmp_path / "run", study, names=("length", "judge"), measure=down)
    after = table(tmp_path / "run")
    assert set(after.index.get_level_values("metric")) == {"distinct", "length", "judge"}
    pd.testing.assert_series_equal(after[before.index], before, check_exact=True)
    assert after.isna().sum() == 4 * 3  # marked as missing
    go(tmp_path / "run", study, names=("judge",))
    assert table(tmp_path / "run").notna().all()
    files = sorted(p.name for p in (tmp_path / "run/checkpoints/generation=0001").glob("metrics*"))
    assert files == ["metrics-0001.parquet", "metrics-0002.parquet", "metrics.parquet"]
    assert len(read_metrics(tmp_path / "run", 1)["value"]) == 4 * 3


def test_a_signal_leaves_what_was_filled_in(tmp_path, caplog):
    study = u.study(4)
    run(tmp_path / "run", study, down)
    stop = Stop()

    def interrupted(model, generation, *rest):
        if generation == 1:
            stop.number = 15
        return measure(model, generation, *rest)

    with pytest.raises(Stopped):
        go(tmp_path / "run", study, names=("judge",), measure=interrupted, stop=stop)
    judged = table(tmp_path / "run").xs("judge", level="metric")
    assert (judged.notna() == (judged.index.get_level_values("generation") <= 1)).all()
    go(tmp_path / "run", study, names=("judge",))
    assert table(tmp_path / "run").xs("judge", level="metric").notna().all()


def test_chains_that_stopped_are_measured_up_to_there(tmp_path):
    chains, data, settings = u.study(3)
    spoiled, first = (
        dataclasses.replace(chains[0], id="spoiled", dataset="spoiled"),
        set(human_texts(chains[0], data)),
    )
    texts = [t if t in first else f"{t} {u.BOMB}" for t in data["posts"].texts]
    study = (
        [spoiled, *chains[1:]],
        data | {"spoiled": dataclasses.replace(data["posts"], texts=texts)},
        settings,
    )
    run(tmp_path / "run", study, down)
    done = go(tmp_path / "run", study, names=("judge",))
    assert set(done.failed) == {"spoiled"} and done.computed == 1 + 3 * 3
    assert table(tmp_path / "run").xs("judge", level="metric").notna().all()


def test_refusals(tmp_path):
    study = u.study(2)
    with pytest.raises(ValueError, match="is not an open run directory"):
        backfill(u.Unigram(), *study, tmp_path, measure=measure, names=NAMES)
    with pytest.raises(ValueError, match="has no finished generation"):
        go(tmp_path / "run", study)
    run(tmp_path / "run", study, down)
    with pytest.raises(ValueError, match="holds another study"):
        go(tmp_path / "run", (study[0][:2], *study[1:]))
