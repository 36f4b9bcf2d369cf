"""The paper-scale configs of bias amplification, multi-entity and diversity from end to end, with
only widths and sizes reduced: validated, run, killed in the middle and resumed.
"""

import re

import numpy as np
import pandas as pd
import pytest

from jaxloop.config.files import read_file
from tests.studies import paper_rehearsal as rehearsal
from tests.studies.diversity import diversity_place as dp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CONFIGS = rehearsal.ROOT / "configs"

BIAS = {
    "data.per_label": 2,
    "chain.generations": 3,
    "chain.seeds": "42",
    "neurons.permutations": 9,
    "neurons.texts": 4,
    "sample.max_new_tokens": 16,
    "chain.block": 16,
    "fit.max_length": 64,
    "chain.overfit_epochs": 6,
    "run.chains_per_program": "none",
}


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory):
    """GPT-2, the classifiers and the detector beside data_public.csv of 60 articles."""
    folder = tmp_path_factory.mktemp("bias")
    paper, fitted = (read_file(f"{CONFIGS}/bias_amplification.py{v}") for v in ("", ":classifier"))
    models = [*paper["models"]["pool"], paper["classifier"]["model"], paper["measure"]["detector"]]
    models += fitted["classifier"]["encoders"]
    rehearsal.build(folder, models, {"data_public.csv": 720})
    return folder


@pytest.mark.parametrize("variant", ["", ":classifier", ":center", ":constrained"])
def test_bias_amplification(newsroom, variant):
    config = f"bias_amplification.py{variant}"
    sizes = dict(BIAS)
    if variant == ":classifier":
        sizes |= {"classifier.epochs": 1, "chain.setups": "greedy,preserve"}
    run = rehearsal.rehearse(newsroom, config, sizes, ["generation 1 of 3: sample"])
    metrics = rehearsal.values(run)
    assert metrics["value"].notna().all() and set(metrics["generation"]) == {0, 1, 2}
    page = (run / "report.html").read_text()
    assert "Perplexity" in page or "perplexity" in page
    given = read_file(f"{CONFIGS}/{config}")
    setups = sizes.get("chain.setups", ",".join(given["chain"]["setups"])).split(",")
    assert set(metrics["setup"]) == set(setups)


ENTITIES = {
    "exchange.generations": 3,
    "exchange.size": 125,
    "exchange.synthetic": 12,
    "public.limit": 60,
    "fit.steps": 3,
    "sample.max_new_tokens": 12,
    "measure.test_texts": 6,
    "measure.probes": 4,
    "theory.grid": 5,
    "theory.designs": 2,
    "run.devices": 1,
}


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """OPT-350m and Llama 3.2 1B beside SciQ, GSM8K, ARC and BookCorpus."""
    folder = tmp_path_factory.mktemp("entities")
    models = ("facebook/opt-350m", "meta-llama/Llama-3.2-1B")
    data = {"allenai/sciq": 160, "openai/gsm8k": 160, "allenai/ai2_arc": 160}
    rehearsal.build(folder, models, data | {"bookcorpus/bookcorpus": 3000}, positions=2048)
    return folder


@pytest.mark.parametrize("scale", ["paper", "three", "llama"])
def test_multi_entity(school, scale):
    config = f"multi_entity.py:{scale}"
    run = rehearsal.rehearse(school, config, ENTITIES, ["generation 1 of 3: sample"])
    metrics, k = rehearsal.values(run), 3 if scale == "three" else 2
    losses = metrics[metrics.metric.str.startswith("task_loss")]
    assert len(losses) == 9 * k * 3 * (k + 1) and np.isfinite(losses.value).all()
    assert {"effects.csv", "theory.csv"} <= {path.name for path in run.iterdir()}
    log = (run / "report.html").read_text()
    # 60 training texts and 6 that are held out, each of 128 words and more: a part of 3,000 rows.
    assert re.search(r"60 training rows, 6 test rows \(rows: 66,", log)


DIVERSITY = {
    "generator.versions": 2,
    "generator.replaced": "6,5,4,3,2,1,0",
    "generator.topic_sizes": "1,2,3,4,5,6,8",
    "generator.block": 8,
    "story.train": 24,
    "story.test": 6,
    "qa.per_context": 6,
    "qa.train": 24,
    "qa.test": 6,
    "fit.max_length": 320,
    "qa.passage_tokens": 64,
    "fit.batch_size": 4,
    "distances.points": 12,
    "seeds": "0",
    "generated.qa": 12,
    "generated.story": 12,
    "fixed.qa": 12,
    "fixed.story": 12,
    "variable.qa": 2,
    "variable.story": 2,
    "sizes.qa": "6,12",
    "sizes.story": "6,12",
    "architectures.qa": 12,
    "architectures.story": 12,
}


def test_diversity(tmp_path):
    given = read_file(f"{CONFIGS}/diversity.py")
    models = [*given["models"]["pool"], given["distances"]["embedder"]]
    data = {"deepmind/narrativeqa": 72, "mintujupally/ROCStories": 240}
    rehearsal.build(tmp_path, models, data)
    moments = ["qa/attempt=0", "story-D0/attempt=0: 8 of 12", "measure, 16 chains"]
    with dp.endpoint(dp.Answers()) as url:
        sizes = DIVERSITY | {"generator.url": url}
        run = rehearsal.rehearse(tmp_path, "diversity.py", sizes, moments)
    metrics = rehearsal.values(run)
    assert metrics["value"].notna().all()
    assert set(metrics["base"]) == {name.split("/")[-1] for name in given["models"]["pool"]}
    assert set(metrics["level"]) == {"real", *(f"D{i}" for i in range(7))}
    page = (run / "report.html").read_text()
    for heading in (
        "Levels (section 4.2)",
        "Mixtures of one size",
        "Generated data added",
        "Sizes (section 4.4)",
        "Architectures (appendix D.1)",
    ):
        assert heading in page
    checks = pd.read_csv(run / "sets.csv").set_index("set")["distinct_matched"]
    assert checks["qa-D0"] < checks["qa-D3"] < checks["qa-D6"]
