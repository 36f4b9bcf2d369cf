"""Libraries that the tests compare with and that not everybody has installed: torch, peft,
sentence-transformers.

`torch = peer("torch")` at the top of a test module imports nothing yet. The first test that touches
`torch.something` imports it, or is skipped, saying what to install; the other tests of the module
run. JAXLOOP_PEERS=required (as in .ci/run) turns the skip into a failure.
"""

import importlib
import os

import pytest

INSTALL = "pip install '.[test,peers]'"


def require(*names):
    """Imports these modules and returns them; skips the test (or fails it, where peers are
    required) if one is not installed.
    """
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            reason = f"{name} is not installed ({error}); comparisons with it: {INSTALL}"
            if os.environ.get("JAXLOOP_PEERS") == "required":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
    return modules


class _Peer:
    def __init__(self, *names):
        self._names = names

    def __getattr__(self, attribute):
        if attribute.startswith(
            "_"
        ):  # pytest looks at every name of a module while it collects tests
            raise AttributeError(attribute)
        return getattr(require(*self._names)[-1], attribute)


def peer(name, *needs):
    """The module `name`, imported when it is first used; `needs`: what must be importable too
    (transformers has models only beside torch).
    """
    return _Peer(*needs, name)
