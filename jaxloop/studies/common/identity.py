"""Hashes of the models that decide a run's results.

They go into config.json and the ledger, and are compared when a run is resumed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxloop.config import Section
from jaxloop.lm.io import hub_files, identity
from jaxloop.metrics import embed, quality, registry
from jaxloop.runtime import digests
from jaxloop.runtime.user_path import user_path
from jaxloop.studies.common.models import is_shipped, model_path

# Fields of configs, and options of metrics, that name a model.
FIELDS = ("pool", "embedder", "reference", "detector", "model", "encoder", "start_adapter")


def of(config: Section, *, metrics: bool = True) -> dict[str, str]:
    """Return {"FIELD NAME": SHA-256 of its files} for every model directory that a config names.

    A key is, for example, "models.pool path/to/model". The commit follows the hash where the model
    came from the hub. Models behind an address, and names that are no directory here, are left out.

    Args:
        config: the whole config of a study.
        metrics: whether to include the models that only metrics use.
    """
    found = {}
    revisions = _revisions(config)
    for field, name in _named(config.model_dump(mode="json"), metrics):
        path = _directory(name, revisions.get(name) if field == "models.pool" else None)
        if path is None:
            continue
        if field.endswith("start_adapter"):
            found[f"{field} {name}"] = identity.of_adapter(path)
            continue
        commit = identity.commit_of(path)
        found[f"{field} {name}"] = identity.of_directory(path) + (
            f" (commit {commit})" if commit else ""
        )
    return found | (_defaults(config) if metrics else {})


def cache_key_of_model(name: str | None) -> str | None:
    """Return what tells a model from others in the keys of caches.

    That is its name, with a hash of its files where it is a directory here: later the same name may
    be another model's, and a relative path another directory's.
    """
    path = None if name is None else _place(name)
    if path is None or not path.is_dir():
        return name
    return f"{name} {identity.of_directory(path)[:16]}"


def cache_key_of_tokenizer(name: str, revision: str | None = None) -> str:
    """Return what tells a model's tokenizer from others, as `cache_key_of_model`.

    Bases that come with jaxloop have their name alone.

    Args:
        name: of the model.
        revision: its commit on the hub, which decides where it is no directory here.
    """
    path = _place(name)
    if is_shipped(path):
        return name
    files = [file for file in hub_files.TOKENIZER_FILES if (path / file).is_file()]
    if files:
        return f"{name} {digests.of_files(path, files)[:16]}"
    return name if revision is None or path.is_dir() else f"{name} at {revision}"


def cache_key_of_metric(metric: str) -> str:
    """Return a metric's name, with what tells the models that it names from others.

    A judge behind an address has its name alone: its model is no directory here.
    """
    words = [metric]
    for model in _models_of(metric):
        key = cache_key_of_model(model)
        if key is not None and key != model:
            words.append(key)
    return " ".join(words)


def bases(found: Mapping[str, str]) -> dict[str, str]:
    """Return {name of a base model: its SHA-256}; found: what `of` returned."""
    return {
        key.removeprefix("models.pool "): value.split()[0]
        for key, value in found.items()
        if key.startswith("models.pool ")
    }


def _revisions(config: Section) -> dict[str, str]:
    models = getattr(config, "models", None)
    return dict(
        zip(getattr(models, "pool", ()), getattr(models, "revisions", ()) or (), strict=False)
    )


def _named(section: Mapping[str, Any], metrics: bool, above: str = "") -> Iterator[tuple[str, str]]:
    """Pairs (dotted field, name of a model) of a config as nested dicts; above: dotted prefix."""
    for key, value in section.items():
        field = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _named(value, metrics, f"{field}.")
        elif key == "metrics" and metrics and isinstance(value, list):
            for metric in value:
                yield from ((field, model) for model in _models_of(metric))
        elif key in FIELDS and (metrics or key == "pool"):
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str):
                    yield field, name


def _models_of(metric: Any) -> Iterator[str]:
    """The names of the models that a metric names; none of one behind an address."""
    _, options = _metric(metric)
    if options.get("url") is not None:  # its model is no directory here
        return
    for option, value in options.items():
        if option in FIELDS and isinstance(value, str):
            yield value


def _metric(name: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """(inputs, options) of a metric; both empty for a metric that is not in the registry."""
    try:
        ((_, options),) = registry.validate([name])
    except (ValueError, AttributeError, TypeError):
        return (), {}
    return tuple(registry.needs([name])), options


def _place(name: str) -> Path:
    return user_path(model_path(name))


def _directory(name: str, revision: str | None) -> Path | None:
    """The directory of a model, or None; a model of the hub is in its cache by now."""
    path = _place(name)
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        return None
    # Only ids of the hub need it, and it is slow to load.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not in the cache: a model at an address, or none
        return None


def _defaults(config: Section) -> dict[str, str]:
    """Hashes of the default encoder and detector, where a config uses them without naming them."""
    found = {}
    names = [name for name in getattr(config, "metrics", ()) if isinstance(name, str)]
    needs = {need for name in names for need in _metric(name)[0]}
    embeds = not names or needs & {"embeddings", "reference_embeddings"}
    is_open = "embedder" in type(config).model_fields and getattr(config, "embedder", None) is None
    if embeds and is_open:
        try:
            found["embedder"] = identity.of_directory(embed.default_model())
        except ValueError:  # not installed, and so not used
            pass
    measure = getattr(config, "measure", None)
    reads = any(name.startswith("text_quality") for name in names) or getattr(
        measure, "quality", False
    )
    if reads and getattr(measure, "detector", None) is None and quality.default_detector().is_dir():
        found["detector"] = identity.of_directory(quality.default_detector())
    return found
