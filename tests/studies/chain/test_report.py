"""The page of a chain study shows a formula where there is one, and only there."""

import pytest

from jaxloop import config
from jaxloop.studies.chain import report
from jaxloop.studies.chain import run as chain
from jaxloop.studies.common.run import PageInputs
from tests.studies.recursive_loops import test_beside_gaussian as planted
from tests.studies.recursive_loops.test_findings import words


@pytest.mark.parametrize("formula", [True, False])
def test_diversity_stands_beside_the_formula(tmp_path, formula):
    metrics, chains, ledger = planted.tables(extra_loss=0.05)
    root = planted.run_of(tmp_path, metrics.assign(entity=0), chains, ledger)
    page = PageInputs(run_info=[], config={}, versions=[])
    path = report.write(
        root, title="a study", subtitle="of chains", page=page, failed={}, formula=formula
    )
    said = "Semantic diversity beside a Gaussian that is refitted on as many texts" in words(path)
    assert said == formula == (root / "tables/beside_gaussian.csv").exists()


def test_chains_that_differ_in_more_than_ratio_and_seed_are_no_replicates(tmp_path):
    metrics, chains, ledger = planted.tables()
    warm = metrics["seed"] % 2 == 0
    metrics = metrics.assign(entity=0, **{"sample.temperature": warm.map({True: 1.0, False: 0.7})})
    root = planted.run_of(tmp_path, metrics, chains, ledger)
    page = PageInputs(run_info=[], config={}, versions=[])
    path = report.write(root, title="t", subtitle="s", page=page, failed={}, formula=True)
    assert "Not compared: chains of one ratio differ in sample.temperature." in words(path)
    assert not (root / "tables/beside_gaussian.csv").exists()


def test_chains_that_stopped_are_counted_beside_the_formula(tmp_path):
    metrics, chains, ledger = planted.tables()
    kept = (metrics["chain"] != "r1-s3") | (metrics["generation"] < 4)
    root = planted.run_of(tmp_path, metrics[kept].assign(entity=0), chains, ledger)
    page = PageInputs(run_info=[], config={}, versions=[])
    path = report.write(root, title="t", subtitle="s", page=page, failed={}, formula=True)
    assert "Chains without a value in every generation are left out: 1." in words(path)


@pytest.mark.parametrize(
    ("metrics", "changed", "has"),
    [
        (("cosine_diversity", "self_bleu"), {}, True),
        (("self_bleu",), {}, False),
        (("cosine_diversity",), {"workflow": "window"}, False),
        (("cosine_diversity",), {"start": "previous"}, False),
    ],
)
def test_which_chains_have_a_formula(metrics, changed, has):
    given = config.build(
        chain.CONFIG,
        {"study": "chain", "metrics": metrics, "data": {"source": "docs"}, "chain": changed},
    )
    assert chain._has_a_formula(given) == has
