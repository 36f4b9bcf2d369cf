"""Versions, devices and commit, for bug reports and the record of a run; never a secret."""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import jaxloop
from jaxloop.runtime.log import redact

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint transformers tokenizers safetensors datasets pyarrow "
    "sentence-transformers torch numpy pandas "
    "scipy scikit-learn statsmodels ml-collections pydantic matplotlib"
).split()
# What is installed: the name `jaxloop` belongs to another project on PyPI.
DISTRIBUTION = "jaxloop-lm"
# As in pyproject.toml.
SUMMARY = "Recursive training of language models in JAX: many chains, one compiled program"
_VARIABLES = re.compile(
    r"(JAX|XLA|CUDA|NVIDIA_VISIBLE|TPU|LIBTPU|HF|HUGGING|TRANSFORMERS|OPENAI|JAXLOOP)"
)
_SECRET = re.compile(r"token|key|secret|passw|credential|auth", re.IGNORECASE)


def describe(variables: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """Return (what, value) of versions, devices, commit and the environment variables that matter.

    Args:
        variables: the environment; None: that of this process. Secrets in it are masked.
    """
    variables = dict(os.environ) if variables is None else variables
    return [
        (DISTRIBUTION, jaxloop.__version__),
        ("commit", git_commit()),
        ("system", platform.platform()),
        ("cores", str(os.cpu_count())),
        ("memory", _memory()),
        ("disk free here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"),
        *versions(),
        ("devices", describe_devices()),
        *((k, masked(k, v)) for k, v in sorted(variables.items()) if _VARIABLES.match(k)),
    ]


def versions() -> list[tuple[str, str]]:
    """Return (distribution, version) of what a result can depend on."""
    return [("python", sys.version.split()[0]), *((name, version(name)) for name in PACKAGES)]


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of ours, for refusals."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def refuse_name_clash() -> None:
    """Raise ValueError where the other project called `jaxloop` is installed too.

    It brings a package of the same name, whose files may have replaced ours. Metadata of this
    project from before it was called jaxloop-lm, such as an egg-info folder, is harmless.
    """
    for other in importlib.metadata.distributions(name="jaxloop"):
        if other.metadata["Summary"] != SUMMARY:
            raise ValueError(
                f"the distribution 'jaxloop' {other.version} ({other.metadata['Summary']}) is "
                f"installed beside '{DISTRIBUTION}' and brings a "
                f"package of the same name; run `pip uninstall -y jaxloop {DISTRIBUTION}` and "
                f"install {DISTRIBUTION} again"
            )


def masked(name: str, value: str) -> str:
    """Return the value of a variable, hidden where its name says that it is secret.

    User names and passwords in URLs are always hidden.
    """
    if _SECRET.search(name):
        return "(set, hidden)"
    return redact(re.sub(r"(\w+://)[^/@\s]+@", r"\1(hidden)@", value))


def version(package: str) -> str:
    """Return the installed version of a distribution, or `not installed`."""
    try:
        return _installed(package)
    except importlib.metadata.PackageNotFoundError:  # a notebook may install it later
        return "not installed"


@functools.cache
def _installed(package: str) -> str:
    return importlib.metadata.version(package)


@functools.cache
def git_commit() -> str:
    """Return the commit that the package runs from, `none` outside a clone.

    ` + changes` follows where files differ from it.
    """
    package = pathlib.Path(jaxloop.__file__).parent
    try:
        top = pathlib.Path(git_output(package, "rev-parse", "--show-toplevel") or os.devnull)
        if top.resolve() != package.parent.resolve():
            return "none"
        changes = " + changes" if git_output(package, "status", "--porcelain", "-uno") else ""
        return git_output(package, "rev-parse", "--short=12", "HEAD") + changes
    except (OSError, subprocess.TimeoutExpired):
        return "none"


def git_output(folder: pathlib.Path, *words: str) -> str:
    """Return what a git command prints in a folder, "" where it fails.

    Raises OSError where there is no git, subprocess.TimeoutExpired where it takes ten seconds.
    """
    command = ["git", "-C", str(folder), *words]
    process = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return process.stdout.strip() if process.returncode == 0 else ""


@functools.cache
def source_hash() -> str:
    """Return the SHA-256 over the package's modules, which also tells code without a commit."""
    root, digest = pathlib.Path(jaxloop.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        data = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def describe_devices() -> str:
    """Return the devices that JAX sees, as `2 x cpu (cpu)`, or why it sees none."""
    try:
        import jax  # slow to import, and this module stands before `--list`

        kinds = [f"{d.platform} ({d.device_kind})" for d in jax.devices()]
    except Exception as error:  # a broken accelerator set-up is what a bug report is about
        return f"none: {' '.join(str(error).split())}"
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
