"""Metrics that the finished generations of a run lack, from the texts on disk: nothing is trained,
nothing is sampled.
"""

import math
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxloop.recursion import driver, ledger
from jaxloop.recursion.chains import ChainSpec, Member, groups
from jaxloop.recursion.finalise import FILLED, about_run, read_metrics
from jaxloop.recursion.generation import Outcome, Run, split, stem, tidy
from jaxloop.recursion.progress import now
from jaxloop.recursion.progress import progress as progress_bar
from jaxloop.recursion.sources import Dataset, texts_path
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop, Stopped, stop_safely
from jaxloop.runtime.workdir import MARKER


class Filled(NamedTuple):
    """What `fill` did: generations that are finished, chains that stopped in them {id: {generation,
    reason}}, values that it found, values that are missing still, and metrics (sorted) of models
    whose weights are not on the disk any more.
    """

    generations: int
    failed: Mapping[str, Mapping]
    found: int
    missing: int
    gone: tuple[str, ...]


def fill(
    family,
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    settings: driver.Settings,
    workdir: str | Path,
    *,
    measure: Callable,
    names: Sequence[str],
    of_weights: Collection[str] = (),
    progress: bool = True,
    stop: Stop | None = None,
    command: str | None = None,
) -> Filled:
    """Computes those metrics out of `names` that a finished generation lacks (absent or nan),
    generation by generation, and writes metrics.csv.

    workdir: a run directory, held by the caller. measure(model, generation, outcomes, names)
    returns {(chain id, entity): {metric: value}}; model is None where no metric in the call is one
    of `of_weights`, those that need the model that wrote the texts: they are computed where its
    weights are kept. The rest is as in `driver.run`. What a generation gained is sealed before the
    next is begun. Raises ValueError where the directory holds no finished generation, or another
    study; Stopped, with what is done on disk, after a signal.
    """
    root = Path(workdir)
    if not (root / MARKER).is_file():
        raise ValueError(f"workdir={root}: is not an open run directory")
    driver.check(chains, data, settings)
    found = checkpoint.find(root)
    if found.last is None:
        raise ValueError(
            f"workdir={root}: has no finished generation, so there are no texts to measure; run "
            "the study first"
        )
    counts, gone = [0, 0], set()
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_safely())
        models = sum(chain.workflow.entities for chain in chains)
        run = Run(
            family=family,
            chains=tuple(chains),
            data=data,
            settings=settings,
            root=root,
            prints={
                name: d.fingerprint or ledger.fingerprint(d.texts, d.prompts)
                for name, d in data.items()
            },
            environment=checkpoint.environment(),
            model=driver.models_of(family, settings),
            measure=measure,
            report=stack.enter_context(
                progress_bar(
                    {"measure": models * len(found.manifests)}, len(found.manifests), show=progress
                )
            ),
            stop=stop,
        )
        about = found.manifests[-1]["about"]
        driver.refuse_another(root, about, about_run(run, about["failed"]), settings.free)
        checkpoint.settle(root, found)
        failed: Mapping[str, Mapping] = {}
        try:
            for generation, manifest in enumerate(found.manifests):
                living = [chain for chain in chains if chain.id not in failed]
                failed = manifest["about"]["failed"]
                rows = _generation(run, generation, living, failed, names, of_weights, counts, gone)
                if rows:
                    _write(run, generation, rows)
                stop.check()
        except Stopped as signal:
            LOGGER.warning(
                "stopped by %s; what was filled in is on disk, to go on: %s",
                signal.name,
                command or shlex.join(sys.orig_argv),
            )
            raise
        finally:
            driver.write_tables(root, len(found.manifests))
    return Filled(len(found.manifests), dict(failed), counts[0], counts[1], tuple(sorted(gone)))


def _generation(run, generation, living, failed, names, of_weights, counts, gone) -> list[dict]:
    """Rows of the metrics that were found, and of those that were never heard of and are not found
    either.
    """
    table = read_metrics(run.root, generation)
    before = dict(
        zip(
            zip(table["chain"], table["entity"], table["metric"], strict=True),
            table["value"],
            strict=True,
        )
    )
    rows: list[dict] = []
    for call in groups(living, generation):
        together: dict[tuple[str, ...], list[tuple[Member, Outcome]]] = {}
        start = now()
        for member in call.members:
            if member.chain.id in failed:
                continue
            lacking = [
                name
                for name in names
                if not _known(before.get((member.chain.id, member.entity, name)))
            ]
            weights = (
                _weights(run.root, generation, member) if set(lacking) & set(of_weights) else None
            )
            if weights is None:
                gone.update(set(lacking) & set(of_weights))
                counts[1] += len(set(lacking) & set(of_weights))
                lacking = [name for name in lacking if name not in of_weights]
            if lacking:
                together.setdefault(tuple(lacking), []).append(
                    (member, _outcome(run.root, generation, call.base, member, weights))
                )
        for lacking, members in together.items():
            run.stop.doing = f"measuring generation {generation}"
            model = run.model(call.base) if set(lacking) & set(of_weights) else None
            values = run.measure(model, generation, [outcome for _, outcome in members], lacking)
            for member, _ in members:
                new = values.get((member.chain.id, member.entity), {})
                for name in lacking:
                    value, key = (
                        float(new.get(name, math.nan)),
                        (member.chain.id, member.entity, name),
                    )
                    counts[0 if _known(value) else 1] += 1
                    if _known(value) or key not in before:
                        common = {
                            "study": run.settings.study,
                            "chain": member.chain.id,
                            **dict(member.chain.factors),
                        }
                        rows.append(
                            common
                            | {
                                "entity": member.entity,
                                "generation": generation,
                                "metric": name,
                                "value": value,
                            }
                        )
        run.report(
            "measure",
            len(call.members),
            now() - start,
            f"generation {generation}: measure, {len(call.members)} models of {call.base}",
        )
    return rows


def _known(value) -> bool:
    return value is not None and not math.isnan(value)


def _weights(root, generation, member):
    try:
        return weights_io.load_tree(root, f"{checkpoint.finished(generation)}/{stem(member)}")
    except FileNotFoundError:
        return None


def _outcome(root, generation, base, member, weights) -> Outcome:
    table = tables.read_parquet(root / texts_path(member.chain, generation))
    pieces = split({"chain": [member.chain.id] * len(table["text"]), **table})
    written = pieces.get(
        (member.chain.id, member.entity), {"text": [], "prompt": [], "tokens": [], "finished": []}
    )
    texts, prompts, tokens, finished = (
        written[name] for name in ("text", "prompt", "tokens", "finished")
    )
    return Outcome(
        member.chain,
        member.entity,
        base,
        weights,
        texts,
        prompts,
        np.asarray(tokens),
        np.asarray(finished),
    )


def _write(run, generation, rows):
    place = checkpoint.finished(generation)
    listed = checkpoint.read_manifest(run.root, f"{place}/{checkpoint.MANIFEST}")["files"]
    number = 1 + sum(name.startswith(f"{place}/{FILLED}") for name in listed)
    path = f"{place}/{FILLED}{number:04d}.parquet"
    tables.write_parquet(run.root / path, tidy(rows, run.chains), durable=True)
    checkpoint.add(run.root, generation, [path])
