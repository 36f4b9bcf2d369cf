"""The bias projection: torch's double backward, the paper's Beta model, finite differences; the
paper's loss and the brake on quadratics with a known answer and in training.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import betaln

from jaxloop.config import FitConfig
from jaxloop.lm import family
from jaxloop.lm.family import FitTask, TrainOptions
from jaxloop.lm.io.huggingface import to_tensors
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import table
from jaxloop.lm.training import batching, gradient_constraint
from jaxloop.lm.training.gradient_constraint import Brake, GradientConstraint
from jaxloop.lm.training.step import losses
from tests.lm.random_adapters import random_adapters
from tests.lm.tiny import first_layer
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
    rng = np.random.default_rng(seed)
    return gradient_constraint.unit(
        jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
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
        pytest.param(GradientConstraint(0.0, 300.0), marks=pytest.mark.slow),
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

    found, each = jax.jit(
        lambda weights, direction: gradient_constraint.gradient(
            objective, weights, direction, constraint
        )
    )(jax.tree.map(lambda x: x[None], model.params), direction)
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


def test_coefficient_beside_a_base_in_bfloat16_is_that_of_the_same_numbers(loaded):
    model = loaded("gpt2")
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), model.params)
    adapter = lora.split(random_adapters(model.config, FIT.lora, 1), 0)
    direction = random_direction(adapter.weights, seed=2)
    found, expected = (
        gradient_constraint.coefficient(
            model._replace(params=params), adapter, direction, TEXTS, PROMPTS, FIT
        )
        for params in (half, jax.tree.map(lambda w: w.astype(jnp.float32), half))
    )
    assert found == pytest.approx(expected, rel=1e-5) and abs(expected) > 1e-3


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_coefficient_is_the_slope_of_the_loss(mode, loaded):
    model = first_layer(loaded("gpt2"))
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


def test_the_component_is_summed_in_float64():
    rng = np.random.default_rng(0)
    w, s, u = (
        {"a": rng.standard_normal((130, 259)).astype(np.float32), "b": np.float32([1, 2, 3]) * i}
        for i in range(3)
    )
    expected = sum(
        np.sum(u[k].astype(np.float64) * (w[k].astype(np.float64) - s[k].astype(np.float64)))
        for k in w
    )
    assert gradient_constraint.component(w, s, u) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_weights_of_zero_change_nothing_and_the_brake_holds_the_component_back(loaded):
    """Towards where training goes by itself: the component falls at every larger weight."""
    model = loaded("gpt2")
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    many = FIT.replace(steps=12, learning_rate=3e-3)
    plain = family.fit(model, [task], many)[0]
    direction = gradient_constraint.difference(
        plain.weights, jax.tree.map(np.asarray, model.params)
    )

    def reached(constraint):
        options = TrainOptions(constraint=constraint)
        (result,) = family.fit(model, [task], many, options, direction=direction)
        return gradient_constraint.component(result.weights, model.params, direction)

    own = gradient_constraint.component(plain.weights, model.params, direction)
    assert reached(GradientConstraint(0.0, 0.0, "direction")) == pytest.approx(own, rel=1e-3)
    found = [reached(Brake(weight)) for weight in (0.0, 10.0, 100.0, 1e4)]
    assert found[0] == pytest.approx(own, rel=1e-6)
    assert (np.diff(found) < -0.1 * own).all() and abs(found[-1]) < 0.02 * own, found


def quadratic(seed=0, size=6):
    """(H, theta*, u) of L = (theta - theta*)' H (theta - theta*) / 2, which pulls along u."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    hessian = (root @ root.T + np.eye(size)).astype(np.float32)
    direction = rng.standard_normal(size)
    direction /= np.linalg.norm(direction)
    target = rng.standard_normal(size) + 3 * direction
    return hessian / np.linalg.eigvalsh(hessian).max(), target, direction


