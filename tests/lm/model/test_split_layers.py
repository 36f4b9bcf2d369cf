"""Training in bfloat16 as an accelerator runs it, on a CPU: torch in float32 as the referee, and
the properties that every layout must keep.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxloop import lm
from jaxloop.config import FitConfig, LoraConfig
from jaxloop.core.map_chains import AXIS, chain_mesh
from jaxloop.lm.generation.sampling import Sampler, next_token
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model import transformer
from jaxloop.lm.target import Target
from jaxloop.lm.training import loss
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, losses, train_steps
from tests.lm.random_adapters import random_adapters
from tests.lm.tiny import first_layer, with_head
from tests.peers import peer

torch = peer("torch")
peft = peer("peft", "torch")

GPU = Target("gpu")
LORA = LoraConfig(rank=4, alpha=8.0)
FIT = FitConfig(lora=LORA, dtype="bfloat16", batch_size=3, learning_rate=1e-2)
TRAIN = TrainOptions(steps_per_call=4)


def half(params):
    """Weights rounded to bfloat16."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), params)


def batch(chains, rows=3, time=24, seed=1):
    """Tokens, a mask with some of them left out, and weights of the samples, of every chain."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 320, (chains, rows, time)).astype(np.int32)
    return (
        tokens,
        rng.random(tokens.shape) < 0.8,
        (0.5 + rng.random((chains, rows))).astype(np.float32),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def gradient(config, settings, base, weights, batch, target):
    """(losses [C], gradient of their sum)."""

    keys, step = (
        jax.random.split(jax.random.key(0), len(batch[0])),
        jnp.zeros(len(batch[0]), jnp.int32),
    )

    def total(weights):
        each = losses(config, settings, base, weights, *batch, keys, step, target)
        return each.sum(), each

    grads, each = jax.grad(total, has_aux=True)(weights)
    return each, grads


def far(a, b):
    """||a - b|| / ||b|| over all leaves of two trees."""
    a, b = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
        for tree in (a, b)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def by_peft(model, checkpoint, weights, data, folder):
    """(losses [C], gradients of their sum) of the same base, rounded to bfloat16, in float32, by
    transformers and peft.
    """
    exact = model._replace(params=jax.tree.map(lambda x: x.astype(jnp.float32), half(model.params)))
    lm.save(exact, folder / "base")
    losses, grads = [], []
    for chain, (tokens, mask, sample) in enumerate(zip(*data, strict=True)):
        lm.save_peft(
            folder / f"{chain}",
            model.config,
            adapters.Adapter(adapters.split(weights, chain), LORA),
        )
        net = type(checkpoint(model.name).torch).from_pretrained(folder / "base")
        net = peft.PeftModel.from_pretrained(net, folder / f"{chain}", is_trainable=True).eval()
        ids = torch.from_numpy(tokens).long()
        each = torch.nn.functional.cross_entropy(
            net(input_ids=ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        use = torch.from_numpy(mask[:, 1:] * sample[:, None])
        loss = (each * use).sum() / use.sum()
        loss.backward()
        losses.append(float(loss.detach()))
        named = {
            n.replace(".default", ""): p.grad.numpy()
            for n, p in net.named_parameters()
            if p.grad is not None
        }
        grads.append(named)
    return np.array(losses), grads


# OPT is made of what GPT-2 is, and Qwen2 is Llama with biases.
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen2", "opt"))]
)
def test_losses_and_gradients_are_those_of_torch_in_float32(name, loaded, checkpoint, tmp_path):
    """bfloat16 keeps 8 bits: losses within 1e-2, each chain's gradient within 8e-2 of its norm, and
    no further off than twice what the plain form is.
    """
    model = loaded(name)._replace(name=name)
    weights, data = random_adapters(model.config, LORA, 2).weights, batch(2)
    losses, theirs = by_peft(model, checkpoint, weights, data, tmp_path)
    off = {}
    for target in (Target(), GPU):
        each, grads = gradient(model.config, FIT, half(model.params), weights, data, target)
        np.testing.assert_allclose(each, losses, atol=1e-2)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))
        for chain in range(2):
            lm.save_peft(
                tmp_path / "gradient",
                model.config,
                adapters.Adapter(adapters.split(grads, chain), LORA),
            )  # under peft's names
            ours = load_file(tmp_path / "gradient" / "adapter_model.safetensors")
            off[target, chain] = far(
                [ours[key] for key in sorted(theirs[chain])],
                [theirs[chain][key] for key in sorted(theirs[chain])],
            )
    for chain in range(2):
        assert off[GPU, chain] < 8e-2 and off[GPU, chain] < 2 * off[Target(), chain], off


@pytest.mark.parametrize(
    "change",
    [
        "dropout",
        "full",
        "stacked",
        "opt-350m",
        "float32 base",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("some targets", "remat")),
    ],
)
def test_every_way_to_train_computes_what_the_plain_form_does(change, loaded):
    """The same random numbers, the same weights: gradients within 5e-2 of their norm."""
    model, target = (
        loaded(change if "opt" in change else "llama"),
        Target("tpu") if change == "stacked" else GPU,
    )
    lora = LORA.replace(
        dropout=0.3 if change == "dropout" else 0.0,
        targets=("q", "up", "down") if change == "some targets" else "all-linear",
    )
    settings = FIT.replace(
        lora=lora, mode="full" if change == "full" else "lora", remat=change == "remat"
    )
    base = None if change == "full" else half(model.params)
    weights = (
        jax.tree.map(lambda x: jnp.stack([x, x]), model.params)
        if change == "full"
        else random_adapters(model.config, lora, 2).weights
    )
    kept = settings.replace(remat=False)  # what is kept is the same whether or not it is recomputed
    plain = gradient(model.config, kept, base, weights, batch(2), Target())
    ours = gradient(model.config, settings, base, weights, batch(2), target)
    np.testing.assert_allclose(ours[0], plain[0], atol=1e-2)
    assert far(ours[1], plain[1]) < 5e-2
    exact = gradient(model.config, settings, base, weights, batch(2, seed=2), target)
    assert far(exact[1], ours[1]) > 0.5  # other texts: the comparison has something to compare


@pytest.fixture
def few_unrolled(loaded, monkeypatch):
    """A model of more layers than are unrolled, adapters and a batch of it, and its gradient."""
    monkeypatch.setattr(transformer, "UNROLL", 1)
    model = loaded("llama")
    compute = jax.jit(gradient.__wrapped__, static_argnums=(0, 1, 5))
    return model, random_adapters(model.config, LORA, 1).weights, batch(1), compute


def test_layers_are_unrolled_or_scanned_as_the_target_has_it(few_unrolled):
    model, weights, data, compute = few_unrolled

    def count(target):
        made = functools.partial(compute, model.config, FIT, target=target)
        return str(jax.make_jaxpr(made)(half(model.params), weights, data)).count(" scan[")

    # Forwards and backwards; what is left goes over chunks of tokens.
    assert count(Target("tpu")) - count(GPU) == 2


@pytest.mark.slow  # scanned and unrolled layers are held to the plain form and to torch above
def test_unrolled_and_scanned_layers_are_as_exact_as_the_plain_form(few_unrolled):
    model, weights, data, compute = few_unrolled
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), half(model.params))
    _, exact = compute(model.config, FIT.replace(dtype="float32"), exact, weights, data, Target())
    off = [
        far(compute(model.config, FIT, half(model.params), weights, data, target)[1], exact)
        for target in (Target(), GPU, Target("tpu"))
    ]
    assert max(off[1:]) < 1.5 * off[0], off


def steps(model, target, chains, *, mesh=None, together=None, seeds=(0, 1, 2, 3), poison=None):
    """Weights and losses after three steps of `chains` chains in bfloat16, chain c with the
    adapters and texts of seeds[c].
    """
    keys = jnp.stack([jax.random.key(s) for s in seeds[:chains]])
    start = adapters.init(keys, model.config, LORA).weights
    if poison is not None:
        start["q"]["b"] = start["q"]["b"].at[poison].set(jnp.nan)
    data = [batch(4, seed=10 + s) for s in seeds[:chains]]
    batches = [np.stack([x[i] for x in data], 1) for i in range(3)]
    state = init_state(FIT, TRAIN, start, keys)
    base = half(model.params)
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec(AXIS)))
        base = jax.device_put(base, NamedSharding(mesh, PartitionSpec()))
    state, log = train_steps(
        model.config,
        FIT,
        TRAIN,
        base,
        state,
        StepArrays(*batches),
        np.int32(3),
        np.int32(9),
        mesh=mesh,
        target=target,
        vmapped_chains=together,
    )
    return jax.device_get(state.weights), np.asarray(log)[:3]


def chain(tree, c):
    return jax.tree.map(lambda leaf: leaf[c], tree)


def test_a_chain_trains_the_same_whatever_its_neighbours_are(loaded):
    """To the bit in one program, also beside a chain that is not a number; no second compilation;
    chains that take turns agree to rounding.
    """
    model = first_layer(loaded("llama"))
    before = train_steps._cache_size()
    weights, log = steps(model, GPU, 4)
    others, other_log = steps(model, GPU, 4, seeds=(0, 7, 8, 9), poison=2)
    assert train_steps._cache_size() == before + 1
    jax.tree.map(np.testing.assert_array_equal, chain(weights, 0), chain(others, 0))
    np.testing.assert_array_equal(log[:, 0], other_log[:, 0])
    assert not np.isfinite(other_log[1:, 2]).any() and np.isfinite(np.delete(other_log, 2, 1)).all()
    turns, turns_log = steps(model, GPU, 4, together=2)
    np.testing.assert_allclose(turns_log, log, atol=2e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-2), turns, weights)


def test_one_device_trains_what_four_do(loaded):
    model = first_layer(loaded("llama"))
    one, four = steps(model, GPU, 4), steps(model, GPU, 4, mesh=chain_mesh(jax.devices()[:4]))
    np.testing.assert_allclose(one[1], four[1], atol=2e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-2), one[0], four[0])


@pytest.mark.parametrize("half", [False, True])
def test_cross_entropy_over_a_large_vocabulary_is_torchs(half, monkeypatch):
    """Llama 3's 128,256 words, chunks of 20 of 50 tokens, weights of the tokens' own; float32 to
    1e-4, logits in bfloat16 to 0.13 nats of a token and 2e-2 of their mean; gradients to 1e-4 and
    2e-2 of their norm.
    """
    n, d, v = 50, 16, 128256
    monkeypatch.setattr(loss, "BFLOAT16_CHUNK" if half else "CHUNK", 20 * v)
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if half else jnp.float32
    x, head = (
        jnp.asarray(2 * rng.standard_normal((n, d)), dtype),
        jnp.asarray(rng.standard_normal((v, d)), dtype),
    )
    targets, weights = rng.integers(0, v, n).astype(np.int32), rng.random(n).astype(np.float32)
    config = with_head(v, d, final_norm=False)
    nll = loss.bfloat16_nll if half else loss.token_nll

    @jax.jit
    def ours(x, head):
        def each(x):
            return nll(config, {"embed": head, "head": head}, x, targets)

        return each(x), jax.grad(lambda x: (each(x) * weights).sum())(x)

    tx = torch.tensor(np.asarray(x, np.float32), requires_grad=True)
    each = torch.nn.functional.cross_entropy(
        tx @ torch.tensor(np.asarray(head, np.float32)).T,
        torch.tensor(targets).long(),
        reduction="none",
    )
    (each * torch.tensor(weights)).sum().backward()
    got, dx = ours(x, head)
    assert got.dtype == jnp.float32
    # A logit of 16 to 32 is rounded by up to 1/16.
    np.testing.assert_allclose(got, each.detach().numpy(), atol=0.13 if half else 1e-4, rtol=0)
    assert abs(float(got.mean()) - float(each.detach().mean())) < (2e-2 if half else 1e-4)
    assert far(dx, tx.grad.numpy()) < (2e-2 if half else 1e-4)


def test_logits_beyond_the_range_of_exp_have_a_loss():
    """Rows whose logits span hundreds, with equal largest ones, targets far below, and all equal:
    torch's losses, to the rounding of logits (2^-8).
    """
    rng = np.random.default_rng(1)
    head = jnp.asarray(np.concatenate([np.eye(8), rng.standard_normal((120, 8))]), jnp.bfloat16)
    x = jnp.asarray(
        [[300, 300, -300, 0, 0, 0, 0, 0], [-256, 0, 0, 0, 0, 0, 0, 256], [0] * 8], jnp.bfloat16
    )
    config = with_head(128, 8, final_norm=False)
    targets = np.array([2, 7, 5], np.int32)
    got = loss.bfloat16_nll(config, {"embed": head, "head": head}, x, targets)
    logits = torch.tensor(np.asarray(x, np.float32) @ np.asarray(head, np.float32).T)
    exact = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets).long(), reduction="none"
    )
    np.testing.assert_allclose(got, exact.numpy(), rtol=2**-8, atol=1e-5)


def test_tokens_are_drawn_in_float32_from_models_in_bfloat16():
    """A tail of one in 2^17 under logits from bfloat16 states: its frequency over 2^18 uniforms,
    two for each of its words, is what float32 theory says, and every word of it is met. (Uniform
    numbers or sums in half precision know no step that small.)
    """
    v, d = 1024, 8
    head = jnp.zeros((v, d), jnp.bfloat16).at[0, 0].set(1.0)
    x = jnp.zeros((1, d), jnp.bfloat16).at[0, 0].set(11.75)
    logits = transformer.logits_of_head(x, head)
    assert logits.dtype == jnp.float32
    p = np.exp(np.asarray(logits[0], np.float64))
    p /= p.sum()
    tail, n = 1 - p[0], 1 << 18
    u = (np.arange(n) + 0.5) / n
    draw = jax.jit(jax.vmap(lambda u: next_token(Sampler(), logits, u[None])[0]))
    drawn = np.concatenate(
        [np.asarray(draw(part)) for part in u.astype(np.float32).reshape(16, -1)]
    )
    assert abs((drawn > 0).mean() - tail) < 2e-2 * tail + 4 / n
    assert len(np.unique(drawn)) == v
