"""What the next generation trains on, told while a generation is still being measured."""

import pytest

from jaxloop.recursion import chains as ch
from jaxloop.recursion import driver
from jaxloop.recursion.sources import upcoming_texts
from jaxloop.runtime.workdir import open_workdir
from tests.recursion import unigram as u


@pytest.mark.parametrize(
    "values",
    [
        {"workflow": "replace"},
        {"workflow": "accumulate"},
        {"workflow": "accumulate_subsample"},
        {"workflow": "preserve", "share": 0.25},
        {"workflow": "fresh_human", "ratio": 0.5},
    ],
    ids=lambda values: values["workflow"],
)
def test_upcoming_texts_are_those_that_the_next_generation_is_fitted_to(tmp_path, values):
    generations, root, told = 4, tmp_path / "run", {}
    chains = ch.product({"seed": [0, 1]}, dataset="posts", bases=("small",), size=12, **values)
    data, family = {"posts": u.human()}, u.Unigram()
    settings = driver.RunSettings(generations, u.FitSettings(), u.SampleSettings(), evaluate=4)

    def measure(model, generation, outputs):
        for output in outputs:
            texts = upcoming_texts(output, generation, data, root, generations)
            told.setdefault(output.chain.id, []).append(texts)
        return u.measure(model, generation, outputs)

    with open_workdir(root, {"generations": generations}, console=False) as workdir:
        driver.run(family, chains, data, settings, workdir.path, measure=measure, progress=False)
    for number, chain in enumerate(chains):
        trained = [list(tasks[number].texts) for _, tasks, _ in family.fits]
        assert len(trained) == len(told[chain.id]) == generations
        assert told[chain.id][:-1] == trained[1:]
        # After the last generation: what a longer run would train on.
        last = told[chain.id][-1]
        grows = values["workflow"] == "accumulate"
        assert len(last) == (len(trained[-1]) + 12 if grows else len(trained[-1]))
