"""Data sets that people wrote in part, and generations that are fitted in several calls."""

from dataclasses import replace

import pandas as pd
import pytest

from jaxloop.recursion import chains as ch
from jaxloop.recursion import driver
from jaxloop.recursion import workflow as wf
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime.workdir import open_workdir
from tests.recursion import unigram as u


def go(path, chains, data, settings):
    family = u.Unigram()
    with open_workdir(path, {"generations": settings.generations}, console=False) as workdir:
        driver.run(family, chains, data, settings, workdir.path, measure=u.measure, progress=False)
    return family


def test_the_ledger_books_what_no_person_wrote_as_external(tmp_path):
    _, _, settings = u.study(1)
    made = Dataset([f"made {i}" for i in range(6)], "", ("",))
    mixed = Dataset(
        [f"human {i}" for i in range(10)] + list(made.texts),
        "",
        ("",),
        outside=frozenset(range(10, 16)),
    )
    flow = wf.replace(16, synthetic=0, human=1)
    values = {"workflow": flow, "dataset": "mixed", "bases": ("a",), "seed": 3, "external": "made"}
    chain = ch.make_chain(values, factors={"seed": 3})
    data = {"mixed": mixed, "made": made}
    family = go(tmp_path / "run", [chain], data, settings)
    assert sorted(family.fits[0][1][0].texts) == sorted(mixed.texts)
    ledger = pd.read_parquet(tmp_path / "run/ledger.parquet")
    assert ledger.set_index("source")["count"].to_dict() == {"human": 10, "external": 6}
    assert ledger.set_index("source")["dataset"].to_dict() == {"human": "mixed", "external": "made"}
    assert set(ledger["real_share_train"]) == set(ledger["real_share_new"]) == {10 / 16}


def test_calls_of_a_few_chains_give_what_one_call_gives(tmp_path):
    chains, data, settings = u.study(3)
    go(tmp_path / "one", chains, data, settings)
    family = go(tmp_path / "few", chains, data, replace(settings, members_per_group=2))
    assert max(len(call[1]) for call in family.fits) == 2
    assert (tmp_path / "one/metrics.csv").read_bytes() != b""

    def read(name):
        return pd.read_csv(tmp_path / name / "metrics.csv").sort_values(
            ["chain", "generation", "metric"], ignore_index=True
        )

    pd.testing.assert_frame_equal(read("one"), read("few"), check_exact=True)


def test_calls_without_members_are_refused():
    _, _, settings = u.study(1)
    with pytest.raises(ValueError, match="members_per_group=0: must be an integer of at least 1"):
        replace(settings, members_per_group=0)
