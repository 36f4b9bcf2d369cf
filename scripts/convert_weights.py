"""Make a model directory with safetensors of one whose weights are pickled.

    python scripts/convert_weights.py facebook/opt-1.3b models/opt-1.3b [--revision=REVISION]
    python scripts/convert_weights.py path/to/model path/to/converted

The first argument is a directory, or an id on the Hugging Face hub, of which pytorch_model.bin (or
its shards), the configuration and the tokenizer are downloaded. jaxloop itself never unpickles:
this script does it once, file by file, each in a process of its own, with torch's loader for
weights alone (`torch.load(weights_only=True)`), which refuses anything but tensors. It needs torch
(the extra `peers`). Tensors keep their type; of tensors that are one in memory, as a
head that is tied to its embeddings, one is written. The new directory appears when it is whole.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import _root  # noqa: F401

from jaxloop.lm.io import hub_files
from jaxloop.runtime.user_path import user_path

_INDEX = "pytorch_model.bin.index.json"
_WHOLE = "pytorch_model.bin"
# Run for one file: pickle in, safetensors out; the last line names what was left out.
_CHILD = """
import json, sys
import torch
from safetensors.torch import save_file

source, target = sys.argv[1:]
try:
    found = torch.load(source, map_location="cpu", weights_only=True)
except Exception as error:
    sys.exit("torch's loader for weights alone refuses it: " + str(error).splitlines()[0][:200])
found = found.get("state_dict", found)
if not all(isinstance(value, torch.Tensor) for value in found.values()):
    sys.exit("it holds more than tensors")
kept, seen, left_out = {}, {}, {}
for name in sorted(found, key=lambda name: name.endswith("lm_head.weight")):
    tensor = found[name]
    key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    if tensor.numel() and key in seen:
        left_out[name] = seen[key]
        continue
    seen[key] = name
    kept[name] = tensor.contiguous().clone()
save_file(kept, target, metadata={"format": "pt"})
print(json.dumps({"names": sorted(kept), "left_out": left_out}))
"""


def convert(source: Path, target: Path) -> dict[str, str]:
    """Write a directory with the safetensors of another; return {left-out tensor: the same tensor}.

    Raises ValueError where there is nothing to convert, the new directory is there already, or a
    file holds more than tensors.
    """
    if target.exists():
        raise ValueError(f"{target} is there already; name a new directory")
    if not (source / "config.json").exists():
        raise ValueError(f"{source} has no config.json; a Hugging Face model directory is needed")
    files = _pickled(source)
    work = target.with_name(target.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        left_out: dict[str, str] = {}
        where: dict[str, str] = {}
        for number, file in enumerate(files, 1):
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            name = "model.safetensors" if len(files) == 1 else name
            found = _convert_file(file, work / name)
            left_out |= found["left_out"]
            where |= dict.fromkeys(found["names"], name)
        if len(files) > 1:
            index = {"metadata": {}, "weight_map": where}
            (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        listing = [file.name for file in source.iterdir() if file.is_file()]
        for name in hub_files.needed_files(listing):
            if not name.startswith("model") or name == "modules.json":
                shutil.copy2(source / name, work / name)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return left_out


def _pickled(source: Path) -> list[Path]:
    index = source / _INDEX
    names = [_WHOLE]
    if index.exists():
        names = sorted(set(json.loads(index.read_text("utf8"))["weight_map"].values()))
    absent = [name for name in names if not (source / name).is_file()]
    if absent:
        raise ValueError(f"{source} has no {absent[0]}; there is nothing to convert")
    return [source / name for name in names]


def _convert_file(source: Path, target: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD, str(source), str(target)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["the process was killed"])[-1]
        raise ValueError(f"{source} cannot be converted: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _download(name: str, revision: str | None) -> Path:
    # Models that lie here do not need it.
    from huggingface_hub import HfApi, snapshot_download

    try:
        listing = HfApi().list_repo_files(name, revision=revision)
        pickled = [n for n in listing if n.startswith("pytorch_model") and "/" not in n]
        wanted = [n for n in hub_files.needed_files(listing) if not n.endswith(".safetensors")]
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*wanted, *pickled]))
    except Exception as error:
        raise ValueError(
            f"{name!r} is neither a directory here nor reachable on the hub ({error})"
        ) from None


def main() -> int:
    """Convert what the command line names; 2 after a refusal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a directory, or an id on the hub")
    parser.add_argument("target", type=Path, help="the directory that is written")
    parser.add_argument("--revision", help="branch, tag, commit or pull request on the hub")
    options = parser.parse_args()
    try:
        here = user_path(options.model)
        source = here if here.is_dir() else _download(options.model, options.revision)
        left_out = convert(source, options.target)
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    for name, same in left_out.items():
        print(f"{name} is {same}, and is not written twice")
    print(f"{options.target} has the weights as safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
