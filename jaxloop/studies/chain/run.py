"""Chains of language models: human text in, driver, metrics per generation, figures and a report
out (recursive_loops.md, section 1).

settings -> prepare (data, models, chains; everything that can be refused) -> recursion.driver.run
-> metrics.csv, texts/ -> report.html
"""

import dataclasses
import importlib
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

import jaxloop
from jaxloop.config import (
    Chain,
    Data,
    Fit,
    Models,
    Run,
    Sample,
    Section,
    Text,
    fingerprint,
    suggestion,
)
from jaxloop.config.annotations import allowed
from jaxloop.studies import FAILED_CHAINS
from jaxloop.studies.chain import prepare
from jaxloop.studies.common import identity
from jaxloop.studies.common import run as running

METRICS = (
    "cosine_diversity",
    "self_bleu",
    "distinct_n(n=1)",
    "distinct_n(n=2)",
    "held_out_loss",
    "text_length",
)


class Settings(Section):
    """The config of a chain study."""

    study: Literal["chain"] = Field("chain", description="which study this is a config of")
    title: Text = Field("Recursive training", description="heading of the report")
    data: Data = Data()
    models: Models = Models()
    chain: Chain = Chain()
    fit: Fit = Fit()
    sample: Sample = Sample()
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        METRICS, description="names of metrics, options in brackets"
    )
    embedder: Text | None = Field(
        None,
        description="sentence encoder of the semantic metrics: a directory or hub id; none: "
        "MiniLM, installed with jaxloop",
    )
    reference: Text | None = Field(
        None,
        description="fixed model of the metrics that need one (`reference_perplexity`): a "
        "directory or hub id; none: the first of `models.pool`",
    )
    only: Literal["metrics"] | None = Field(
        None,
        description="`metrics`: train and write nothing, but compute the metrics that finished "
        "generations lack, from the texts on disk",
    )
    run: Run = Run()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "Settings":
        data, fit, chain, models = self.data, self.fit, self.chain, self.models
        if data.min_tokens >= data.max_tokens:
            raise ValueError(
                f"config.data.min_tokens = {data.min_tokens} leaves no text: must be below "
                f"data.max_tokens = {data.max_tokens}"
            )
        if fit.steps is None and fit.epochs is None:
            raise ValueError(
                "config.fit.steps and config.fit.epochs are both none: one of them must be a number"
            )
        if models.revisions and len(models.revisions) != len(models.pool):
            raise ValueError(
                f"config.models.revisions has {len(models.revisions)} entries: must be empty or "
                f"one per model ({len(models.pool)})"
            )
        for name in ("ratios", "seeds"):
            values = getattr(chain, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"config.chain.{name} = {values} repeats a value: every entry must differ"
                )
        if chain.workflow == "external" and chain.external is None:
            raise ValueError(
                "config.chain.external is missing: workflow 'external' needs a file of texts"
            )
        for name, values in chain.factors.items():
            _check_factor(self, name, values)
        return self


_FACTORS: dict[str, tuple[type[Section], str]] = {
    "dataset": (Data, "source"),
    "bases": (Data, "source"),
    "size": (Chain, "size"),
    "share": (Chain, "share"),
    "k": (Chain, "window"),
    "start": (Chain, "start"),
    **{f"fit.{name}": (Fit, name) for name in Fit.model_fields if name != "lora"},
    **{f"sample.{name}": (Sample, name) for name in Sample.model_fields},
}


