"""Every sentence of a bias report, with numbers that make it come out each way."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.studies.bias_amplification import direction_section, neuron_summary, report
from jaxloop.studies.bias_amplification.neuron_study import NeuronStudy

NAN = float("nan")


def amplification(*rows):
    """rows: (setup, generation, change, low, high)."""
    return pd.DataFrame(rows, columns=["setup", "generation", "change", "low", "high"])


@pytest.mark.parametrize(
    "table, expected, absent",
    [
        (amplification(("greedy", 2, 0.1, 0.05, 0.15)), "rises in greedy (+10.0)", "falls"),
        (amplification(("greedy", 2, -0.1, -0.15, -0.05)), "falls in greedy (-10.0)", "rises"),
        (
            amplification(("greedy", 2, 0.1, -0.05, 0.25)),
            "labelled Right is not shown to move (its interval holds 0) in greedy (+10.0)",
            "rises",
        ),
        (
            amplification(("greedy", 2, 0.1, NAN, NAN), ("beam", 2, 0.1, 0.05, 0.15)),
            "No interval over replicates where one chain reached generation 2: greedy. From "
            "generation 0 to 2 the share labelled Right rises in beam (+10.0)",
            "rises in greedy",
        ),
        (
            amplification(("greedy", 2, 0.1, 0.05, 0.15), ("beam", 1, 0.1, 0.05, 0.15)),
            "No chain of beam reached generation 2.",
            "(+10.0), beam",
        ),
        (amplification(), "", "rises"),
    ],
)
def test_what_the_share_does(table, expected, absent):
    said = " ".join(report.amplification_sentences("Right", table))
    assert expected in said and absent not in said


def shares(**real):
    return pd.DataFrame(
        [
            (setup, g, n, 20, n / 10, n / 20)
            for setup, count in real.items()
            for g, n in ((0, 10), (1, count))
        ],
        columns=["setup", "generation", "real", "trained", "of_real", "of_mix"],
    )


def test_setups_without_real_articles_are_named():
    some = report.real_articles_section(shares(greedy=0, preserve=2))
    assert some.note.endswith("No real article after generation 0: greedy.") and some.tables
    every = report.real_articles_section(shares(preserve=2))
    assert "No real article" not in every.note
    none = report.real_articles_section(shares(greedy=0))
    assert not none.tables and "greedy" in none.note


def fit(encoder="one", validation=0.7, found=0.6, guessed=0.3):
    scores = {"macro_f1": found, "accuracy": 0.6, "by_class": {}, "confusion": []}
    return {
        "encoder": encoder,
        "train": "head",
        "validation": validation,
        "test": scores,
        "majority": {"macro_f1": guessed},
        "counts": {"R": 50, "L": 50},
        "split": [70, 15, 15],
    }


@pytest.mark.parametrize(
    "fits, expected, absent",
    [
        ([fit()], "is above that of guessing the largest class, 0.30", "The first one"),
        ([fit(found=0.2)], "of 0.20 is not above that of guessing", "The first one"),
        (
            [fit(), fit("two", 0.6)],
            "The first one, best by validation macro-F1, is used",
            "not the",
        ),
        ([fit(), fit("two", 0.8)], "not the best, which is two, by validation", "one, best"),
        ([fit()], "70 to train, 15 for validation, 15 to test", "70/15"),
    ],
)
def test_what_is_said_of_the_classifiers(fits, expected, absent):
    said = report.classifier_section(fits).note
    assert expected in said and absent not in said


def along(**components):
    """The section of setups whose bias component in the last generation is given by seed."""
    config = SimpleNamespace(
        gradient_constraint=SimpleNamespace(direction="given"),
        chain=SimpleNamespace(setups=tuple(components)),
    )
    metrics = pd.DataFrame(
        [
            (setup, seed, g, "bias_component", value)
            for setup, values in components.items()
            for seed, value in enumerate(values)
            for g in (0, 1)
        ],
        columns=["setup", "seed", "generation", "metric", "value"],
    )
    return direction_section.section(config, metrics)


@pytest.mark.parametrize(
    "own, expected",
    [(0.3, "further along it than greedy"), (0.1, "less far along it than"), (0.2, "as far along")],
)
def test_how_far_setups_end_along_the_direction(own, expected):
    said = " ".join(along(greedy=[0.2], braked=[own]).paragraphs)
    assert expected in said and "[" not in said
    # Of the formula alone, where there is nothing to compare with.
    assert list(along(braked=[own]).paragraphs) == [direction_section.ABOUT["braked"]]


def test_setups_are_compared_over_the_seeds_that_both_have():
    """The third seed, whose chain stopped, would turn the sign."""
    said = along(greedy=[0.1, 0.2, 0.9], braked=[0.15, 0.27]).paragraphs[-1]
    test = scipy.stats.ttest_rel([0.15, 0.27], [0.1, 0.2]).confidence_interval()
    assert said == (
        "Here braked ends further along it than greedy: 0.21 against 0.15, a difference of +0.06 "
        f"[{test.low:.4g}, {test.high:.4g}] over 2 seeds."
    )


def test_the_formulas_that_are_stated_hold():
    """The gradient of lam c^2 with c = u' grad L is 2 lam c H u, and the brake's step divides."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    hessian = root @ root.T
    u, x, step = rng.normal(size=4), rng.normal(size=4), 1e-6

    def squared(y):
        return float(u @ (hessian @ y)) ** 2

    slope = [(squared(x + step * e) - squared(x - step * e)) / (2 * step) for e in np.eye(4)]
    np.testing.assert_allclose(slope, 2 * (u @ (hessian @ x)) * (hessian @ u), rtol=1e-6)
    rate, w, b = 0.1, 3.0, 2.0
    grid = np.linspace(0, 2, 200_001)
    proximal = grid[np.argmin((grid - b) ** 2 / (2 * rate) + w / 2 * grid**2)]
    assert proximal == pytest.approx(b / (1 + rate * w), abs=1e-4)