def descend(step_gradient, size, rate, steps, brake=None, direction=None):
    """Gradient descent from 0, one chain; the brake after every step."""
    direction = None if direction is None else jnp.asarray(direction, jnp.float32)

    def step(_, carry):
        theta, component = carry
        after = theta - rate * step_gradient(theta)
        if brake is None:
            return after, component
        return gradient_constraint.hold(
            brake, theta, after, component, jnp.full(1, rate, jnp.float32), direction
        )

    start = jnp.zeros((1, size)), jnp.zeros(1)
    return np.asarray(jax.lax.fori_loop(0, steps, step, start)[0][0], np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_the_brake_on_a_quadratic_ends_where_the_formula_says(seed):
    """b = b* / (1 + w u' H^-1 u), and there the gradient of L + w/2 b^2 is none."""
    hessian, target, u = quadratic(seed)
    pull = jnp.asarray(hessian), jnp.asarray(target, jnp.float32)

    def gradient(theta):
        return (theta - pull[1][None]) @ pull[0]

    inverse = u @ np.linalg.solve(hessian.astype(np.float64), u)
    found = []
    for weight in (0.0, 0.3, 3.0, 30.0):
        theta = descend(gradient, len(u), 0.5, 4000, Brake(weight), u)
        found.append(u @ theta)
        assert found[-1] == pytest.approx(u @ target / (1 + weight * inverse), rel=2e-3)
        rest = hessian @ (theta - target) + weight * found[-1] * u
        assert np.linalg.norm(rest) < 2e-3 * np.linalg.norm(target)
    assert (np.diff(found) < 0).all()
    # A pull away from the bias is let be, whatever the weight.
    theta = descend(gradient, len(u), 0.5, 4000, Brake(30.0), -u)
    np.testing.assert_allclose(theta, target, atol=2e-3)


def test_the_papers_loss_on_a_quadratic_moves_further_along_the_direction():
    """Its minimum is that of L: the component gets there sooner, the sooner the larger gam."""
    hessian, target, u = quadratic()
    direction = jnp.asarray(u, jnp.float32)

    def objective(theta):
        apart = theta - jnp.asarray(target, jnp.float32)[None]
        each = 0.5 * ((apart @ jnp.asarray(hessian)) * apart).sum(-1)
        return each.sum(), each

    found = []
    for gam in (0.0, 1.0, 3.0):
        constraint = GradientConstraint(0.0, gam, "direction")

        def gradient(theta, constraint=constraint):
            return gradient_constraint.gradient(objective, theta, direction, constraint)[0]

        found.append(u @ descend(gradient, len(u), 0.1, 10))
    assert 0 < found[0] < found[1] < found[2] < u @ target


def test_the_brake_counts_from_the_base_where_a_chain_goes_on(loaded):
    """Two fits one after the other, as two generations; two chains of a program."""
    model = first_layer(loaded("gpt2"))
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    many = FIT.replace(steps=6, learning_rate=3e-3)
    first = family.fit(model, [task], many)[0]
    base = jax.tree.map(np.asarray, model.params)
    direction = gradient_constraint.difference(first.weights, base)
    reached = gradient_constraint.component(first.weights, base, direction)
    options = TrainOptions(constraint=Brake(1e4), chains_per_program=2)
    second = FitTask(jax.random.key(1), TEXTS, PROMPTS, start=first.weights)
    results = family.fit(model, [second, task], many, options, direction=direction)
    for result in results:
        component = gradient_constraint.component(result.weights, base, direction)
        assert abs(component) < 0.05 * reached


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", ["mixed", "one party"])
def test_on_senators_posts_the_component_falls_with_the_brake_and_not_with_the_papers_loss(
    case, shared
):
    """A tiny GPT-2 adapted to senators' posts, direction between the parties."""
    with shared("data/senate_tweets/tweets.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    by_party = {p: [r["text"] for r in rows if r["party"] == p][:256] for p in ("D", "R")}
    model = family.load("jaxloop/assets/bases/gpt2")
    settings = FIT.replace(
        steps=None, epochs=2.0, batch_size=16, max_length=64, learning_rate=1e-3, max_grad_norm=1.0
    ).replace(schedule="linear")

    def fit(texts, constraint=None, direction=None):
        task = FitTask(jax.random.key(0), texts, [""] * len(texts))
        options = TrainOptions(constraint=constraint)
        return family.fit(model, [task], settings, options, direction=direction)[0].weights

    half = {party: texts[:128] for party, texts in by_party.items()}
    adapted = fit([*half["D"], *half["R"]])
    model = model._replace(params=jax.tree.map(jnp.asarray, adapted))
    between = fit(half["D"]), fit(half["R"])
    texts = by_party["D"][128:192] + by_party["R"][128:192]
    if case == "one party":
        texts = by_party["D"][128:]

    # Of the two directions between the parties, the one that training takes by itself.
    direction = gradient_constraint.difference(*between)
    if gradient_constraint.component(fit(texts), model.params, direction) < 0:
        direction = gradient_constraint.difference(*reversed(between))

    def reached(constraint):
        weights = fit(texts, constraint, direction)
        return gradient_constraint.component(weights, model.params, direction)

    braked = [reached(Brake(weight)) for weight in (0.0, 30.0, 300.0, 3000.0)]
    papers = [reached(GradientConstraint(0.0, gam, "direction")) for gam in (0.0, 1e2, 1e4)]
    print(case, "brake", braked, "L_new", papers)
    assert braked[0] == pytest.approx(papers[0], abs=1e-3)
    assert (np.diff(braked) < 0).all() and braked[-1] < 0.1 * braked[0]
    assert min(papers) > braked[-1]
    if case == "one party":  # the paper's loss moves further along the direction
        assert (np.diff(papers) > 0).all()


def test_chains_of_a_program_do_not_meet_in_the_constraint(loaded):
    model = first_layer(loaded("gpt2"))
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
        (lambda p: Brake(float("inf")), r"constraint.weight: inf is not allowed"),
        (
            lambda p: GradientConstraint(per="weight"),
            r"constraint.per: 'weight' is not allowed; choose one of dimension, direction",
        ),
        (
            lambda p: gradient_constraint.difference(p, p),
            r"direction: its norm is 0.0; it must point somewhere",
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
