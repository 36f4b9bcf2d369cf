"""The experiments that train no language model, from a config: the toy, and the judge's validation;
and that of chains of one base each.
"""

import json

import numpy as np
import pandas as pd
import pytest

from jaxloop import config
from jaxloop.metrics import judge_validation
from jaxloop.studies import JudgeSilent
from jaxloop.studies.recursive_loops import chains, run, subsets
from jaxloop.studies.recursive_loops.config import LoopsConfig
from tests import dumps
from tests.metrics.server import Server, completion
from tests.studies.recursive_loops import loops_study


@pytest.mark.slow
def test_the_toy_is_the_simulation_and_draws_figure_12(tmp_path):
    given = {
        "study": "loops",
        "experiment": "toy",
        "chain": {"generations": 4, "ratios": [0.0, 0.5, 1.0], "seeds": [3, 4, 5]},
        "toy": {"size": 12, "accumulate": [False]},
        "run": {"keep_compiled": False},
    }
    settings = config.build(LoopsConfig, given)
    assert "27 chains of histograms of 12 numbers" in run.check(settings)[0]
    assert run.plan(settings)[0][0] == "chains"
    assert run.run(settings, tmp_path / "run") == 0
    names = {path.name for path in (tmp_path / "run/figures").iterdir()}
    assert names == {"figure_12.png"} and (tmp_path / "run/findings.html").exists()
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert set(metrics["generation"]) == {0, 1, 2, 3} and metrics["chain"].nunique() == 27
    first = metrics[(metrics["metric"] == "relative_entropy") & (metrics["generation"] == 0)]
    assert set(first["value"]) == {1.0}
    # Even numbers are only ever written by models where people write none.
    unique = metrics[(metrics["metric"] == "entropy") & (metrics["ratio"] == 0)]
    apart = unique[~unique["overlap"]].groupby("generation")["value"].mean()
    assert apart.max() < np.log(13) and len(apart) == 4
    before = (tmp_path / "run/metrics.csv").read_bytes()
    assert run.run(settings, tmp_path / "run") == 0
    assert (tmp_path / "run/metrics.csv").read_bytes() == before


def test_a_judge_is_validated_from_a_config(tmp_path):
    (source,) = dumps.openmeva(tmp_path)
    given = {
        "study": "loops",
        "experiment": "judge_validation",
        "quality": "type_token_ratio",
        "validation": {"source": str(source), "draws": 50},
        "run": {"keep_compiled": False},
    }
    settings = config.build(LoopsConfig, given)
    assert run.check(settings) == ["200 texts of 40 stories with people's scores"]
    assert run.run(settings, tmp_path / "run") == 0
    table = pd.read_csv(tmp_path / "run/tables/table_2.csv")
    assert table["judge"].tolist()[1:] == [
        "the paper's: Llama-3.3-70B-Instruct",
        "Chen et al. 2023",
    ]
    assert table["pearson"].tolist()[1:] == [0.516, 0.535]
    human = judge_validation.read_openmeva(source)
    ratio = [len(set(text.split())) / len(text.split()) for text in human.texts]
    assert abs(table["pearson"][0] - np.corrcoef(ratio, human.score)[0, 1]) < 0.1
    assert table["n"][0] == 200 and table["unparsable"][0] == 0
    assert "Table 2" in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_a_validation_whose_judge_is_down_says_so_and_goes_on_later(tmp_path):
    (source,) = dumps.openmeva(tmp_path, 4)
    given = {
        "study": "loops",
        "experiment": "judge_validation",
        "validation": {"source": str(source), "draws": 20},
        "run": {"keep_compiled": False},
    }
    asked = []

    def reply(body, number):
        said = body["messages"][0]["content"]
        asked.extend([said] * ("Tom lost key" in said))  # not where it is asked whether it is there
        words = len(said.split())
        return completion(str(words), (str(words), -0.1))

    with Server(reply) as server:
        given["quality"] = (
            f"judge_quality(model='m', url='{server.url}', reply='first_token', "
            f"cache='{tmp_path / 'judges'}', timeout=5)"
        )
        settings = config.build(LoopsConfig, given)
    with pytest.raises(ValueError, match="config.quality: .* did not answer"):
        run.check(settings)
    with pytest.raises(JudgeSilent, match="the validation of the judge cannot go on: .* answer"):
        run.run(settings, tmp_path / "run")
    with Server(reply, port=int(server.url.split(":")[2].split("/")[0])):
        assert run.run(settings, tmp_path / "run") == 0
        assert len(asked) == len(set(judge_validation.read_openmeva(source).texts))
        assert run.run(settings, tmp_path / "run") == 0
    table = pd.read_csv(tmp_path / "run/tables/table_2.csv")
    assert table["n"][0] == 20 and np.isfinite(table["pearson"][0])


def test_a_validation_without_its_file_is_refused(tmp_path):
    given = {"study": "loops", "experiment": "judge_validation", "quality": "type_token_ratio"}
    with pytest.raises(ValueError, match="config.validation.source is missing: the file"):
        config.build(LoopsConfig, given)
    (tmp_path / "other.json").write_text(json.dumps([1, 2]))
    given["validation"] = {"source": str(tmp_path / "other.json")}
    with pytest.raises(ValueError, match="config.validation.source: .* not of the OpenMEVA form"):
        run.check(config.build(LoopsConfig, given))


def test_chains_of_one_base_each(tmp_path):
    loops_study.build(tmp_path, 20)
    settings = loops_study.settings(
        tmp_path,
        experiment="political_bases",
        models={"pool": [f"{tmp_path}/base", f"{tmp_path}/second"]},
        political_leaning={"mixes": [100, 0]},
    )
    planned = chains.plan(settings, subsets.placeholders(settings))
    assert [one.factors["bases"] for one in planned] == ["base", "second"] * 2
    assert all(one.spec is not None and len(one.spec.bases) == 1 for one in planned)
