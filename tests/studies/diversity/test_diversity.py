"""The diversity study through the command line: a whole run with a random one-layer model and an
endpoint, and what is refused before it.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from jaxloop import cli, config, main
from jaxloop.lm import family
from jaxloop.runtime.weights_io import load_tree
from jaxloop.studies.diversity import cost, measure, prepare
from jaxloop.studies.diversity import run as diversity
from jaxloop.studies.diversity.cells import all_cells, experiments
from tests import drawings
from tests.command import call
from tests.encoders import letters
from tests.studies.diversity import diversity_place as dp

# The one whole run of this file comes before its first test.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diversity")
    (folder / "study.py").write_text(dp.write(folder))
    (folder / "plain.jsonl").write_text(
        "\n".join(
            json.dumps({"question": f"How many {n}?", "answer": f"{i} {n}"})
            for i, n in enumerate(dp.NOUNS)
        )
    )
    return folder


@pytest.fixture(scope="module")
def finished(place):
    """(run directory, what the endpoint was asked) of one whole run."""
    answers = dp.Answers()
    with dp.endpoint(answers) as url, pytest.MonkeyPatch.context() as patch:
        drawings.sketch(patch)
        patch.setattr(measure, "default", letters)
        words = [
            f"--config={place / 'study.py'}",
            f"--workdir={place / 'run'}",
            f"--config.generator.url={url}",
        ]
        assert cli.guarded(main.main, cli.parse(["jaxloop", *words])) == 0
    return place / "run", answers, url


def settings(place, *assignments):
    raw = config.read_file(str(place / "study.py"))
    return config.build(
        diversity.DiversityConfig,
        config.override(
            raw, [tuple(a.split("=", 1)) for a in assignments], diversity.DiversityConfig
        ),
    )


def test_a_run_leaves_every_cell_once(place, finished):
    root, _, url = finished
    metrics = pd.read_csv(root / "metrics.csv")
    cells = all_cells(settings(place, f"generator.url={url}"))
    # For each task and seed: real alone, D0, D6, half D6, six real with six of D0, and four crossed
    # sets; two losses.
    assert (
        len(cells) == 2 * 2 * 9
        and len(metrics) == 2 * len(cells)
        and metrics["value"].notna().all()
    )
    assert set(metrics["chain"]) == {cell.set_name for cell in cells}
    assert {p.name for p in root.iterdir()} >= {
        "sets.csv",
        "distances.csv",
        "regressions.csv",
        "ledger.parquet",
        "report.html",
        "figures",
        "replies.sqlite",
    }


def test_the_ledger_tells_real_from_generated(finished):
    ledger = pd.read_parquet(finished[0] / "ledger.parquet")
    held = ledger.set_index(["chain", "source"])["count"].to_dict()
    assert held["story-D6-r6-g6-s0", "human"] == held["story-D6-r6-g6-s0", "external"] == 6
    assert held["qa-D0-r0-g12-s1", "external"] == 12 and ("qa-D0-r0-g12-s1", "human") not in held
    assert ledger.groupby("chain")["real_share_train"].first()["qa-D0-r6-g6-s0"] == 0.5
    levels = ledger[(ledger["source"] == "external") & ~ledger["chain"].str.contains("crossed")]
    assert set(levels["dataset"]) == {"qa-D0", "qa-D6", "story-D0", "story-D6"}


def test_levels_are_what_the_writer_was_asked_for(place, finished):
    root, answers, url = finished
    tables = {
        name: pd.read_parquet(root / f"generated/{name}.parquet")
        for name in ("qa-D0", "qa-D6", "story-D0", "story-D6")
    }
    assert (
        tables["story-D0"]["topic"].nunique() == 1
        and 1 < tables["story-D6"]["topic"].nunique() <= 8
    )
    assert all(
        h.startswith(t) for h, t in zip(tables["story-D6"]["head"], tables["story-D6"]["topic"])
    )
    assert all(
        h.count(".") == 4 and t.count(".") == 1
        for h, t in zip(tables["story-D6"]["head"], tables["story-D6"]["text"])
    )
    assert (tables["qa-D6"]["origin"] == "generated").all() and (
        tables["qa-D0"]["origin"] == "paraphrase"
    ).all()
    again = tables["qa-D0"]["head"].str.extract(r"Again (\d) (.*)")
    sources = set(tables["qa-D6"]["head"])
    assert (
        set(again[1]) <= sources
        and again.groupby(1)[0].apply(lambda v: sorted(map(int, v))).tolist() == [[0, 1, 2]] * 4
    )
    # Real examples in the prompts, and as many tokens as they have.
    asked = [p for p in answers.prompts if p.startswith("Write a story")]
    assert len(asked) == 24 and all(p.count("The ") >= 15 for p in asked)
    about = pd.read_csv(root / "sets.csv").set_index("set")
    assert about.loc["qa-D0", "distinct_matched"] < about.loc["qa-D6", "distinct_matched"]


def test_test_losses_are_those_of_the_models(place, finished):
    """Against scoring each adapter anew, answers alone and everything, by the family's masks."""
    root, _, url = finished
    chosen = settings(place, f"generator.url={url}")
    prepared = prepare.prepare(chosen)
    model = prepare.family(chosen).load(chosen.models.pool[0])
    metrics = pd.read_csv(root / "metrics.csv").set_index(["chain", "metric"])["value"]
    for chain, task in (("story-D0-r0-g12-s0", "story"), ("qa-real-r12-g0-s1", "qa")):
        weights = load_tree(root / "checkpoints/generation=0000/adapters", f"chain={chain}")
        test = prepared.tables[task].test
        job = family.LossTask(weights, list(test["text"]), prepare.prompts(chosen, task, test))
        for name, counted in (("test_loss_answer", True), ("test_loss_all", False)):
            fit = chosen.fit.replace(completion_only=counted)
            result = family.loss(model, [job], fit)[0]
            assert metrics[chain, name] == pytest.approx(
                result.nll.sum() / result.tokens.sum(), rel=1e-9
            )
    assert metrics["story-real-r12-g0-s0", "test_loss_all"] == pytest.approx(np.log(320), abs=0.3)


