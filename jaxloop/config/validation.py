"""Makes frozen, checked settings of the dict of a config."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

import pydantic

from jaxloop.config import renames
from jaxloop.config.messages import refusal
from jaxloop.config.types import Section

S = TypeVar("S", bound=Section)


def build(schema: type[S], config: dict[str, Any]) -> S:
    """Return `config` as an instance of `schema`.

    Fields under old names are accepted with a warning (see `renames`). The key `identity`, which
    the config.json of a run has besides (see `studies/common/identity.py`), is ignored.

    Raises:
        ValueError: one sentence about the first problem, and how many more there are.
    """
    config = {name: value for name, value in config.items() if name != "identity"}
    config = renames.current_names(schema, config)
    try:
        return schema.model_validate(config)
    except pydantic.ValidationError as error:
        raise ValueError(refusal(error.errors(include_url=False), schema)) from None


def fingerprint(settings: Section, ignore: Iterable[str] = ()) -> str:
    """Return a hash of all fields outside the sections in `ignore`, as twelve hex digits."""
    ignored = set(ignore)
    dump = settings.model_dump(mode="json")
    counted = {name: value for name, value in dump.items() if name not in ignored}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]
