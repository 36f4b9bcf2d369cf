"""Selection policies on their own, and inside chains of word counts."""

import jax
import numpy as np
import pandas as pd
import pytest

from jaxloop.recursion import driver
from jaxloop.recursion import workflow as wf
from jaxloop.recursion.chains import make_chain
from jaxloop.recursion.selection import Selection, choose
from jaxloop.runtime.workdir import open_workdir
from tests.recursion import unigram as u


def key(i):
    return jax.random.key(i, impl="threefry2x32")


def test_the_best_are_chosen_and_a_threshold_comes_before_them():
    quality = np.array([5.0, 1, np.nan, 9, 7, 7, 3, 2])
    assert [quality[i] for i in choose(Selection("quality", 8), key(0), 5, quality)] == [
        9,
        7,
        7,
        5,
        3,
    ]
    several = [
        choose(Selection("quality", 8, threshold=5), key(i), 5, quality).tolist() for i in range(40)
    ]
    # Four pass and come in random order; the best of the others is the fifth.
    assert (
        all(set(s[:4]) == {0, 3, 4, 5} and s[4] == 6 for s in several)
        and len({tuple(s) for s in several}) > 5
    )
    few = [choose(Selection("quality", 8, threshold=5), key(i), 1, quality)[0] for i in range(400)]
    assert min(np.bincount(few, minlength=8)[[0, 3, 4, 5]]) > 60
    assert 2 not in choose(Selection("quality", 8), key(1), 7, quality)


def test_random_is_uniform_and_has_no_repetition():
    draws = np.stack([choose(Selection("random", 10), key(i), 4) for i in range(500)])
    assert all(len(set(d)) == 4 for d in draws.tolist())
    counts = np.bincount(draws.ravel(), minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees, p = 0.001


def test_diversity_is_greedily_farthest_in_cosine_distance():
    points = np.random.default_rng(0).normal(size=(30, 4)) * np.linspace(1, 9, 30)[:, None]
    chosen = choose(Selection("diversity", 30), key(3), 12, points).tolist()
    from sklearn.metrics.pairwise import cosine_distances

    distance = cosine_distances(points)
    for n in range(1, 12):
        nearest = distance[:, chosen[:n]].min(1)
        nearest[chosen[:n]] = -1
        assert nearest[chosen[n]] == pytest.approx(nearest.max(), abs=1e-9)
    copies = np.repeat(np.eye(3), 5, axis=0)
    assert len({int(i) // 5 for i in choose(Selection("diversity", 15), key(0), 3, copies)}) == 3
    assert len(set(choose(Selection("diversity", 15), key(0), 15, copies).tolist())) == 15


def chains(policies, seeds=(0, 1)):
    out = []
    for policy in policies:
        for seed in seeds:
            chosen = None if policy == "none" else Selection(policy, 16)
            flow = wf.fresh_human(12, 0.5, selection=chosen)
            factors = {"selection": policy, "seed": seed}
            out.append(
                make_chain(
                    {
                        "workflow": flow,
                        "dataset": "posts",
                        "bases": ("small", "large"),
                        "seed": seed,
                    },
                    factors=factors,
                )
            )
    return out


def features(name, texts):
    return (
        np.array([float(t.count("w39")) for t in texts])
        if name == "quality"
        else np.array([[len(set(t.split())), 1.0] for t in texts])
    )


def go(path, specs, generations=4):
    settings = driver.RunSettings(generations, u.FitSettings(), u.SampleSettings(), evaluate=8)
    family = u.Unigram()
    with open_workdir(
        path, {"generations": generations}, may_raise=("generations",), console=False
    ) as place:
        driver.run(
            family,
            specs,
            {"posts": u.human()},
            settings,
            place.path,
            measure=u.measure,
            features=features,
            progress=False,
        )
    return family


def test_the_pool_takes_what_was_selected_and_random_is_the_matched_control(tmp_path):
    specs = chains(("random", "quality", "diversity", "none"))
    go(tmp_path / "run", specs)

    def read(policy, seed, generation):
        return pd.read_parquet(
            tmp_path
            / f"run/texts/chain=selection-{policy}_seed-{seed}/generation={generation:04d}.parquet"
        )

    for seed in (0, 1):
        first = {p: read(p, seed, 0) for p in ("random", "quality", "diversity", "none")}
        # The same human data, base and draws: before anything was selected the chains are equal,
        # and write equally much.
        assert (
            first["random"].text.tolist()
            == first["quality"].text.tolist()
            == first["diversity"].text.tolist()
        )
        assert (
            "selected" not in first["none"]
            and first["none"].text.tolist() == first["random"].text.tolist()[:8]
        )
        best = np.sort(first["quality"].text.str.count("w39"))[::-1][:6]
        taken = first["quality"][first["quality"].selected >= 0].sort_values("selected")
        assert taken.text.str.count(
            "w39"
        ).tolist() == best.tolist() and taken.selected.tolist() == list(range(6))


def test_the_next_generation_trains_on_the_selected_texts(tmp_path):
    (spec,) = chains(("quality",), (3,))
    family = go(tmp_path / "run", [spec])
    written = pd.read_parquet(tmp_path / f"run/texts/chain={spec.id}/generation=0000.parquet")
    synthetic = [t for t in family.fits[1][1][0].texts if not t.startswith("human")]
    assert sorted(synthetic) == sorted(written[written.selected >= 0].text) and len(synthetic) == 6


def test_a_run_that_goes_on_gives_the_same_texts(tmp_path):
    specs = chains(("random", "diversity"), (0,))
    go(tmp_path / "whole", specs)
    go(tmp_path / "parts", specs, 2)
    go(tmp_path / "parts", specs, 4)
    for path in (tmp_path / "whole" / "texts").rglob("*.parquet"):
        assert (
            path.read_bytes()
            == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes()
        )


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda: Selection("best", 8),
            r"selection.policy='best': must be one of random, quality, diversity",
        ),
        (
            lambda: Selection("random", 0),
            r"selection.candidates=0: must be an integer of at least 1",
        ),
        (
            lambda: wf.fresh_human(12, 0.5, selection=Selection("random", 5)),
            r"selection.candidates=5: must be at least synthetic=6",
        ),
        (
            lambda: choose(Selection("quality", 3), key(0), 2, np.zeros((3, 2))),
            r"features of shape \(3, 2\) for 3 candidates",
        ),
        (lambda: choose(Selection("random", 3), key(0), 4), r"4 of 3 candidates"),
    ],
)
def test_bad_input_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_policy_without_its_features_is_refused_before_anything_is_written(tmp_path):
    settings = driver.RunSettings(2, u.FitSettings(), u.SampleSettings(), evaluate=8)
    with open_workdir(tmp_path / "run", {}, console=False) as place:
        with pytest.raises(ValueError, match="selection.policy='quality': chain .* needs features"):
            driver.run(
                u.Unigram(),
                chains(("quality",)),
                {"posts": u.human()},
                settings,
                place.path,
                progress=False,
            )
        assert not (place.path / "texts").exists()