def test_the_report_shows_the_papers_figures_and_table_2(finished):
    page = (finished[0] / "report.html").read_text()
    assert "Two &lt;small&gt; tasks" in page and "36 models fine-tuned" in page
    for heading in (
        "Levels (section 4.2)",
        "Mixtures of one size",
        "Generated data added to real data",
        "The generated sets",
        "Distances to real data (Table 2)",
    ):
        assert heading in page
    assert (
        "2.451" in page and "no distance here claims to be it" in page and page.count("<svg") >= 10
    )
    distances = pd.read_csv(finished[0] / "distances.csv").set_index("set")
    assert (
        distances[["length_kl", "frechet_distance", "energy_distance", "sliced_wasserstein"]] >= 0
    ).all(axis=None)


def test_crossed_sets_are_trained_on_and_regressed_on(finished):
    metrics = pd.read_csv(finished[0] / "metrics.csv")
    crossed = metrics[metrics["level"] == "crossed"]
    assert set(zip(crossed["duplicates"], crossed["shift"])) == {
        (0.0, 0.0),
        (0.0, 1.0),
        (1.0, 0.0),
        (1.0, 1.0),
    }
    fits = pd.read_csv(finished[0] / "regressions.csv").set_index(["task", "kind", "shift"])
    one = fits.loc["story", "crossed", "energy_distance"]
    assert (
        one["models"] == one["sets"] == 8
        and one["diversity_low"] <= one["diversity_together"] <= one["diversity_high"]
    )
    about = pd.read_csv(finished[0] / "sets.csv").set_index("set")["distinct_matched"]
    assert about["story-crossed-n8-d1-o0-s0"] < about["story-crossed-n8-d0-o0-s0"]
    distances = pd.read_csv(finished[0] / "distances.csv").set_index("set")["energy_distance"]
    assert distances["qa-crossed-n8-d0-o1-s0"] > distances["qa-crossed-n8-d0-o0-s0"]


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_asks_and_trains_nothing_again(
    place, finished, tmp_path, capsys, monkeypatch
):
    """The endpoint is gone by now: everything comes from the disk, also in a copy whose last tables
    were lost.
    """
    monkeypatch.setattr(measure, "default", letters)
    root, answers, url = finished
    asked = len(answers.prompts)
    shutil.copytree(root, tmp_path / "run")
    (tmp_path / "run/report.html").unlink()
    before = (root / "metrics.csv").read_bytes()
    code, _, err = call(
        capsys,
        f"--config={place / 'study.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.generator.url={url}",
    )
    assert code == 0, err
    assert (tmp_path / "run/metrics.csv").read_bytes() == before and len(answers.prompts) == asked
    assert (tmp_path / "run/report.html").exists() and "differs" not in err