def _check_factor(settings: Settings, name: str, values: Sequence) -> None:
    if name not in _FACTORS:
        raise ValueError(
            f"config.chain.factors.{name} is not a factor; {suggestion(name, _FACTORS)}"
        )
    section, field = _FACTORS[name]
    info = section.model_fields[field]
    annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    for value in values:
        try:
            pydantic.TypeAdapter(annotation).validate_python(value)
        except pydantic.ValidationError:
            raise ValueError(
                f"config.chain.factors.{name} has {value!r}, which is not allowed: "
                f"{allowed(annotation)}"
            ) from None
    if not values or len({repr(v) for v in values}) < len(values):
        raise ValueError(
            f"config.chain.factors.{name} = {list(values)}: must be a list of at least one "
            "value, no value twice"
        )
    if name == "bases" and (unknown := [v for v in values if v not in settings.models.pool]):
        raise ValueError(
            f"config.chain.factors.bases has {unknown[0]!r}, which is not in config.models.pool; "
            f"{suggestion(unknown[0], settings.models.pool)}"
        )


# ---- the study
# --------------------------------------------------------------------------------------------------------


def check(settings: Settings) -> list[str]:
    """Lines about the data, the models and the chains, once all of them have been found good."""
    prepared = prepare.prepare(settings)
    lines = [f"data {name}: {line}" for name, line in prepared.found]
    lines += [
        f"model {name}: {spec.architecture}, {_parameters(spec):,} parameters"
        for name, (spec, _) in prepared.models.items()
    ]
    needed = max(_needed(settings, chain) for chain in prepared.chains)
    return [
        *lines,
        f"{_chains_line(settings, prepared.chains)}; the longest needs {needed:,} human texts",
    ]


def _parameters(spec) -> int:
    from jaxloop.lm.model.config import count_parameters

    return count_parameters(spec)


def _needed(settings: Settings, chain) -> int:
    from jaxloop.recursion.workflow import human_needed

    return human_needed(chain.workflow, settings.chain.generations)


def _chains_line(settings: Settings, chains: Sequence) -> str:
    from jaxloop.reporting.scores import share

    c = settings.chain
    parts = (
        [f"r in {{{', '.join(share(r) for r in c.ratios)}}}"]
        if c.workflow in prepare.MIXED
        else [c.workflow]
    )
    parts += [f"{len(values)} values of {name}" for name, values in c.factors.items()]
    parts += [
        f"{len(c.seeds)} seed{'s' if len(c.seeds) > 1 else ''}",
        f"{c.generations} generation{'s' if c.generations > 1 else ''}",
    ]
    return f"{len(chains)} chain{'s' if len(chains) > 1 else ''}: {', '.join(parts)}"


def plan(settings: Settings, target: str | None = None) -> list[tuple[str, str]]:
    """What a run would do, counted, and how long it would take here, from a short measurement,
    nothing of which is kept; or on `target`, by what the compiler says.
    """
    from jaxloop.studies.common import cost

    running.keep_compiled(settings.run)
    prepared = prepare.prepare(settings, here=target is None)
    rows = [("chains", _chains_line(settings, prepared.chains))]
    rows += [
        (
            "human texts per chain",
            f"{max(_needed(settings, chain) for chain in prepared.chains):,} at most",
        )
    ]
    return [
        *rows,
        *cost.table(settings, prepared, target),
        ("disk", f"{_disk(settings, prepared) / 1e9:,.2f} GB at most"),
    ]


