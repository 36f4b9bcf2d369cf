#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1, CPU: jax.random.choice draws elements whose probability is zero.
#
# One would guess: with p=..., what has probability zero is never drawn, and jnp.cumsum of numbers that are not negative never falls.
# What happens: the running sum is taken as a tree, so that neighbouring sums round apart. From a few hundred entries on it falls in places and
# rises over entries that are zero; choice inverts it, and of 16.8 million draws from 1,000 probabilities, half of them zero, some give an
# element of probability zero.
# So: code that marks what must not be drawn (extinct categories, cut tokens) with probability zero draws it after all, once in millions.
# jax.random.categorical of their logarithms, -inf where they are zero, does not.
#
# Usage: findings/choice_draws_what_has_probability_zero.sh [PYTHON]     (3.11 shows jax 0.10.2, 3.12 and newer show 0.12.0.1)
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$("$python" -c 'import sys; print("0.10.2" if sys.version_info < (3, 12) else "0.12.0.1")')
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==$version" "jaxlib==$version"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

SIZE, DRAWS, CALLS = 1000, 1 << 22, 4
rng = np.random.default_rng(0)
p = rng.random(SIZE).astype(np.float32)
p[rng.random(SIZE) < 0.5] = 0
p = jnp.asarray(p / p.sum())
steps = np.diff(np.asarray(jnp.cumsum(p)), prepend=np.float32(0))
falls, rises = int((steps < 0).sum()), int(((steps > 0) & (np.asarray(p) == 0)).sum())


@jax.jit
def impossible(key):
    return (p[jax.random.choice(key, SIZE, (DRAWS,), p=p)] == 0).sum()


@jax.jit
def impossible_by_logarithms(key):
    return (p[jax.random.categorical(key, jnp.log(p), shape=(1 << 16,))] == 0).sum()


drawn = sum(int(impossible(jax.random.key(i))) for i in range(CALLS))
other = int(impossible_by_logarithms(jax.random.key(0)))
print(f"jax {jax.__version__}: {SIZE} probabilities, {int((p == 0).sum())} of them zero")
print(f"running sum: falls in {falls} places, rises over {rises} entries that are zero")
print(f"choice: {drawn} of {CALLS * DRAWS:,} draws have probability zero; categorical: {other} of {1 << 16:,}")
if falls == 0 or drawn == 0 or other:
    raise SystemExit("this no longer happens")
PYTHON
