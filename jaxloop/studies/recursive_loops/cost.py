"""What an experiment would cost.

Everything is counted from the config. The time is measured on this machine if models and data are
here; else it is given in hours of the device that `config.plan` describes.
"""

from collections.abc import Mapping, Sequence

from jaxloop.data.sources import is_here
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.recursion import driver
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.sources import Dataset
from jaxloop.studies.common import cost, device_hours, disk, target_plan
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.device_hours import AssumedLengths
from jaxloop.studies.common.run import overlaps_eval
from jaxloop.studies.recursive_loops import chains, sources, subsets
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data import token_counts
from jaxloop.studies.recursive_loops.prepare import Early, Prepared, check_metrics


def table(config: LoopsConfig, target: str | None = None) -> cost.Rows:
    """Return (what, amount) rows: chains, texts, tokens, FLOPs, bytes, memory, disk, time."""
    check_metrics(config)
    planned = chains.plan(config, subsets.placeholders(config))
    work, assumed = _workload(config, planned)
    shares = cost.costs(work, cost.platform_of(target))
    total = cost.total_cost(shares)
    rows = [
        ("chains", chains.chains_line(config, planned)),
        ("human texts per chain", f"{max(p.needed for p in planned):,} at most"),
        *cost.text_rows(total),
        (
            "tokens",
            f"{total.train_tokens:,.0f} to train on, {total.generated_tokens:,.0f} to write if "
            f"texts are as long as human ones{' (assumed)' if assumed else ''}",
        ),
        cost.arithmetic_row(total),
        *cost.model_rows(work),
        *cost.factor_rows(work, cost.platform_of(target)),
    ]
    disk_row = disk.disk_row(cost.disk_bytes(work))
    if target is not None:
        prompt = int(config.plan.prompt_tokens)
        absent = target_plan.rows_of_variants(work, target, prompt=prompt, total=total)
        return [*rows, *absent, disk_row]
    rows += [cost.memory_row(work), disk_row]
    if assumed:
        return rows + _assumed_rows(config, total)
    return rows + cost.measured_rows(work, shares, "clustering and metrics")


def _workload(config: LoopsConfig, planned: Sequence[chains.Planned]) -> tuple[cost.Workload, bool]:
    """What decides the cost, and whether the lengths of texts are assumed rather than counted."""
    shapes = {name: base_models.model_shapes(config.models, name) for name in config.models.pool}
    dataset = _dataset(config, [tokenizer for _, tokenizer in shapes.values()])
    lengths = AssumedLengths(config.plan.text_tokens, config.plan.prompt_tokens)
    bases: dict[str, tuple[ModelConfig, cost.TokenCounter]] = {}
    for name, (shape, tokenizer) in shapes.items():
        bases[name] = (shape, lengths if dataset is None or tokenizer is None else tokenizer)
    placeholder = Dataset(("",), sources.instruction(next(iter(config.domains.values()))))
    settings = driver.RunSettings(
        generations=config.chain.generations,
        fit=config.fit,
        sample=config.sample,
        evaluate=config.chain.eval_texts,
        keep=config.run.keep,
        overlap_eval=overlaps_eval(config.run),
    )
    data = placeholder if dataset is None else dataset
    return _work(config, chains.specs(planned), settings, bases, data), dataset is None


def _work(
    config: LoopsConfig,
    specs: Sequence[ChainSpec],
    settings: driver.RunSettings,
    bases: Mapping[str, tuple[ModelConfig, cost.TokenCounter]],
    data: Dataset,
) -> cost.Workload:
    return cost.Workload(
        models=config.models,
        fit=config.fit,
        sample=config.sample,
        run=config.run,
        start=config.chain.start,
        generation_size=config.chain.size,
        chains=specs,
        driver=settings,
        bases=bases,
        dataset=data,
    )


def _dataset(config: LoopsConfig, tokenizers: Sequence[Tokenizer | None]) -> Dataset | None:
    """The texts of the first domain, for their lengths; None if they or a model are not here."""
    name, domain = next(iter(config.domains.items()))
    first = tokenizers[0]
    if first is None or None in tokenizers or not domain.source:
        return None
    if not all(map(is_here, domain.source)):
        return None
    source = sources.read(config, name, token_counts.counter(first))
    return Dataset(source.texts, source.prompt)


def _assumed_rows(config: LoopsConfig, total: cost.Cost) -> cost.Rows:
    hours = device_hours.device_hours(config.plan, total)
    return [
        (
            "assumed",
            f"{config.plan.text_tokens:g} tokens per text; {device_hours.device_line(config.plan)}",
        ),
        (
            "device-hours",
            f"{hours.train:,.1f} to train, {hours.generate:,.1f} to write: about "
            f"{hours.train + hours.generate:,.0f} {config.plan.device}-hours, clustering and "
            "metrics not counted",
        ),
    ]


def disk_bytes(config: LoopsConfig, prepared: Prepared | Early) -> int:
    """Return an upper bound on the bytes that a run leaves on the disk."""
    bases = {name: (base.config, base.tokenizer) for name, base in prepared.bases.items()}
    placeholder = Dataset(("",), sources.instruction(next(iter(config.domains.values()))))
    specs = chains.specs(prepared.planned)
    return cost.disk_bytes(_work(config, specs, prepared.driver, bases, placeholder))
