#!/usr/bin/env bash
# jax 0.10.2, CPU: jnp.sum adds bfloat16 in float32, jnp.cumsum does not; a nucleus that is cut by it has another size.
#
# One would guess: the last entry of jnp.cumsum(p) is jnp.sum(p), and the nucleus (the likeliest tokens that together have 0.9) is the same in
# bfloat16 as in float32, up to the rounding of its last few.
# What happens: the running sum is bfloat16 at every step. Near 0.9 its steps are 0.004 wide, wider than nearly every token of a large
# vocabulary, so that rounding decides where it passes 0.9: up to 9 % of the tokens of the nucleus are cut, or 8 % too many are let in, from
# one context to the next.
# So: a sampler that takes the bfloat16 logits of a 128,256-token vocabulary as a model on an accelerator returns them draws from another
# nucleus at every token. jnp.cumsum(p, dtype=jnp.float32) does what one would guess.
#
# Usage: findings/running_sum_of_bfloat16_moves_the_nucleus.sh [PYTHON]     (3.11 or newer)
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

print(f"jax {jax.__version__}: tokens of a nucleus of 0.9 in a vocabulary of 128,256")
off = []
for seed in range(5):
    logits = 3 * jax.random.normal(jax.random.key(seed), (128_256,), jnp.bfloat16)
    p = jnp.sort(jax.nn.softmax(logits))[::-1]
    half = int((jnp.cumsum(p) < 0.9).sum())
    single = int((jnp.cumsum(p, dtype=jnp.float32) < 0.9).sum())
    exact = int((np.cumsum(np.asarray(p, np.float64)) < 0.9).sum())
    off.append(half / exact - 1)
    print(f"running sum in bfloat16 {half:,}, in float32 {single:,}, exact {exact:,}: {off[-1]:+.1%}")
    if abs(single / exact - 1) > 0.001:
        raise SystemExit("float32 is off too")
if max(map(abs, off)) < 0.05:
    raise SystemExit("this no longer happens")
PYTHON
