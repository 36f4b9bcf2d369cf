"""The generation loop against the same loop written with texts, with word counts for a
model.
"""

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from jaxloop.recursion import chains as ch
from jaxloop.recursion import driver, ledger
from jaxloop.recursion import workflow as wf
from jaxloop.recursion.plan import index_plan, on_host
from jaxloop.recursion.progress import Clock, duration
from jaxloop.recursion.sources import Dataset, human_texts
from jaxloop.recursion.work import work_of
from jaxloop.runtime.weights_io import load_tree
from jaxloop.runtime.workdir import open_workdir
from tests.faults.support import contents
from tests.recursion import unigram as u


def go(path, chains, data, settings, family=None, measure=u.measure, **options):
    family = family or u.Unigram()
    options = {"measure": measure, "progress": False} | options
    with open_workdir(
        path, {"generations": settings.generations}, may_raise=("generations",), console=False
    ) as workdir:
        return driver.run(family, chains, data, settings, workdir.path, **options), family


def texts(path, chain, generation):
    return pd.read_parquet(path / f"texts/chain={chain.id}/generation={generation:04d}.parquet")


def trained_on(family, chains):
    """{chain id: [texts that generation g was fitted to]}, from the order of the family's calls."""
    out = {c.id: [None] * 99 for c in chains}
    calls = iter(family.fits)
    for generation in range(99):
        for group in ch.groups(chains, generation):
            call = next(calls, None)
            if call is None:
                return out
            assert call[0] == group.base and len(call[1]) == len(group.members)
            for member, task in zip(group.members, call[1], strict=True):
                out[member.chain.id][generation] = task.texts
    return out


def test_a_chain_trains_on_what_section_1_of_the_specification_says(tmp_path):
    chains, data, settings = u.study(6)
    result, family = go(tmp_path / "run", chains, data, settings)
    assert (result.generations, result.failed, result.resumed_after) == (6, {}, None)
    sets = trained_on(family, chains)
    for chain in chains:
        a, h = chain.workflow.synthetic, chain.workflow.human
        first = sets[chain.id][0]
        assert len(first) == 24 == len(set(first)) and set(first) <= set(data["posts"].texts)
        assert first == human_texts(chain, data)
        pool, human_seen = Counter(), set(first)
        for generation in range(1, 6):
            written = texts(tmp_path / "run", chain, generation - 1)
            assert written.row.tolist() == list(range(max(a, settings.evaluate)))
            assert set(written.generation) == {generation - 1}
            pool.update(written.text[:a])
            now = Counter(sets[chain.id][generation])
            fresh = {t for t in now if t.startswith("human")} - human_seen
            assert not fresh & set(first)
            assert sum(now.values()) == 24
            if generation == 1:
                assert len(fresh) == h and now - Counter(fresh) == Counter(written.text[:a])
            human_seen |= fresh
            assert all(pool[t] >= n for t, n in now.items() if not t.startswith("human"))
            assert not any(n > 1 for t, n in now.items() if t.startswith("human"))
            assert not set(first) & set(now)
        assert len(human_seen) <= wf.human_needed(chain.workflow, 6)


def test_one_call_per_base_and_generation_and_one_load_per_base(tmp_path):
    chains, data, settings = u.study(6)
    _, family = go(tmp_path / "run", chains, data, settings)
    expected = [group.base for g in range(6) for group in ch.groups(chains, g)]
    assert [call[0] for call in family.fits] == expected == [call[0] for call in family.samples]
    assert sorted(family.loads) == sorted(set(expected))


def test_a_chain_alone_writes_what_it_writes_among_others(tmp_path):
    chains, data, settings = u.study(4)
    go(tmp_path / "all", chains, data, settings)
    go(tmp_path / "one", chains[2:3], data, settings)
    for generation in range(4):
        pd.testing.assert_frame_equal(
            texts(tmp_path / "all", chains[2], generation),
            texts(tmp_path / "one", chains[2], generation),
        )


