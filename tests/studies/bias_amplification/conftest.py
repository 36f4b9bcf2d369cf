"""The small checkpoints of `tests/lm`, for the tests of neurons."""

from tests.lm.conftest import checkpoint, loaded

__all__ = ["checkpoint", "loaded"]
