"""Scores that a run lacks because a judge did not answer, or was not to be asked yet.

They are computed from the texts on disk: by `--config.only=metrics`, and at the end of every run.
What is still missing is named in one line with the command that fills it, and the run ends with
the exit code `MISSING_SCORES`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxloop.metrics import registry
from jaxloop.recursion import backfill, driver
from jaxloop.recursion.backfill import MeasureNamed
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import Family, ModelOutput
from jaxloop.recursion.run import Measure, NamesOf
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime.cluster import processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.problems import Problems
from jaxloop.runtime.workdir import is_workdir

ONLY_METRICS = "--config.only=metrics"
Values = dict[tuple[str, int], dict[str, float]]


class Scores(NamedTuple):
    """How the metrics of a study are computed from what is on the disk.

    Attributes:
        family, chains, data, settings: as `driver.run` takes them.
        measure: computes the named metrics of models, and leaves out those of a judge that does
            not answer.
        names: the metrics that are wanted of a chain in a generation.
        command: the command that repeats the run.
        of_weights: those of the names that need the model that wrote the texts.
        judges: {name that is no metric of the registry: the metric that it asks}.
    """

    family: Family
    chains: Sequence[ChainSpec]
    data: Mapping[str, Dataset]
    settings: driver.RunSettings
    measure: MeasureNamed
    names: NamesOf
    command: str
    of_weights: Collection[str] = ()
    judges: Mapping[str, str] = {}


class Missing(NamedTuple):
    """What is missing in the end.

    Attributes:
        counts: {metric, or a file of scores: how many values}.
        line: one sentence that says so, with the command that fills it; "" where nothing is.
        failed: chains that stopped, as far as they are known here.
    """

    counts: Mapping[str, int]
    line: str = ""
    failed: Mapping[str, Any] = {}


NOTHING = Missing({})


def free_metrics(field: str, names: Sequence[str], workdir: Path) -> tuple[str, ...]:
    """Return `field`, which holds these metrics, if a run may be resumed with them; else nothing.

    It may where all finished generations have them, whatever its config.json names: that holds the
    metrics of the last call that measured, which need not be those of the run.
    """
    recorded = backfill.recorded(workdir) if is_workdir(workdir) else None
    if recorded is None:
        return ()
    # A metric of one domain of several is called `<metric>@<domain>`.
    plain = recorded | {name.rpartition("@")[0] for name in recorded}
    return (field,) if plain.issuperset(names) else ()


def same_names(names: Sequence[str]) -> NamesOf:
    """Return the function that gives the same names for every chain and generation."""

    def names_of(chain: ChainSpec, generation: int) -> Sequence[str]:
        return names

    return names_of


def during_run(scores: Scores, judge: Literal["now", "later"]) -> Measure:
    """Return the driver's `measure`, which gives nan for what a judge did not say.

    With judge = "later" no judge at an address is asked.
    """

    def run(model: Any, generation: int, outputs: Sequence[ModelOutput]) -> Values:
        values: Values = {}
        groups: dict[tuple[str, ...], list[ModelOutput]] = {}
        for output in outputs:
            groups.setdefault(tuple(scores.names(output.chain, generation)), []).append(output)
        for wanted, group in groups.items():
            asked = [
                name
                for name in wanted
                if judge == "now" or not _is_judged(scores.judges.get(name, name))
            ]
            found = scores.measure(model, generation, group, asked)
            for output in group:
                key = output.chain.id, output.entity
                if key in found or wanted:
                    values[key] = dict.fromkeys(wanted, float("nan")) | dict(found.get(key, {}))
        return values

    return run


def _is_judged(name: str) -> bool:
    """Whether a metric asks a judge; a name that is no metric of the registry is a study's own."""
    try:
        return registry.asks_endpoint(name)
    except ValueError:
        return False


def known(
    values: Mapping[str, Any], unavailable: Collection[str], count: int
) -> list[dict[str, float]]:
    """Return {metric: value} of each of `count` chains, without the metrics that are unavailable.

    values: {metric: [count]}, as `registry.evaluate` returns them.
    """
    there = [name for name in values if name not in unavailable]
    return [{name: float(values[name][i]) for name in there} for i in range(count)]


