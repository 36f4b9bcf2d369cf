"""Adapters with both factors random, made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.model import lora as adapters


def random_adapters(config, lora, chains=1):
    """Factors of `chains` chains, normal with a standard deviation of 0.2."""
    shapes = jax.eval_shape(
        lambda: adapters.init(jax.random.split(jax.random.key(0), chains), config, lora)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )
