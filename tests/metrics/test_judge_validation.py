"""How judges agree with people, against scipy."""

import json

import numpy as np
import pytest
import scipy.stats

from jaxloop.metrics import judge_validation


def write_stories(path, stories=40, seed=0):
    rng = np.random.default_rng(seed)

    def gen():
        return {
            name: {
                "text": " told " + "very " * int(rng.integers(0, 9)),
                "score": rng.integers(1, 6, 5).tolist(),
            }
            for name in judge_validation.GENERATORS
        }

    data = {
        str(i): {"prompt": f"story {i}", "gold_response": "x", "gen": gen()} for i in range(stories)
    }
    path.write_text(json.dumps(data))
    return data


def test_validation_equals_scipy(tmp_path):
    data = write_stories(tmp_path / "mans.json")
    texts, human, story = judge_validation.read_openmeva(tmp_path / "mans.json")
    assert (
        len(texts) == 200
        and texts[7] == data["1"]["prompt"] + data["1"]["gen"]["gpt_kg"]["text"]
        and human[7] == np.mean(data["1"]["gen"]["gpt_kg"]["score"])
    )
    noise = np.random.default_rng(1).normal(0, 0.7, len(texts))
    scores = np.round(20 * (human + noise)).clip(0, 100)
    scores[[3, 50]] = np.nan
    found = judge_validation.validate_judge(lambda t: scores, tmp_path / "mans.json", draws=500)
    ok = np.isfinite(scores)
    assert (found.n, found.unparsable) == (198, 2)
    assert found.pearson == pytest.approx(
        scipy.stats.pearsonr(scores[ok], human[ok]).statistic, abs=1e-12
    )
    assert found.spearman == pytest.approx(
        scipy.stats.spearmanr(scores[ok], human[ok]).statistic, abs=1e-12
    )
    # The bootstrap of scipy, over stories, to the error of 500 draws.
    groups = [np.flatnonzero(ok & (story == s)) for s in range(40)]

    def statistic(chosen):
        rows = np.concatenate([groups[i] for i in chosen])
        return scipy.stats.pearsonr(scores[rows], human[rows]).statistic

    theirs = scipy.stats.bootstrap(
        (np.arange(40),), statistic, n_resamples=500, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    assert found.pearson_interval == pytest.approx(tuple(theirs), abs=0.03)
    assert found.spearman_interval[0] < found.spearman < found.spearman_interval[1]


def test_validation_of_degenerate_judges(tmp_path):
    write_stories(tmp_path / "mans.json", 3)
    found = judge_validation.validate_judge(
        lambda t: np.full(len(t), 50.0), tmp_path / "mans.json", draws=20
    )
    assert np.isnan([found.pearson, found.spearman, *found.pearson_interval]).all()
    found = judge_validation.validate_judge(
        lambda t: np.full(len(t), np.nan), tmp_path / "mans.json", draws=20
    )
    assert (found.n, found.unparsable) == (0, 15) and np.isnan(found.pearson)
    with pytest.raises(ValueError, match=r"shape \[2\] for 15 texts"):
        judge_validation.validate_judge(lambda t: np.zeros(2), tmp_path / "mans.json")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "nonsense",
        '{"0": {"prompt": "x"}}',
        '{"0": {"prompt": "x", "gen": {"gpt": {"text": "y", "score": []}}}}',
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(ValueError, match="OpenMEVA form|holds no stories"):
        judge_validation.read_openmeva(tmp_path / "f.json", ["gpt"])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json cannot be read"):
        judge_validation.read_openmeva(tmp_path / "none.json")
