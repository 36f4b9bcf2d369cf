"""The tables that an experiment writes before its chains run; they describe the human data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies import JudgeSilent
from jaxloop.studies.recursive_loops import chains, cluster_table, subsets
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data.cleaning import report_table
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset


def write(
    config: LoopsConfig,
    sources: Mapping[str, Source],
    all_subsets: Sequence[Subset],
    planned: Sequence[Planned],
    root: Path,
) -> None:
    """Write cleaning.csv, subsets.csv and chains.csv into the run directory `root`.

    A study of clusters also gets properties.csv, members.parquet and overlap_summary.csv.
    all_subsets: the subsets with their rows. Raises ValueError if a property is the same for all
    clusters.
    """
    cleaning = [
        {"dataset": [name] * len(source.report), **report_table(source.report)}
        for name, source in sources.items()
    ]
    write_csv(root / "cleaning.csv", tables.concatenate(cleaning))
    write_csv(root / "subsets.csv", subsets.table(all_subsets))
    write_csv(root / "chains.csv", chains.table(planned, {}))
    clusters = [cluster for subset in all_subsets for cluster in subset.clusters]
    if clusters:
        later = config.judge == "later"
        cluster_table.write_properties(config, clusters, sources, root, later=later)
        cluster_table.check_properties(root)
        summaries = subsets.overlap(clusters, sources)
        names = next(iter(summaries.values()))
        columns = {name: [summary[name] for summary in summaries.values()] for name in names}
        write_csv(root / "overlap_summary.csv", {"dataset": list(summaries), **columns})


def fill_quality(
    config: LoopsConfig, all_subsets: Sequence[Subset], sources: Mapping[str, Source], root: Path
) -> int:
    """Write properties.csv anew where it waits for a judge; return how many qualities it lacks."""
    clusters = [cluster for subset in all_subsets for cluster in subset.clusters]
    waiting = {
        name for name, source in sources.items() if cluster_table.awaits_judge(config, source)
    }
    if not clusters or not waiting:
        return 0
    try:
        cluster_table.write_properties(config, clusters, sources, root)
    except JudgeSilent:
        return sum(cluster.dataset in waiting for cluster in clusters)
    return 0


def write_csv(path: Path, columns: Mapping[str, Sequence]) -> None:
    """Write columns as a CSV file."""
    write_atomic(path, tables.to_csv(columns), durable=False)
