"""Why a model cannot be had from the Hugging Face hub, in one sentence."""

import errno
import shutil
from pathlib import Path

from jaxloop.runtime.atomic_io import DiskFull, existing_parent, human_size


def refusal(name: str, error: Exception) -> Exception:
    """Return what to raise where a download of `name` ended with `error`.

    It is a ValueError of one sentence, or DiskFull.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(errno.ENOSPC, f"disk full: {name!r} cannot be downloaded; {_free()}")
    if "GatedRepoError" in kinds:
        return ValueError(
            f"model: {name!r} is gated on the hub: ask for access on its page, then set HF_TOKEN "
            "to a token of the account that has it, or give a path to a downloaded model"
        )
    if "RevisionNotFoundError" in kinds:
        return ValueError(f"model: {name!r} has no such revision on the hub; give another one")
    if "RepositoryNotFoundError" in kinds:
        return ValueError(
            f"model: {name!r} is neither a directory here nor a model on the hub that can be seen "
            "without a token; check the name, set HF_TOKEN, or give a path to a downloaded model"
        )
    return ValueError(
        f"model: {name!r} is neither a directory here nor reachable on the hub; give a path to a "
        "downloaded model"
    )


def _free() -> str:
    # Takes half a second to import, and is needed only after a download.
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(existing_parent(folder)).free
    return f"{human_size(free)} are free in {folder}"