def test_tables_say_what_trained_what_and_can_be_read_with_pandas_alone(tmp_path):
    chains, data, settings = u.study(5)
    _, family = go(tmp_path / "run", chains, data, settings)
    table = pd.read_parquet(tmp_path / "run/ledger.parquet")
    for chain in chains:
        flow, written = chain.workflow, {}
        for generation in range(5):
            rows = table[(table.chain == chain.id) & (table.generation == generation)]
            plan = on_host(index_plan(flow, chain.key, generation, generations=5))
            assert rows["count"].sum() == wf.train_size(flow, generation) == len(plan.source)
            assert rows[rows.source == "human"]["count"].sum() == (plan.source == wf.HUMAN).sum()
            written[generation] = np.mean(
                [
                    float(g > 0) if s == wf.HUMAN else written[g]
                    for s, g in zip(*plan[:2], strict=True)
                ]
            )
            one = rows.iloc[0]
            assert one.lineage_share == pytest.approx(written[generation], abs=1e-12)
            assert one.real_share_train == (plan.source == wf.HUMAN).mean()
            assert one.real_share_new == (1 if generation == 0 else flow.human / 24)
            assert (one.base, one.start, one.steps, one.status) == (
                ch.base_of(chain, generation),
                "base",
                2,
                "ok",
            )
            assert one.data_sha256 == (
                ledger.fingerprint(data["posts"].texts, data["posts"].prompts)
                if one.source == "human"
                else ""
            )
            assert one.tokens_sampled == 6 * one.items_sampled == 6 * max(flow.synthetic, 8)
    numbers = pd.read_csv(tmp_path / "run/metrics.csv")
    assert list(numbers.columns) == [
        "study",
        "chain",
        "ratio",
        "seed",
        "entity",
        "generation",
        "metric",
        "value",
    ]
    assert len(numbers) == 4 * 5 * 2 and numbers.ratio.dtype == float and numbers.seed.dtype == int
    words = " ".join(texts(tmp_path / "run", chains[0], 3).text).split()
    value = numbers[
        (numbers.chain == chains[0].id) & (numbers.generation == 3) & (numbers.metric == "distinct")
    ].value.item()
    assert value == len(set(words)) / len(words)
    losses = pd.read_parquet(tmp_path / "run/losses.parquet")
    assert len(losses) == 4 * 5 * 2 and set(losses.step) == {0, 1}


