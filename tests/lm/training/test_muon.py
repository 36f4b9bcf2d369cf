"""Muon, which trains the matrices of layers from random weights, beside torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import FitConfig
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, losses, train_steps
from tests.peers import require

RATE, DECAY = 0.01, 0.1
FIT = FitConfig(
    mode="scratch",
    steps=1,
    learning_rate=RATE,
    schedule="constant",
    warmup_steps=0,
    weight_decay=DECAY,
    max_grad_norm=None,
    dropout="none",
)


@pytest.mark.parametrize("name", ["llama-bias", "gpt2"])
def test_a_step_of_muon_is_torchs_and_of_everything_else_adamws(name, loaded):
    """In float64 the published iteration gives the same step to a thousandth of its length; torch,
    which takes it in bfloat16, to a tenth, and is the referee of the scale and the decay.
    """
    (torch,) = require("torch")
    config, weights = loaded(name).config, loaded(name).params
    start = jax.tree.map(lambda x: x[None], weights)
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, (1, 1, 4, 12)).astype(np.int32)
    batch = StepArrays(tokens, np.ones(tokens.shape, bool), np.ones((1, 1, 4), np.float32))
    keys = jax.random.split(jax.random.key(1), 1)

    def loss(trained):
        return losses(config, FIT, None, trained, tokens[0], batch.mask[0], batch.weights[0]).sum()

    gradient = jax.grad(loss)(start)
    after = {}
    for optimizer in ("adamw", "muon"):
        options = TrainOptions(steps_per_call=1, optimizer=optimizer)
        state = init_state(FIT, options, jax.tree.map(jnp.copy, start), jnp.copy(keys))
        state, _ = train_steps(config, FIT, options, None, state, batch, jnp.int32(1), jnp.int32(1))
        after[optimizer] = state.weights
    compared = 0
    of_chain = (jax.tree.leaves(tree) for tree in (gradient, after["muon"], after["adamw"]))
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    for (path, first), *of_leaf in zip(leaves, *of_chain, strict=True):
        names = tuple(key.key for key in path)
        grad, ours, adamw = (leaf[0] for leaf in of_leaf)
        if names[0] != "layers" or first.ndim < 3:
            np.testing.assert_array_equal(ours, adamw, err_msg=str(names))
            continue
        for layer in range(config.num_layers):
            before, gradient_of_layer = (np.asarray(x[layer], float) for x in (first, grad))
            step = np.asarray(ours[layer], float) - before
            scale = 0.2 * np.sqrt(max(before.shape))
            exact = -RATE * (scale * _orthogonalised(gradient_of_layer) + DECAY * before)
            assert np.linalg.norm(step - exact) < 1e-3 * np.linalg.norm(exact), names
            # torch's matrices are [out, in]; the scale is the same either way.
            weight = torch.nn.Parameter(torch.tensor(before.T.copy()))
            weight.grad = torch.tensor(gradient_of_layer.T.copy())
            torch.optim.Muon(
                [weight], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
            ).step()
            theirs = weight.detach().numpy().T - before
            assert np.linalg.norm(step - theirs) < 0.1 * np.linalg.norm(theirs), names
            compared += 1
    assert compared == config.num_layers * 4  # qkv, o, up (with gate) and down


def _orthogonalised(matrix):
    """Five steps of Newton and Schulz with the coefficients of Jordan et al. (2024)."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / np.linalg.norm(wide)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