RULES = ("p<alpha", "bonferroni", "bh", "permutation", "familywise")


def neurons(*, together=0.5, more=0.5, fewer=0.5, flat=0, null=(NAN,) * 3, **settings):
    """A study of neurons with one relation and one overlap, whatever they came from."""
    counts = [
        ("differences", "weight ~ bias", rule, 40, flat, 3, 2.0, NAN, NAN, together, together)
        for rule in RULES
    ]
    overlap = ("differences", "p<alpha", "a", "b", 9, 8, 40, 4, 1.8, more, fewer, *null)
    return NeuronStudy(
        tests=pd.DataFrame(),
        counts=pd.DataFrame(
            counts,
            columns="mode relation rule tests flat observed nominal null_mean null_high p "
            "p_together".split(),
        ),
        overlap=pd.DataFrame(
            [overlap],
            columns="mode rule first second size_first size_second neurons observed expected "
            "p_more p_fewer null_mean null_p null_p_fewer".split(),
        ),
        layers=pd.DataFrame(),
        settings={
            "alpha": 0.05,
            "versions": 8,
            "setups": 1,
            "differences": 7,
            "lags": 1,
            "permutations": 99,
            "scheme": "seeds",
            "seeds": 5,
            "modes": ["differences"],
            "no_verdict": "",
        }
        | settings,
    )


@pytest.mark.parametrize(
    "study, expected, absent",
    [
        (neurons(together=0.01), "; beyond what exchanged outcomes give", "; not told"),
        (neurons(together=0.5), "; not told apart from what exchanged outcomes give", "beyond"),
        (neurons(together=NAN), "3 pass at p < 0.05", "what exchanged outcomes give"),
        (neurons(more=0.01), "more than independent sets would share", "about as many"),
        (neurons(fewer=0.01), "fewer than independent sets would share", "about as many"),
        (neurons(), "about as many as independent sets would share", "fewer than"),
        # Looked at from both sides at 5 %, each is at 2.5 %.
        (neurons(more=0.04), "about as many as independent sets would share", "more than"),
        (neurons(fewer=0.04), "share (1.8; two-sided p = 0.08)", "fewer than"),
        (
            neurons(more=0.001, null=(4.2, 0.3, 0.9)),
            "more than independent sets would share (1.8; two-sided p = 0.002); exchanged outcomes "
            "share 4.2 (p = 0.6).",
            "about as many",
        ),
        (neurons(flat=2), "2 do not vary and have p = 1", "about as many neurons"),
        (neurons(), "No permutation p can be below 0.01", "No verdict"),
        (
            neurons(permutations=0, no_verdict="too few seeds"),
            "No verdict on chance: too few seeds.",
            "No permutation p",
        ),
        (
            neurons(permutations=0),
            "7 differences; Newey-West errors with 1 lag.",
            "exchanged: mean",
        ),
        (neurons(modes=["levels", "differences"]), "Granger and Newbold 1974", "No verdict"),
        (neurons(), "need not move", "Granger"),
    ],
)
def test_what_is_said_of_neurons(study, expected, absent):
    said = " ".join(neuron_summary.sentences(study))
    assert expected in said and absent not in said
