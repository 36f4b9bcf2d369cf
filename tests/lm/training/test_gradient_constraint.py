"""The bias projection: torch's double backward, the paper's Beta model, finite
differences, and training under a constraint.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import betaln

from jaxloop.config import FitConfig
from jaxloop.lm import family
from jaxloop.lm.family import FitTask, TrainOptions
from jaxloop.lm.io.huggingface import to_tensors
from jaxloop.lm.model.config import table
from jaxloop.lm.training import batching, gradient_constraint
from jaxloop.lm.training.gradient_constraint import GradientConstraint
from jaxloop.lm.training.step import losses
from tests.peers import peer

torch = peer("torch")

TEXTS = [
    "the cat sat on the mat",
    "a model that reads what another model wrote",
    "the rat ran to the hat and then sat",
    "reads less each time",
]
PROMPTS = [""] * len(TEXTS)
FIT = FitConfig(
    mode="full",
    completion_only=False,
    batch_size=4,
    steps=1,
    learning_rate=1e-2,
    schedule="constant",
    warmup_steps=0,
    max_grad_norm=None,
    weight_decay=0.0,
    length_buckets=1,
    max_length=32,
)


def random_direction(params, seed=0):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return gradient_constraint.unit(
        jax.tree.unflatten(
            tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        )
    )


def one_batch(model):
    examples = batching.encode_examples(
        model.tokenizer, TEXTS, PROMPTS, max_length=32, completion_only=False
    )
    tokens, mask = batching.fill(
        examples, batching.StepBatch(32, np.arange(4)[None]), 1, model.tokenizer.pad
    )
    return tokens, mask


@pytest.mark.parametrize(
    "constraint",
    [
        GradientConstraint(0.0, 300.0),
        GradientConstraint(2000.0, 500.0),
        GradientConstraint(300.0, 700.0, "direction"),
    ],
)
def test_gradient_is_that_of_torchs_double_backward(constraint, checkpoint, loaded):
    model, reference = loaded("gpt2"), checkpoint("gpt2").torch
    direction = random_direction(model.params)
    tokens, mask = one_batch(model)
    ones = np.ones((1, 4), np.float32)

    def objective(weights):
        each = losses(
            model.config,
            FIT,
            None,
            weights,
            jnp.asarray(tokens),
            jnp.asarray(mask),
            jnp.asarray(ones),
        )
        return each.sum(), each

    found, each = gradient_constraint.gradient(
        objective, jax.tree.map(lambda x: x[None], model.params), direction, constraint
    )
    found = to_tensors(
        jax.tree.map(lambda x: x[0], found), table(model.config), model.config.num_layers
    )
    u = {
        k: torch.from_numpy(v.copy())
        for k, v in to_tensors(direction, table(model.config), model.config.num_layers).items()
    }

    weights = {k: p for k, p in reference.named_parameters() if k in u}
    ids = torch.from_numpy(tokens[0]).long()
    with torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    ):  # the others have no second derivative
        logits = reference(ids).logits[:, :-1].log_softmax(-1)
    nll = -logits.gather(-1, ids[:, 1:, None])[..., 0]
    loss = nll[torch.from_numpy(mask[0, :, 1:])].mean()
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    parts = [u[k] * g for k, g in zip(weights, grads, strict=True)]
    if constraint.per == "direction":
        parts = [sum(p.sum() for p in parts)]
    new = (
        loss
        - constraint.lam * sum(p.clamp(min=0).square().sum() for p in parts)
        + constraint.gam * sum(p.clamp(max=0).square().sum() for p in parts)
    )
    expected = dict(zip(weights, torch.autograd.grad(new, list(weights.values())), strict=True))
    plain = dict(zip(weights, grads, strict=True))
    np.testing.assert_allclose(each, [loss.item()], rtol=1e-5)
    moved = 0.0
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value.detach().numpy(), rtol=2e-3, atol=2e-5, err_msg=name
        )
        moved = max(moved, float((value - plain[name]).detach().abs().max()))
    assert moved > 1e-2  # the constraint changes the gradient by far more than the tolerance


def test_beta_model_has_the_coefficients_of_the_specification():
    """theta_unb = (2, 2), population weighted likelihood (arXiv 2410.15234, 3.1)."""
    unbiased = jnp.asarray([2.0, 2.0])
    x = (jnp.arange(200_000, dtype=jnp.float32) + 0.5) / 200_000

    def density(theta):
        return jnp.exp(
            (theta[0] - 1) * jnp.log(x)
            + (theta[1] - 1) * jnp.log1p(-x)
            - betaln(theta[0], theta[1])
        )

    def coefficient(theta, data, weight):
        w = density(data) * density(weight) if weight is not None else density(data)
        u = theta - unbiased

        def log_f(t):
            return (t[0] - 1) * jnp.log(x) + (t[1] - 1) * jnp.log1p(-x) - betaln(t[0], t[1])

        return float(
            gradient_constraint.slope(
                lambda t: -(w * log_f(t)).sum() / w.sum(), theta, u / jnp.linalg.norm(u)
            )
        )

    pre = jnp.asarray([3.0, 2.0])
    assert coefficient(pre, unbiased, pre) == pytest.approx(0.0333, abs=1e-4)
    assert coefficient(pre, unbiased, None) == pytest.approx(0.25, abs=2e-3)
    for t, expected in enumerate((-0.0479, -0.0284, -0.01564)):
        theta = jnp.asarray([1 + 3 * 2.0**t, 1 + 2 * 2.0**t])
        assert coefficient(theta, theta, theta) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_coefficient_is_the_slope_of_the_loss(mode, loaded):
    model = loaded("gpt2")
    settings = FIT.replace(mode=mode, steps=3)
    result = family.fit(model, [FitTask(jax.random.key(0), TEXTS, PROMPTS)], settings)[0]
    direction = random_direction(result.weights, seed=2)
    found = gradient_constraint.coefficient(
        model, result.weights, direction, TEXTS, PROMPTS, settings, rows=3
    )
    step = (
        3e-3 * sum(np.square(np.asarray(w)).sum() for w in jax.tree.leaves(result.weights)) ** 0.5
    )

    def mean_loss(by):
        moved = jax.tree.map(
            lambda w, u: np.asarray(w + by * u, np.float32), result.weights, direction
        )
        scored = family.loss(model, [family.LossTask(moved, TEXTS, PROMPTS)], settings)[0]
        return scored.nll.sum() / scored.tokens.sum()

    assert found == pytest.approx(
        (mean_loss(step) - mean_loss(-step)) / (2 * step), rel=0.02, abs=1e-4
    )
    assert gradient_constraint.component(
        jax.tree.map(lambda w, u: w + 2 * u, result.weights, direction), result.weights, direction
    ) == pytest.approx(2, rel=1e-4)


def test_a_constraint_of_no_weight_changes_nothing_and_one_of_weight_holds_the_bias_back(loaded):
    model = loaded("gpt2")
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    many = FIT.replace(steps=12, learning_rate=3e-3)
    plain = family.fit(model, [task], many)[0]
    direction = gradient_constraint.difference(
        plain.weights, jax.tree.map(np.asarray, model.params)
    )  # where training goes by itself
    held = {}
    for gam in (0.0, 1e3):
        options = TrainOptions(constraint=GradientConstraint(0.0, gam, "direction"))
        held[gam] = family.fit(model, [task], many, options, direction=direction)[0]
    moved = {
        gam: gradient_constraint.component(r.weights, model.params, direction)
        for gam, r in held.items()
    }
    assert moved[0.0] == pytest.approx(
        gradient_constraint.component(plain.weights, model.params, direction), rel=1e-3
    )
    assert moved[1e3] < 0.7 * moved[0.0]


def test_chains_of_a_program_do_not_meet_in_the_constraint(loaded):
    model = loaded("gpt2")
    settings = FIT.replace(steps=2)
    options = TrainOptions(chains_per_program=2, constraint=GradientConstraint(0.0, 1e3))
    direction = random_direction(model.params)
    tasks = [FitTask(jax.random.key(i), TEXTS[i:] + TEXTS[:i], PROMPTS) for i in range(2)]
    both = family.fit(model, tasks, settings, options, direction=direction)
    for i, task in enumerate(tasks):
        alone = family.fit(model, [task], settings, options, direction=direction)[0]
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(both[i].weights), jax.tree.leaves(alone.weights), strict=True
            )
        )


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: GradientConstraint(gam=-1.0), r"constraint.gam: -1.0 is not allowed"),
        (
            lambda p: GradientConstraint(per="weight"),
            r"constraint.per: 'weight' is not allowed; choose one of dimension, direction",
        ),
        (
            lambda p: gradient_constraint.difference(p, p),
            r"direction: its norm is 0.0; the two sets of weights must differ",
        ),
        (
            lambda p: gradient_constraint.difference(p, {"embed": p["embed"]}),
            r"direction: the two sets of weights have different leaves",
        ),
        (
            lambda p: gradient_constraint.check({**p, "embed": p["embed"][:2]}, p),
            r"direction: \['embed'\] has shape \(2, 32\), the model's weights have \(320, 32\)",
        ),
    ],
)
def test_what_is_refused(make, said, loaded):
    with pytest.raises(ValueError, match=said):
        make(loaded("gpt2").params)


@pytest.mark.parametrize(
    "fit, directed, said",
    [
        (FIT, False, "a constraint and a direction belong together"),
        (
            FIT.replace(dtype="bfloat16"),
            True,
            "fit.dtype: bfloat16 is not allowed with a constraint",
        ),
    ],
)
def test_a_fit_that_cannot_be_constrained_is_refused(fit, directed, said, loaded):
    model = loaded("gpt2")
    direction = random_direction(model.params) if directed else None
    options = TrainOptions(constraint=GradientConstraint())
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    with pytest.raises(ValueError, match=said):
        family.fit(model, [task], fit, options, direction=direction)
