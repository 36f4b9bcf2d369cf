"""What a chain study would cost on this machine or on absent hardware."""

from jaxloop.studies.chain.config import ChainConfig
from jaxloop.studies.chain.prepare import Prepared, chains_line, texts_needed
from jaxloop.studies.common import cost, disk, target_plan


def workload(config: ChainConfig, prepared: Prepared) -> cost.Workload:
    """Return what decides the cost of the study."""
    return cost.Workload(
        models=config.models,
        fit=config.fit,
        sample=config.sample,
        run=config.run,
        start=config.chain.start,
        generation_size=config.chain.size,
        chains=prepared.chains,
        driver=prepared.driver,
        bases=prepared.bases,
        dataset=next(iter(prepared.data.values())),
    )


def table(config: ChainConfig, prepared: Prepared, target: str | None = None) -> cost.Rows:
    """Return (what, amount) rows: chains, texts, tokens, FLOPs, bytes, memory, disk and time.

    The time is that of this device, measured for a moment, or of the absent hardware `target`.
    """
    work = workload(config, prepared)
    shares = cost.costs(work, cost.platform_of(target))
    total = cost.total_cost(shares)
    rows = [
        ("chains", chains_line(config, prepared.chains)),
        ("human texts per chain", f"{texts_needed(prepared):,} at most"),
        *cost.count_rows(work, total),
        *cost.factor_rows(work, cost.platform_of(target)),
    ]
    if target is None:
        rows += [cost.memory_row(work), *cost.measured_rows(work, shares, "metrics")]
    else:
        prompt = config.data.instruction
        rows += target_plan.rows_of_variants(work, target, prompt=prompt, total=total)
    return [*rows, disk.disk_row(disk_bytes(config, prepared))]


def disk_bytes(config: ChainConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that the run leaves on the disk."""
    return cost.disk_bytes(workload(config, prepared))
