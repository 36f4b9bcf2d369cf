"""The files of a model on the Hugging Face hub that are read, downloaded and no others."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.lm.io import hub_errors
from jaxloop.lm.io.json_fields import Refused
from jaxloop.runtime.atomic_io import human_size

# What the loaders of models, encoders, classifiers and tokenizers read beside the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
)
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".ot")


def needed_files(listing: Sequence[str], modules: Sequence[str] = ()) -> list[str]:
    """Return the files of a repository that are read, out of all of its files.

    Of its weights that is model.safetensors, else those of the index, else every safetensors file
    that is no other form of them.

    Args:
        listing: paths of all files, from the repository's root.
        modules: folders that modules.json of sentence-transformers names.
    """
    found = []
    for folder in dict.fromkeys(("", *modules)):
        prefix = f"{folder.strip('/')}/" if folder else ""
        inside = [
            name.removeprefix(prefix)
            for name in listing
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
        ]
        found += [f"{prefix}{name}" for name in inside if _is_read(name)]
        found += [f"{prefix}{name}" for name in _weights(inside)]
    return found


def _is_read(name: str) -> bool:
    return name in TOKENIZER_FILES or name in _SETTINGS or name.endswith(".jinja")


def _weights(names: Sequence[str]) -> list[str]:
    if _WHOLE in names:
        return [_WHOLE]
    if _INDEX in names:
        return [_INDEX, *(name for name in names if _SHARD.fullmatch(name))]
    others = ("adapter_", "consolidated")
    return [n for n in names if n.endswith(".safetensors") and not n.startswith(others)]


def download(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model of the hub, with the files that are read.

    They are downloaded where they are not in the hub's cache; of a model that cannot be used, or
    does not fit on the disk, nothing is.

    Raises ValueError, in one sentence: there is no such model or revision, it needs a login, it has
    no safetensors, the disk is too small, or the hub cannot be reached.
    """
    # Takes half a second to import, and models that lie here do not need it.
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        files = needed_files(list(sizes), _modules(huggingface_hub, name, revision, sizes))
        _check_weights(name, revision, list(sizes), files)
        _check_disk(huggingface_hub, name, info.sha, {file: sizes[file] for file in files})
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files)
        )
    except Refused:
        raise
    except Exception as error:
        cached = None if _is_refusal(error) else _cached(huggingface_hub, name, revision)
        if cached is not None:
            return cached
        raise hub_errors.refusal(name, error) from None


def _modules(hub: Any, name: str, revision: str | None, sizes: Mapping[str, int]) -> list[str]:
    if "modules.json" not in sizes:
        return []
    file = hub.hf_hub_download(name, "modules.json", revision=revision)
    try:
        return [str(module["path"]) for module in json.loads(Path(file).read_text("utf8"))]
    except (ValueError, TypeError, KeyError):
        return []


def _check_weights(
    name: str, revision: str | None, listing: Sequence[str], files: Sequence[str]
) -> None:
    if any(file.endswith(".safetensors") for file in files):
        return
    at = f"revision {revision!r} of {name}" if revision else name
    found = [file for end in _PICKLED for file in sorted(listing) if file.endswith(end)]
    pickled = next(iter(found), None)
    if pickled is None:
        raise Refused(f"model: {at} has no safetensors on the hub, nor other weights")
    raise Refused(
        f"model: {at} has no safetensors on the hub but {pickled}, which is never unpickled; name "
        "a revision that has them (a pull request: 'refs/pr/NUMBER'), or convert it with "
        "scripts/convert_weights.py"
    )


def _check_disk(hub: Any, name: str, commit: str | None, sizes: Mapping[str, int]) -> None:
    """Raise ValueError where what is not in the cache yet does not fit on its disk."""
    cache = Path(hub.constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    missing = sum(
        size
        for file, size in sizes.items()
        if not isinstance(hub.try_to_load_from_cache(name, file, revision=commit), str)
    )
    free = shutil.disk_usage(there).free
    if missing > free:
        raise Refused(
            f"model: {name} needs {human_size(missing)} in the hub's cache {cache}, whose disk has "
            f"{human_size(free)} free; make room, or set HF_HOME to a larger disk"
        )


def _cached(hub: Any, name: str, revision: str | None) -> Path | None:
    try:
        return Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # whatever the reason, there is nothing to read
        return None


def _is_refusal(error: Exception) -> bool:
    """Whether the hub itself said no, which a copy in the cache does not change."""
    return type(error).__name__ in ("RevisionNotFoundError", "HFValidationError")
