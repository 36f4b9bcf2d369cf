"""Somebody else's adapter as the start of a study's chains: `config.chain.start_adapter`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxloop.config import LoraConfig, ModelsConfig, Section
from jaxloop.lm.io import huggingface, peft_files
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.lora import Adapter, target_names
from jaxloop.runtime.user_path import user_path
from jaxloop.studies.common.models import model_path, revision_of

C = TypeVar("C", bound=Section)


def load(config: Section) -> Adapter | None:
    """Return the adapter that a study's chains start from, None where they start afresh.

    Raises:
        ValueError: there is no such adapter, its base is another, it computes something that is
            not supported, or the config trains no adapters of one base.
    """
    settings: Any = config
    name = settings.chain.start_adapter
    if name is None:
        return None
    _check(settings, name)
    (base,) = settings.models.pool
    directory = _directory(settings.models, base)
    peft_files.check_base(user_path(name), base, directory)
    return peft_files.load_peft(user_path(name), huggingface.read_model_config(directory))


def with_its_settings(config: C) -> C:
    """Return a study's config with the rank, alpha and targets of its `chain.start_adapter`.

    Dropout is the config's own where it names one. A config without such an adapter is returned as
    it is.

    Raises:
        ValueError: as `load`, or `fit.lora` names other settings.
    """
    adapter = load(config)
    if adapter is None:
        return config
    settings: Any = config
    (base,) = settings.models.pool
    shapes = huggingface.read_model_config(_directory(settings.models, base))
    lora, theirs = settings.fit.lora, adapter.config
    for field in ("rank", "alpha", "targets"):
        ours = getattr(lora, field)
        if field in lora.model_fields_set and not _same(shapes, field, lora, theirs):
            raise ValueError(
                f"config.fit.lora.{field} = {ours!r}: {settings.chain.start_adapter} has "
                f"{getattr(theirs, field)!r}; leave it out, since chains start from that adapter"
            )
    dropout = lora.dropout if "dropout" in lora.model_fields_set else theirs.dropout
    fit = settings.fit.replace(lora=theirs.replace(dropout=dropout))
    changed: C = config.model_copy(update={"fit": fit})
    return changed


def _same(shapes: ModelConfig, field: str, one: LoraConfig, other: LoraConfig) -> bool:
    if field == "targets":
        return set(target_names(shapes, one)) == set(target_names(shapes, other))
    return bool(getattr(one, field) == getattr(other, field))


def _directory(models: ModelsConfig, base: str) -> Path:
    return huggingface.locate(model_path(base), revision_of(models, base))


def _check(settings: Any, name: str) -> None:
    """Refuse what does not go together with an adapter to start from."""
    field = f"config.chain.start_adapter = '{name}'"
    if not user_path(name).is_dir():
        raise ValueError(f"{field}: there is no such directory; download the adapter first")
    if len(settings.models.pool) != 1:
        raise ValueError(
            f"{field}: an adapter belongs to one base, and config.models.pool has "
            f"{len(settings.models.pool)}; name its base alone"
        )
    factors: Mapping[str, Sequence[Any]] = getattr(settings.chain, "factors", {})
    modes = factors.get("fit.mode", (settings.fit.mode,))
    starts = factors.get("start", (settings.chain.start,))
    for place, values, allowed in (
        ("config.fit.mode", modes, ("lora",)),
        ("config.chain.start", starts, ("base", "previous")),
    ):
        if others := [value for value in values if value not in allowed]:
            raise ValueError(
                f"{field}: needs {place} = {' or '.join(allowed)}, and it is '{others[0]}'"
            )
