"""Simulations beside formulas, the loop with models of one's own, and metrics as a table."""

import inspect
import re

import numpy as np
import pytest

import jaxloop
from jaxloop.recursion.selection import Selection
from jaxloop.simulators import linear
from jaxloop.simulators.discrete import poisson_family
from jaxloop.simulators.linear import low_rank_designs
from jaxloop.studies.theory.models import MODELS

W = jaxloop.workflows
N = 12
P = (0.5, 0.5)
SHARED = ("generations", "replicates", "seed")  # arguments of every model
DESIGN = np.random.default_rng(0).normal(size=(N, 3))
# One of each model; the same formulas are compared in the tests of the theory study.
CASES = [
    ("gaussian", W.replace(N), {}),
    ("categorical", W.accumulate(N), {"probabilities": (0.5, 0.3, 0.2)}),
    ("coin", W.replace(N), {"p": 0.3}),
    ("poisson", W.replace(N), {"rate": 2.0}),
    ("kernel_density", W.replace(N), {"bandwidth": 0.5, "heldout": 0}),
    ("regression", W.accumulate(N), {"coefficients": (1.0, 0.0, -1.0), "design": DESIGN}),
]
MORE = [
    ("gaussian", W.replace(N), {"unbiased": False, "sd": 2.0}),
    ("gaussian", W.accumulate(N), {"unbiased": False}),
    ("gaussian", W.accumulate_subsample(N), {"unbiased": False}),
    ("categorical", W.replace(N), {"probabilities": (0.5, 0.3, 0.2)}),
    ("regression", W.replace(N), {"coefficients": (1.0, 0.0, -1.0), "design": DESIGN}),
]


