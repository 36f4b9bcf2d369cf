"""Drawings average over seeds alone: sizes and mixing ratios that one does not show are parted."""

import itertools

import numpy as np
import pandas as pd
import scipy.stats

from jaxloop.studies.diversity import figures, report

NAMES = {"qa": "Questions"}


def models(*, sizes, rhos, levels=("D0", "D6"), bases=("gpt2",)):
    """A row per model; each combination has a loss of its own, and two seeds around it."""
    rows = []
    for base, size, rho, level, seed in itertools.product(bases, sizes, rhos, levels, (0, 1)):
        generated = round(rho * size)
        rows.append(
            {
                "task": "qa",
                "base": base,
                "level": level if generated else "real",
                "real": size - generated,
                "generated": generated,
                "rho": generated / size,
                "seed": seed,
                figures.LOSS: size + rho + 0.01 * seed,
            }
        )
    return pd.DataFrame(rows).drop_duplicates(["base", "level", "real", "generated", "seed"])


def means(drawing):
    """{label: y} of the lines of a drawing."""
    axes = drawing.figure.axes[0]
    return {c.get_label(): np.asarray(c.lines[0].get_ydata(), float) for c in axes.containers}


def test_ratios_of_every_size():
    rows = models(sizes=(100, 200), rhos=(0.0, 0.5, 1.0))
    drawings = figures.by_ratio(rows, ["qa"], NAMES)
    titles = ["Questions, gpt2, records 100: test loss", "Questions, gpt2, records 200: test loss"]
    assert [d.title for d in drawings] == titles
    for size, drawing in zip((100, 200), drawings, strict=True):
        np.testing.assert_allclose(means(drawing)["D0"], size + 0.005 + np.array([0, 0.5, 1]))


def test_sizes_of_every_ratio():
    rows = models(sizes=(100, 200), rhos=(0.5, 1.0))
    drawings = figures.by_size(rows, ["qa"], NAMES)
    assert [d.title for d in drawings] == [f"Questions, gpt2, rho {r}" for r in ("0.5", "1")]
    np.testing.assert_allclose(means(drawings[0])["D6"], [100.505, 200.505])
    np.testing.assert_allclose(means(drawings[1])["D6"], [101.005, 201.005])


def test_bases_at_every_size_and_ratio():
    rows = models(sizes=(100, 200), rhos=(0.0, 0.5, 1.0), bases=("gpt2", "opt"))
    drawings = figures.by_base(rows, ["qa"], NAMES)
    assert len(drawings) == 4 and "records 100, rho 0.5" in drawings[0].title
    for drawing, rho in zip(drawings, (0.5, 1.0, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(means(drawing)["opt"], [rho, rho], atol=1e-9)


def test_one_size_and_ratio_make_one_drawing():
    drawings = figures.by_base(models(sizes=(100,), rhos=(0.0, 1.0)), ["qa"], NAMES)
    assert [d.title for d in drawings] == ["Questions"]


def test_the_error_of_a_mean_is_that_of_the_models_that_have_a_loss():
    values = pd.Series([1.0, np.nan, 2.0, 4.0])
    assert report.pair(values) == f"{7 / 3:.4f} ± {scipy.stats.sem([1, 2, 4]):.4f}"
    assert report.pair(pd.Series([1.0, np.nan])) == "1.0000"
    assert report.pair(pd.Series([np.nan])) == "–"
