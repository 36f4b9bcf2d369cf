"""Analytic against empirical: models with a formula, simulated until the standard error is below 1
%, beside what the formulas say.

settings -> experiments (quantities with their formulas) -> replicates, batch after batch -> checks/
(one file per experiment, so that a run that dies loses the one it was in) -> table.csv, claims.csv,
figures/, report.html. The exit code is `DISAGREES` where a row has |z| > 4 or a claim does not
hold.
"""

import importlib
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field

import jaxloop
from jaxloop.config import Count, NonNegative, Positive, Section, Seed, Share, Text, Whole
from jaxloop.studies import DISAGREES
from jaxloop.studies.common import run as running

KINDS = {
    "linear": "theory_linear",
    "wmle": "theory_wmle",
    "histogram": "theory_histogram",
    "library": "theory_library",
}
MIXINGS = ("complete", "ring", "star", "blocks", "self_only")
Shares = Annotated[tuple[Share, ...], Field(min_length=1)]
Pair = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]


class Linear(Section):
    """Linear models of several entities (multi_entity.md, section 1)."""

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
    mixings: Annotated[
        tuple[Literal["complete", "ring", "star", "blocks", "self_only"], ...], Field(min_length=1)
    ] = Field(MIXINGS, description="who reads whom")
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


class Wmle(Section):
    """Weighted maximum likelihood of Beta distributions (bias_amplification.md, section 1)."""

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
    order: NonNegative = Field(
        5.0, description="relative error that is allowed to formulas for large n, times 1/n"
    )
    batch: Annotated[int, Field(ge=2)] = Field(
        128, description="replicates that are drawn at a time"
    )


class Histogram(Section):
    """The biased histogram of the U-shape (recursive_loops.md, section 7)."""

    size: Count = Field(100, description="N: numbers 0..N, and training points of a generation")
    ratios: Shares = Field(
        (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
        description="synthetic share of a generation's training points",
    )
    bias: Positive = Field(100.0, description="factor on even numbers")
    weak: Positive = Field(20.0, description="a weaker factor, beside it")
    smoothing: Positive = Field(
        1e-3, description="mass added to every number, in the reading that has the U-shape"
    )
    generations: Count = Field(19, description="generations after generation 0")
    replicates: Annotated[int, Field(ge=2)] = Field(
        200, description="chains per ratio of the U-shape (50 in the paper)"
    )
    batch: Annotated[int, Field(ge=2)] = Field(
        100, description="replicates that are drawn at a time"
    )


class Library(Section):
    """Closed forms of the literature (multi_entity.md, section 4)."""

    n: Annotated[int, Field(ge=4)] = Field(20, description="points of a fit")
    fits: Annotated[int, Field(ge=2)] = Field(8, description="fits of a chain")
    dim: Count = Field(3, description="coefficients of the regressions")
    batch: Annotated[int, Field(ge=2)] = Field(
        4000, description="replicates that are drawn at a time"
    )


class Where(Section):
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


class Settings(Section):
    """The config of a comparison of formulas with simulations."""

    study: Literal["theory"] = Field("theory", description="which study this is a config of")
    title: Text = Field("Analytic against empirical", description="heading of the report")
    what: Literal["linear", "wmle", "histogram", "library"] = Field(
        "library", description="which models: one of the sections below"
    )
    linear: Linear = Linear()
    wmle: Wmle = Wmle()
    histogram: Histogram = Histogram()
    library: Library = Library()
    wanted: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="standard error, relative to the quantity, that replicates are drawn for"
    )
    replicates: Annotated[int, Field(ge=2)] | None = Field(
        None, description="replicates of every quantity; none: as many as `wanted` needs"
    )
    most: Count = Field(
        100_000, description="replicates at most; rows that would need more are listed as imprecise"
    )
    seed: Seed = Field(0, description="of designs, parameters and draws")
    run: Where = Where()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "Settings":
        h, lib, w = self.histogram, self.library, self.wmle
        if 0.0 not in h.ratios or len(h.ratios) < 3 or list(h.ratios) != sorted(set(h.ratios)):
            raise ValueError(
                f"config.histogram.ratios = {list(h.ratios)}: must be at least three shares from "
                "0 on, rising, to show a U between them"
            )
        if w.n < 2:
            raise ValueError(f"config.wmle.n = {w.n}: a Beta fit needs at least 2 observations")
        if lib.n < lib.dim + 2:
            raise ValueError(
                f"config.library.n = {lib.n}: must be at least library.dim + 2 = {lib.dim + 2}, "
                "expectations are infinite below"
            )
        return self


class Conclusion(NamedTuple):
    """What a kind adds to its table: claims (`compare.Claim`), sections of the report, and further
    tables {file name: DataFrame}.
    """

    claims: Sequence
    sections: Sequence
    tables: dict


def _kind(settings: Settings):
    return importlib.import_module(f"jaxloop.studies.{KINDS[settings.what]}")


def _experiments(settings: Settings, mesh=None) -> list:
    return _kind(settings).experiments(settings, mesh)


