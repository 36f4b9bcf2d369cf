"""Compares simulations of models that have a formula with what the formulas say.

The steps are: the config gives experiments (quantities with their formulas); replicates are
simulated in batches until an error of 0.5 % in any formula would be found; the result of each
experiment is a file in checks/, so that a run that is killed loses only the current one; then
table.csv, curves.csv, claims.csv, figures/ and report.html are written. The exit code is
`DISAGREES` where a curve differs from its formula at the level of the whole table, or a claim does
not hold.
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
from jaxloop.studies.theory import chains, compare, histogram, library, linear, report, wmle
from jaxloop.studies.theory.agreement import Moments, Power
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
    "chains": chains,
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
    if not names:
        return "simulated curves alone, nothing has a formula"
    return (
        f"{_comparisons(experiments)} comparisons of {len(names)} quantities in "
        f"{len(experiments)} experiments"
    )


def _power(config: TheoryConfig, experiments: Sequence[Experiment]) -> Power:
    curves = sum(len(e.quantities) for e in experiments)
    return Power(config.detect, config.power, config.level, curves)


def _comparisons(experiments: Sequence[Experiment]) -> int:
    return sum(len(quantity.at) for e in experiments for quantity in e.quantities)


def plan(config: TheoryConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return what would be drawn and compared; there is no plan for another `target`."""
    experiments = KINDS[config.what].experiments(config)
    power = _power(config, experiments)
    if config.replicates is None:
        replicates = (
            f"until an error of {config.detect:.2%} in any formula is found with probability "
            f"{config.power:g}, at most {config.most:,}"
        )
    else:
        replicates = f"{config.replicates:,}"
    simulated = [("simulated", chains.counted(config.chains))] if config.what == "chains" else []
    if not experiments:
        return [("comparisons", _counted(experiments)), *simulated]
    return [
        ("comparisons", _counted(experiments)),
        (
            "false alarms",
            f"in at most {config.level:.1%} of such tables of {power.curves} curves, if every "
            "formula is right",
        ),
        ("replicates", f"{config.section.batch:,} at a time, {replicates}"),
        *((e.name, _of_experiment(e)) for e in experiments),
        *simulated,
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
        shared=False,
    )
    return common.run_study(steps, config, workdir, argv=argv)


def _prepare(config: TheoryConfig) -> Prepared:
    devices = select_devices(config.run.platform, config.run.devices)
    mesh = chain_mesh(devices) if len(devices) > 1 else None
    return Prepared(mesh, KINDS[config.what].experiments(config, mesh))


def _compare(context: common.RunContext[TheoryConfig, Prepared]) -> common.Outcome:
    config, prepared = context.config, context.prepared
    power = _power(config, prepared.experiments)
    checks = [
        check
        for experiment in prepared.experiments
        for check in _measured(config, experiment, context.root, power)
    ]
    conclusion = KINDS[config.what].conclude(config, prepared.mesh, checks)
    rows = compare.table(checks, power, study=config.what)
    curves = compare.curves(checks, power)
    disagreements = compare.disagreements(curves)
    false = [claim for claim in conclusion.claims if not claim.holds]
    _warn(disagreements, false)

    def write_report(page: common.PageInputs) -> Path:
        return report.write(context.root, config, rows, curves, checks, conclusion, page=page)

    return common.Outcome(
        write_report=write_report,
        exit_code=DISAGREES if len(disagreements) or false else 0,
        resumed=context.resumed,
        summary=report.verdict(curves, conclusion.claims, config.level),
    )


def _warn(disagreements: pd.DataFrame, false: Sequence[Claim]) -> None:
    for _, row in disagreements.head(SHOWN).iterrows():
        LOGGER.warning(
            "%s %s: the formula is off by %.2f%%, largest |z| = %.1f, p = %.2g adjusted for the "
            "table",
            row["quantity"],
            row["line"],
            *(100 * row["error"], row["largest"], row["adjusted"]),
        )
    for claim in false:
        LOGGER.warning("does not hold: %s (%s)", claim.statement, claim.numbers)


def _measured(
    config: TheoryConfig, experiment: Experiment, root: Path, power: Power
) -> list[Check]:
    """The checks of an experiment: from its file, or measured and written there."""
    path = root / "checks" / f"{experiment.name}.parquet"
    path.parent.mkdir(exist_ok=True)
    if path.exists() and (stored := _read_checks(experiment, path)):
        return stored
    # Batches of an experiment have consecutive seeds; those of another one are far away.
    seed = (zlib.crc32(experiment.name.encode()) + config.seed) << 20
    checks = compare.measure(
        experiment,
        seed=seed,
        replicates=config.replicates,
        most=config.most,
        power=power,
    )
    _write_checks(checks, path)
    LOGGER.info(
        "%s: %s replicates, %d comparisons, largest |z| %.1f",
        experiment.name,
        f"{checks[0].replicates:,}",
        sum(len(check.se) for check in checks),
        max(float(np.nanmax(np.abs(check.z), initial=0.0)) for check in checks),
    )
    return checks


def _write_checks(checks: Sequence[Check], path: Path) -> None:
    """One row per entry: mean, replicates, third moment, and its row of its curve's covariance,
    filled with 0.
    """
    wide = max(len(check.se) for check in checks)
    covs = np.concatenate([np.pad(c.moments.cov, ((0, 0), (0, wide - len(c.se)))) for c in checks])
    columns = {
        "empirical": np.concatenate([check.empirical for check in checks]),
        "replicates": np.concatenate([np.full(len(c.se), c.replicates) for c in checks]),
        "left_out": np.concatenate([np.full(len(c.se), c.left_out) for c in checks]),
        "third": np.concatenate([check.moments.third for check in checks]),
        **{f"cov_{j}": covs[:, j] for j in range(wide)},
    }
    write_parquet(path, columns)


def _read_checks(experiment: Experiment, path: Path) -> list[Check]:
    """The checks of a file, or none where it is of a version that did not store all moments."""
    stored = read_parquet(path)
    if not {"cov_0", "third"} <= set(stored):
        return []
    empirical, third = np.asarray(stored["empirical"]), np.asarray(stored["third"])
    covs = np.stack([np.asarray(x) for name, x in stored.items() if name.startswith("cov_")], 1)
    checks, start = [], 0
    for quantity in experiment.quantities:
        n = len(quantity.at)
        part = slice(start, start + n)
        count, left_out = (int(stored[name][start]) for name in ("replicates", "left_out"))
        moments = Moments(count, empirical[part], covs[part, :n], third[part])
        checks.append(Check(quantity, moments, left_out))
        start += n
    return checks
