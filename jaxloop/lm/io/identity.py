"""What a model is, whatever its directory is called: a hash of the files that decide what it
computes.
"""

from pathlib import Path

from jaxloop.lm.io import hub_files, json_fields, safetensors_files
from jaxloop.runtime import digests
from jaxloop.runtime.user_path import user_path

# Files that are read, where they are there; not model cards, logs and weights of other formats.
_READ = (
    *hub_files.TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "classifier.json",
)


def of_directory(path: Path) -> str:
    """SHA-256 over config, tokenizer and weights of a model directory: a decoder, an encoder with
    its modules, or a classifier.

    The same files under another name give the same value. Raises ValueError as `stored.weights`
    does.
    """
    path = Path(path)
    names = _files(path, "")
    if (path / "modules.json").exists():
        listed = json_fields.read_value(path / "modules.json")
        for module in (
            {m.get("path") for m in listed if isinstance(m, dict)}
            if isinstance(listed, list)
            else ()
        ):
            if isinstance(module, str) and module and (path / module).is_dir():
                names |= _files(path / module, f"{module}/")
    return digests.of_files(path, names)


def of_adapter(path: Path) -> str:
    """SHA-256 over the config and the weights of an adapter's directory."""
    return digests.of_files(Path(path), ("adapter_config.json", "adapter_model.safetensors"))


def commit_of(path: Path) -> str | None:
    """Return the commit of a model that huggingface_hub holds in its cache, None for other
    directories.
    """
    path = Path(path)
    return path.name if path.parent.name == "snapshots" else None


def commit_on_hub(name: str, path: Path) -> str | None:
    """Return the commit of a model that was found at `path`, None where its name is a directory,
    whatever that is called.
    """
    return None if user_path(name) == path else commit_of(path)


def _files(folder: Path, prefix: str) -> set[str]:
    found = {name for name in _READ if (folder / name).is_file()}
    if any(folder.glob("*.safetensors")):
        found |= {file.name for file in safetensors_files.files(folder)}
    return {prefix + name for name in found}