def test_validate_counts(place, capsys):
    code, out, _ = call(
        capsys,
        f"--config={place / 'study.py'}",
        "--config.generator.url=http://localhost:1/v1",
        "--validate",
    )
    assert (
        code == 0
        and "36 models to train (generated 12, fixed 4, variable 4, crossed 16" in out
        and "24 real records to train on, 6 to test on" in out
    )


def test_the_plan_counts(place, capsys, monkeypatch):
    monkeypatch.setattr(
        cost, "measured", lambda *_: 1e10
    )  # FLOP/s; the measurement is `test_a_plan_measures_this_device`
    code, out, _ = call(
        capsys,
        f"--config={place / 'study.py'}",
        "--config.generator.url=http://localhost:1/v1",
        "--plan",
    )
    # Two levels of 12 stories and topics once; two documents, each once and two paraphrased
    # records.
    assert (
        code == 0
        and "qa 6, story 25" in out
        and "320 " not in out.split("time")[0].split("model ")[0]
    )
    assert "counted" in out and "assumed" not in out


def test_the_papers_plan_is_hours_of_named_cards_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(cost, "measured", None)
    paper = config.build(diversity.CONFIG, config.read_file("configs/diversity.py"))
    local = [f"/nowhere/{name.split('/')[-1]}" for name in paper.models.pool]
    named = {name: here for name, here in zip(paper.models.pool, local, strict=True)}
    grids = {
        grid: getattr(paper, grid).model_copy(
            update={"models": tuple(named[m] for m in getattr(paper, grid).models)}
        )
        for grid in ("generated", "fixed", "variable", "sizes", "architectures")
    }
    data = {
        "qa": paper.qa.model_copy(update={"source": "/nowhere/qa.jsonl"}),
        "story": paper.story.model_copy(update={"sources": ("/nowhere/stories.jsonl",)}),
        "models": paper.models.model_copy(update={"pool": tuple(local)}),
    }
    rows = dict(diversity.plan(paper.model_copy(update=data | grids)))
    assert [name for name in rows if name.startswith("time")] == [
        f"time on one {card}" for card in ("h100", "h200", "a100")
    ]
    assert "assumed" in rows["tokens of a record, qa"]


def test_a_long_time_here_is_said_in_cards(place, monkeypatch):
    monkeypatch.setattr(cost, "measured", lambda *_: 1.0)
    rows = dict(diversity.plan(settings(place, "generator.url=http://localhost:1/v1")))
    assert rows["time here"].startswith("more than 100 h on ") and "time on one h100" in rows


@pytest.mark.slow
def test_a_plan_measures_this_device(place):
    chosen = settings(place, "generator.url=http://localhost:1/v1")
    assert (
        1e7 < cost.measured(chosen, config.FitConfig(batch_size=8, steps=16, max_length=64)) < 1e16
    )


