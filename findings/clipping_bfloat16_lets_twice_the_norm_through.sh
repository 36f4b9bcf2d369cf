#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2, CPU: gradients in bfloat16 are clipped to a norm that is far from the one asked for.
#
# One would guess: after clip_by_global_norm(1.0) the norm is at most 1, up to the rounding of bfloat16 (a percent), since jnp.sum adds
# bfloat16 in float32.
# What happens: each leaf is summed in float32, rounded to bfloat16, and the leaves are then added in bfloat16. Beyond 256 equal leaves the
# sum stands still: for 1,000 of them the norm is said to be half of what it is, and what was to be clipped to 1 keeps a norm of 2.
# So: a model whose layers are separate leaves, trained with gradients in bfloat16, is clipped less the more leaves it has, and the logged
# gradient norm is too small by the same factor. Gradients cast to float32, or layers stacked into one leaf, are clipped as asked.
#
# Usage: findings/clipping_bfloat16_lets_twice_the_norm_through.sh [PYTHON]     (3.11 or newer)
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "optax==0.2.8"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax


def norm(tree):
    return float(np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))))


def clipped(tree):
    return norm(optax.clip_by_global_norm(1.0).update(tree, optax.EmptyState())[0])


print(f"optax {optax.__version__}, jax {jax.__version__}: clip_by_global_norm(1.0)")
found = {}
for leaves in (100, 300, 1000):
    gradient = [jnp.full(64, 0.125, jnp.bfloat16) for _ in range(leaves)]
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
    stacked = jnp.stack(gradient)
    found[leaves] = clipped(gradient), clipped(wide), clipped(stacked)
    said = float(optax.global_norm(gradient))
    print(
        f"{leaves} leaves: norm {norm(gradient):.2f}, global_norm says {said:.2f}; norm after clipping "
        f"{found[leaves][0]:.2f} in bfloat16, {found[leaves][1]:.2f} in float32, {found[leaves][2]:.2f} as one leaf"
    )
if found[1000][0] < 1.9 or max(found[1000][1:]) > 1.01:
    raise SystemExit("this no longer happens")
PYTHON
