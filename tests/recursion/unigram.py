"""A family small enough to run hundreds of generations in a second: word counts, in NumPy."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxloop.recursion import workflow as wf
from jaxloop.recursion.chains import product
from jaxloop.recursion.family import FitResult, FitTask, GenerateResult, GenerateTask
from jaxloop.recursion.run import RunSettings
from jaxloop.recursion.sources import Dataset

WORDS = tuple(f"w{i:02d}" for i in range(40))
BOMB = "divide-by-zero"


@dataclass(frozen=True)
class FitSettings:
    smoothing: float = 0.01
    mode: str = "counts"


@dataclass(frozen=True)
class SampleSettings:
    decoder: str = "sample"
    words: int = 6


class Model(NamedTuple):
    """A base model: pseudo-counts [words]."""

    name: str
    prior: np.ndarray


class Unigram:
    """A `recursion.family.Family` that keeps what it was asked, so that tests can look at it.

    pause: seconds per call, for runs that are to be killed. collapsed: it generates empty texts.
    """

    def __init__(self, pause: float = 0.0, collapsed: bool = False) -> None:
        self.pause, self.collapsed = pause, collapsed
        self.loads: list[str] = []
        self.fits: list[tuple[str, Sequence[FitTask], FitSettings]] = []
        self.samples: list[tuple[str, Sequence[GenerateTask], SampleSettings]] = []

    def load(self, base: str) -> Model:
        self.loads.append(base)
        return Model(base, np.linspace(1, 2, len(WORDS)) * (1 + len(base) % 3))

    def fit(self, model: Model, tasks: Sequence[FitTask], settings: FitSettings) -> list[FitResult]:
        time.sleep(self.pause)
        self.fits.append((model.name, tasks, settings))
        out = []
        for task in tasks:
            counts = (
                model.prior * settings.smoothing
                if task.start is None
                else task.start["counts"] * 0.5
            )
            words = " ".join(task.texts).split()
            counts = counts + np.bincount(
                [WORDS.index(w) for w in words if w in WORDS], minlength=len(WORDS)
            )
            p = counts / counts.sum()
            loss = np.asarray([np.log(len(WORDS)), -(p * np.log(p)).sum()], np.float32)
            if any(BOMB in text for text in task.texts):
                loss[1] = np.nan
            out.append(
                FitResult(
                    {"counts": counts.astype(np.float32)},
                    2,
                    len(words),
                    loss,
                    bool(np.isfinite(loss).all()),
                )
            )
        return out

    def generate(
        self, model: Model, tasks: Sequence[GenerateTask], settings: SampleSettings
    ) -> list[GenerateResult]:
        time.sleep(self.pause)
        self.samples.append((model.name, tasks, settings))
        out = []
        for task in tasks:
            p = np.asarray(task.weights["counts"], np.float64)
            texts = []
            for row in task.rows:
                draw = np.random.default_rng(
                    [*np.asarray(jax.random.key_data(task.key)).tolist(), int(row)]
                )
                texts.append(
                    ""
                    if self.collapsed
                    else " ".join(draw.choice(WORDS, settings.words, p=p / p.sum()))
                )
            out.append(
                GenerateResult(
                    texts, np.full(len(texts), settings.words), np.ones(len(texts), bool)
                )
            )
        return out


def measure(model, generation, outcomes):
    """Distinct words and mean length of each model's texts."""
    out = {}
    for o in outcomes:
        words = " ".join(o.texts).split()
        out[o.chain.id, o.entity] = {
            "distinct": len(set(words)) / max(len(words), 1),
            "length": float(np.mean([len(t) for t in o.texts])),
        }
    return out


def human(count: int = 600, seed: int = 0) -> Dataset:
    """Texts of six words; text i begins with its own number, which is no word of the family, so
    that it can be traced.
    """
    draw = np.random.default_rng(seed)
    return Dataset(
        tuple(f"human{i} " + " ".join(draw.choice(WORDS, 5)) for i in range(count)),
        "say something: ",
    )


def study(generations: int = 5, ratios=(0.25, 1.0), seeds=(0, 1), size: int = 24, **common):
    """(chains, data, settings) of a small study with two base models."""
    given = {"dataset": "posts", "bases": ("small", "large"), "size": size} | common
    chains = product({"ratio": list(ratios), "seed": list(seeds)}, **given)
    return (
        chains,
        {"posts": human()},
        RunSettings(generations, FitSettings(), SampleSettings(), evaluate=8),
    )


__all__ = [
    "BOMB",
    "FitSettings",
    "SampleSettings",
    "Unigram",
    "human",
    "measure",
    "os",
    "study",
    "wf",
]
