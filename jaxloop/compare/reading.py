"""Runs as a comparison reads them: their configs, the values of their metrics, and their costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pydantic

from jaxloop import config, studies
from jaxloop.recursion import saved_run
from jaxloop.reporting import run_files, scores
from jaxloop.runtime.atomic_io import bytes_in, human_size
from jaxloop.runtime.tables import read_parquet
from jaxloop.runtime.user_path import user_path
from jaxloop.studies.common.factors import FACTORS

# Sections of a config that have the fields of `FACTORS`.
_SECTIONS = {"DataConfig": "data", "ChainSection": "chain", "FitConfig": "fit"}
# Columns of the ledger that are summed over all models.
_COUNTED = {
    "steps": "optimiser steps",
    "tokens_trained": "tokens trained",
    "items_sampled": "texts generated",
    "tokens_sampled": "tokens generated",
}
_SPENT = {"fit": "seconds of training", "sample": "seconds of generating"}


class ComparedRun(NamedTuple):
    """A run of a comparison.

    Attributes:
        name: what it is called on the page, different for every run.
        root: its directory.
        config: its settings with all defaults, nested, under current names; models' hashes too.
        values: a row per chain, generation and metric: the run's factors, seed, chain,
            generation, metric, value (not finite: nan; the mean over entities).
        costs: {what: number}.
        facts: (name, value) lines about it.
    """

    name: str
    root: Path
    config: Mapping[str, Any]
    values: pd.DataFrame
    costs: Mapping[str, float]
    facts: Sequence[tuple[str, str]]

    @property
    def last(self) -> int:
        """Return the last generation that was measured."""
        return int(self.values["generation"].max())


def read(roots: Sequence[Path]) -> list[ComparedRun]:
    """Read runs, finished or not.

    Raises:
        ValueError: there are fewer than two, one is given twice, is no run directory, was made in
            another format, or was not measured yet.
    """
    if len(roots) < 2:
        raise ValueError(f"compare: {len(roots)} given; at least two run directories are needed")
    places = [user_path(root).resolve() for root in roots]
    for place, root in zip(places, roots, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"compare {root}: is given twice; every run is compared once")
    return [_read(root, name) for root, name in zip(places, _names(places), strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all of them apart."""
    most = max(len(place.parts) for place in places)
    for count in range(1, most + 1):
        names = ["/".join(place.parts[-count:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def _read(root: Path, name: str) -> ComparedRun:
    stored = saved_run.read_config(root)
    if not (root / "metrics.csv").exists():
        raise ValueError(
            f"compare {root}: has no metrics.csv; a run without metrics, or without a finished "
            "generation, cannot be compared"
        )
    metrics = run_files.read_metrics(root)
    if not len(metrics):
        raise ValueError(f"compare {root}: its metrics.csv has no values yet")
    settings = _complete(stored)
    ledger = _ledger(root)
    return ComparedRun(
        name=name,
        root=root,
        config=settings,
        values=scores.with_lines(metrics).drop(columns="line"),
        costs=_costs(root, ledger),
        facts=_facts(stored, metrics, ledger),
    )


def _complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config under the current names of its fields, with the defaults of new ones.

    A config of an unknown study, or with a value that is not allowed any more, stays as it is.
    """
    settings = {name: value for name, value in stored.items() if name != "identity"}
    identity = {"identity": dict(stored["identity"])} if "identity" in stored else {}
    try:
        schema = studies.config_of(settings.get("study"))
    except ValueError:
        return settings | identity
    try:
        settings = config.current_names(schema, settings, quiet=True)
        settings = schema.model_validate(settings).model_dump(mode="json")
    except (ValueError, pydantic.ValidationError):
        pass
    return settings | identity


def config_value(settings: Mapping[str, Any], factor: str) -> Any:
    """Return what a config says of a factor that its run does not vary; None where it does not.

    Only fields that hold one value count: a run without a factor `ratio` has no ratio, and one of
    several bases has none of them.
    """
    if factor == "bases":
        pool: Sequence[str] = (settings.get("models") or {}).get("pool") or ()
        return pool[0] if len(pool) == 1 else None
    section, field = FACTORS.get(factor, (None, ""))
    if section is None:
        return None
    place = "sample" if factor.startswith("sample.") else _SECTIONS.get(section.__name__, "")
    found = settings.get(place)
    value = found.get(field) if isinstance(found, Mapping) else None
    return value if isinstance(value, str | int | float) else None


def _ledger(root: Path) -> pd.DataFrame:
    """One row per model; empty for a study without one."""
    path = root / "ledger.parquet"
    if not path.exists():
        return pd.DataFrame()
    ledger = pd.DataFrame(read_parquet(path))
    return ledger.drop_duplicates(["chain", "generation", "entity"])


def _costs(root: Path, ledger: pd.DataFrame) -> dict[str, float]:
    costs: dict[str, float] = {}
    if len(ledger):
        costs["models trained"] = len(ledger)
        costs |= {what: float(ledger[name].sum()) for name, what in _COUNTED.items()}
        costs["chains that stopped"] = ledger.loc[ledger["status"] != "ok", "chain"].nunique()
    spent = run_files.read_spent(root)
    costs |= {what: spent[kind] for kind, what in _SPENT.items() if kind in spent}
    if spent.get("measure"):
        costs["seconds of measuring"] = spent["measure"]
    costs["bytes on the disk"] = float(bytes_in(root))  # its run may be going on
    return costs


def _facts(
    stored: Mapping[str, Any], metrics: pd.DataFrame, ledger: pd.DataFrame
) -> list[tuple[str, str]]:
    chains, last = metrics["chain"].nunique(), int(metrics["generation"].max())
    facts = [
        ("title", str(stored.get("title", ""))),
        ("study", str(stored.get("study", ""))),
        ("chains", f"{chains:,}"),
        ("measured to generation", str(last)),
    ]
    if len(ledger):
        facts.append(("environment", str(ledger["environment"].iloc[-1])))
    return facts


def cost_text(what: str, value: float) -> str:
    """Return a cost as the page shows it."""
    if what.startswith("bytes"):
        return human_size(value)
    return f"{value:,.1f}" if what.startswith("seconds") else f"{value:,.0f}"
