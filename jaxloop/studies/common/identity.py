"""The models that decide a run's results, by their content: for config.json, the ledger and the
check when a run goes on.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Fields of configs, and options of metrics, that name a model.
FIELDS = ("pool", "embedder", "reference", "detector", "model", "encoder")


def of(settings, *, metrics: bool = True) -> dict[str, str]:
    """{"models.pool NAME": SHA-256 of its files} of every model directory that a config names, with
    the commit where the hub gave it.

    Models at an address, and names that are no directory here, have none. With `metrics` false, of
    what trains and writes only.
    """
    from jaxloop.lm.io import identity

    found = {}
    revisions = _revisions(settings)
    for field, name in _named(settings.model_dump(mode="json"), metrics):
        path = _directory(name, revisions.get(name) if field == "models.pool" else None)
        if path is None:
            continue
        commit = identity.commit_of(path)
        found[f"{field} {name}"] = identity.of_directory(path) + (
            f" (commit {commit})" if commit else ""
        )
    return found | (_defaults(settings) if metrics else {})


def bases(found: Mapping[str, str]) -> dict[str, str]:
    """{name of a base model: its SHA-256} out of what `of` returned."""
    return {
        key.removeprefix("models.pool "): value.split()[0]
        for key, value in found.items()
        if key.startswith("models.pool ")
    }


def _revisions(settings) -> dict[str, str]:
    models = getattr(settings, "models", None)
    return dict(
        zip(getattr(models, "pool", ()), getattr(models, "revisions", ()) or (), strict=False)
    )


def _named(section: Mapping[str, Any], metrics: bool, above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field, name of a model)."""
    for key, value in section.items():
        field = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _named(value, metrics, f"{field}.")
        elif key == "metrics" and metrics and isinstance(value, list):
            yield from _of_metrics(value, field)
        elif key in FIELDS and (metrics or key == "pool"):
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str):
                    yield field, name


def _of_metrics(names: list, field: str) -> Iterator[tuple[str, str]]:
    for _, options in map(_metric, names):
        for option, value in options.items():
            if option in FIELDS and isinstance(value, str):
                yield field, value


def _metric(name: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """(inputs, options) of a metric; nothing of those that a study has for itself."""
    from jaxloop.metrics import registry

    try:
        ((_, options),) = registry.validate([name])
    except (ValueError, AttributeError, TypeError):
        return (), {}
    return tuple(registry.needs([name])), options


def _directory(name: str, revision: str | None) -> Path | None:
    """Where a model lies: a directory, or the hub's cache, which holds it since the config was
    checked.
    """
    from jaxloop.studies.chain.prepare import model_path

    path = Path(model_path(name)).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not in the cache: a model at an address, or none
        return None


def _defaults(settings) -> dict[str, str]:
    """Of the encoder and the detector that come with jaxloop, where a config leaves these fields
    open and reads them.
    """
    from jaxloop.lm.io import identity
    from jaxloop.metrics import embed, quality

    found = {}
    names = [name for name in getattr(settings, "metrics", ()) if isinstance(name, str)]
    embeds = not names or {need for name in names for need in _metric(name)[0]} & {
        "embeddings",
        "reference_embeddings",
    }
    if embeds and "embedder" in type(settings).model_fields and settings.embedder is None:
        try:
            found["embedder"] = identity.of_directory(embed.default_model())
        except ValueError:  # not installed, and so not used
            pass
    measure = getattr(settings, "measure", None)
    reads = any(name.startswith("text_quality") for name in names) or getattr(
        measure, "quality", False
    )
    if reads and getattr(measure, "detector", None) is None and quality.default_detector().is_dir():
        found["detector"] = identity.of_directory(quality.default_detector())
    return found
