"""Environments of the benchmarks' peers, made on demand in the cache folder. Never a dependency."""

import subprocess
import sys
from pathlib import Path

from jaxloop.runtime.atomic_io import cache_folder

# What each peer is timed with, and the command's further words.
PINS = {
    "openvino": ("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "optimum-intel==2.2.0"),
    "transformers": ("transformers==5.23.0", "accelerate==1.15.0"),
    "torch": ("peft==0.21.2", "transformers==5.23.0", "accelerate==1.15.0"),
    "trl": ("trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "accelerate==1.15.0"),
}
PINS["torch-compile"] = PINS["torch"]
PINS["transformers-continuous"] = PINS["transformers"]
SHARED = ("torch==2.14.1",)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def folder_of(peer: str) -> Path:
    """Where the environment of a peer lies: its versions are part of the name. Peers with the same
    pins share that of the first.
    """
    versions = "-".join(pin.split("==")[1] for pin in PINS[peer])
    name = next(other for other, pins in PINS.items() if pins == PINS[peer])
    return cache_folder() / "peers" / f"{name}-{versions}"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        ValueError: the environment has not been made.
    """
    python = folder_of(peer) / "bin" / "python"
    if not (folder_of(peer) / "made").is_file():
        raise ValueError(f"--peer={peer}: its environment is not there yet; add --make-peer")
    return python


def make(peer: str) -> None:
    """Make the environment of a peer, unless it is there.

    Raises:
        ValueError: a package could not be installed.
    """
    folder = folder_of(peer)
    if (folder / "made").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "-q", "--no-compile"]
    done = subprocess.run(
        [*pip, f"--extra-index-url={CPU_WHEELS}", *SHARED, *PINS[peer]],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"--make-peer: pip could not install {peer}: {last[0]}")
    (folder / "made").touch()
