"""Seeds: every one is a chain of its own, or refused; `jax.random.key` alone drops bits without a
word.
"""

import jax
import numpy as np
import pydantic
import pytest

from jaxloop import config
from jaxloop.config import annotations
from jaxloop.core.keys import chain_key
from jaxloop.recursion.chains import make_chain
from jaxloop.studies import STUDIES, config_of


def data(seed):
    return tuple(np.asarray(jax.random.key_data(chain_key(seed))).tolist())


def test_all_bits_of_a_seed_count():
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 1, 2**63 + 1, 2**64 - 1]
    assert len({data(seed) for seed in seeds}) == len(seeds)
    assert data(np.uint64(2**63 + 1)) == data(2**63 + 1)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_are_those_of_jax(seed):
    assert data(seed) == tuple(
        np.asarray(jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))).tolist()
    )


@pytest.mark.parametrize(
    "seed",
    [-1, 2**64, True, False, 1.0, 1.5, float("nan"), "1", None, np.float32(3), np.bool_(True)],
)
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(
        ValueError,
        match=r"^seed=.* is not allowed; it must be a whole number from 0 to 2\*\*64 - 1$",
    ):
        chain_key(seed)
    with pytest.raises(ValueError, match="^seed=.* is not allowed"):
        make_chain({"dataset": "a", "bases": "b", "size": 2, "ratio": 0.5, "seed": seed})


def seed_fields():
    """(study, dotted name) of every field of every study whose name says that it is a seed."""
    for study in STUDIES:
        schema = config_of(study)
        for name in config.field_names(schema):
            leaf = name.rsplit(".", 1)[-1]
            if (
                leaf in ("seed", "seeds", "draw_seed") and name != "generator.seeds"
            ):  # examples in a prompt
                yield pytest.param(schema, name, id=f"{study}-{name}")


@pytest.mark.parametrize(("schema", "name"), list(seed_fields()))
def test_every_field_that_is_a_seed(schema, name):
    annotation = config.annotation_at(schema, name)
    assert "a whole number from 0 to 4294967295" in annotations.allowed(annotation)
    several = name.endswith("seeds")
    check = pydantic.TypeAdapter(annotation).validate_python
    for value in (0, 2**32 - 1):
        assert check([value] if several else value) == ((value,) if several else value)
    for value in (2**32, 2**32 + 1, -1, True, 0.5, float("nan"), "a"):
        with pytest.raises(pydantic.ValidationError):
            check([value] if several else value)


def test_a_seed_that_is_refused_in_a_config_is_named():
    chain = config_of("chain")
    with pytest.raises(
        ValueError,
        match=r"^config.chain.seeds\[1\] = 4294967297 is not allowed: a whole number from 0 to "
        r"4294967295$",
    ):
        config.build(chain, {"chain": {"seeds": [1, 2**32 + 1]}})
