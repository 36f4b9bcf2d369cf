"""The part of a report about neurons: those that move with bias and quality."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.recursion.chains import ChainSpec
from jaxloop.reporting import report
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.bias_amplification import neuron_figures, neuron_summary
from jaxloop.studies.bias_amplification.chains import setup_of
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.neuron_design import usable
from jaxloop.studies.bias_amplification.neuron_exchange import balanced
from jaxloop.studies.bias_amplification.neuron_study import NeuronStudy, neuron_study
from jaxloop.studies.bias_amplification.paths import neurons_path

# Column of a table of the study -> its heading on the page.
_COUNTS = {
    "relation": "relation",
    "mode": "of",
    "rule": "rule",
    "tests": "neurons",
    "observed": "pass",
    "nominal": "nominally",
    "null_mean": "exchanged, mean",
    "null_high": "exchanged, 95th percentile",
    "p": "p of the count",
    "p_together": "p of all together",
}
_OVERLAP = {
    "first": "first set",
    "second": "second set",
    "mode": "of",
    "size_first": "in the first",
    "size_second": "in the second",
    "observed": "in both",
    "expected": "if independent",
    "null_mean": "exchanged, mean",
    "p_more": "p of as many",
    "p_fewer": "p of as few",
}

# (chain, generation)
Version = tuple[str, int]


def section(
    root: Path, config: BiasConfig, metrics: pd.DataFrame, specs: Sequence[ChainSpec]
) -> report.Section | None:
    """Test neurons against bias and quality, write tables and figures of it, and return the part of
    the page; None where neurons were not measured or too few versions are left.

    Args:
        root: run directory.
        config: of the study.
        metrics: of all chains.
        specs: the chains.
    """
    chains = {spec.id: spec for spec in specs}
    if not config.neurons.measure:
        return None
    outcomes = _outcomes(config, metrics)
    versions = _usable_versions(root, config, outcomes, chains)
    if not versions:
        LOGGER.warning("too few versions are left to test neurons")
        return None
    section = config.neurons
    study = neuron_study(
        _read_neurons(root, versions),
        {name: values.loc[versions].to_numpy() for name, values in outcomes.items()},
        [setup_of(chains[chain]) for chain, _ in versions],
        [generation for _, generation in versions],
        seeds=[chains[chain].seed for chain, _ in versions],
        lags=section.lags,
        alpha=section.alpha,
        permutations=0 if section.scheme == "none" else section.permutations,
        scheme="seeds" if section.scheme in ("auto", "none") else section.scheme,
    )
    neuron_summary.write(study, root / "tables")
    neuron_figures.write(study, root / "figures")
    return _section_of(study, config, list(outcomes))


def _outcomes(config: BiasConfig, metrics: pd.DataFrame) -> dict[str, pd.Series]:
    """{outcome: values by chain and generation}: share of the target in percent, and quality."""
    table = metrics.pivot_table(index=["chain", "generation"], columns="metric", values="value")
    sources = {
        "bias": (f"share({config.classifier.target})", 100.0),
        "quality": ("text_quality_index", 1.0),
    }
    return {
        name: scale * table[metric] for name, (metric, scale) in sources.items() if metric in table
    }


def _usable_versions(
    root: Path,
    config: BiasConfig,
    outcomes: dict[str, pd.Series],
    chains: Mapping[str, ChainSpec],
) -> list[Version]:
    """Versions with all outcomes and with neurons on the disk, in chains that are long enough; the
    same ones of every seed that is left.
    """
    known = pd.DataFrame(outcomes).notna().all(axis=1)
    versions: list[Version] = [
        version
        for version in known.index[known.to_numpy()]
        if (root / neurons_path(*version)).exists()
    ]
    before = -1
    while versions and len(versions) != before:
        before = len(versions)
        names, generations = zip(*versions, strict=True)
        long_enough = usable(names, generations, lags=config.neurons.lags)
        versions = [version for version, keep in zip(versions, long_enough, strict=True) if keep]
        same = balanced(
            [setup_of(chains[chain]) for chain, _ in versions],
            [chains[chain].seed for chain, _ in versions],
            [generation for _, generation in versions],
        )
        versions = [version for version, keep in zip(versions, same, strict=True) if keep]
    return versions


def _read_neurons(root: Path, versions: Sequence[Version]) -> dict[str, np.ndarray]:
    """{kind: [V, L, D]} of the versions."""
    tables = [read_parquet(root / neurons_path(*version)) for version in versions]
    layers = int(np.max(tables[0]["layer"])) + 1
    return {
        kind: np.stack([np.asarray(table[kind]).reshape(layers, -1) for table in tables])
        for kind in ("weight", "activation")
    }


def _section_of(study: NeuronStudy, config: BiasConfig, outcomes: Sequence[str]) -> report.Section:
    drawings = [
        report.Drawing(name.replace("_", " ").capitalize(), "", figure, wide=True)
        for name, figure in neuron_figures.figures(study).items()
    ]
    against, and_exchanged = "", ""
    if study.settings["permutations"]:
        against, and_exchanged = " and outcomes exchanged between seeds", " and exchanged outcomes"
    tables = [
        _table(
            "Counts",
            f"Neurons that pass, against the nominal expectation{against}.",
            study.counts,
            _COUNTS,
        ),
        _table(
            "Neurons in two sets",
            f"Neurons at p < {config.neurons.alpha:g} in both sets, against sets drawn "
            f"independently (hypergeometric){and_exchanged}.",
            study.overlap[study.overlap["rule"] == "p<alpha"],
            _OVERLAP,
        ),
    ]
    note = (
        f"Weights ({config.neurons.tensor}) and mean activations of every layer's residual "
        f"coordinates, related to {' and '.join(outcomes)} over "
        f"{study.settings['versions']} versions."
    )
    sentences = neuron_summary.sentences(study, modes=("differences", "deviations"))
    return report.Section("Neurons", note, drawings, tables, sentences)


def _table(title: str, note: str, table: pd.DataFrame, headings: dict[str, str]) -> report.Table:
    rows = [list(row) for row in table[list(headings)].itertuples(index=False, name=None)]
    return report.Table(title, note, list(headings.values()), rows)
