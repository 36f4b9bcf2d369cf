"""Every sentence of a diversity report, with numbers that make it come out each way."""

from types import SimpleNamespace

import pandas as pd
import pytest

from jaxloop.studies.diversity import measure, sentences

QA = {"qa": "Question answering"}


def pools(*values):
    return pd.DataFrame(
        {"set": [f"qa-D{i}" for i in range(len(values))], "distinct_matched": values}
    )


def fit(**changes):
    numbers = dict(
        task="qa",
        kind="levels",
        shift="mmd2",
        correlation=0.1,
        vif=1.01,
        diversity_together=-0.1,
        diversity_low=-0.2,
        diversity_high=-0.1,
        shift_together=0.1,
        shift_low=0.1,
        shift_high=0.3,
    )
    return [SimpleNamespace(**numbers | changes)]


def mixture(*pairs):
    return pd.DataFrame(pairs, columns=["real", "generated"]).assign(rho=0.5)


def bases(*pairs):
    return pd.DataFrame(pairs, columns=["base", "level"])


def distances(test, *values):
    names = ["qa-test", *(f"qa-D{i}" for i in range(len(values)))]
    return pd.DataFrame({"set": names, "task": "qa", "frechet_distance": [test, *values]})


NAN = float("nan")


@pytest.mark.parametrize(
    "said, expected",
    [
        (sentences.of_levels(pools(0.1, 0.2, 0.3), QA), "rises at every step; 0.100 at D0"),
        (sentences.of_levels(pools(0.1, 0.3, 0.2), QA), "does not rise from D1 to D2"),
        (sentences.of_levels(pools(0.3, 0.3, 0.2), QA), "from D0 to D1, D1 to D2"),
        (sentences.of_levels(pools(0.3), QA), None),
        (sentences.of_mixture(mixture((0, 40), (20, 20)), "fixed"), "Sets have 40 records."),
        (sentences.of_mixture(mixture((0, 40), (20, 40)), "fixed"), "Sets have 40, 60 records."),
        (
            sentences.of_mixture(mixture((20, 40), (20, 0)), "variable"),
            "Sets have 20 real records, to which generated ones are added.",
        ),
        (sentences.of_mixture(mixture((20, 40), (30, 0)), "variable"), "have 20, 30 real records"),
        (
            sentences.of_sizes(mixture((0, 10), (0, 20))),
            "Generated data alone of 2 sets, of 10, 20",
        ),
        (sentences.of_sizes(mixture((5, 10))), "with real ones in 1 of 1 sets, of 15 records"),
        (sentences.of_bases(bases(("a", "real"), ("a", "D1"))), "minus that of the same base"),
        (
            sentences.of_bases(bases(("a", "real"), ("b", "D1"))),
            "as it is: b was not fine-tuned on real data",
        ),
        (sentences.of_bases(bases(("a", "D0"), ("b", "D1"))), "a, b were not fine-tuned"),
        (sentences.of_lengths("qa"), "Tokens of the answer, share"),
        (sentences.of_lengths("story"), "answer (the last sentence), share"),
        (
            sentences.of_fits(fit(), QA),
            "more diversity goes with a lower loss; with diversity held, more distance goes with "
            "a higher loss",
        ),
        (
            sentences.of_fits(fit(diversity_low=0.1, diversity_high=0.2, shift_high=-0.1), QA),
            "more diversity goes with a higher loss; with diversity held, more distance goes with "
            "a lower loss",
        ),
        (
            sentences.of_fits(fit(diversity_high=0.2, shift_low=-0.1), QA),
            "more diversity goes with no change of the loss that the 95 % interval tells from 0; "
            "with diversity held, more distance goes with no change",
        ),
        (
            sentences.of_fits(fit(correlation=-0.95, vif=10.3), QA),
            "move together (correlation -0.95, VIF 10.3), so that the effect of neither is told",
        ),
        (
            sentences.of_fits(fit(correlation=1.0, vif=NAN), QA),
            "diversity and distance are the same",
        ),
        (
            sentences.of_fits(fit(diversity_together=NAN), QA),
            "only one group of sets tells diversity from distance",
        ),
        (sentences.of_fits(fit(correlation=NAN, vif=NAN), QA), None),
        (sentences.of_distances(distances(1.0, 0.5, 2.0), QA), "of 2 sources D0 no further"),
        (sentences.of_distances(distances(0.1, 0.5, 2.0), QA), "of 2 sources none no further"),
        (sentences.of_distances(distances(NAN, 0.5, 2.0), QA), None),
        (
            list(sentences.mixture_titles({"fixed": "fixed", "variable": "variable"}).values()),
            "Mixtures of one size (section 4.3) Generated data added to real data (section 4.3)",
        ),
        (
            list(sentences.mixture_titles({"fixed": "variable", "variable": "variable"}).values()),
            "(section 4.3): experiment fixed Generated data added",
        ),
    ],
)
def test_every_sentence_comes_out_each_way(said, expected):
    text = said if isinstance(said, str) else " ".join(said)
    assert not text if expected is None else expected in text


@pytest.mark.parametrize(
    "values, expected, holds",
    [
        ((0.1, 0.2, 0.3), "2 of 2 steps; 0.100 to 0.300", True),
        ((0.1, 0.3, 0.2), "1 of 2 steps; 0.100 to 0.200; the largest fall is 0.100", False),
        ((0.99, 0.995, 0.99), "so it cannot be told", False),
    ],
)
def test_checks_of_the_levels_come_out_each_way(values, expected, holds):
    settings = SimpleNamespace(
        generator=SimpleNamespace(
            replaced=(6, 5, 4, 3, 2, 1, 0), topic_sizes=(1, 2, 3, 4, 5, 6, 7), story="m", qa="m"
        )
    )
    names = [f"story-D{i}" for i in range(len(values))]
    about = pd.DataFrame({"set": names, "distinct_matched": values})
    found = measure.level_checks(settings, dict.fromkeys(names), about)
    assert len(found) == 1 and found[0][0].startswith("(b) story")
    assert expected in found[0][1] and found[0][2] == holds
