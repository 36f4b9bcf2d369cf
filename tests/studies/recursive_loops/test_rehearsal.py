"""The paper-scale configs of the recursive loops from end to end, with only sizes reduced: the same
recipes, metrics, judge, classifier, encoder and bfloat16, from directories and files as the hub has
them. One real server answers for the judge of all of them. Each run is stopped, goes on, and leaves
the tables and figures of the paper; its `--validate` takes less than 20 s of processor time.
"""

import pathlib

import pandas as pd
import pytest

from jaxloop.config.files import read_file
from jaxloop.studies.recursive_loops.properties import NAMES
from tests import served_judge
from tests.metrics import test_real_servers
from tests.studies.recursive_loops import rehearsal

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Fixtures.
base, served = test_real_servers.base, test_real_servers.served

CLUSTERS = (
    "clusters.min_size=90",
    "clusters.fit_rows=120",
    "clusters.min_distances=0.01",
    "clusters.methods=gmm-5,kmeans-10,dbscan-0.2-100,hdbscan-5-1-eom",
)
# Config -> (further sizes, figures, tables).
EXPERIMENTS = {
    "ratio_sweep": (("chain.seeds=0,1",), ("figure_2", "figure_3", "figure_8"), ("cells",)),
    "dataset_comparison": ((), ("figure_2", "figure_3", "figure_8"), ("cells",)),
    "cluster_study": (
        (*CLUSTERS, "clusters.count=4"),
        ("figure_8",),
        ("table_1_relative_classical", "table_3"),
    ),
    "multi_domain": (
        (*CLUSTERS, "clusters.count=20", "clusters.min_size=40", "chain.eval_texts=12"),
        ("figure_8",),
        ("table_figure_4_relative_classical", "table_4"),
    ),
    "quality_splits": ((), ("figure_10", "figure_11", "figure_8"), ("cells", "contrasts")),
    "length_splits": ((), ("figure_10", "figure_11", "figure_8"), ("cells", "contrasts")),
    "political_mixes": (
        (),
        ("figure_5", "figure_6", "figure_13", "figure_14", "figure_15"),
        ("lean", "lean_by_generation", "lean_bins"),
    ),
    "political_bases": ((), ("figure_15",), ("lean",)),
    "models_per_generation": (
        ("chain.models=1,2", "chain.contribution=0.5", "fit.steps=2"),
        ("figure_9", "figure_8"),
        ("cells", "contrasts"),
    ),
    "first_size": (("chain.gen0_sizes=32,64",), ("figure_2", "figure_3"), ("cells", "contrasts")),
    "fit_modes": ((), ("figure_2", "figure_8"), ("cells", "contrasts")),
    "interventions": (("chain.seeds=0,1",), ("figure_2", "figure_8"), ("cells",)),
}


# Seconds of processor time that `--validate` may take, importing and all.
VALIDATION = 20.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    test_real_servers.need("transformers")
    folder = tmp_path_factory.mktemp("rehearsal")
    judge = served_judge.build(folder / "judge", rehearsal.human_texts(200))
    server = test_real_servers.transformers_serve(judge, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLOOP_CACHE", str(folder / "cache"))
        server.start()
        try:
            yield rehearsal.build(folder, server.url, server.model)
        finally:
            server.stop()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_config_runs_stops_goes_on_and_ends_with_its_tables(world, name, capsys, tmp_path):
    sizes, figures, tables = EXPERIMENTS[name]
    given = read_file(str(CONFIGS / f"{name}.py"))
    judge = rehearsal.options(world)
    words = rehearsal.flags(world, given["domains"])
    quality = given["quality"].partition("(")[0]
    words += [f"--config.quality={quality}({judge})"]
    if given["experiment"].startswith("political"):
        words += [f"--config.political_leaning.judge=judge_political_lean({judge})"]
    words += [f"--config.{size}" for size in sizes]
    config, workdir = f"--config={CONFIGS / name}.py", tmp_path / "run"

    seconds = rehearsal.validate(config, workdir, words)
    with capsys.disabled():
        print(f"\n{name}: --validate takes {seconds:.1f} s of processor time")
    assert seconds < VALIDATION
    code, _, said = rehearsal.run(capsys, config, workdir, words, stop_at="generation 0 of 3: ")
    assert code == 143 and "to go on: " in said, said
    code, _, said = rehearsal.run(capsys, config, workdir, words)
    assert code == 0, said

    metrics = pd.read_csv(workdir / "metrics.csv", keep_default_na=False)
    chains = pd.read_csv(workdir / "chains.csv")
    assert set(chains["status"]) == {"ok"}
    assert set(metrics["generation"]) == {0, 1, 2}
    values = pd.to_numeric(metrics["value"], errors="coerce")
    missing = metrics[values.isna() & ~metrics["metric"].str.startswith("political")]
    assert missing.empty, missing.head()
    if (workdir / "properties.csv").exists():
        properties = pd.read_csv(workdir / "properties.csv")
        assert properties[list(NAMES)].notna().all().all()
    drawn = {path.name.partition(".")[0] for path in (workdir / "figures").glob("figure_*.png")}
    assert set(figures) <= drawn
    written = {path.stem for path in (workdir / "tables").iterdir()}
    assert set(tables) <= written, written
    assert (workdir / "findings.html").exists() and (workdir / "report.html").exists()


def test_a_config_with_a_judge_behind_a_real_server(world, served, capsys, tmp_path):
    """A tiny base gives few scores: its other replies are counted, not taken for scores."""
    judge = served.metric(tmp_path / "judges.sqlite", reply="short")
    words = [
        *rehearsal.flags(world, ["100M_tweets"]),
        f"--config.quality={judge}",
        "--config.chain.generations=2",
        "--config.chain.ratios=1/2",
    ]
    config, workdir = f"--config={CONFIGS / 'ratio_sweep'}.py", tmp_path / "run"
    code, said, _ = rehearsal.run(capsys, config, workdir, [*words, "--validate"])
    assert code == 0, said
    code, _, said = rehearsal.run(capsys, config, workdir, words)
    assert code == 0, said
    metrics = pd.read_csv(workdir / "metrics.csv").sort_values("generation", kind="stable")
    scores = metrics[metrics["metric"].str.startswith("judge_quality")]["value"]
    unparsable = metrics[metrics["metric"].str.startswith("judge_unparsable")]["value"]
    assert len(scores) == len(unparsable) == 2
    assert ((unparsable == 1).to_numpy() == scores.isna().to_numpy()).all()
