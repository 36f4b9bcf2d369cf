"""Compares simulations of models that have a formula with what the formulas say.

The steps are: the config gives experiments (quantities with their formulas); replicates are
simulated in batches until the standard error is below 1 %; the result of each experiment is a file
in checks/, so that a run that is killed loses only the current one; then table.csv, claims.csv,
figures/ and report.html are written. The exit code is `DISAGREES` where a row has |z| > 4 or a
claim does not hold.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxloop.core.map_chains import chain_mesh
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import read_parquet, write_parquet
from jaxloop.studies import DISAGREES
from jaxloop.studies.common import run as common
from jaxloop.studies.theory import compare, histogram, library, linear, report, wmle
from jaxloop.studies.theory.compare import Check, Claim, Conclusion, Experiment
from jaxloop.studies.theory.config import CONFIG, TheoryConfig

__all__ = ["CONFIG", "check", "plan", "run"]

# An upper bound on the bytes that a run leaves on the disk.
DISK_BYTES = 2**24
# Disagreements that the log shows.
SHOWN = 10


class Kind(Protocol):
    """What a module of one kind of models offers."""

    def experiments(self, config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
        """Return all comparisons of the config. Raises ValueError where there is no formula."""

    def conclude(
        self, config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]
    ) -> Conclusion:
        """Return what the study states beside its comparisons."""


KINDS: dict[str, Kind] = {
    "linear": linear,
    "wmle": wmle,
    "histogram": histogram,
    "library": library,
}


class Prepared(NamedTuple):
    """The experiments of a config, and the devices that share their replicates (None: one)."""

    mesh: Mesh | None
    experiments: list[Experiment]


def check(config: TheoryConfig, workdir: Path | None = None) -> list[str]:
    """Compute every formula, which refuses what has none; nothing is drawn."""
    devices = select_devices(config.run.platform, config.run.devices)
    experiments = KINDS[config.what].experiments(config)
    return [
        f"{config.what}: {_counted(experiments)}",
        f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}",
    ]


def _counted(experiments: Sequence[Experiment]) -> str:
    names = {quantity.name for e in experiments for quantity in e.quantities}
    return (
        f"{_comparisons(experiments)} comparisons of {len(names)} quantities in "
        f"{len(experiments)} experiments"
    )


def _comparisons(experiments: Sequence[Experiment]) -> int:
    return sum(len(quantity.at) for e in experiments for quantity in e.quantities)


def plan(config: TheoryConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return what would be drawn and compared; there is no plan for another `target`."""
    experiments = KINDS[config.what].experiments(config)
    if config.replicates is None:
        replicates = (
            f"until every standard error is below {config.wanted:.1%} of its quantity, at most "
            f"{config.most:,}"
        )
    else:
        replicates = f"{config.replicates:,}"
    flags = compare.by_chance(_comparisons(experiments))
    return [
        ("comparisons", _counted(experiments)),
        (
            "flags by chance",
            f"{flags:.2g} rows with |z| > {compare.FLAG:g} expected if every formula is right",
        ),
        ("replicates", f"{config.section.batch:,} at a time, {replicates}"),
        *((e.name, _of_experiment(e)) for e in experiments),
    ]


def _of_experiment(experiment: Experiment) -> str:
    names = dict.fromkeys(quantity.name for quantity in experiment.quantities)
    return f"{_comparisons([experiment])} comparisons: {', '.join(names)}"


def run(config: TheoryConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run all experiments, or those that an earlier run lacks; return 0, or `DISAGREES`."""
    steps = common.Steps(
        _prepare,
        disk_bytes=lambda config, prepared: DISK_BYTES,
        execute=_compare,
        raisable_fields=(),
    )
    return common.run_study(steps, config, workdir, argv=argv)


def _prepare(config: TheoryConfig) -> Prepared:
    devices = select_devices(config.run.platform, config.run.devices)
    mesh = chain_mesh(devices) if len(devices) > 1 else None
    return Prepared(mesh, KINDS[config.what].experiments(config, mesh))


def _compare(context: common.RunContext[TheoryConfig, Prepared]) -> common.Outcome:
    config, prepared = context.config, context.prepared
    checks = [
        check
        for experiment in prepared.experiments
        for check in _measured(config, experiment, context.root)
    ]
    conclusion = KINDS[config.what].conclude(config, prepared.mesh, checks)
    rows = compare.table(checks, study=config.what)
    disagreements = compare.disagreements(rows)
    false = [claim for claim in conclusion.claims if not claim.holds]
    _warn(disagreements, false)

    def write_report(page: common.PageInputs) -> Path:
        return report.write(context.root, config, rows, checks, conclusion, page=page)

    return common.Outcome(
        write_report=write_report,
        exit_code=DISAGREES if len(disagreements) or false else 0,
        resumed=context.resumed,
        summary=report.verdict(rows, conclusion.claims),
    )


def _warn(disagreements: pd.DataFrame, false: Sequence[Claim]) -> None:
    for _, row in disagreements.head(SHOWN).iterrows():
        LOGGER.warning(
            "%s %s at %s %g: analytic %.6g, empirical %.6g, z = %.1f",
            *(row[name] for name in ("quantity", "line", "axis", "at")),
            *(row[name] for name in ("analytic", "empirical", "z")),
        )
    for claim in false:
        LOGGER.warning("does not hold: %s (%s)", claim.statement, claim.numbers)


def _measured(config: TheoryConfig, experiment: Experiment, root: Path) -> list[Check]:
    """The checks of an experiment: from its file, or measured and written there."""
    path = root / "checks" / f"{experiment.name}.parquet"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        return _read_checks(experiment, path)
    # Batches of an experiment have consecutive seeds; those of another one are far away.
    seed = (zlib.crc32(experiment.name.encode()) + config.seed) << 20
    checks = compare.measure(
        experiment,
        seed=seed,
        replicates=config.replicates,
        most=config.most,
        wanted=config.wanted,
    )
    se = np.concatenate([check.se for check in checks])
    columns = {
        "empirical": np.concatenate([check.empirical for check in checks]),
        "se": se,
        "replicates": np.full(len(se), checks[0].replicates),
    }
    write_parquet(path, columns)
    LOGGER.info(
        "%s: %s replicates, %d comparisons, largest |z| %.1f",
        experiment.name,
        f"{checks[0].replicates:,}",
        len(se),
        max(float(np.nanmax(np.abs(check.z), initial=0.0)) for check in checks),
    )
    return checks


def _read_checks(experiment: Experiment, path: Path) -> list[Check]:
    stored = read_parquet(path)
    empirical, se = np.asarray(stored["empirical"]), np.asarray(stored["se"])
    checks, start = [], 0
    for quantity in experiment.quantities:
        stop = start + len(quantity.at)
        replicates = int(stored["replicates"][0])
        checks.append(Check(quantity, empirical[start:stop], se[start:stop], replicates))
        start = stop
    return checks
