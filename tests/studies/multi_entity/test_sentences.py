"""Every sentence of a multi-entity report, with numbers that make it come out each way."""

import numpy as np
import pandas as pd
import pytest

from jaxloop.studies.multi_entity import effects, sentences
from jaxloop.studies.multi_entity import run as entities
from jaxloop.studies.multi_entity.linear_theory import Curves, Surface

NAN = float("nan")
PAPER, OWN = effects.NO_EXCHANGE, effects.OWN_TEXT
ABOVE, BELOW, HOLDS, ALONE = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (NAN, NAN)


def summary(*rows, effect="transfer"):
    """rows: (against, alpha, (low, high)) at beta = 1/2."""
    return pd.DataFrame(
        [
            (effect, against, alpha, 0.5, 0.2 if low != low else (low + high) / 2, low, high, 3)
            for against, alpha, (low, high) in rows
        ],
        columns=["effect", "against", "alpha", "beta", "mean", "low", "high", "n"],
    )


@pytest.mark.parametrize(
    "table, expected, absent",
    [
        (
            summary((OWN, 0.5, ABOVE), (OWN, 1.0, BELOW)),
            "Transfer against own text (the control): of 2 intervals 1 lie above 0, 1 below and 0 "
            "hold it; means from -0.200 to +0.200.",
            "the paper's reading",
        ),
        (
            summary((PAPER, 0.5, HOLDS), effect="damage"),
            "Damage against alpha = 0 (the paper's reading): of 1 intervals 0 lie above 0, 0 below "
            "and 1 hold it",
            "the control",
        ),
        (
            summary((PAPER, 0.5, ALONE), (PAPER, 1.0, ALONE), effect="alike_outputs"),
            "Homogenisation of outputs against alpha = 0 (the paper's reading): no interval (one "
            "seed); above 0 in 2 of 2 settings.",
            "same side",
        ),
        (
            summary((OWN, 0.5, ABOVE), (OWN, 1.0, ALONE)),
            "; 1 settings with one seed have none",
            "same side",
        ),
        (
            summary((PAPER, 0.5, ABOVE), (OWN, 0.5, ABOVE)),
            "Transfer: both readings lie on the same side of 0 in all 1 settings that have both.",
            "differ",
        ),
        (
            summary((PAPER, 0.5, ABOVE), (OWN, 0.5, ABOVE), (PAPER, 1.0, HOLDS), (OWN, 1.0, HOLDS)),
            "Transfer: of 2 settings that have both readings, both lie on the same side of 0 in 1, "
            "and both intervals hold it in 1.",
            "in all",
        ),
        (
            summary(
                (PAPER, 0.5, ABOVE),
                (OWN, 0.5, HOLDS),
                (PAPER, 1.0, BELOW),
                (OWN, 1.0, BELOW),
                effect="alike_losses",
            ),
            "Homogenisation of losses: the readings differ in 1 of 2 settings, (alpha 0.5, beta "
            "0.5): there the intervals",
            "both readings lie",
        ),
        (
            effects.summary(pd.DataFrame(columns=["effect", "against", "alpha", "beta", "value"])),
            "",
            "Transfer",
        ),
    ],
)
def test_sentences_of_effects(table, expected, absent):
    said = "\n".join(sentences.of_effects(table))
    assert expected in said and absent not in said


def config(**changes):
    return entities.CONFIG(**changes)


def test_the_note_names_both_readings_and_whose_they_are():
    said = sentences.readings(config(), 7)
    assert "At generation 7" in said and "Against alpha = 0, as the paper compares" in said
    assert "all of it the entity's own" in said
    without = sentences.readings(config(exchange={"control": None}), 7)
    assert "there are no controls" in without and "the entity's own" not in without


def curves(cross):
    return Curves(np.zeros(2), np.array([1.0, cross]), np.zeros(2), 0.5, 0)


@pytest.mark.parametrize(
    "none, own, exchanged, expected",
    [
        (3.0, 4.0, 2.5, ("reading): above 0 in 1 of 1", "control): above 0 in 1 of 1")),
        (2.0, 4.0, 2.5, ("reading): above 0 in 0 of 1", "control): above 0 in 1 of 1")),
        (3.0, 2.0, 2.5, ("reading): above 0 in 1 of 1", "control): above 0 in 0 of 1")),
        (3.0, None, 2.5, ("reading): above 0 in 1 of 1",)),
    ],
)
def test_sentences_of_the_linear_models_transfer(none, own, exchanged, expected):
    of_exchange = {(0.0, 0.5): curves(none), (0.5, 0.5): curves(exchanged)}
    controls = {} if own is None else {(0.5, 0.5): curves(own)}
    said = sentences.of_linear_transfer(of_exchange, controls)
    assert len(said) == len(expected)
    assert all(part in " ".join(said) for part in expected)


@pytest.mark.parametrize(
    "best, coarse, expected",
    [
        ((0.4, 0.7), (0.5, 0.5, 0.5), "which is another pair"),
        ((0.49, 0.51), (0.5, 0.5, 0.5), "which is the same pair, to a step of the fine grid"),
        ((0.49, 0.51), (0.0, 0.0, NAN), "among 0, 1/2 and 1 no pair has a limit"),
    ],
)
def test_the_sentence_about_both_grids(best, coarse, expected):
    grid = np.linspace(0, 1, 21)
    surface = Surface(grid, grid, grid, grid, (*best, 0.6), coarse)
    assert expected in sentences.of_grids(surface)


def test_ranks_are_over_what_they_are_over():
    assert "alpha = 1 is one setting" in sentences.ranks_over(config(), "over settings")
    own = config(exchange={"initial_beta": None})
    assert sentences.ranks_over(own, "over settings") == "over settings"


@pytest.mark.parametrize(
    "changes, generations, expected",
    [
        ({}, 15, "This run has the entities, the model and the generations of OPT-350m, K = 2."),
        ({}, 6, "of OPT-350m, K = 2, and 6 generations where the paper has 15."),
        (
            {"models": {"pool": ("meta-llama/Llama-3.2-1B",)}},
            15,
            "the generations of Llama 3.2 1B, K = 2.",
        ),
        ({"entities": ("sciq", "gsm8k", "arc")}, 15, "the generations of OPT-350m, K = 3."),
        (
            {"entities": ("sciq", "arc")},
            15,
            "No table of the paper is of this run's entities (sciq",
        ),
        ({"models": {"pool": ("other",)}}, 15, "No table of the paper is of this run's entities"),
    ],
)
def test_whether_the_run_is_one_of_the_papers(changes, generations, expected):
    assert expected in sentences.of_papers_setting(config(**changes), generations)