def check_judges(names: Sequence[str], judge: Literal["now", "later"]) -> None:
    """Raise ValueError where judges of generated text do not answer, but for judge = "later"."""
    silent = registry.ask_judges([n for n in names if _is_judged(n)]) if judge == "now" else []
    if silent:
        raise Problems(
            [
                f"{line}; start it, or set config.judge=later to run the chains without it"
                for line in silent
            ]
        )


def warn_of_judges(names: Sequence[str], judge: Literal["now", "later"]) -> None:
    """Say in the log which judges of generated text do not answer now."""
    if judge == "later":
        return
    for line in registry.ask_judges([name for name in names if _is_judged(name)]):
        LOGGER.warning("%s; until it does, its scores of generated text are missing", line)


def check_only(only: str | None, workdir: Path) -> None:
    """Raise ValueError where `config.only` cannot be done: several processes, or no run there."""
    if only is None:
        return
    if processes()[1] > 1:
        raise ValueError(
            f"config.only = '{only}' is the work of one process, and these are {processes()[1]}: "
            "start it without the others"
        )
    if not is_workdir(workdir):
        raise ValueError(
            f"config.only = '{only}': {workdir} holds no run whose metrics could be filled in"
        )


def fill_all(scores: Scores, root: Path) -> Missing:
    """Compute every metric that finished generations lack, from the texts and weights on disk."""
    done = _backfill(scores, scores.names, root)
    LOGGER.info(
        "filled in %d values of %d finished generations; %d are missing",
        done.computed,
        done.generations,
        done.missing,
    )
    if done.unavailable:
        LOGGER.warning(
            "%s: the weights of older generations are not kept (config.run.keep), so these stay "
            "missing there",
            ", ".join(done.unavailable),
        )
    counts = {name: n for name, n in done.missing_of.items() if name not in done.unavailable}
    return of(counts, scores.command, scores.judges)._replace(failed=done.failed)


def fill_judged(scores: Scores, root: Path) -> Missing:
    """Ask the judges again for what finished generations lack of them, at the end of a run."""

    def judged(chain: ChainSpec, generation: int) -> Sequence[str]:
        return [
            name
            for name in scores.names(chain, generation)
            if _is_judged(scores.judges.get(name, name))
        ]

    lacking = backfill.lacking(root, scores.chains, judged)
    if not lacking:
        return NOTHING
    LOGGER.info("%d values of judges are missing; they are asked for", lacking.total())
    done = _backfill(scores, judged, root)
    return of(done.missing_of, scores.command, scores.judges)


def _backfill(scores: Scores, names: NamesOf, root: Path) -> backfill.BackfillResult:
    return backfill.backfill(
        scores.family,
        scores.chains,
        scores.data,
        scores.settings,
        root,
        measure=scores.measure,
        names=names,
        of_weights=scores.of_weights,
        command=scores.command,
    )


def of(counts: Mapping[str, int], command: str, judges: Mapping[str, str] | None = None) -> Missing:
    """Return what is missing, in one sentence that says why.

    Args:
        counts: {metric, or a file of scores: how many values}; empty: nothing is missing.
        command: the command that repeats the run.
        judges: as in `Scores`.
    """
    if not counts:
        return NOTHING
    asked = {(judges or {}).get(name, name) for name in counts}
    reasons = registry.ask_judges([name for name in sorted(asked) if _is_judged(name)])
    shown: dict[str, int] = {}
    for name, count in counts.items():
        shown[name.partition("(")[0]] = shown.get(name.partition("(")[0], 0) + count
    # It is missing wherever the score is whose replies it counts.
    shown = {n: c for n, c in shown.items() if n != "judge_unparsable"} or shown
    listed = ", ".join(f"{count:,} of {name}" for name, count in shown.items())
    why = f" ({'; '.join(reasons)})" if reasons else ""
    again = command if ONLY_METRICS in command else f"{command} {ONLY_METRICS}"
    return Missing(counts, f"scores are missing{why}: {listed}; to fill them in: {again}")
