"""Models measured while the next ones are trained: the same files, really at the same time, and
errors that are not lost.
"""

import dataclasses
import threading
import time

import pytest

from jaxloop.recursion import driver
from jaxloop.recursion.run import background_thread
from jaxloop.runtime import checkpoint
from tests.faults.support import contents
from tests.recursion import unigram as u
from tests.recursion.test_driver import go

WAIT = 60  # seconds, in which what is to happen at the same time has long happened


def beside(settings, **options):
    return dataclasses.replace(settings, overlap_eval=True, **options)


@pytest.mark.parametrize(
    "options", [{}, {"start": "previous", "bases": ("small",)}], ids=["fresh", "previous"]
)
@pytest.mark.parametrize("keep", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_files_are_those_of_a_run_that_measures_in_turn(tmp_path, options, keep):
    chains, data, settings = u.study(4, **options)
    settings = dataclasses.replace(settings, keep=keep, members_per_group=1)
    go(tmp_path / "turn", chains, data, settings)
    go(tmp_path / "beside", chains, data, beside(settings))
    assert contents(tmp_path / "beside") == contents(tmp_path / "turn")


def test_a_chain_that_stops_does_so_in_the_same_generation(tmp_path):
    chains, data, settings = u.study(4, bases=("small",))
    spoiled = dataclasses.replace(
        data["posts"],
        texts=tuple(
            t + (f" {u.BOMB}" if i % 40 == 0 else "") for i, t in enumerate(data["posts"].texts)
        ),
    )
    states = [[], []]
    results = [
        go(tmp_path / str(i), chains, {"posts": spoiled}, s, watch=states[i].append)[0]
        for i, s in enumerate((settings, beside(settings)))
    ]
    assert results[0].failed and results[0] == results[1]
    assert contents(tmp_path / "1") == contents(tmp_path / "0")
    # What the chain would still have done is not left.
    assert [seen[-1].seconds_left for seen in states] == [0.0, 0.0]


def test_generations_that_lie_on_the_disk_at_once_are_counted(tmp_path):
    """One is kept, one is measured, and one is made beside it."""
    chains, data, settings = u.study(4, bases=("small",))
    settings, root, most = beside(settings, keep=1), tmp_path / "run", []

    def measure(model, generation, outcomes):
        if generation == 2:
            made = root / checkpoint.unfinished(3) / checkpoint.PARTS
            end = time.monotonic() + WAIT
            while not list(made.glob("*.fit.json")):
                assert time.monotonic() < end
                time.sleep(0.01)
            most.append([p.stat().st_size for p in root.rglob("*.safetensors")])
        return u.measure(model, generation, outcomes)

    go(root, chains, data, settings, measure=measure)
    (sizes,) = most
    assert len(sizes) == 3 * len(chains)
    assert sum(sizes) <= driver.disk_needed(chains, settings, max(sizes), text_bytes=0)


class Watched(u.Unigram):
    """Says when the fits of a generation begin."""

    def __init__(self):
        super().__init__()
        self.begun = [threading.Event() for _ in range(9)]

    def fit(self, model, tasks, settings):
        self.begun[len(self.fits)].set()
        return super().fit(model, tasks, settings)


def test_a_generation_is_measured_while_the_next_one_is_trained(tmp_path):
    """Every measurement waits for the training of the next generation to begin, which in turn it
    would never do.
    """
    chains, data, settings = u.study(4, bases=("small",))
    family, met = Watched(), []

    def measure(model, generation, outcomes):
        if generation < 3:
            met.append(family.begun[generation + 1].wait(WAIT))
        return u.measure(model, generation, outcomes)

    go(tmp_path / "run", chains, data, beside(settings), family, measure)
    assert met == [True] * 3


def test_a_generation_counts_only_once_it_is_measured(tmp_path):
    """While its measurement is under way it is not finished, and the next one has no place among
    the finished ones either.
    """
    chains, data, settings = u.study(3, bases=("small",))
    family, seen = Watched(), []

    def measure(model, generation, outcomes):
        if generation < 2:
            assert family.begun[generation + 1].wait(WAIT)
        seen.append(
            sorted(p.name for p in (tmp_path / "run" / checkpoint.DIRECTORY).glob("generation=*"))
        )
        return u.measure(model, generation, outcomes)

    go(tmp_path / "run", chains, data, beside(settings), family, measure)
    assert [len(names) for names in seen] == [0, 1, 2]


def test_an_error_of_a_measurement_is_raised_and_nothing_of_the_training_is_lost(tmp_path):
    chains, data, settings = u.study(3, bases=("small",))

    def broken(model, generation, outcomes):
        if generation == 1:
            raise RuntimeError("the judge has gone")
        return u.measure(model, generation, outcomes)

    with pytest.raises(RuntimeError, match="the judge has gone"):
        go(tmp_path / "run", chains, data, beside(settings), measure=broken)
    result, family = go(tmp_path / "run", chains, data, beside(settings))
    assert result.resumed_after == 0 and len(family.fits) == 1
    go(tmp_path / "whole", chains, data, settings)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_few_pieces_of_work_wait():
    """The queue holds the models of two calls at most, however slow the measuring is."""
    go_on, done = threading.Event(), []

    def work():
        assert go_on.wait(WAIT)
        done.append(1)

    with background_thread() as submit:
        for _ in range(3):
            submit(work)
        fourth = threading.Thread(target=submit, args=(work,))
        fourth.start()
        fourth.join(0.3)
        assert fourth.is_alive() and not done
        go_on.set()
        fourth.join(WAIT)
    assert len(done) == 4
