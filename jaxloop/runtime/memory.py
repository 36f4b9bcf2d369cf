"""What to do when a device runs out of memory."""

import re

from jaxloop.runtime.log import LOGGER


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of a program means that its device ran out of memory."""
    text = str(error)
    # What a kernel shares inside the device gets no larger by smaller work.
    if "Shared memory size limit" in text:
        return False
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def halve_after_out_of_memory(error: BaseException, size: int, field: str, hint: str) -> int:
    """Return half of `size`, the value of a config field, and log why.

    Raises:
        ValueError: `size` is 1 already. The message says what was asked for and the hint.
    """
    asked = re.search(r"allocat\w* ([\d.]+ ?\w*i?B|\d+ bytes)", str(error))
    what = f" ({asked[1]} asked for)" if asked else ""
    if size <= 1:
        raise ValueError(
            f"{field} = 1 already, and the device is out of memory{what}; {hint}"
        ) from error
    LOGGER.warning("out of memory%s with %s = %d; going on with %d", what, field, size, size // 2)
    return size // 2