OFF = ("--config.fixed.levels=", "--config.variable.levels=")
REFUSED = [
    ((), "endpoint.url is 'URL'", "an address that begins with http:// or https:// is needed"),
    (
        ("--config.generator.topics={place}/few.txt",),
        "few.txt': has 3 topics, |T| = 8 is asked for in generator.topic_sizes",
        "",
    ),
    (
        ("--config.generator.topics={place}/none.txt",),
        "there is no such file; give one, `data`, `openings` or none",
        "",
    ),
    (
        ("--config.generator.topics=openings", "--config.generator.opening_words=400"),
        "0 stories in reserve open with 400 words and go on, |T| = 8 is asked for in "
        "generator.topic_sizes",
        "",
    ),
    (
        ("--config.qa.source={place}/unanswered.jsonl",),
        "('Who is it?') has no answer; every record needs one.",
        "",
    ),
    (
        ("--config.variable.ratios=0.5,1",),
        "config.variable.ratios has 1: must be below 1 at variable size",
        "",
    ),
    (("--config.generator.replaced=0,1,2,3,4,5,6",), "must fall from D0 to D6", ""),
    (("--config.generator.replaced=9,6,6,3,3,3,0",), "stay within qa.per_context = 6", ""),
    (("--config.generator.story=model",), "config.generator.model is missing", ""),
    (("--config.generator.url=none",), "config.generator.url is missing", ""),
    (
        ("--config.generated.models=other",),
        "config.generated.models has 'other', which is not in config.models.pool",
        "",
    ),
    (
        ("--config.generated.story=500",),
        "config.story.train: an experiment takes 500 real records, the data give 24",
        "",
    ),
    (
        ("--config.generated.ratios=1", "--config.generated.qa=100"),
        "an experiment takes 100 generated records, 4 documents to train on give 24",
        "",
    ),
    (
        ("--config.fit.max_length=48",),
        "leaves no room for its answer; lower qa.passage_tokens or qa.max_tokens",
        "",
    ),
    (("--config.fit.max_length=500",), "config.fit.max_length = 500: exceeds the context", ""),
    (
        ("--config.generated.levels=7",),
        "config.generated.levels[0] = 7 is not allowed: a whole number from 0 to 6",
        "",
    ),
    (
        ("--config.control.story=30",),
        "config.control.story = 30: needs as many records in reserve",
        "",
    ),
    (
        ("--config.generated.levels=", *OFF, "--config.control.qa=0", "--config.control.story=0"),
        "config: no experiment is on",
        "",
    ),
    (("--config.seeds=1,1",), "config.seeds = (1, 1) repeats a value", ""),
]


@pytest.mark.parametrize("words, sentence, more", REFUSED, ids=[r[1][:40] for r in REFUSED])
def test_refusals_are_one_sentence_and_write_nothing(
    place, tmp_path, capsys, words, sentence, more
):
    (place / "few.txt").write_text("Love\nWar\nLove\nHope\n")
    (place / "unanswered.jsonl").write_text(
        json.dumps({"question": "Who is it?", "answer": "", "split": "train"})
    )
    given = [word.replace("{place}", str(place)) for word in words]
    if given and not any(".url=" in word for word in given):
        given.append("--config.generator.url=http://localhost:1/v1")
    if "unanswered" in sentence + str(words):
        given.append("--config.qa.passage=none")
    code, _, err = call(
        capsys, f"--config={place / 'study.py'}", f"--workdir={tmp_path / 'run'}", *given
    )
    lines = [line for line in err.splitlines() if line.startswith("jaxloop: ")]
    # A sentence on each task that it is true of.
    assert code == 2 and 1 <= len(lines) <= 2 and len(set(lines)) == len(lines), err
    assert sentence in lines[0] and more in lines[0], err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "answers, sentence",
    [
        (
            dp.Answers(always=""),
            "generator: fake at {url} gave 24 of 24 results of qa not in 4 tries; every reply "
            "was empty",
        ),
        (
            dp.Answers(always="I cannot help with that."),
            "in 4 tries; the last reply was 'I cannot help with that.'",
        ),
        (
            dp.Answers(always="x", status=401),
            "refuses with status 401 ({'choices': [{'message': {'content': 'x'}}]}); the key is "
            "read from the environment variable OPENAI_API_KEY; what it answered is kept",
        ),
    ],
)
def test_an_endpoint_that_gives_nothing_is_one_sentence(place, tmp_path, capsys, answers, sentence):
    with dp.endpoint(answers) as url:
        words = (
            f"--config={place / 'study.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.generator.url={url}",
        )
        code, _, err = call(capsys, *words, "--config.generated.qa=24")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("jaxloop: ") and sentence.replace("{url}", url) in last


def test_experiments_share_cells(place):
    chosen = settings(place, "generator.url=http://localhost:1/v1", "fixed.ratios=0,0.5,1")
    found = experiments(chosen)
    both = set(found["generated"]) & set(found["fixed"])
    assert {cell.level for cell in both} == {None, 6} and len(all_cells(chosen)) == 2 * 2 * 9


def test_fields_of_the_config_are_documented():
    table = config.reference(diversity.DiversityConfig)
    assert "None |" not in table and table.count("\n") > 90
