"""Reading a run directory: the tables, the texts and the weights of its finished generations.

Every function reads what is on the disk at that moment, so a run that still goes on can be read.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.config import nearest
from jaxloop.recursion.parts import Columns, no_texts, rows_by_member
from jaxloop.recursion.sources import texts_path
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.atomic_io import names_in
from jaxloop.runtime.workdir import CONFIG, check_format, is_workdir

_GENERATION = re.compile(r"generation=(\d+)")


class ModelId(NamedTuple):
    """Which model of a run: an entity of a chain, in a generation."""

    chain: str
    generation: int
    entity: int = 0


def require_run(root: Path) -> None:
    """Check that a directory holds a run.

    Raises:
        ValueError: it does not exist, no run wrote it, or a later version of jaxloop did.
    """
    if not root.is_dir():
        raise ValueError(f"workdir={root}: there is no such directory")
    if not is_workdir(root):
        raise ValueError(f"workdir={root}: holds no run; a run directory has a {CONFIG}")
    check_format(root)


def read_config(root: Path) -> dict[str, Any]:
    """Return the config of the run as it is stored, with the hashes of models in `identity`.

    Raises:
        ValueError: as `require_run`, or the file is missing or damaged.
    """
    require_run(root)
    try:
        stored = json.loads((root / CONFIG).read_bytes())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"workdir={root}: its {CONFIG} is missing or damaged; restore the file")
    return stored


def finished_generations(root: Path) -> list[int]:
    """Return the numbers of the finished generations, in order."""
    names = names_in(root / checkpoint.DIRECTORY)
    return sorted(int(match[1]) for match in map(_GENERATION.fullmatch, names) if match)


def read_chains(root: Path) -> dict[str, dict[str, Any]]:
    """Return {chain id: fields of its `ChainSpec` that differ from the defaults}, in order.

    Raises:
        ValueError: no generation is finished yet.
    """
    require_run(root)
    generations = finished_generations(root)
    if not generations:
        raise ValueError(
            f"workdir={root}: no generation of chains is finished, so there is nothing to read"
        )
    manifest = f"{checkpoint.finished(generations[-1])}/{checkpoint.MANIFEST}"
    chains = checkpoint.read_manifest(root, manifest)["about"]["chains"]
    return {name: json.loads(fields) for name, fields in chains.items()}


def read_texts(root: Path, model: ModelId) -> Columns:
    """Return what a model generated: columns `text`, `prompt`, `tokens`, `finished`, and more.

    Raises:
        ValueError: there is no such chain, entity or generation.
    """
    _check_model(root, model)
    path = root / texts_path(model.chain, model.generation)
    if not path.exists():
        raise ValueError(
            f"chain={model.chain!r}: has no texts of generation {model.generation}; it stopped "
            "before"
        )
    table = tables.read_parquet(path)
    rows = rows_by_member({"chain": [model.chain] * len(table["text"]), **table})
    return rows.get((model.chain, model.entity), no_texts())


def read_ledger_row(root: Path, model: ModelId) -> dict[str, Any]:
    """Return the first row of the ledger about a model: base, settings, counts, shares.

    Raises:
        ValueError: there is no such chain, entity or generation.
    """
    _check_model(root, model)
    ledger = tables.read_parquet(root / checkpoint.finished(model.generation) / "ledger.parquet")
    keys = zip(ledger["chain"], np.asarray(ledger["entity"]).tolist(), strict=True)
    row = next((i for i, key in enumerate(keys) if key == (model.chain, model.entity)), None)
    if row is None:
        raise ValueError(
            f"chain={model.chain!r}: has no model {model.entity} in generation {model.generation}"
        )
    return {name: values[row] for name, values in ledger.items()}


def read_fit_settings(root: Path, model: ModelId) -> dict[str, Any]:
    """Return the settings that a model was trained with, what its chain replaces included.

    Names of fields are those of the version that made the run.

    Raises:
        ValueError: there is no such chain, entity or generation.
    """
    return json.loads(read_ledger_row(root, model)["fit"])


def read_weights(root: Path, model: ModelId) -> Any:
    """Return the weights of a model, a tree of NumPy arrays.

    Raises:
        ValueError: there is no such model, or its weights were not kept.
    """
    _check_model(root, model)
    kept = _kept_weights(root, model)
    if model.generation in kept:
        # The run may go on and delete them meanwhile.
        with contextlib.suppress(FileNotFoundError):
            return weights_io.load_tree(root, kept.pop(model.generation))
    words = f"those of {', '.join(map(str, sorted(kept)))} were" if kept else "none were"
    raise ValueError(
        f"generation={model.generation}: the weights of chain {model.chain} were not kept, "
        f"{words}; config.run.keep says how many generations keep theirs"
    )


def kept_generations(root: Path, model: ModelId) -> list[int]:
    """Return the generations whose weights of a chain's entity were kept, in order."""
    return sorted(_kept_weights(root, model))


def _kept_weights(root: Path, model: ModelId) -> dict[int, str]:
    """{generation: stem of the weights' file} of a chain's entity. See `parts.weights_stem`."""
    stems = {
        f"chain={model.chain},entity={model.entity}",
        *([f"chain={model.chain}"] if model.entity == 0 else []),
    }
    kept = {}
    for generation in finished_generations(root):
        place = f"{checkpoint.finished(generation)}/adapters"
        for name in names_in(root / place):
            stem = name.removesuffix(".safetensors").removesuffix(".orbax")
            if stem in stems:
                kept[generation] = f"{place}/{stem}"
    return kept


def _check_model(root: Path, model: ModelId) -> None:
    chains = read_chains(root)
    if model.chain not in chains:
        near = nearest(model.chain, chains)
        raise ValueError(
            f"chain={model.chain!r}: the run has no such chain; "
            + (f"did you mean {near!r}?" if near else f"there are {', '.join(list(chains)[:8])}")
        )
    entities = chains[model.chain].get("workflow", {}).get("entities", 1)
    if model.entity not in range(entities):
        raise ValueError(f"entity={model.entity}: the chain's entities are 0 to {entities - 1}")
    generations = finished_generations(root)
    if model.generation not in generations:
        raise ValueError(
            f"generation={model.generation}: is not finished; the run has 0 to {generations[-1]}"
        )
