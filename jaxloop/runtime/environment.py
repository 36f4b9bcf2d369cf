"""What a bug report and a run's record need to know of the machine: versions, devices, commit;
never a secret.
"""

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
DISTRIBUTION = (
    "jaxloop-lm"  # what is installed; the name `jaxloop` belongs to another project on PyPI
)
# as in pyproject.toml
SUMMARY = "Recursive training of language models in JAX: many chains, one compiled program"
SECRET = re.compile(r"token|key|secret|passw|credential|auth", re.IGNORECASE)


def describe(variables: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """Versions, devices, commit and the variables that matter: what a bug report needs. Secrets are
    masked.
    """
    rows = [
        (DISTRIBUTION, jaxloop.__version__),
        ("commit", commit()),
        ("system", platform.platform()),
    ]
    rows += [
        ("cores", str(os.cpu_count())),
        ("memory", _memory()),
        ("disk free here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"),
    ]
    rows += versions()
    rows += [("devices", devices())]
    variables = dict(os.environ) if variables is None else variables
    shown = {
        k: v
        for k, v in variables.items()
        if re.match(
            r"(JAX|XLA|CUDA|NVIDIA_VISIBLE|TPU|LIBTPU|HF|HUGGING|TRANSFORMERS|OPENAI|JAXLOOP)", k
        )
    }
    rows += [(k, masked(k, v)) for k, v in sorted(shown.items())]
    return rows


def versions() -> list[tuple[str, str]]:
    """(distribution, version) of what a result can depend on."""
    return [("python", sys.version.split()[0]), *((name, version(name)) for name in PACKAGES)]


def how_to_install(extra: str) -> str:
    """The command that brings what an extra of ours holds, as it is said in a refusal."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def refuse_a_clash() -> None:
    """Raises ValueError where the other project called `jaxloop` is installed too: it brings a
    package of the same name, whose files may have replaced ours. (Metadata of this project from
    before it was called jaxloop-lm, such as an egg-info folder in a clone, is harmless.)
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
    """The value of a variable, hidden where its name says that it is secret; user names and
    passwords in URLs are always hidden.
    """
    if SECRET.search(name):
        return "(set, hidden)"
    return redact(re.sub(r"(\w+://)[^/@\s]+@", r"\1(hidden)@", value))


def version(package: str) -> str:
    """The installed version of a distribution, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit the package runs from, `+ changes` where files differ from it, or `none` outside a
    clone.
    """
    here = pathlib.Path(jaxloop.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if (
            pathlib.Path(git("rev-parse", "--show-toplevel") or os.devnull).resolve()
            != here.parent.resolve()
        ):
            return "none"
        return git("rev-parse", "--short=12", "HEAD") + (
            " + changes" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"


@functools.cache
def code() -> str:
    """SHA-256 over the package's modules: what computed a result, also where there is no commit."""
    root, whole = pathlib.Path(jaxloop.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        data = file.read_bytes()
        whole.update(f"{file.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return whole.hexdigest()


def devices() -> str:
    """The devices that JAX sees, as `2 x cpu (cpu)`, or why it sees none."""
    try:
        import jax

        kinds = [f"{d.platform} ({d.device_kind})" for d in jax.devices()]
    except Exception as error:  # a broken accelerator set-up is what a bug report is about
        return f"none: {' '.join(str(error).split())}"
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