def _disk(settings: Settings, prepared: prepare.Prepared) -> int:
    """Bytes that the run leaves at most."""
    from jaxloop.lm.model.config import site_widths
    from jaxloop.recursion import driver

    def weights(spec) -> int:
        if not prepare.trains_adapters(settings):
            return 4 * _parameters(spec)
        return (
            4
            * spec.layers
            * settings.fit.lora.rank
            * sum(a + b for a, b in site_widths(spec).values())
            * 2
        )

    return driver.disk_needed(
        prepared.chains, prepared.driver, max(weights(spec) for spec, _ in prepared.models.values())
    )


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """The whole study, or the rest of one, or with `only` the metrics that it lacks; 0, or
    `FAILED_CHAINS` where some chains stopped.
    """
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import barrier, initialise_distributed, processes
    from jaxloop.runtime.environment import commit, devices, versions
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.workdir import is_workdir, open_workdir, stored_form
    from jaxloop.studies.chain import measure as chain_measure

    start = time.monotonic()
    initialise_distributed()
    process, count = processes()
    if settings.only and count > 1:
        raise ValueError(
            f"config.only = '{settings.only}' is the work of one process, and these are {count}: "
            "start it without the others"
        )
    if settings.only and not is_workdir(workdir):
        raise ValueError(
            f"config.only = '{settings.only}': {workdir} holds no run whose metrics could be "
            "filled in"
        )
    running.keep_compiled(settings.run)
    prepared = prepare.prepare(settings)
    stored = settings.model_dump(mode="json", exclude={"only"})
    # Texts that are on the disk can be measured in other ways; a run that goes on measures as it
    # began.
    free = ("run", "title", "metrics", "reference") if settings.only else ("run", "title")
    models = identity.of(settings, metrics=settings.only is None)
    with open_workdir(
        workdir,
        stored,
        may_change=free,
        needs=0 if settings.only else _disk(settings, prepared),
        identity=models,
    ) as place:
        if process > 0:
            barrier("the maps are made")
        measure = chain_measure.measuring(settings, prepared, place.path)
        if process == 0:
            barrier("the maps are made")

        def references():
            # The page's libraries take as long to load as the page to draw: beside training it
            # costs nothing.
            importlib.import_module("jaxloop.studies.common.report")
            return chain_measure.references(settings, prepared, place.path)

        common = dataclasses.replace(prepared.driver, identity=identity.bases(models))
        study = prepare.family(settings), prepared.chains, prepared.data, common, place.path
        if settings.only:
            resumed, failed = (
                None,
                _fill(settings, study, measure, running.command_line(argv)).failed,
            )
        else:
            with running.begun(
                references, prepared.driver.measure_beside and process == 0
            ) as references:
                result = driver.run(*study, measure=measure, command=running.command_line(argv))
            resumed, failed = result.resumed_after, result.failed
        if process > 0:
            return FAILED_CHAINS if failed else 0
        facts = [
            ("command", running.command_line(argv)),
            ("chains", _chains_line(settings, prepared.chains)),
            *(
                (f"data: {name}", f"{line}, fingerprint {prepared.data[name].fingerprint[:12]}")
                for name, line in prepared.found
            ),
            ("models", ", ".join(settings.models.pool)),
            *((f"files of {name}", value) for name, value in models.items()),
            *(
                (f"end of text: {name}", tokenizer.describe_ends())
                for name, (_, tokenizer) in prepared.models.items()
            ),
            ("code", f"jaxloop {jaxloop.__version__}, commit {commit()}"),
            ("device", devices()),
            ("config fingerprint", fingerprint(settings, ignore=("run", "title", "only"))),
            ("time", running.elapsed(time.monotonic() - start, resumed)),
        ]
        from jaxloop.studies.common import report

        page = report.write(
            place.path,
            title=settings.title,
            subtitle=_chains_line(settings, prepared.chains),
            config=stored_form(stored),
            facts=facts,
            versions=versions(),
            failed=failed,
            references=references(),
        )
        LOGGER.info("the report is %s", page)
    return FAILED_CHAINS if failed else 0


def _fill(settings: Settings, study: tuple, measure, command: str):
    """The metrics that finished generations lack, from what is on the disk."""
    from jaxloop.recursion.backfill import fill
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.chain import measure as chain_measure

    done = fill(
        *study,
        measure=measure,
        names=settings.metrics,
        of_weights=chain_measure.of_weights(settings.metrics),
        command=command,
    )
    LOGGER.info(
        "filled in %d values of %d finished generations; %d are missing",
        done.found,
        done.generations,
        done.missing,
    )
    if done.gone:
        LOGGER.warning(
            "%s: the weights of older generations are not kept (config.run.keep), so these stay "
            "missing there",
            ", ".join(done.gone),
        )
    return done