def check(settings: Settings) -> list[str]:
    """Computes every formula, which refuses what has none; nothing is drawn."""
    from jaxloop.runtime.devices import select_devices

    devices = select_devices(settings.run.platform, settings.run.devices)
    made = _experiments(settings)
    return [
        f"{settings.what}: {_counted(made)}",
        f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}",
    ]


def _counted(made: Sequence) -> str:
    quantities = {q.name for e in made for q in e.quantities}
    return (
        f"{_comparisons(made)} comparisons of {len(quantities)} quantities in {len(made)} "
        "experiments"
    )


def _comparisons(made: Sequence) -> int:
    return sum(len(q.at) for e in made for q in e.quantities)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What would be drawn and compared."""
    from jaxloop.studies.theory import compare

    made = _experiments(settings)
    section = getattr(settings, settings.what)
    rule = (
        f"until every standard error is below {settings.wanted:.1%} of its quantity, at most "
        f"{settings.most:,}"
    )
    rows = [
        (
            e.name,
            f"{sum(len(q.at) for q in e.quantities)} comparisons: "
            f"{', '.join(dict.fromkeys(q.name for q in e.quantities))}",
        )
        for e in made
    ]
    return [
        ("comparisons", _counted(made)),
        (
            "flags by chance",
            f"{compare.by_chance(_comparisons(made)):.2g} rows with |z| > {compare.FLAG:g} "
            "expected if every formula is right",
        ),
        (
            "replicates",
            f"{section.batch:,} at a time, "
            f"{f'{settings.replicates:,}' if settings.replicates else rule}",
        ),
        *rows,
    ]


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """All experiments, or those that an earlier run did not finish; 0, or `DISAGREES`."""
    from jaxloop.runtime.environment import commit, devices, versions
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.workdir import open_workdir, stored_form
    from jaxloop.studies.theory import compare

    running.keep_compiled(settings.run)
    mesh = _mesh(settings)
    made = _experiments(settings, mesh)
    stored = settings.model_dump(mode="json")
    with open_workdir(workdir, stored, may_change=("run", "title"), needs=2**24) as place:
        checks = []
        for experiment in made:
            checks += _measured(settings, experiment, place.path)
        conclusion = _kind(settings).conclude(settings, mesh, checks)
        rows = compare.table(checks, study=settings.what)
        facts = [
            ("command", running.command_line(argv)),
            ("code", f"jaxloop {jaxloop.__version__}, commit {commit()}"),
            ("device", devices()),
        ]
        from jaxloop.studies.theory import report

        page = report.write(
            place.path,
            settings,
            rows,
            checks,
            conclusion,
            facts=facts,
            config=stored_form(stored),
            versions=versions(),
        )
        bad, false = compare.disagreements(rows), [c for c in conclusion.claims if not c.holds]
        for row in bad.head(10).itertuples():
            LOGGER.warning(
                "%s %s at %s %g: analytic %.6g, empirical %.6g, z = %.1f",
                row.quantity,
                row.line,
                row.axis,
                row.at,
                row.analytic,
                row.empirical,
                row.z,
            )
        for claim in false:
            LOGGER.warning("does not hold: %s (%s)", claim.statement, claim.numbers)
        LOGGER.info("%s; the report is %s", report.verdict(rows, conclusion.claims), page)
    return DISAGREES if len(bad) or false else 0


def _mesh(settings: Settings):
    from jaxloop.core.map_chains import chain_mesh
    from jaxloop.runtime.devices import select_devices

    devices = select_devices(settings.run.platform, settings.run.devices)
    return chain_mesh(devices) if len(devices) > 1 else None


def _measured(settings: Settings, experiment, root: pathlib.Path) -> list:
    """The checks of an experiment: from its file, or measured and written there."""
    import zlib

    import numpy as np

    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.tables import read_parquet, write_parquet
    from jaxloop.studies.theory import compare

    path = root / "checks" / f"{experiment.name}.parquet"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        stored = read_parquet(path)
        cuts = np.cumsum([len(q.at) for q in experiment.quantities])[:-1]
        parts: Any = zip(
            *(np.split(stored[name], cuts) for name in ("empirical", "se")), strict=True
        )
        return [
            compare.Check(q, *part, int(stored["replicates"][0]))
            for q, part in zip(experiment.quantities, parts, strict=True)
        ]
    # Batches of an experiment have consecutive seeds; those of another one are far away.
    seed = (zlib.crc32(experiment.name.encode()) + settings.seed) << 20
    checks = compare.measure(
        experiment,
        seed=seed,
        replicates=settings.replicates,
        most=settings.most,
        wanted=settings.wanted,
    )
    columns = {
        name: np.concatenate([getattr(c, name) for c in checks]) for name in ("empirical", "se")
    }
    write_parquet(path, columns | {"replicates": np.full(len(columns["se"]), checks[0].replicates)})
    worst = max(float(np.nanmax(np.abs(c.z), initial=0.0)) for c in checks)
    LOGGER.info(
        "%s: %s replicates, %d comparisons, largest |z| %.1f",
        experiment.name,
        f"{checks[0].replicates:,}",
        len(columns["se"]),
        worst,
    )
    return checks
