"""The models of a run for other libraries: adapters of peft, and merged weights of transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxloop.config import LoraConfig, ModelsConfig
from jaxloop.exports import cards, target
from jaxloop.lm import Model, load, save, save_peft
from jaxloop.lm.io import huggingface, identity
from jaxloop.lm.io.peft_files import PROVENANCE
from jaxloop.lm.model.lora import Adapter, as_adapter, merge
from jaxloop.recursion import saved_run
from jaxloop.recursion.saved_run import ModelId
from jaxloop.runtime.atomic_io import sha256
from jaxloop.studies.common.models import model_path, revision_of


class StoredModel(NamedTuple):
    """A model of a run.

    Attributes:
        id: which one.
        base: name of its base model, as the config has it.
        path: the base's directory.
        revision: its commit on the hub; None where the base is a directory of its own.
        ledger: its row of the ledger.
        mode: "lora", "full" or "scratch".
        lora: settings of its adapter; None in the other modes.
    """

    id: ModelId
    base: str
    path: Path
    revision: str | None
    ledger: dict[str, Any]
    mode: str
    lora: LoraConfig | None

    @property
    def folder(self) -> str:
        """Return the name of its directory where several are exported."""
        several = f",entity={self.id.entity}" if self.id.entity else ""
        return f"{self.id.chain}{several}"


def chosen(
    root: Path, chain: str | None, generation: int | None, entity: int | None
) -> list[ModelId]:
    """Return the models that an export is about.

    Args:
        root: the run directory.
        chain: its id; None: all chains.
        generation: its number; None: the last one of each chain whose weights were kept.
        entity: which model of a chain; None: all of them.

    Raises:
        ValueError: there is none.
    """
    chains = saved_run.read_chains(root)
    first = next(iter(chains)) if chain is None else chain
    # Says what there is instead.
    saved_run.read_ledger_row(root, ModelId(first, generation or 0, entity or 0))
    found = []
    for name in [chain] if chain is not None else chains:
        count = chains[name].get("workflow", {}).get("entities", 1)
        for number in range(count) if entity is None else [entity]:
            last = saved_run.kept_generations(root, ModelId(name, 0, number))
            if generation is None and not last:
                continue
            found.append(ModelId(name, last[-1] if generation is None else generation, number))
    if not found:
        raise ValueError(f"export {root}: no weights of its models were kept")
    return found


def describe(root: Path, model: ModelId) -> StoredModel:
    """Find a model and its base. Raises ValueError where it is no language model, or damaged, or
    its base is not here or has other files than those that it was trained on.
    """
    row = saved_run.read_ledger_row(root, model)
    fit = json.loads(row["fit"])
    mode = fit.get("mode")
    if mode not in ("lora", "full", "scratch"):
        raise ValueError(
            f"export {root}: chain {model.chain} is no language model, so there is nothing that "
            "peft or transformers could read; --to=csv writes its tables"
        )
    file = root / str(row["checkpoint"])
    if file.is_file() and row["checkpoint_sha256"] and sha256(file) != row["checkpoint_sha256"]:
        raise ValueError(f"export {root}: {row['checkpoint']} fails its SHA-256 checksum")
    stored = saved_run.read_config(root).get("models")
    names = {name: (stored or {}).get(name) for name in ("pool", "revisions")}
    models = ModelsConfig(**{name: value for name, value in names.items() if value})
    name = model_path(row["base"])
    path = huggingface.locate(name, revision_of(models, row["base"]))
    if row["base_sha256"] and identity.of_directory(path) != row["base_sha256"]:
        raise ValueError(
            f"export {root}: chain {model.chain} was trained on other files of {row['base']} than "
            f"those in {path}; restore them"
        )
    lora = LoraConfig(**fit["lora"]) if mode == "lora" else None
    revision = identity.commit_on_hub(name, path)
    return StoredModel(model, row["base"], path, revision, row, mode, lora)


def peft(root: Path, models: Sequence[StoredModel], directory: Path) -> list[Path]:
    """Write adapters as directories of peft with a model card, and return them.

    One adapter becomes `directory` itself, several a directory in it each.

    Raises:
        ValueError: a model has no adapter, or `directory` is not empty.
    """
    for model in models:
        if model.lora is None:
            raise ValueError(
                f"export {root}: chain {model.id.chain} has no adapter, it was trained in mode "
                f"'{model.mode}'; export its weights with --to=hf-model"
            )
    with target.written(directory) as work:
        for model, place in _places(models, work):
            adapter = _adapter(root, model)
            config = huggingface.read_model_config(model.path)
            save_peft(place, config, adapter, base=model.base, revision=model.revision)
            _write_about(root, model, place, "peft")
    return [directory / place.relative_to(work) for _, place in _places(models, work)]


def transformers(
    root: Path, models: Sequence[StoredModel], directory: Path, dtype: str
) -> list[Path]:
    """Write whole models, adapters merged into their bases, as directories of transformers.

    Args:
        root: the run directory.
        models: which ones.
        directory: as in `peft`.
        dtype: "float32" or "bfloat16", of the weights that are written.

    Raises:
        ValueError: `directory` is not empty.
    """
    with target.written(directory) as work:
        for model, place in _places(models, work):
            save(_whole(root, model, dtype), place)
            _write_about(root, model, place, "transformers")
    return [directory / place.relative_to(work) for _, place in _places(models, work)]


def _places(models: Sequence[StoredModel], work: Path) -> list[tuple[StoredModel, Path]]:
    return [(model, work if len(models) == 1 else work / model.folder) for model in models]


def _adapter(root: Path, model: StoredModel) -> Adapter:
    assert model.lora is not None
    return as_adapter(saved_run.read_weights(root, model.id), model.lora)


def _whole(root: Path, model: StoredModel, dtype: str) -> Model:
    """A model with all of its weights; sums are taken in float32."""
    base = load(model.path, dtype="float32")
    if model.lora is None:
        params = saved_run.read_weights(root, model.id)
    else:
        params = merge(base.config, base.params, _adapter(root, model))
    as_dtype = np.dtype(jax.numpy.dtype(dtype))
    return base._replace(
        params=jax.tree.map(lambda leaf: np.asarray(leaf).astype(as_dtype), params)
    )


def _write_about(root: Path, model: StoredModel, place: Path, library: str) -> None:
    """The model card, and a file that says which base an adapter belongs to."""
    about = {
        "base": model.base,
        "base_revision": model.revision,
        "base_sha256": model.ledger["base_sha256"],
        "chain": model.id.chain,
        "generation": model.id.generation,
        "entity": model.id.entity,
        "checkpoint_sha256": model.ledger["checkpoint_sha256"],
    }
    (place / PROVENANCE).write_text(json.dumps(about, indent=2), encoding="utf-8")
    config, on_hub = saved_run.read_config(root), model.revision is not None
    card = cards.of_model(config, model.base, about, model.ledger, library, on_hub=on_hub)
    (place / "README.md").write_text(card, encoding="utf-8")
