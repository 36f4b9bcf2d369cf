"""The loss over a vocabulary and its derivatives, a chunk of tokens at a time, held to torch's
cross entropy; and those of adapters in it.

Dimensions: N tokens, D model, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import LoraConfig
from jaxloop.lm.model import linear
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, fused_projections, projection_widths
from jaxloop.lm.training import loss
from tests.lm.random_adapters import random_adapters
from tests.lm.tiny import first_layer, with_head
from tests.peers import peer

torch = peer("torch")

N, D, V = 23, 16, 61
CONFIG = ModelConfig(
    "llama",
    vocab_size=V,
    d_model=D,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    d_ff=32,
    max_seq_len=64,
    tie_word_embeddings=False,
)
WHOLE, CHUNKED = loss.CHUNK, 5 * V  # five tokens at a time: a last chunk of three


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "x": 3 * draw(N, D),
        "head": draw(V, D),
        "scale": 1 + 0.1 * draw(D),
        "targets": rng.integers(0, V, N).astype(np.int32),
        "weights": draw(N),
    }


def nll(head, x, scale, targets):
    return loss.token_nll(
        CONFIG,
        {"embed": jnp.zeros((V, D), head.dtype), "head": head, "norm_scale": scale},
        x,
        targets,
    )


def total(x, head, inputs):
    return (
        nll(head, x, jnp.asarray(inputs["scale"], head.dtype), inputs["targets"])
        * inputs["weights"]
    ).sum()


def by_torch(inputs):
    """(losses, gradient of x, gradient of the head) of the weighted sum, float64."""
    x, head, scale, weights = (
        torch.tensor(inputs[k], dtype=torch.float64) for k in ("x", "head", "scale", "weights")
    )
    x.requires_grad_(True), head.requires_grad_(True)
    normed = torch.nn.functional.rms_norm(x, (D,), scale, eps=CONFIG.norm_eps)
    each = torch.nn.functional.cross_entropy(
        normed @ head.T, torch.tensor(inputs["targets"], dtype=torch.int64), reduction="none"
    )
    (each * weights).sum().backward()
    return each.detach().numpy(), x.grad.numpy(), head.grad.numpy()


@pytest.mark.parametrize("chunk", [WHOLE, CHUNKED])
def test_losses_and_gradients_are_torchs(inputs, chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    each, dx, dhead = by_torch(inputs)
    np.testing.assert_allclose(
        jax.jit(nll)(inputs["head"], inputs["x"], inputs["scale"], inputs["targets"]),
        each,
        atol=1e-5,
        rtol=1e-5,
    )
    frozen = jax.jit(jax.grad(functools.partial(total, inputs=inputs)))(inputs["x"], inputs["head"])
    np.testing.assert_allclose(frozen, dx, atol=1e-5, rtol=1e-4)
    both = jax.jit(jax.grad(functools.partial(total, inputs=inputs), (0, 1)))(
        inputs["x"], inputs["head"]
    )
    np.testing.assert_allclose(both[0], dx, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(both[1], dhead, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [WHOLE, CHUNKED])
def test_the_loss_and_its_gradient_can_be_differentiated_forwards(inputs, chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    of_x = functools.partial(total, head=inputs["head"], inputs=inputs)
    along = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    slope = jax.jit(lambda x, d: jax.jvp(of_x, (x,), (d,))[1])(inputs["x"], along)
    np.testing.assert_allclose(slope, np.vdot(by_torch(inputs)[1], along), rtol=1e-4)
    turned = jax.jit(lambda x, d: jax.jvp(jax.grad(of_x), (x,), (d,))[1])(inputs["x"], along)
    # Central differences of torch's gradient.
    step = 1e-4
    moved = [
        by_torch(inputs | {"x": inputs["x"].astype(np.float64) + sign * step * along})[1]
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(turned, (moved[0] - moved[1]) / (2 * step), atol=1e-4, rtol=1e-3)


def test_bfloat16_agrees_with_float64(inputs):
    half = {k: jnp.asarray(inputs[k], jnp.bfloat16) for k in ("x", "head", "scale")}
    seen = inputs | {k: np.asarray(v, np.float32) for k, v in half.items()}
    each, dx, _ = by_torch(seen)
    np.testing.assert_allclose(
        nll(half["head"], half["x"], half["scale"], inputs["targets"]), each, atol=0.1, rtol=2e-2
    )
    got = jax.grad(functools.partial(total, inputs=seen))(half["x"], half["head"])
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(got, np.float64) - dx) < 1e-2 * np.linalg.norm(dx)


def test_a_frozen_head_makes_logits_once_and_never_those_of_a_whole_batch(monkeypatch):
    """Two products, for the logits and for the gradient of the states; where the head is trained
    one for its gradient, and logits again.
    """
    n, d, v = 512, 64, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (v, d))]
    config = with_head(v, d)

    def whole(x, head):
        params = {"embed": jnp.zeros((v, d)), "head": head, "norm_scale": jnp.ones(d)}
        return loss.token_nll(config, params, x, jnp.zeros(n, jnp.int32)).sum()

    def products(argnums):
        """Products in the traced gradient."""
        text = str(jax.make_jaxpr(jax.grad(whole, argnums))(*shapes))
        return text.count("dot_general")

    assert products((0,)) == 2
    assert products((0, 1)) == 3
    monkeypatch.setattr(loss, "CHUNK", n * v // 8)
    assert products((0,)) == 2
    assert products((0, 1)) == 4
    made = jax.jit(jax.grad(whole)).lower(*shapes).compile()
    assert made.memory_analysis().temp_size_in_bytes < n * v * 4


@pytest.mark.parametrize(
    "name, chains, every",
    [("llama", 2, 1), ("gpt2", 1, 1), pytest.param("llama", 1, 2, marks=pytest.mark.slow)],
)
def test_adapters_that_are_added_to_the_weights_have_the_same_derivatives(
    name, chains, every, loaded
):
    """Forwards, backwards and forwards through the gradient, of the loss of several chains; the
    base is frozen, `every` n-th part has an adapter.
    """
    model = first_layer(loaded(name))
    lora = LoraConfig(
        rank=4,
        alpha=10.0,
        targets=tuple(p.name for group in fused_projections(model.config).values() for p in group)[
            ::every
        ],
    )
    adapter, width = (
        random_adapters(model.config, lora, chains),
        max(w[0] for w in projection_widths(model.config).values()),
    )
    t = np.random.default_rng(1).integers(3, 320, (chains, -(-width // 24), 24)).astype(np.int32)
    along = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(3).standard_normal(leaf.shape), jnp.float32),
        adapter,
    )

    def total(adapter, summed):
        layout = "mergeable" if summed else "split"
        packed = adapters.pack_adapters(model.config, adapter, jnp.float32, layout)
        ones = np.ones(t.shape, bool)
        return loss.chain_losses(
            model.config, model.params, t, ones, np.ones(t.shape[:2], np.float32), packed=packed
        ).sum()

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(adapter, summed):
        gradient = jax.grad(lambda tree: total(tree, summed))
        return (
            gradient(adapter),
            jax.jvp(lambda tree: total(tree, summed), (adapter,), (along,)),
            jax.jvp(gradient, (adapter,), (along,))[1],
        )

    plain, summed = derivatives(adapter, False), derivatives(adapter, True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * float(jnp.abs(a).max()), rtol=1e-3)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            linear,
            "lora_linear_merged",
            lambda widths, x, *rest: taken.append(1) or [jnp.zeros((len(x), n)) for n in widths],
        )
        jax.eval_shape(functools.partial(total, summed=True), adapter)
    # One layer is traced for all.
    assert len(taken) == sum(
        any(p.name in adapter for p in group) for group in fused_projections(model.config).values()
    )
