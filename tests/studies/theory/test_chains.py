"""Chains of any model under any workflow, from a config."""

import numpy as np
import pandas as pd
import pytest

from jaxloop import config
from jaxloop.recursion.workflow import external
from jaxloop.simulators import family, gaussian
from jaxloop.studies.theory import chains, histogram
from jaxloop.studies.theory import run as study
from tests.command import call

ALL = "replace,accumulate,accumulate_subsample,fresh_human,preserve,window,external"


def settings(**fields):
    return config.build(study.CONFIG, {"what": "chains", "chains": fields})


@pytest.mark.parametrize(
    "variant, said",
    [
        ("theory:gaussian", "comparisons of 2 quantities in 3 experiments"),
        ("theory:tophat", "simulated curves alone, nothing has a formula"),
        ("theory:gmm", "simulated curves alone, nothing has a formula"),
        ("theory:ngram", "under each of replace, accumulate"),
        ("histogram:vector", "comparisons of 2 quantities in 2 experiments"),
    ],
)
def test_variants_have_a_plan(capsys, variant, said):
    code, out, err = call(capsys, f"--config={variant}", "--plan")
    assert code == 0 and said in " ".join(out.split()), err


@pytest.mark.parametrize(
    "workflow",
    ["external", *(pytest.param(name, marks=pytest.mark.slow) for name in ("preserve", "window"))],
)
def test_workflows_of_language_models_are_valid(capsys, workflow):
    code, out, err = call(capsys, f"--config=quickstart:{workflow}", "--validate")
    assert code == 0 and f"quickstart:{workflow} is valid" in out, err


@pytest.mark.parametrize(
    "variant, fields, said",
    [
        ("theory:gmm", "chains.model=mixture", "config.chains.model = 'mixture' is not allowed"),
        ("theory:gmm", "chains.workflows=exchange", "config.chains.workflows[0] = 'exchange' is"),
        ("theory:gmm", "chains.workflows=replace,replace", "must differ, each is a curve"),
        ("theory:gmm", "chains.size=1", "trains on N=1 items, this family needs at least 2"),
        ("theory:tophat", "chains.bandwidth=0", "config.chains.bandwidth = 0 is not allowed"),
        ("theory:tophat", "chains.kernel=cosine", "config.chains.kernel = 'cosine' is not"),
        ("theory:ngram", "chains.order=64", "config.chains.order = 64: must be below"),
        ("theory:ngram", "chains.text=nosuch.txt", "config.chains.text = 'nosuch.txt': there is"),
        (
            "theory:ngram",
            "chains.external_text=jaxloop:gsm8k",
            "config.chains.external_text = 'jaxloop:gsm8k': a column 'text' is needed",
        ),
        ("theory:gaussian", "chains.probabilities=0,0", "config.chains.probabilities are all 0"),
        ("histogram", "histogram.bias=1,2", "config.histogram.bias has 2 factors: must be one"),
        ("histogram", "histogram.bias=0", "config.histogram.bias = 0 is not allowed"),
        ("theory:triangle", "seed=0", "variant 'triangle' is not allowed; choose one of library"),
    ],
)
def test_refusals_are_one_sentence(capsys, variant, fields, said):
    code, _, err = call(capsys, f"--config={variant}", f"--config.{fields}", "--validate")
    assert code == 2 and said in err and err.count("\n") == 1


def test_one_number_is_a_factor_and_several_are_one_each(capsys):
    """A number typed for the bias is not a list of one."""
    code, _, err = call(capsys, "--config=histogram", "--config.histogram.bias=50", "--validate")
    assert code == 0, err


def test_a_bias_among_human_numbers_leaves_the_unbiased_formulas():
    def of(bias):
        fields = {"size": 4, "bias": bias}
        return config.build(study.CONFIG, {"what": "histogram", "histogram": fields})

    even, odd = of((9, 1, 5, 1, 2)), of((1, 3, 1, 1, 1))
    assert not histogram.acts_on_human(even) and histogram.acts_on_human(odd)
    one = of(9.0)
    biased, other = (histogram.experiments(c)[0].quantities for c in (one, odd))
    # Entropy without synthetic items, smoothed: the factor on even numbers is in one of them only.
    assert biased[1].analytic[0] != other[1].analytic[0]
    np.testing.assert_array_equal(biased[0].analytic, other[0].analytic)


def test_the_external_source_is_the_real_one_moved():
    s = settings(model="gaussian", workflows=("external",), size=40, share=0.5, dim=2, shift=50.0)
    made = chains.model_of(s.chains)
    flow = external(40, 0.5)
    out = family.run(made, flow, generations=1, replicates=50)
    pulled = out["mean"][:, 1].mean()
    # Half of generation 1's items are from outside.
    assert abs(pulled - 25) < 0.2
    with pytest.raises(ValueError, match="has external items, which this family has no source of"):
        family.check_sizes(gaussian.gaussian_family(), flow, 1)


def test_rows_leave_out_what_is_infinite():
    values = np.array([[[1.0], [np.inf]], [[3.0], [np.inf]], [[np.inf], [2.0]]])
    rows = pd.concat(chains.rows_of("replace", {"nll": values}))
    assert rows["mean"].tolist() == [2.0, 2.0] and rows["infinite"].tolist() == [1, 2]
    assert rows["se"].iloc[0] == pytest.approx(1.0) and np.isnan(rows["se"].iloc[1])


def test_a_run_has_curves_and_their_formulas(capsys, tmp_path):
    code, _, err = call(
        capsys,
        "--config=theory:gaussian",
        f"--workdir={tmp_path}/run",
        "--config.run.keep_compiled=false",
        "--config.run.devices=1",
        "--config.replicates=400",
        "--config.chains.workflows=replace,preserve",
        "--config.chains.size=10",
        "--config.chains.share=0.5",
        "--config.chains.generations=3",
        "--config.chains.replicates=150",
        "--config.chains.batch=200",
    )
    assert code == 0, err
    table = pd.read_csv(tmp_path / "run/chains.csv")
    assert set(table["workflow"]) == {"replace", "preserve"}
    assert (table["replicates"] == 150).all() and (table["low"] < table["high"]).all()
    curves = pd.read_csv(tmp_path / "run/curves.csv")
    assert set(curves["line"]) == {"replace"} and len(curves) == 2
    # Real items keep more of the variance.
    last = table[(table["metric"] == "trace") & (table["generation"] == 3)].set_index("workflow")
    assert last.loc["preserve", "low"] > last.loc["replace", "high"]
    page = (tmp_path / "run/report.html").read_text()
    assert "Simulated" in page and "150 chains of a gaussian model" in page


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gmm", "tophat", "ngram"])
def test_models_without_a_formula_run(capsys, tmp_path, variant):
    code, _, err = call(
        capsys,
        f"--config=theory:{variant}",
        f"--workdir={tmp_path}/run",
        f"--config.chains.workflows={ALL}",
        "--config.chains.generations=2",
        "--config.chains.replicates=10",
        "--config.chains.batch=10",
        "--config.chains.size=20",
    )
    assert (
        code == 0
        and "nothing has a formula here" in err + (tmp_path / "run/report.html").read_text()
    )
    table = pd.read_csv(tmp_path / "run/chains.csv")
    assert ",".join(dict.fromkeys(table["workflow"])) == ALL
