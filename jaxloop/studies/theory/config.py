"""The config of the theory study."""

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    Count,
    NonNegative,
    Positive,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)

Mixing = Literal["complete", "ring", "star", "blocks", "self_only"]
MIXINGS: tuple[Mixing, ...] = ("complete", "ring", "star", "blocks", "self_only")
Shares = Annotated[tuple[Share, ...], Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Pair = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]


class LinearConfig(Section):
    """Linear models of several entities (arXiv 2505.21677)."""

    entities: Annotated[int, Field(ge=2)] = Field(
        4, description="linear models that read each other"
    )
    dim: Count = Field(15, description="features")
    rank: Count = Field(5, description="private rows of an entity")
    public: Whole = Field(13, description="public rows")
    scale: Positive = Field(1.25, description="synthetic Gram matrices over the private ones")
    sigma2: Positive = Field(1.0, description="variance of a label")
    alpha: Share = Field(0.4, description="weight of synthetic data")
    beta: Share = Field(0.7, description="weight of private data among the real ones")
    generations: Count = Field(20, description="generations after generation 0")
    alphas: Shares = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description="weights of synthetic data that are compared"
    )
    mixings: Annotated[tuple[Mixing, ...], Field(min_length=1)] = Field(
        MIXINGS, description="who reads whom"
    )
    betas: Shares = Field((0.1, 0.5, 0.9), description="curves of the relative-efficiency figure")
    designs: Count = Field(
        6, description="draws of the designs that the relative-efficiency figure averages over"
    )
    grid: Annotated[int, Field(ge=11)] = Field(
        100,
        description="values of alpha and of beta on the grid of the optimum, which is then refined",
    )
    batch: Annotated[int, Field(ge=2)] = Field(
        1024, description="replicates that are drawn at a time"
    )


class WmleConfig(Section):
    """Weighted maximum likelihood of Beta distributions (arXiv 2410.15234, section 3.2)."""

    n: Count = Field(10_000, description="draws that every fit sees")
    error_n: Annotated[int, Field(ge=2)] = Field(
        2000, description="draws that a fit sees where the spread between chains is measured"
    )
    real: Pair = Field((2.0, 2.0), description="alpha and beta of the real distribution")
    pretrained: Pair = Field((3.0, 2.0), description="alpha and beta of the pre-trained model")
    exponent: NonNegative = Field(1.0, description="power of the weights")
    generations: Count = Field(10, description="generations after generation 0")
    weightings: Annotated[
        tuple[Literal["model", "pretrained", "none"], ...], Field(min_length=1)
    ] = Field(
        ("model", "pretrained", "none"),
        description="whose density weights a generation's data: the last fit's, the pre-trained "
        "model's, nobody's",
    )
    gam: NonNegative = Field(5.0, description="strength of the constraint of L_new")
    steps: Count = Field(10, description="gradient steps of a generation under L_new")
    rate: Positive = Field(2.0, description="their step length")
    left_out: Share = Field(
        0.2,
        description="share of chains at most that may be left out because a fit did not converge: "
        "a few draws may be so alike that no finite alpha and beta are likeliest",
    )
    order: NonNegative = Field(
        5.0, description="relative error that is allowed to formulas for large n, times 1/n"
    )
    batch: Annotated[int, Field(ge=2)] = Field(
        128, description="replicates that are drawn at a time"
    )


class HistogramConfig(Section):
    """The biased histogram of the U-shape (arXiv 2504.03814, C.3)."""

    size: Count = Field(100, description="N: numbers 0..N, and training points of a generation")
    ratios: Shares = Field(
        (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
        description="synthetic share of a generation's training points",
    )
    bias: Positive = Field(100.0, description="factor on even numbers")
    weak: Positive = Field(20.0, description="a weaker factor, beside it")
    smoothing: Positive = Field(
        1e-3, description="mass added to every number, in the variant that has the U-shape"
    )
    generations: Count = Field(19, description="generations after generation 0")
    replicates: Annotated[int, Field(ge=2)] = Field(
        200, description="chains per ratio of the U-shape (50 in the paper)"
    )
    batch: Annotated[int, Field(ge=2)] = Field(
        100, description="replicates that are drawn at a time"
    )


class LibraryConfig(Section):
    """Closed forms of the literature."""

    n: Annotated[int, Field(ge=4)] = Field(20, description="points of a fit")
    fits: Annotated[int, Field(ge=2)] = Field(8, description="fits of a chain")
    dim: Count = Field(3, description="coefficients of the regressions")
    batch: Annotated[int, Field(ge=2)] = Field(
        4000, description="replicates that are drawn at a time"
    )


class TheoryRunConfig(Section):
    """Where it runs; nothing here changes a result beyond rounding."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="`gpu` and `tpu` are refused where absent"
    )
    devices: Count | None = Field(None, description="devices that share the replicates; none: all")
    keep_compiled: bool = Field(
        True,
        description="keep compiled programs in the cache folder (~/.cache/jaxloop, "
        "$JAXLOOP_CACHE) for the next run",
    )


class TheoryConfig(Section):
    """The config of a comparison of formulas with simulations."""

    OLD_NAMES: ClassVar = {"wanted": "detect"}

    study: Literal["theory"] = Field("theory", description="which study this is a config of")
    title: Text = Field("Analytic against empirical", description="heading of the report")
    what: Literal["linear", "wmle", "histogram", "library"] = Field(
        "library", description="which models: one of the sections below"
    )
    linear: LinearConfig = LinearConfig()
    wmle: WmleConfig = WmleConfig()
    histogram: HistogramConfig = HistogramConfig()
    library: LibraryConfig = LibraryConfig()
    detect: Fraction = Field(
        0.005, description="relative error of a formula that replicates are drawn to find"
    )
    power: Fraction = Field(0.95, description="probability that such an error is found")
    level: Fraction = Field(
        0.01,
        description="probability of a false alarm anywhere in the table: a curve is flagged where "
        "its p, adjusted for the number of curves, is at or below it",
    )
    replicates: Annotated[int, Field(ge=2)] | None = Field(
        None, description="replicates of every quantity; none: as many as `detect` needs"
    )
    most: Count = Field(
        4_000_000, description="replicates at most; what these find is in the table"
    )
    seed: Seed = Field(0, description="of designs, parameters and draws")
    run: TheoryRunConfig = TheoryRunConfig()

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "TheoryConfig":
        ratios, wmle, library = self.histogram.ratios, self.wmle, self.library
        if 0.0 not in ratios or len(ratios) < 3 or list(ratios) != sorted(set(ratios)):
            raise ValueError(
                f"config.histogram.ratios = {list(ratios)}: must be at least three shares from "
                "0 on, rising, to show a U between them"
            )
        if wmle.n < 2:
            raise ValueError(f"config.wmle.n = {wmle.n}: a Beta fit needs at least 2 observations")
        if library.n < library.dim + 2:
            raise ValueError(
                f"config.library.n = {library.n}: must be at least library.dim + 2 = "
                f"{library.dim + 2}, expectations are infinite below"
            )
        return self

    @property
    def section(self) -> LinearConfig | WmleConfig | HistogramConfig | LibraryConfig:
        """The section of the models that `what` names."""
        sections: dict[str, LinearConfig | WmleConfig | HistogramConfig | LibraryConfig] = {
            "linear": self.linear,
            "wmle": self.wmle,
            "histogram": self.histogram,
            "library": self.library,
        }
        return sections[self.what]


CONFIG = TheoryConfig