def test_raising_the_number_of_generations_goes_on_as_if_asked_at_once(tmp_path):
    chains, data, settings = u.study(5)
    go(tmp_path / "whole", chains, data, settings)
    go(tmp_path / "run", chains, data, dataclasses.replace(settings, generations=2))
    result, family = go(tmp_path / "run", chains, data, settings)
    assert result.resumed_after == 1
    assert len(family.fits) == sum(len(ch.groups(chains, g)) for g in range(2, 5))
    for name in ("ledger.parquet", "metrics.csv", "losses.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again, family = go(tmp_path / "run", chains, data, settings)
    assert (again.resumed_after, family.fits, family.loads) == (4, [], [])


def test_a_chain_whose_loss_is_not_finite_stops_named_and_alone(tmp_path, caplog):
    chains, data, settings = u.study(5)
    go(tmp_path / "healthy", chains, data, settings)
    bomb = human_bomb(chains[0], data, generation=2)
    chains[0] = dataclasses.replace(chains[0], dataset="bomb")
    result, family = go(tmp_path / "run", chains, data | {"bomb": bomb}, settings)
    assert set(result.failed) == {chains[0].id} and result.generations == 5
    stopped = result.failed[chains[0].id]["generation"]
    assert "nan at step 1" in result.failed[chains[0].id]["reason"]
    log = (tmp_path / "run/run.log").read_text()
    assert (
        f"chain {chains[0].id} stopped in generation {stopped}" in log
        and "the other chains go on" in log
    )
    last_good = load_tree(
        tmp_path / f"run/checkpoints/generation={stopped - 1:04d}", f"adapters/chain={chains[0].id}"
    )
    assert np.isfinite(last_good["counts"]).all()
    table = pd.read_parquet(tmp_path / "run/ledger.parquet")
    mine = table[table.chain == chains[0].id]
    assert (
        mine.generation.max() == stopped
        and mine[mine.generation == stopped].status.str.contains("nan").all()
    )
    numbers = pd.read_csv(tmp_path / "run/metrics.csv")
    assert numbers[numbers.chain == chains[0].id].generation.max() == stopped - 1
    for chain in chains[1:]:
        for generation in range(5):
            pd.testing.assert_frame_equal(
                texts(tmp_path / "run", chain, generation),
                texts(tmp_path / "healthy", chain, generation),
            )
    again, family = go(tmp_path / "run", chains, data | {"bomb": bomb}, settings)
    assert again.failed == result.failed and family.fits == []


def human_bomb(chain, data, generation):
    """The data set, with a text that ruins training among those that are fresh in `generation`."""
    from jaxloop.recursion.sources import human_stream

    stream = human_stream(chain, data, 5)
    at = stream[
        chain.workflow.initial + (generation - 1) * chain.workflow.human : chain.workflow.initial
        + generation * chain.workflow.human
    ]
    spoiled = list(data["posts"].texts)
    for row in at:
        spoiled[row] = f"{spoiled[row]} {u.BOMB}"
    return Dataset(tuple(spoiled), data["posts"].prompts)


def test_when_every_chain_has_stopped_the_run_ends(tmp_path):
    chains, data, settings = u.study(4, ratios=(1.0,))
    spoiled = Dataset(tuple(f"{t} {u.BOMB}" for t in data["posts"].texts), "")
    result, family = go(tmp_path / "run", chains, {"posts": spoiled}, settings)
    assert (
        set(result.failed) == {c.id for c in chains}
        and len(family.fits) == 1
        and not family.samples[0:]
    )
    assert "every chain has stopped" in (tmp_path / "run/run.log").read_text()


@pytest.mark.parametrize("start", ["base", "previous", "scratch"])
def test_every_start_reaches_the_family(tmp_path, start):
    chains, data, settings = u.study(3, ratios=(0.5,), seeds=(0,), bases=("small",), start=start)
    _, family = go(tmp_path / "run", chains, data, dataclasses.replace(settings, keep=None))
    for generation, (_, (task,), fit) in enumerate(family.fits):
        assert fit.mode == ("scratch" if start == "scratch" else "counts")
        if start == "previous" and generation:
            before = load_tree(
                tmp_path / f"run/checkpoints/generation={generation - 1:04d}",
                f"adapters/chain={chains[0].id}",
            )
            np.testing.assert_array_equal(task.start["counts"], before["counts"])
        else:
            assert task.start is None


def test_settings_of_a_chain_replace_those_of_the_study(tmp_path):
    chains, data, settings = u.study(2, seeds=(0,), ratios=(1.0,), bases=("small",))
    chains += [
        dataclasses.replace(chains[0], id="long", sample=(("words", 9),), fit=(("smoothing", 0.5),))
    ]
    _, family = go(tmp_path / "run", chains, data, settings)
    assert {len(t.split()) for t in texts(tmp_path / "run", chains[1], 1).text} == {9}
    assert {len(t.split()) for t in texts(tmp_path / "run", chains[0], 1).text} == {6}
    assert sorted(call[2].smoothing for call in family.fits) == [0.01, 0.01, 0.5, 0.5]


@pytest.mark.parametrize(
    "values",
    [
        {"workflow": "replace"},
        {"workflow": "accumulate"},
        {"workflow": "accumulate_subsample"},
        {"workflow": "preserve", "share": 0.25},
        {"workflow": "window", "k": 2, "ratio": 0.5},
        {"workflow": "external", "share": 0.25, "ratio": 0.5, "external": "outside"},
        {
            "workflow": "fresh_human",
            "ratio": 0.5,
            "entities": 2,
            "mixing": ((0.5, 0.5), (0.0, 1.0)),
        },
        {"workflow": "fresh_human", "ratio": 0.5, "entities": 2, "shared": True},
    ],
    ids=lambda v: "-".join(map(str, [v["workflow"], *[k for k in v if k in ("mixing", "shared")]])),
)
def test_every_workflow_gives_the_family_the_texts_of_its_plan(tmp_path, values):
    outside = Dataset(tuple(f"outside{i} w01" for i in range(90)), "outside: ")
    chains = ch.product({"seed": [0, 1]}, dataset="posts", bases=("small",), size=12, **values)
    data, settings = (
        {"posts": u.human(), "outside": outside},
        driver.RunSettings(4, u.FitSettings(), u.SampleSettings(), evaluate=4),
    )
    _, family = go(tmp_path / "run", chains, data, settings)
    rows_used = {c.id: {} for c in chains}
    for generation, call in enumerate(family.fits):
        members = ch.groups(chains, generation)[0].members
        for member, task in zip(members, call[1], strict=True):
            plan = on_host(
                index_plan(
                    member.chain.workflow,
                    member.chain.key,
                    generation,
                    generations=4,
                    entity=member.entity,
                )
            )
            assert (
                len(task.texts)
                == len(task.prompts)
                == wf.train_size(member.chain.workflow, generation)
            )
            for source, born, index, owner, text, prompt in zip(
                *plan[:4], task.texts, task.prompts, strict=True
            ):
                if source == wf.SYNTHETIC:
                    written = texts(tmp_path / "run", member.chain, int(born))
                    assert (
                        written[(written.entity == owner) & (written.row == index)].text.item()
                        == text
                    )
                elif source == wf.EXTERNAL:
                    assert text.startswith("outside") and prompt == "outside: "
                else:
                    assert text.startswith("human") and prompt == "say something: "
                    # One item of one stream is one row of the data set, and no row serves two
                    # items.
                    assert rows_used[member.chain.id].setdefault(
                        text, (int(owner), int(index))
                    ) == (int(owner), int(index))
    for chain in chains:
        assert len(set(rows_used[chain.id].values())) == len(rows_used[chain.id])


def test_entities_that_exchange_read_private_public_and_each_other(tmp_path):
    data = {
        name: Dataset(
            tuple(f"{name}{i}" for i in range(9)), tuple(f"Q{name}{i}? " for i in range(9))
        )
        for name in ("sciq", "gsm8k", "books")
    }
    flow = {
        "workflow": "exchange",
        "alpha": 0.5,
        "beta": 0.5,
        "private": (9, 9),
        "public_size": 9,
        "synthetic": 6,
    }
    chain = ch.ChainSpec(
        "exchange",
        wf.exchange(
            60,
            alpha=0.5,
            beta=0.5,
            private=flow["private"],
            public=9,
            synthetic=6,
            start="previous",
        ),
        ("sciq", "gsm8k"),
        0,
        ("small",),
        public="books",
    )
    settings = driver.RunSettings(3, u.FitSettings(), u.SampleSettings(), evaluate=0)
    _, family = go(tmp_path / "run", [chain], data, settings)
    for generation, (_, tasks, _) in enumerate(family.fits):
        for entity, task in enumerate(tasks):
            heads = Counter(
                t.rstrip("0123456789") if not t.startswith("w") else "w" for t in task.texts
            )
            allowed = {chain.dataset[entity], "books"} | ({"w"} if generation else set())
            assert set(heads) == allowed
            for text, prompt in zip(task.texts, task.prompts, strict=True):
                assert text.startswith("w") or prompt == f"Q{text}? "
    for entity, name in enumerate(chain.dataset):
        made = texts(tmp_path / "run", chain, 2)
        prompts = made[made.entity == entity].prompt
        assert len(prompts) == 6 and prompts.str.startswith(f"Q{name}").all()
    assert sorted(
        p.name for p in (tmp_path / "run/checkpoints/generation=0002/adapters").iterdir()
    ) == [f"chain=exchange,entity={k}.safetensors" for k in (0, 1)]


def test_every_entity_answers_the_probes_and_nobody_trains_on_the_answers(tmp_path):
    data = {
        name: Dataset(
            tuple(f"{name}{i}" for i in range(9)), tuple(f"Q{name}{i}? " for i in range(9))
        )
        for name in ("sciq", "gsm8k", "books")
    }
    flow = wf.exchange(
        30, alpha=1, beta=0, private=(9, 9), public=9, synthetic=6, initial_beta=1, start="previous"
    )
    plain = ch.ChainSpec("chain", flow, ("sciq", "gsm8k"), 0, ("small",), public="books")
    asked = dataclasses.replace(plain, probes=(("gsm8k", 2), ("books", 3)))
    settings = driver.RunSettings(3, u.FitSettings(), u.SampleSettings(), evaluate=0)
    go(tmp_path / "plain", [plain], data, settings)
    go(tmp_path / "asked", [asked], data, settings)
    for generation in range(3):
        without, made = (
            texts(tmp_path / "plain", plain, generation),
            texts(tmp_path / "asked", asked, generation),
        )
        for entity in range(2):
            mine = made[made.entity == entity]
            assert mine.prompt.tolist()[6:] == [
                "Qgsm8k0? ",
                "Qgsm8k1? ",
                "Qbooks0? ",
                "Qbooks1? ",
                "Qbooks2? ",
            ]
            assert mine.text.tolist()[:6] == without[without.entity == entity].text.tolist()
    with pytest.raises(
        ValueError, match="probes: 'books': has 9 items, chain chain asks for the first 10"
    ):
        go(
            tmp_path / "too-many",
            [dataclasses.replace(plain, probes=(("books", 10),))],
            data,
            settings,
        )


def test_prompts_of_several_domains_are_answered_in_turn(tmp_path):
    chains, data, settings = u.study(2, ratios=(0.5,), seeds=(0,))
    data = {
        "posts": dataclasses.replace(
            data["posts"], sample_prompts=("wikipedia", "reddit", "twitter")
        )
    }
    go(tmp_path / "run", chains, data, settings)
    assert (
        texts(tmp_path / "run", chains[0], 0).prompt.tolist()
        == ["wikipedia", "reddit", "twitter"] * 4
    )


def test_weights_of_older_generations_go_unless_they_are_to_be_kept(tmp_path):
    chains, data, settings = u.study(5)
    for keep, left in ((1, [4]), (2, [3, 4]), (None, [0, 1, 2, 3, 4])):
        path = tmp_path / f"keep-{keep}"
        go(path, chains, data, dataclasses.replace(settings, keep=keep))
        assert [
            g for g in range(5) if (path / f"checkpoints/generation={g:04d}/adapters").exists()
        ] == left
        again, _ = go(path, chains, data, dataclasses.replace(settings, keep=keep))
        assert again.resumed_after == 4


def test_disk_needed_bounds_what_a_run_leaves(tmp_path):
    chains, data, settings = u.study(5)
    go(tmp_path / "run", chains, data, settings)
    weights = max(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    used = sum(
        p.stat().st_size
        for kind in ("*.safetensors", "texts/*/*.parquet")
        for p in (tmp_path / "run").rglob(kind)
    )
    assert used <= driver.disk_needed(chains, settings, weights, text_bytes=500)


TOO_FEW = "dataset='posts': has 95 human items, chain ratio-0.25_seed-0 needs 96 in 5 generations"
REFUSED = {
    "chains: there are none": lambda c, d, s: ([], d, s),
    "stands for two chains": lambda c, d, s: (c + c[:1], d, s),
    "dataset='posts': no such data set; there are tweets": lambda c, d, s: (
        c,
        {"tweets": d["posts"]},
        s,
    ),
    "dataset='posts': the data set is empty": lambda c, d, s: (c, {"posts": Dataset(())}, s),
    "dataset='posts': has 2 texts but 1 prompts": lambda c, d, s: (
        c,
        {"posts": Dataset(("a", "b"), ("p",))},
        s,
    ),
    TOO_FEW: lambda c, d, s: (
        c,
        {"posts": u.human(95)},
        s,
    ),
    "fit.learning_rat: not a field": lambda c, d, s: (
        [dataclasses.replace(c[0], fit=(("learning_rat", 1),))],
        d,
        s,
    ),
    "factors.metric: is a column": lambda c, d, s: (
        [dataclasses.replace(c[0], factors=(("metric", 1),))],
        d,
        s,
    ),
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_studies_that_cannot_run_are_refused_before_anything_is_written(tmp_path, message):
    chains, data, settings = REFUSED[message](*u.study(5))
    with pytest.raises(ValueError) as error:
        driver.check(chains, data, settings)
    assert message in str(error.value) and "\n" not in str(error.value)
    family = u.Unigram()
    with pytest.raises(ValueError):
        go(tmp_path / "run", chains, data, settings, family)
    assert not family.loads and not (tmp_path / "run/checkpoints").exists()


def test_needed_human_items_of_the_papers_chain_are_named():
    chains = ch.product({"ratio": [1 / 8]}, dataset="tweets", bases="small", size=4000, seed=0)
    with pytest.raises(
        ValueError,
        match=r"has 60,000 human items, chain ratio-0.125 needs 70,500 in 20 generations",
    ):
        driver.check(
            chains, {"tweets": Dataset(["x"] * 60_000)}, driver.RunSettings(20, None, None)
        )


@pytest.mark.parametrize("field", ["generations", "evaluate", "keep", "models_in_memory"])
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=-1: must be an integer"):
        driver.RunSettings(**{"generations": 2, "fit": None, "sample": None, field: -1})


def test_time_left_is_work_left_times_measured_speed_without_the_first_run():
    clock = Clock({"fit": 100, "sample": 50, "measure": 0})
    clock.done("fit", 10, 60.0)
    assert clock.seconds_left() is None
    clock.done("sample", 5, 10.0)
    assert clock.seconds_left() == pytest.approx(90 * 6 + 45 * 2)
    clock.done("fit", 10, 5.0)
    clock.skip("fit", 40)
    assert clock.seconds_left() == pytest.approx(40 * 0.5 + 45 * 2)


def test_work_is_counted_for_the_process_that_does_it():
    """With three models two processes do not have half of the work each."""
    chains, _, settings = u.study(3, ratios=(0.25,), seeds=(0, 1, 2), bases=("small",))
    whole = work_of(chains, settings, 1, measured=True)
    rows = 2 * 3 * 24
    assert whole == {"fit": rows, "sample": 2 * 3 * 8, "measure": 6}
    parts = [work_of(chains, settings, 1, measured=True, process=k, processes=2) for k in (0, 1)]
    assert [part["fit"] for part in parts] == [2 * rows // 3, rows // 3]
    assert {kind: parts[0][kind] + parts[1][kind] for kind in whole} == whole


def test_durations_are_said_in_words():
    assert [duration(s) for s in (5, 125, 3725)] == ["5 s", "2 min 05 s", "1 h 02 min"]


def test_parts_of_an_unfinished_generation_belong_to_the_study_that_made_them(tmp_path):
    """A run that broke off in its first generation, then other human texts under the same name:
    refused; with the old ones it goes on.
    """
    chains, data, settings = u.study(2)
    data = {name: dataclasses.replace(d, held_out="some texts") for name, d in data.items()}

    class Breaks(u.Unigram):
        def generate(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", chains, data, settings, Breaks())
    assert list((tmp_path / "run").glob("checkpoints/unfinished-generation=0000/*/*.fit.json"))
    other = {
        name: dataclasses.replace(d, texts=[*d.texts[:-1], "another text"], fingerprint="")
        for name, d in data.items()
    }
    with pytest.raises(
        ValueError, match="holds another study .data.posts .* -> .*; use another workdir"
    ):
        go(tmp_path / "run", chains, other, settings)
    measured = {name: dataclasses.replace(d, held_out="other texts") for name, d in data.items()}
    with pytest.raises(
        ValueError,
        match="holds another study .the held-out texts of data posts some texts -> other texts",
    ):
        go(tmp_path / "run", chains, measured, settings)
    result, _ = go(tmp_path / "run", chains, data, settings)
    whole, _ = go(tmp_path / "whole", chains, data, settings)
    assert result.generations == whole.generations == 2
    for chain in chains:
        pd.testing.assert_frame_equal(
            texts(tmp_path / "run", chain, 1), texts(tmp_path / "whole", chain, 1)
        )


def test_what_was_measured_without_a_metric_that_is_wanted_now_is_measured_again(tmp_path):
    """A run that broke off while it measured a generation goes on with a further metric."""
    chains, data, settings = u.study(1, bases=("small",))
    settings = dataclasses.replace(settings, members_per_group=1)
    measured = []

    def of(names, breaks_at=99):
        def measure(model, generation, outcomes):
            if len(measured) == breaks_at:
                raise RuntimeError("the machine has gone")
            measured.append([o.chain.id for o in outcomes])
            values = u.measure(model, generation, outcomes)
            return {key: {name: of_one[name] for name in names} for key, of_one in values.items()}

        return {"measure": measure, "names": lambda chain, generation: names}

    with pytest.raises(RuntimeError, match="the machine has gone"):
        go(tmp_path / "run", chains, data, settings, **of(["length"], breaks_at=2))
    _, family = go(tmp_path / "run", chains, data, settings, **of(["length", "distinct"]))
    assert len(family.fits) == 1  # what is kept of the first four steps is used
    go(tmp_path / "whole", chains, data, settings, **of(["length", "distinct"]))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert len(measured) == 2 + 4 + 4
