#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2 and 0.12.0.1): optax.contrib.muon trains what is no matrix with Nesterov's Adam, not with Adam.
#
# One would guess: its argument nesterov is about Muon, as in the papers on it, whose embeddings, biases and norms are left to AdamW. So a vector's
# first step has the length of the learning rate in every entry, as Adam's and AdamW's.
# What happens: nesterov, True unless said otherwise, goes to Adam as well (NAdam, Dozat 2016). The first steps of every weight that Muon does
# not take, embeddings among them, are 1.47, 1.16 and 1.08 times as long as Adam's, where the gradient does not change.
# So: learning rates that were found for AdamW are too large there for a start, and results differ from those of another implementation.
# optax.partition of optax.contrib.scale_by_muon and optax.scale_by_adam has what the papers say.
#
# Usage: findings/muon_in_optax_steps_further_elsewhere.sh [PYTHON]     (3.11 shows jax 0.10.2, 3.12 and newer show 0.12.0.1)
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
version=$("$python" -c 'import sys; print("0.10.2" if sys.version_info < (3, 12) else "0.12.0.1")')
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==$version" "jaxlib==$version" "optax==0.2.8"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax

RATE, STEPS = 1e-2, 3
weights = {"matrix": jnp.ones((4, 4)), "bias": jnp.ones(4)}
gradient = {"matrix": jnp.eye(4), "bias": jnp.full(4, 0.5)}


def steps_of_the_bias(optimizer):
    state, lengths = optimizer.init(weights), []
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient, state, weights)
        lengths.append(float(-updates["bias"][0] / RATE))
    return np.array(lengths)


found = {
    "adam": steps_of_the_bias(optax.adam(RATE)),
    "nadam": steps_of_the_bias(optax.nadam(RATE)),
    "contrib.muon": steps_of_the_bias(optax.contrib.muon(RATE)),
    "contrib.muon(nesterov=False)": steps_of_the_bias(optax.contrib.muon(RATE, nesterov=False)),
}
print(f"jax {jax.__version__}, optax {optax.__version__}: steps of a bias in learning rates, at a gradient that does not change")
for name, lengths in found.items():
    print(f"{name:29} {lengths.round(3)}")
as_nadam = np.allclose(found["contrib.muon"], found["nadam"], atol=1e-4)
if not as_nadam or np.allclose(found["nadam"], found["adam"], atol=0.1):
    raise SystemExit("this no longer happens")
PYTHON