@pytest.mark.parametrize(
    "model, workflow, options",
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_formula_and_simulation_agree(model, workflow, options):
    """Within five standard errors of 4,000 replicates, in every generation; the variance of a
    variance is taken from the fourth moments.
    """
    formula = jaxloop.closed_form(model, workflow, generations=4, **options)
    chains = jaxloop.simulate(model, workflow, generations=4, replicates=4000, **options)
    assert set(formula.metric) <= set(chains.metric)
    for row in formula.itertuples():
        values = chains.query(
            f"metric == '{row.metric}' and generation == {row.generation}"
        ).value.to_numpy()
        samples = values if row.statistic == "mean" else (values - values.mean()) ** 2
        error = samples.std() / len(samples) ** 0.5
        assert abs(samples.mean() - row.value) < 5 * error + 1e-12, row


def test_the_options_of_every_model_are_in_the_help():
    options = " ".join(jaxloop.simulate.__doc__.split("options: of the model")[1].split())
    builders = {name: model.build for name, model in MODELS.items()} | {"linear": linear.simulate}
    for name, build in builders.items():
        (listed,) = re.findall(rf'"{name}": ([\w, ]+)', options)
        own = [p for p in inspect.signature(build).parameters if p not in SHARED]
        assert listed.split(", ") == own, name


def test_entities_with_linear_models():
    designs = low_rank_designs(0, entities=2, dim=3, rank=2, public=4)
    options = {"designs": designs, "theta": np.ones(3), "alpha": 0.3, "beta": 0.5}
    formula = jaxloop.closed_form("linear", generations=3, **options)
    chains = jaxloop.simulate("linear", generations=3, replicates=2000, **options)
    errors = chains.assign(square=(chains.value - 1) ** 2)
    per_chain = errors.groupby(["replicate", "generation", "entity"]).square.sum()
    simulated = per_chain.groupby(["generation", "entity"]).agg(["mean", "sem"])
    expected = formula[formula.metric == "mse"].set_index(["generation", "entity"]).value
    assert (abs(simulated["mean"] - expected) < 5 * simulated["sem"]).all()


@pytest.mark.parametrize(
    "ask, said",
    [
        (lambda: jaxloop.simulate("gausian", W.replace(5), generations=2), "did you mean 'gauss"),
        (lambda: jaxloop.simulate("gaussian", generations=2), "workflow: is missing; model 'gaus"),
        (lambda: jaxloop.simulate("linear", W.replace(5), generations=2), "'linear' takes none"),
        (
            lambda: jaxloop.closed_form("coin", W.accumulate(5), generations=2, p=0.5),
            "workflow=accumulate: model 'coin' has no formula under it",
        ),
        (
            lambda: jaxloop.closed_form("gaussian", W.accumulate(5), generations=2),
            "unbiased=True: the formula of this workflow is for unbiased=False",
        ),
        (
            lambda: jaxloop.closed_form("gaussian", W.replace(5, entities=2), generations=2),
            "has no formula under it with these options",
        ),
        (
            lambda: jaxloop.closed_form("gaussian", W.replace(5), generations=2, unbised=False),
            "unbised: is no argument and no option of model 'gaussian'; did you mean 'unbiased'",
        ),
        (
            lambda: jaxloop.simulate("gaussian", W.replace(5), generations=2, replicate=9),
            "replicate: is no argument and no option of model 'gaussian'",
        ),
        (
            lambda: jaxloop.simulate("linear", generations=2, alfa=0.5),
            "alfa: is no argument and no option of model 'linear'; did you mean 'alpha'",
        ),
        (
            lambda: jaxloop.closed_form("linear", generations=2, alpha=0.5, beta=0.5),
            "designs: is missing; model 'linear' needs it",
        ),
        (
            lambda: jaxloop.closed_form("coin", W.replace(5), generations=2),
            "p: is missing; model 'coin' needs it",
        ),
        (
            lambda: jaxloop.closed_form("gaussian", W.replace(5), generations=2, sd=-1.0),
            "sd=-1.0: must be positive",
        ),
        (
            lambda: jaxloop.closed_form("gaussian", W.replace(5), generations=0),
            "generations=0: must be an integer of at least 1",
        ),
        (
            lambda: jaxloop.closed_form(
                "categorical", W.replace(5), generations=2, probabilities=P, bias=np.ones(2)
            ),
            "bias: the formula is for models without it",
        ),
        (
            lambda: jaxloop.closed_form(
                "regression",
                W.replace(N + 1),
                generations=2,
                coefficients=np.ones(3),
                design=DESIGN,
            ),
            "design: has 12 rows, a set of items has 13",
        ),
        (
            lambda: jaxloop.simulate(poisson_family(2.0), W.replace(5), generations=2, rate=3.0),
            "rate: is no argument of simulate; a model of your own has its options already",
        ),
        (
            lambda: jaxloop.closed_form(poisson_family(2.0), W.replace(5), generations=2),
            "model: is of type ArrayFamily; must be a name",
        ),
        (
            lambda: jaxloop.simulate("gaussian", "replace", generations=2),
            "workflow: is of type str; must be one of jaxloop.workflows",
        ),
        (lambda: jaxloop.evaluate(["a", 3], ["self_bleu"]), r"texts\['texts'\]\[1\]: is of type"),
        (lambda: jaxloop.evaluate(["a"], ["self_blue"]), "the nearest name is 'self_bleu'"),
        (lambda: jaxloop.evaluate(["a"], ["held_out_loss"]), "needs losses"),
        (lambda: jaxloop.evaluate({}, ["self_bleu"]), "texts: is empty"),
        (lambda: jaxloop.evaluate(["a"], "self_bleu"), "metrics='self_bleu': is one string"),
        (
            lambda: jaxloop.evaluate(["a b"], [lambda texts: 1, lambda texts: 2]),
            "metrics: two are called '<lambda>'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()


def test_a_metric_of_ones_own_stands_beside_the_others():
    def longest(texts):
        return max(map(len, texts))

    table = jaxloop.evaluate({"a": ["one", "three"], "b": ["x"]}, [longest, "distinct_n(n=1)"])
    assert table.columns.tolist() == ["longest", "distinct_n(n=1)"]
    assert table.longest.tolist() == [5.0, 1.0]


# ---- the loop


def fit(items, seed):
    return {"mean": items.mean(0), "sd": items.std(0)}


def sample(state, count, seed):
    draws = np.random.default_rng(seed).normal(size=(count, len(state["sd"])))
    return state["mean"] + state["sd"] * draws


def measure(items):
    return {"sd": items.std()}


DATA = np.random.default_rng(0).normal(size=(400, 2))
WORKFLOWS = {
    "replace": W.replace(20),
    "accumulate": W.accumulate(20),
    "accumulate_subsample": W.accumulate_subsample(20),
    "fresh_human": W.fresh_human(20, 0.5),
    "preserve": W.preserve(20, 0.1),
    "window": W.window(20, 3),
    "external": W.external(20, 0.25),
}
OPTIONS = {"generations": 8, "seeds": range(4), "measure": measure, "external": DATA + 5}


def test_a_model_of_ones_own_runs_under_every_workflow(tmp_path):
    result = jaxloop.loop(fit, sample, DATA, WORKFLOWS, workdir=tmp_path / "run", **OPTIONS)
    assert result.exit_code == 0 and len(result.metrics) == 7 * 4 * 8
    last = result.metrics.query("generation == 7").groupby("workflow").value.mean()
    assert last["replace"] < last["accumulate"] < last["external"]
    weights = result.chains.chain[0]
    items = np.array([eval(text) for text in result.texts(weights, 7)])
    assert items.shape == (20, 2) and items.dtype == float
    with pytest.raises(ValueError, match="is of a model of your own, so it has weights of"):
        result.adapter(weights, 7)


def test_a_stopped_loop_goes_on_and_gives_the_same(tmp_path):
    few = {**OPTIONS, "generations": 4, "seeds": range(2)}
    whole = jaxloop.loop(fit, sample, DATA, WORKFLOWS, workdir=tmp_path / "a", **few)
    first = {**few, "generations": 2}
    jaxloop.loop(fit, sample, DATA, WORKFLOWS, workdir=tmp_path / "b", **first)
    few["seeds"] = np.arange(2)  # of NumPy they are the same
    resumed = jaxloop.loop(fit, sample, DATA, WORKFLOWS, workdir=tmp_path / "b", **few)
    assert resumed.metrics.equals(whole.metrics)
    with pytest.raises(ValueError, match="was made with another config"):
        jaxloop.loop(fit, sample, DATA + 1, WORKFLOWS, workdir=tmp_path / "b", **few)


def test_a_workflow_may_have_any_name(tmp_path):
    names = ["None", "null", "NA"]
    few = {"generations": 2, "measure": measure}
    named = {name: W.replace(20) for name in names}
    result = jaxloop.loop(fit, sample, DATA, named, workdir=tmp_path / "run", **few)
    assert list(dict.fromkeys(result.metrics["workflow"])) == names


def test_texts_and_weights_that_carry_over(tmp_path):
    starts = []

    def count(texts, seed, start):
        starts.append(start)
        letters = np.bincount([ord(text[0]) - 97 for text in texts], minlength=3).astype(float)
        p = letters / letters.sum() if start is None else (letters / 8 + start["lora"]["p"]) / 2
        # Names that a saved adapter has too.
        return {"weights": np.zeros(1), "lora": {"p": p}}

    def write(state, n, seed):
        return np.random.default_rng(seed).choice(list("abc"), n, p=state["lora"]["p"]).tolist()

    result = jaxloop.loop(
        count,
        write,
        list("abcabcab"),
        W.replace(8, start="previous"),
        generations=3,
        workdir=tmp_path / "run",
    )
    assert starts[0] is None and starts[1] is not None and len(starts) == 3
    assert set(result.texts("seed-0", 2)) <= set("abc")


def test_an_adapter_stays_one_when_it_was_saved(tmp_path):
    """After a stop between fitting and sampling, and as what the next generation starts from."""
    config = jaxloop.LoraConfig(rank=2, alpha=7.0, targets=("q", "v"), dropout=0.1)
    factors = {"q": {"a": np.ones((1, 3, 2)), "b": np.zeros((1, 2, 3))}}
    starts, adapters = [], []

    def train(texts, seed, start):
        starts.append(start)
        return jaxloop.Adapter(factors, config)

    def write(adapter, n, seed):
        adapters.append(adapter)
        if len(adapters) == 1:
            raise KeyboardInterrupt
        return ["a"] * n

    def run():
        flow = W.replace(4, start="previous")
        return jaxloop.loop(train, write, list("abcd"), flow, generations=2, workdir=tmp_path / "a")

    with pytest.raises(KeyboardInterrupt):
        run()
    result = run()
    assert len(starts) == 2 and len(adapters) == 3
    for adapter in (*adapters, starts[1], result.adapter("seed-0", 1)):
        assert isinstance(adapter, jaxloop.Adapter) and adapter.config == config
        np.testing.assert_array_equal(adapter["q"]["a"], factors["q"]["a"])


def test_a_refused_loop_leaves_nothing_behind(tmp_path):
    """A directory with the config of a call that could not run would refuse the one that can."""
    place = tmp_path / "run"
    few = {"generations": 2, "measure": measure, "workdir": place}
    for change, said in (
        ({"data": DATA[:10]}, "10"),
        ({"generations": 0}, "generations=0: must be an integer of at least 1"),
        ({"seeds": ()}, "chains: there are none"),
        ({"workflow": "replace"}, "workflow='replace': must be one of jaxloop.workflows"),
    ):
        call = {"data": DATA, "workflow": W.replace(20), **few, **change}
        with pytest.raises(ValueError, match=said):
            jaxloop.loop(fit, sample, **call)
        assert not place.exists()
    # NumPy's whole numbers are whole numbers, and are stored as such.
    few["generations"] = np.int64(2)
    assert jaxloop.loop(fit, sample, DATA, W.replace(np.int64(20)), **few).exit_code == 0


def test_a_loop_is_refused_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="workdir=s3://bucket/run: a loop of your own writes to a"):
        jaxloop.loop(fit, sample, DATA, W.replace(20), workdir="s3://bucket/run", generations=2)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_stay_what_was_generated(tmp_path):
    """Draws are never cut to whole numbers: kept where the data's type holds them, else refused."""
    data = np.arange(40).reshape(20, 2)
    options = {"generations": 2, "workdir": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"sample\(...\): .* the type of data, int64, cannot hold"):
        jaxloop.loop(fit, sample, data, W.replace(20), **options)

    def rounded(state, count, seed):
        return np.round(sample(state, count, seed))

    seen = []
    options = {"generations": 2, "workdir": tmp_path / "whole"}
    jaxloop.loop(
        fit, rounded, data, W.replace(20), measure=lambda x: seen.append(x) or {}, **options
    )
    assert all(items.dtype == data.dtype for items in seen) and len(seen) == 2


def test_a_model_that_breaks_is_said(tmp_path):
    few = {"generations": 2, "seeds": (0,)}
    with pytest.raises(ValueError, match=r"sample\(...\): returned 3 items, 20 were asked for"):
        jaxloop.loop(fit, lambda *a: DATA[:3], DATA, W.replace(20), workdir=tmp_path / "a", **few)
    with pytest.raises(ValueError, match=r"sample\(...\): has items of shape \(3,\)"):
        jaxloop.loop(
            fit, lambda *a: np.ones((20, 3)), DATA, W.replace(20), workdir=tmp_path / "b", **few
        )
    with pytest.raises(ValueError, match=r"fit\(...\): returned a dict that holds more than num"):
        jaxloop.loop(
            lambda *a: {"name": "x"}, sample, DATA, W.replace(20), workdir=tmp_path / "d", **few
        )
    selecting = W.replace(20, selection=Selection("quality", 40))
    with pytest.raises(ValueError, match="selection.policy='quality': a loop of your own has no"):
        jaxloop.loop(fit, sample, DATA, selecting, workdir=tmp_path / "e", **few)
    assert not (tmp_path / "e").exists()
    broken = jaxloop.loop(
        lambda items, seed: {"mean": np.full(2, np.nan), "sd": np.ones(2)},
        sample,
        DATA,
        W.replace(20),
        workdir=tmp_path / "c",
        **few,
    )
    assert broken.exit_code == 3
