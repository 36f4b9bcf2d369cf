"""Diversity of generated data and what it does to fine-tuning (arXiv 2506.19262): seven levels,
mixtures, sizes, models, distances to real data.

settings -> prepare (data, models, cells; everything that can be refused) -> generated sets ->
recursion.driver.run, one generation, a chain per cell -> sets.csv, distances.csv, regressions.csv,
metrics.csv -> report.html
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence

import jaxloop
from jaxloop.config import fingerprint
from jaxloop.studies import FAILED_CHAINS
from jaxloop.studies.common import identity
from jaxloop.studies.diversity.config import Settings

__all__ = ["Settings", "check", "plan", "run"]


def check(settings: Settings) -> list[str]:
    """Lines about the data, the models and the cells, once all of them have been found good."""
    from jaxloop.lm.model.config import count_parameters
    from jaxloop.studies.diversity import prepare as diversity_setup

    prepared = diversity_setup.prepare(settings)
    lines = [f"data {task}: {tables.found}" for task, tables in prepared.tables.items()]
    lines += [
        f"model {name}: {spec.architecture}, {count_parameters(spec):,} parameters"
        for name, (spec, _) in prepared.models.items()
    ]
    return [*lines, cells_line(settings)]


def cells_line(settings: Settings) -> str:
    """How many models which experiments train."""
    from jaxloop.studies.diversity.prepare import all_cells, experiments

    parts = ", ".join(f"{name} {len(cells)}" for name, cells in experiments(settings).items())
    return f"{len(all_cells(settings)):,} models to train ({parts}; shared ones counted once)"


def plan(settings: Settings, target: str | None = None) -> list[tuple[str, str]]:
    """What a run would do, counted from the config, and how long it would take here; models and
    data that are not here are assumed, and named. With `target`: what the compiler says of its
    programs there.
    """
    from jaxloop.studies.common import absent_plan
    from jaxloop.studies.diversity import cost

    if target is not None:
        return [("models to train", cells_line(settings)), *absent_plan.rows(settings, target)]
    return [("models to train", cells_line(settings)), *cost.table(settings)]


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """The whole study, or the rest of one; 0, or `FAILED_CHAINS` where some models did not train."""
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import barrier, initialise_distributed, processes
    from jaxloop.runtime.environment import commit, devices
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.signals import stop_safely
    from jaxloop.runtime.workdir import open_workdir
    from jaxloop.studies.common import run as running
    from jaxloop.studies.diversity import generate as diversity_generate
    from jaxloop.studies.diversity import measure as diversity_measure
    from jaxloop.studies.diversity import prepare as diversity_setup
    from jaxloop.studies.diversity import report

    start = time.monotonic()
    initialise_distributed()
    running.keep_compiled(settings.run)
    prepared = diversity_setup.prepare(settings)
    chains = diversity_setup.chains(settings, prepared.cells)
    models = identity.of(settings)
    common = dataclasses.replace(prepared.driver, identity=identity.bases(models))
    needs = driver.disk_needed(chains, common, weights_bytes(settings, prepared))
    with (
        open_workdir(
            workdir,
            settings.model_dump(mode="json"),
            may_change=("run", "title"),
            may_raise=(),
            needs=needs,
            identity=models,
        ) as place,
        stop_safely() as stop,
    ):
        generate = functools.partial(diversity_generate.pools, settings, prepared, place.path, stop)
        if processes()[0] > 0:
            barrier("generated sets")  # the first process makes them, the others read them
        pools = generate()
        if processes()[0] == 0:
            diversity_generate.save(place.path, pools)
            barrier("generated sets")
        sets = diversity_generate.training_sets(settings, prepared, pools)
        data = diversity_setup.datasets(settings, prepared.cells, sets, pools)
        family, command = diversity_setup.family(settings), running.command_line(argv)
        measure = diversity_measure.measure(settings, prepared)
        result = driver.run(
            family, chains, data, common, place.path, measure=measure, stop=stop, command=command
        )
        if processes()[0] == 0:
            facts = [
                ("command", command),
                ("models trained", cells_line(settings)),
                *((f"data: {task}", tables.found) for task, tables in prepared.tables.items()),
                ("bases", ", ".join(settings.models.pool)),
                (
                    "writers",
                    ", ".join(
                        f"{task}: {getattr(settings.generator, task)}" for task in settings.tasks
                    ),
                ),
                ("code", f"jaxloop {jaxloop.__version__}, commit {commit()}"),
                ("device", devices()),
                ("config fingerprint", fingerprint(settings, ignore=("run", "title"))),
                (
                    "time",
                    running.elapsed(time.monotonic() - start)
                    + (" since it was resumed" if place.resumed else ""),
                ),
            ]
            page = report.write(place.path, settings, prepared, pools, sets, result, facts)
            LOGGER.info("the report is %s", page)
    return FAILED_CHAINS if result.failed else 0


def weights_bytes(settings: Settings, prepared) -> int:
    """Bytes of one trained model on disk, of the largest base."""
    from jaxloop.studies.chain import prepare as chain_setup

    sizes = [chain_setup.sizes(settings.fit, spec) for spec, _ in prepared.models.values()]
    return 4 * max(s.adapter if settings.fit.mode == "lora" else s.total for s in sizes)
