"""Linear models of several entities: Theorems 1 to 3 against drawn labels and refits, and the
relative-efficiency figure with its optimum.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxloop.core import mixing as mixings
from jaxloop.reporting import report
from jaxloop.simulators import linear
from jaxloop.studies.common.report import slug
from jaxloop.studies.theory import isotropic, linear_published
from jaxloop.studies.theory.compare import Check, Claim, Conclusion, Experiment, Quantity
from jaxloop.studies.theory.config import LinearConfig, TheoryConfig
from jaxloop.studies.theory.linear_efficiency import (
    FAR,
    Optimum,
    draw_efficiency,
    find_optimum,
)

T = TypeVar("T")

PROOF = "Theorems 1 to 3 of arXiv 2505.21677, evaluated for these designs"

# Generations after generation 0 in which transfer is compared.
TRANSFER_GENERATIONS = 5
# Weights of synthetic data at which many generations are simulated.
FAR_ALPHAS = np.array([0.05, 0.2, 0.4, 0.6, 0.8])


class _Case(NamedTuple):
    """One setting of the linear model: designs, and options of `linear.closed_form`."""

    designs: linear.Designs
    options: dict[str, Any]


def _seed(config: TheoryConfig, number: int) -> int:
    """The seed of draw `number` of the designs."""
    return config.seed * 1000 + number


def _designs(config: TheoryConfig, number: int = 0) -> linear.Designs:
    s = config.linear
    return linear.low_rank_designs(
        _seed(config, number),
        entities=s.entities,
        dim=s.dim,
        rank=s.rank,
        public=s.public,
        scale=s.scale,
    )


def _theta(config: TheoryConfig) -> np.ndarray:
    return np.random.default_rng(_seed(config, 999)).normal(size=config.linear.dim)


def experiments(config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
    """Return all comparisons of the config. Raises ValueError as `linear.closed_form` does."""
    s, designs = config.linear, _designs(config)
    base = dict(alpha=s.alpha, beta=s.beta, sigma2=s.sigma2, generations=s.generations)
    steps = np.linspace(0, 1, s.generations + 1)
    experiments = [_main_setting(config, designs, base, mesh)]
    groups: dict[str, dict[str, _Case]] = {
        "Error by who reads whom": {
            name: _Case(designs, base | {"mixing": mixings.named(name, s.entities)})
            for name in s.mixings
        },
        "Error by weight of synthetic data": {
            f"alpha = {a:g}": _Case(designs, base | {"alpha": a}) for a in s.alphas
        },
        "Error where weights and prompts change": {
            "alpha rises from 0 to 1": _Case(designs, base | {"alpha": steps}),
            "beta falls from 1 to 0": _Case(designs, base | {"beta": steps[::-1]}),
            "new prompts every generation": _Case(_fresh_prompts(config, designs), base),
        },
    }
    for name, cases in groups.items():
        for line, case in cases.items():
            experiments.append(_mean_error(config, name, line, case, mesh))
    experiments += [_late(config, designs, base, mesh), _divergence(config, mesh)]
    experiments.append(_transfer(config, designs, mesh))
    return experiments + [_far(config, designs, b, mesh) for b in s.betas]


def _fresh_prompts(config: TheoryConfig, designs: linear.Designs) -> linear.Designs:
    """The designs with new prompts in every generation."""
    rng, s = np.random.default_rng(_seed(config, 998)), config.linear
    prompts = tuple(
        tuple(rng.normal(size=(s.rank, s.dim)) * np.sqrt(s.scale) for _ in range(s.entities))
        for _ in range(s.generations)
    )
    return linear.Designs(designs.private, designs.public, prompts)


def _draw(
    config: TheoryConfig,
    designs: linear.Designs,
    theta: np.ndarray,
    options: Mapping[str, Any],
    mesh: Mesh | None,
    read: Callable[[np.ndarray], T],
) -> Callable[[int], T]:
    """`read` of the estimates [R, T+1, K, d] of a seed."""
    batch = config.linear.batch
    return lambda seed: read(
        linear.simulate(designs, theta, replicates=batch, seed=seed, mesh=mesh, **options)
    )


def _squares(theta_hat: np.ndarray, theta: np.ndarray | float) -> np.ndarray:
    return ((theta_hat - theta) ** 2).sum(-1)


def _main_setting(
    config: TheoryConfig, designs: linear.Designs, base: Mapping[str, Any], mesh: Mesh | None
) -> Experiment:
    """The main setting in full: error of every entity, error on its own and on another's task,
    disagreement, and the mean along theta.
    """
    theta = _theta(config)
    moments, t = linear.closed_form(designs, theta, **base), np.arange(base["generations"] + 1)
    k = designs.entities
    along = theta / (theta @ theta)
    quantities = [
        Quantity.of("Error of an entity", t, moments.mse[:, i], line=f"entity {i + 1}")
        for i in range(k)
    ]
    quantities += [
        Quantity.of("Error of entity 1 on a task", t, moments.mspe[:, 0, i], line=line)
        for i, line in ((0, "its own"), (1, "another's"))
    ]
    quantities.append(Quantity.of("Disagreement between entities", t, moments.disagreement))
    quantities.append(
        Quantity.of("Mean estimate along the truth", t, (moments.mean @ along).mean(1))
    )

    def read(hat):
        errors = _squares(hat, theta)
        tasks = [(((hat[:, :, 0] - theta) @ designs.private[i].T) ** 2).sum(-1) for i in (0, 1)]
        apart = _squares(hat, hat.mean(2, keepdims=True)).mean(2)
        return [*(errors[:, :, i] for i in range(k)), *tasks, apart, (hat @ along).mean(2)]

    return Experiment(
        "main_setting", tuple(quantities), _draw(config, designs, theta, base, mesh, read)
    )


def _mean_error(
    config: TheoryConfig, name: str, line: str, case: _Case, mesh: Mesh | None
) -> Experiment:
    """The error, averaged over entities, by generation."""
    theta = _theta(config)
    moments = linear.closed_form(case.designs, theta, **case.options)
    quantity = Quantity.of(name, np.arange(len(moments.mse)), moments.mse.mean(1), line=line)
    draw = _draw(
        config,
        case.designs,
        theta,
        case.options,
        mesh,
        lambda hat: [_squares(hat, theta).mean(2)],
    )
    return Experiment(f"{slug(name)}__{slug(line)}", (quantity,), draw)


def _late(
    config: TheoryConfig, designs: linear.Designs, base: dict[str, Any], mesh: Mesh | None
) -> Experiment:
    """Unequal weights, and a last entity that joins after a quarter of the generations."""
    k, theta = designs.entities, _theta(config)
    joins = np.zeros(k, int)
    joins[-1] = max(base["generations"] // 4, 1)
    options = base | {"alpha": np.linspace(0.2, 0.8, k)[None], "joins": joins}
    moments = linear.closed_form(designs, theta, **options)
    quantities = []
    for i in range(k):
        t = np.arange(joins[i], base["generations"] + 1)
        line = f"alpha = {options['alpha'][0, i]:.2g}" + (
            f", joins in generation {joins[i]}" if joins[i] else ""
        )
        quantities.append(
            Quantity.of(
                "Error with unequal weights and a late entity", t, moments.mse[t, i], line=line
            )
        )

    def read(hat):
        errors = _squares(hat, theta)
        return [errors[:, joins[i] :, i] for i in range(k)]

    return Experiment(
        "late_entity", tuple(quantities), _draw(config, designs, theta, options, mesh, read)
    )


def _transfer(config: TheoryConfig, designs: linear.Designs, mesh: Mesh | None) -> Experiment:
    """How much smaller the error on the others' tasks is where everyone reads everyone: than that
    of entities that read as much synthetic data, all of it their own, and than without any.
    """
    s, theta, others = config.linear, _theta(config), ~np.eye(config.linear.entities, dtype=bool)
    # Without synthetic data alpha is an array too, so that all three are one compiled program.
    alpha = np.full(TRANSFER_GENERATIONS + 1, s.alpha)
    base: dict[str, Any] = {"beta": s.beta, "sigma2": s.sigma2, "generations": len(alpha) - 1}
    cases = {
        "everyone": base | {"alpha": alpha},
        "against own text": base | {"alpha": alpha, "mixing": np.eye(s.entities)},
        "against alpha = 0 (the paper)": base | {"alpha": 0 * alpha},
    }
    exact = {
        name: linear.closed_form(designs, theta, **options).mspe[1:, others].mean(1)
        for name, options in cases.items()
    }

    def cross(hat):
        errors = np.stack([(((hat - theta) @ x.T) ** 2).sum(3) for x in designs.private], 3)
        return errors[:, 1:, others].mean(2)

    draws = {
        name: _draw(config, designs, theta, options, mesh, cross) for name, options in cases.items()
    }
    compared = [name for name in cases if name != "everyone"]
    quantities = [
        Quantity.of(
            "Transfer by what it is measured against",
            np.arange(1, len(alpha)),
            exact[name] - exact["everyone"],
            line=name,
        )
        for name in compared
    ]

    def draw(seed):
        # Equal seeds draw equal real labels: what differs is the synthetic text.
        drawn = {name: of(seed) for name, of in draws.items()}
        return [drawn[name] - drawn["everyone"] for name in compared]

    return Experiment("transfer", tuple(quantities), draw)


def diverging() -> linear.Designs:
    """Private data that determine theta for each of two entities, and synthetic designs that blow
    the variance up: rho(Q) = 1.15.
    """
    roots = [
        np.linalg.cholesky(np.array(s) / 3).T
        for s in ([[13.0, -28], [-28, 61]], [[61.0, -28], [-28, 13]])
    ]
    return linear.Designs(tuple(roots), None, (np.diag([np.sqrt(2), 0]), np.diag([0, np.sqrt(2)])))


def _divergence(config: TheoryConfig, mesh: Mesh | None) -> Experiment:
    """The exact counterexample to convergence, beside the same private data with equal synthetic
    designs.
    """
    options: dict[str, Any] = {
        "alpha": 0.5,
        "beta": 1.0,
        "sigma2": config.linear.sigma2,
        "generations": 30,
    }
    bad, theta = diverging(), np.zeros(2)
    good = linear.Designs(bad.private, None, (np.eye(2), np.eye(2)))
    t, quantities, draws = np.arange(31), [], []
    for line, designs in (("unequal designs", bad), ("equal designs", good)):
        moments = linear.closed_form(designs, theta, **options)
        line = f"{line}, radius {moments.spectral_radius:.2f}"
        quantities.append(
            Quantity.of("Error where synthetic data diverge", t, moments.mse.sum(1), line=line)
        )
        draws.append(
            _draw(config, designs, theta, options, mesh, lambda hat: _squares(hat, theta).sum(2))
        )
    return Experiment("divergence", tuple(quantities), lambda seed: [draw(seed) for draw in draws])


def _far(
    config: TheoryConfig, designs: linear.Designs, beta: float, mesh: Mesh | None
) -> Experiment:
    """Error after many generations, where the curves of the relative-efficiency figure are."""
    s, theta = config.linear, _theta(config)
    all_options = [dict(alpha=a, beta=beta, sigma2=s.sigma2, generations=FAR) for a in FAR_ALPHAS]
    exact = [
        linear.closed_form(designs, theta, **options).mse[-1].mean() for options in all_options
    ]
    quantity = Quantity.of(
        f"Error after {FAR} generations",
        FAR_ALPHAS,
        exact,
        axis="alpha",
        line=f"beta = {beta:g}",
    )

    def draw(seed):
        last = [
            linear.simulate(designs, theta, replicates=s.batch, seed=seed, mesh=mesh, **options)[
                :, -1
            ]
            for options in all_options
        ]
        return [np.stack([_squares(hat, theta).mean(1) for hat in last], 1)]

    return Experiment(f"far__beta_{slug(f'{beta:g}')}", (quantity,), draw)


# ---- the relative-efficiency figure


def conclude(config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]) -> Conclusion:
    """Return the relative-efficiency figure, its optimum, and what the study states."""
    s = config.linear
    all_designs = [_designs(config, i) for i in range(s.designs)]
    alphas = np.linspace(0.001, 0.99, 60)
    sweeps = [
        linear.sweep(
            designs, np.zeros(s.dim), alpha=alphas, beta=s.betas, sigma2=s.sigma2, mesh=mesh
        )
        for designs in all_designs
    ]
    curves = np.mean([sweep.relative_efficiency for sweep in sweeps], 0)
    grid, values, best = find_optimum(config, all_designs, mesh)
    note = (
        "Error of the best unbiased estimate from all real data over the error in the limit; "
        f"{s.entities} entities, {s.dim} features, {s.rank} private rows each, averaged over "
        f"{s.designs} draws of the designs."
    )
    drawings = draw_efficiency(config, alphas, curves, grid, values, best, all_designs[0], checks)
    published: dict[str, pd.DataFrame] = {}
    if linear_published.has_setting(config):
        ours = linear_published.curves(config, all_designs, mesh)
        published = {
            "efficiency_published": linear_published.table(ours),
            "efficiency_summary": linear_published.summary(config, all_designs, ours, mesh),
        }
        drawings = (*drawings, linear_published.draw(published["efficiency_published"]))
        gap = np.sqrt((published["efficiency_published"]["difference"] ** 2).mean())
        note += (
            " The paper states these three sizes, not its designs; its curves, read from figure 2, "
            f"and these differ by {gap:.3f} (root mean square)."
        )
    return Conclusion(
        claims=[claim._replace(theorem=PROOF) for claim in _claims(config, best)],
        sections=(report.Section("Relative efficiency", note, drawings),),
        tables={
            "efficiency_grid": _grid_table(grid, values),
            "efficiency_curves": _curve_table(s.betas, alphas, curves),
            **published,
        },
    )


def _grid_table(grid: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    rows = [(a, b, values[i, j]) for i, a in enumerate(grid) for j, b in enumerate(grid)]
    return pd.DataFrame(rows, columns=["alpha", "beta", "relative_efficiency"])


def _curve_table(betas: Sequence[float], alphas: np.ndarray, curves: np.ndarray) -> pd.DataFrame:
    rows = [
        (b, i + 1, a, curves[m, n, i])
        for n, b in enumerate(betas)
        for i in range(curves.shape[2])
        for m, a in enumerate(alphas)
    ]
    return pd.DataFrame(rows, columns=["beta", "entity", "alpha", "relative_efficiency"])


def _claims(config: TheoryConfig, best: Optimum) -> list[Claim]:
    s, designs, theta = config.linear, _designs(config), _theta(config)
    options: dict[str, Any] = {"alpha": s.alpha, "beta": s.beta, "sigma2": s.sigma2}
    moments = linear.closed_form(designs, theta, generations=2000, **options)
    claims = [
        Claim(
            "On the grid {0.1, 0.5, 0.9} x {0.1, 0.5, 0.9} the best setting and the optimum on "
            "the fine grid differ: which one looks best is the grid's doing",
            f"grid: ({best.coarse[0]:g}, {best.coarse[1]:g}); optimum: alpha {best.alpha:.3f}, "
            f"beta {best.beta:.3f} (steps of {best.step:.4f}), "
            f"efficiency {best.value:.4f}, against {best.centre:.4f} at (0.5, 0.5) and at most "
            f"{best.along_half:.4f} along beta = 0.5",
            best.value > best.centre
            and abs(best.alpha - best.coarse[0]) + abs(best.beta - best.coarse[1]) > best.step,
        )
    ]
    if moments.limit is not None:
        gap = float(np.abs(moments.mse[-1] / moments.limit.mse - 1).max())
        statement = "The closed form for generation 2,000 is the limit of Theorem 3"
        claims.append(
            Claim(
                statement,
                f"largest relative difference {gap:.1e}, spectral radius "
                f"{moments.spectral_radius:.4f}",
                gap < 1e-6,
            )
        )
    block, reduced = (
        linear.closed_form(designs, theta, generations=s.generations, form=form, **options)
        for form in ("block", "reduced")
    )
    gap = float(np.abs(block.cov - reduced.cov).max() / np.abs(block.cov).max())
    claims.append(
        Claim(
            "The d x d form and the block form of the paper are the same",
            f"largest difference {gap:.1e} of the largest entry",
            gap < 1e-10,
        )
    )
    claims.append(_transfer_claim(s))
    bad = linear.closed_form(diverging(), np.zeros(2), alpha=0.5, beta=1.0, generations=1)
    statement = (
        "Synthetic data can diverge although every private set determines the truth: there is no "
        "limit, and none is given"
    )
    claims.append(
        Claim(
            statement,
            f"spectral radius {bad.spectral_radius:.4f}",
            bad.limit is None and bad.spectral_radius > 1,
        )
    )
    return claims


def _transfer_claim(s: LinearConfig) -> Claim:
    """The formula of transfer (module isotropic) is the difference of two limits of Theorem 3."""
    k, alpha = s.entities, min(s.alpha, 0.99)
    private, public, synthetic = (np.sqrt(size) * np.eye(2) for size in (5.0, 7.0, 2.0))
    designs = linear.Designs((private,) * k, public, (synthetic,) * k)
    options: dict[str, Any] = {"alpha": alpha, "beta": s.beta, "sigma2": s.sigma2}
    own = linear.limit(designs, np.ones(2), mixing=np.eye(k), **options)
    everyone = linear.limit(designs, np.ones(2), **options)
    found = isotropic.transfer(
        isotropic.Setting(entities=k, d=2, private=5, public=7, synthetic=2, **options)
    )
    gap = abs(float(own.mse[0] - everyone.mse[0]) - found.others)
    return Claim(
        "Where designs have scaled orthogonal rows, transfer against the entities' own text is d "
        "sigma2 (1 - 1/K) (w^2 q (2 - q) / n + q^2 / (m (1 - q^2))), and the paper's, against "
        "alpha = 0, is smaller by what own text costs, d sigma2 q^2 / (m (1 - q^2))",
        f"{found.others:.4g} against own text, {found.paper:.4g} against alpha = 0; difference to "
        f"the limits {gap:.1e}",
        gap < 1e-9 * float(own.mse[0]) and found.others >= 0 and found.paper <= found.others,
    )
