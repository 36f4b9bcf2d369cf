"""Run studies from Python, as the command line does, and read what runs leave."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop import config, studies
from jaxloop.config import LoraConfig
from jaxloop.lm.model.lora import Adapter, as_adapter, from_tree
from jaxloop.recursion import saved_run
from jaxloop.recursion.saved_run import ModelId
from jaxloop.reporting.run_files import read_table, text_columns
from jaxloop.runtime import mirror
from jaxloop.runtime.tables import unescape

PathLike = str | os.PathLike[str]


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> config.Section:
    """Return the settings of a config file.

    Args:
        name: what stands after `--config=`: `path.py`, `path.py:argument`, or the name of a shipped
            config, such as "quickstart".
        changes: {dotted field: value}, such as {"chain.ratios": (0.125, 1)}.

    Raises:
        ValueError: the file, a field or a value is wrong; the sentence says which.
    """
    raw = config.read_file(name)
    schema = studies.config_of(raw.get("study"))
    return config.build(schema, config.change(raw, changes or {}, schema))


def check(settings: config.Section | str) -> list[str]:
    """Read all data and models that a run would read first, and return lines about them.

    Args:
        settings: what `load_config` returned, or the name of a config.

    Raises:
        ValueError: a run cannot succeed; the sentence says why.
    """
    settings = _settings(settings)
    return _study(settings).check(settings)


def plan(settings: config.Section | str, target: str | None = None) -> list[tuple[str, str]]:
    """Return the (what, amount) rows of `--plan`.

    Args:
        settings: what `load_config` returned, or the name of a config.
        target: hardware that need not be here, as `--for` takes it; none: this machine.

    Raises:
        ValueError: a run cannot succeed, or the study has no plan for absent hardware.
    """
    settings = _settings(settings)
    if target is not None:
        studies.check_target(_name(settings), target)
    return _study(settings).plan(settings, target)


@dataclass(frozen=True)
class RunResult:
    """A run directory: its tables as data frames, its texts and its adapters.

    Everything is read when it is asked for, so a run that still goes on can be followed.

    Attributes:
        workdir: the run directory.
        exit_code: of the command line: 0, or what `jaxloop help` says; None where the run was
            opened, not run.
    """

    workdir: Path
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run, as it is stored."""
        return saved_run.read_config(self.workdir)

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv: one row per chain, entity, generation and metric, with the factors."""
        return self.table("metrics.csv")

    @property
    def ledger(self) -> pd.DataFrame:
        """ledger.parquet: one row per model and origin of its training texts."""
        return self.table("ledger.parquet")

    @property
    def chains(self) -> pd.DataFrame:
        """One row per chain: its id, its factors, and fields in which it differs from defaults."""
        rows = []
        for name, fields in saved_run.read_chains(self.workdir).items():
            factors = dict(map(tuple, fields.get("factors", ())))
            others = {"workflow": fields.get("workflow", {}).get("name"), "seed": fields["seed"]}
            rows.append({"chain": name, **others, **factors})
        return pd.DataFrame(rows)

    @property
    def generations(self) -> int:
        """Number of finished generations."""
        return len(saved_run.finished_generations(self.workdir))

    def table(self, name: str) -> pd.DataFrame:
        """Return any table of the run directory, such as "losses.parquet" or "claims.csv".

        Raises:
            ValueError: there is none of that name; those that there are are named.
        """
        saved_run.require_run(self.workdir)
        path = self.workdir / name
        if path.suffix not in (".csv", ".parquet") or not path.is_file():
            raise ValueError(f"table={name!r}: the run has none; {self._tables()}")
        frame = read_table(path) if path.suffix == ".csv" else pd.read_parquet(path)
        for column in text_columns(frame):
            frame[column] = frame[column].map(unescape, na_action="ignore")
        return frame

    def texts(self, chain: str, generation: int, entity: int = 0) -> list[str]:
        """Return what a model generated.

        Raises:
            ValueError: there is no such chain, entity or generation.
        """
        return saved_run.read_texts(self.workdir, ModelId(chain, generation, entity))["text"]

    def prompts(self, chain: str, generation: int, entity: int = 0) -> list[str]:
        """Return the prompts that the texts of a model answer.

        Raises:
            ValueError: there is no such chain, entity or generation.
        """
        return saved_run.read_texts(self.workdir, ModelId(chain, generation, entity))["prompt"]

    def base(self, chain: str, generation: int, entity: int = 0) -> str:
        """Return the name or path of the base model that a model was trained from."""
        model = ModelId(chain, generation, entity)
        return saved_run.read_ledger_row(self.workdir, model)["base"]

    def adapter(self, chain: str, generation: int, entity: int = 0) -> Adapter:
        """Return the adapter of a model.

        Raises:
            ValueError: there is no such model, its weights were not kept (`config.run.keep`), or it
                has no adapter but weights of its own.
        """
        model = ModelId(chain, generation, entity)
        weights = from_tree(saved_run.read_weights(self.workdir, model))
        if isinstance(weights, Adapter):
            return weights
        settings = saved_run.read_fit_settings(self.workdir, model)
        if "lora" not in settings or settings.get("mode", "lora") != "lora":
            mode = settings.get("mode")
            how = "is of a model of your own" if mode is None else f"was trained in mode {mode!r}"
            raise ValueError(f"chain={chain!r}: {how}, so it has weights of its own and no adapter")
        return as_adapter(weights, LoraConfig(**settings["lora"]))

    def report(self) -> Path:
        """Return the path of report.html.

        Raises:
            ValueError: there is none yet.
        """
        path = self.workdir / "report.html"
        if not path.is_file():
            raise ValueError(f"workdir={self.workdir}: has no report yet")
        return path

    def _tables(self) -> str:
        paths = sorted(p for kind in ("csv", "parquet") for p in self.workdir.glob(f"*.{kind}"))
        names = [path.name for path in paths]
        return f"there are {', '.join(names)}" if names else "it has no tables yet"


def run(
    settings: config.Section | str,
    workdir: PathLike,
    changes: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run a study, or the rest of one, in a run directory.

    A run that is finished already is not run again: its results are read.

    Args:
        settings: what `load_config` returned, or the name of a config, such as "quickstart".
        workdir: the run directory, or an address such as s3://bucket/run.
        changes: of a config that is named, as `load_config` takes them.

    Raises:
        ValueError: the run cannot succeed, or the directory is another run's.
        SystemExit: after SIGTERM or Ctrl-C; what was finished is on disk.
    """
    if changes and not isinstance(settings, str):
        raise ValueError("changes: are for a config that is named; change the settings instead")
    settings = _settings(settings, changes)
    code, path = studies.run_at(_study(settings), settings, studies.place_of(workdir))
    return RunResult(path, code)


def open_run(workdir: PathLike) -> RunResult:
    """Open a run directory for reading; the run may still go on.

    Raises:
        ValueError: it holds no run, or one of a later version.
    """
    place = studies.place_of(workdir)
    path = place if isinstance(place, Path) else mirror.restore(place)
    saved_run.require_run(path)
    return RunResult(path)


def _settings(
    settings: config.Section | str, changes: Mapping[str, Any] | None = None
) -> config.Section:
    return load_config(settings, changes) if isinstance(settings, str) else settings


def _name(settings: config.Section) -> object:
    return getattr(settings, "study", None)


def _study(settings: config.Section) -> studies.Study:
    return studies.load(_name(settings))
