"""Linear models of several entities: Theorems 1 to 3 against drawn labels and refits, and the
relative-efficiency figure with its optimum.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.core import mixing as mixings
from jaxloop.reporting import figures, report
from jaxloop.simulators import linear
from jaxloop.studies.common.run import slug
from jaxloop.studies.theory import compare

if TYPE_CHECKING:
    from jaxloop.studies.theory.run import Settings

FAR = 60  # generation at which the dots of the relative-efficiency figure are taken


class _Case(NamedTuple):
    """One setting of the linear model: designs, weights, and what is read off theta_hat."""

    designs: linear.Designs
    options: dict


def _seed(settings: "Settings", number: int) -> int:
    """Of draw `number` of the designs."""
    return settings.seed * 1000 + number


def _designs(settings: "Settings", number: int = 0) -> linear.Designs:
    s = settings.linear
    return linear.low_rank_designs(
        _seed(settings, number),
        entities=s.entities,
        dim=s.dim,
        rank=s.rank,
        public=s.public,
        scale=s.scale,
    )


def _theta(settings: "Settings") -> np.ndarray:
    return np.random.default_rng(_seed(settings, 999)).normal(size=settings.linear.dim)


def experiments(settings: "Settings", mesh=None) -> list[compare.Experiment]:
    """All comparisons of the config. Raises ValueError as `linear.closed_form` does."""
    s, designs = settings.linear, _designs(settings)
    base = dict(alpha=s.alpha, beta=s.beta, sigma2=s.sigma2, generations=s.generations)
    steps = np.linspace(0, 1, s.generations + 1)
    found = [_paper(settings, designs, base, mesh)]
    groups = {
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
            "new prompts every generation": _Case(_fresh_prompts(settings, designs), base),
        },
    }
    for name, cases in groups.items():
        for line, case in cases.items():
            found.append(_mean_error(settings, name, line, case, mesh))
    found += [_late(settings, designs, base, mesh), _divergence(settings, mesh)]
    return found + [_far(settings, designs, b, mesh) for b in s.betas]


def _fresh_prompts(settings, designs):
    rng, s = np.random.default_rng(_seed(settings, 998)), settings.linear
    draw = lambda: tuple(
        rng.normal(size=(s.rank, s.dim)) * np.sqrt(s.scale) for _ in range(s.entities)
    )
    return linear.Designs(
        designs.private, designs.public, tuple(draw() for _ in range(s.generations))
    )


def _draw(settings, designs, theta, options, mesh, read):
    batch = settings.linear.batch
    return lambda seed: read(
        linear.simulate(designs, theta, replicates=batch, seed=seed, mesh=mesh, **options)
    )


def _squares(theta_hat, theta):
    return ((theta_hat - theta) ** 2).sum(-1)


def _paper(settings, designs, base, mesh):
    """The main setting in full: error of every entity, error on its own and on another's task,
    disagreement, and the mean along theta.
    """
    theta = _theta(settings)
    moments, t = linear.closed_form(designs, theta, **base), np.arange(base["generations"] + 1)
    k = designs.entities
    along = theta / (theta @ theta)
    quantities = [
        compare.Quantity("Error of an entity", t, moments.mse[:, i], line=f"entity {i + 1}")
        for i in range(k)
    ]
    quantities += [
        compare.Quantity("Error of entity 1 on a task", t, moments.mspe[:, 0, i], line=line)
        for i, line in ((0, "its own"), (1, "another's"))
    ]
    quantities.append(compare.Quantity("Disagreement between entities", t, moments.disagreement))
    quantities.append(
        compare.Quantity("Mean estimate along the truth", t, (moments.mean @ along).mean(1))
    )

    def read(hat):
        errors = _squares(hat, theta)
        tasks = [(((hat[:, :, 0] - theta) @ designs.private[i].T) ** 2).sum(-1) for i in (0, 1)]
        apart = _squares(hat, hat.mean(2, keepdims=True)).mean(2)
        return [*(errors[:, :, i] for i in range(k)), *tasks, apart, (hat @ along).mean(2)]

    return compare.Experiment(
        "main_setting", tuple(quantities), _draw(settings, designs, theta, base, mesh, read)
    )


def _mean_error(settings, name, line, case, mesh):
    """The error, averaged over entities, by generation."""
    theta = _theta(settings)
    moments = linear.closed_form(case.designs, theta, **case.options)
    quantity = compare.Quantity(name, np.arange(len(moments.mse)), moments.mse.mean(1), line=line)
    draw = _draw(
        settings,
        case.designs,
        theta,
        case.options,
        mesh,
        lambda hat: [_squares(hat, theta).mean(2)],
    )
    return compare.Experiment(f"{slug(name)}__{slug(line)}", (quantity,), draw)


def _late(settings, designs, base, mesh):
    """Unequal weights, and a last entity that joins after a quarter of the generations."""
    k, theta = designs.entities, _theta(settings)
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
            compare.Quantity(
                "Error with unequal weights and a late entity", t, moments.mse[t, i], line=line
            )
        )

    def read(hat):
        errors = _squares(hat, theta)
        return [errors[:, joins[i] :, i] for i in range(k)]

    return compare.Experiment(
        "late_entity", tuple(quantities), _draw(settings, designs, theta, options, mesh, read)
    )


def diverging() -> linear.Designs:
    """Private data that determine theta for each of two entities, and synthetic designs that blow
    the variance up: rho(Q) = 1.15 (section 1.7).
    """
    roots = [
        np.linalg.cholesky(np.array(s) / 3).T
        for s in ([[13.0, -28], [-28, 61]], [[61.0, -28], [-28, 13]])
    ]
    return linear.Designs(tuple(roots), None, (np.diag([np.sqrt(2), 0]), np.diag([0, np.sqrt(2)])))


def _divergence(settings, mesh):
    """The exact counterexample to convergence, beside the same private data with equal synthetic
    designs.
    """
    options = dict(alpha=0.5, beta=1.0, sigma2=settings.linear.sigma2, generations=30)
    bad, theta = diverging(), np.zeros(2)
    good = linear.Designs(bad.private, None, (np.eye(2), np.eye(2)))
    t, quantities, draws = np.arange(31), [], []
    for line, designs in (("unequal designs", bad), ("equal designs", good)):
        moments = linear.closed_form(designs, theta, **options)
        line = f"{line}, radius {moments.spectral_radius:.2f}"
        quantities.append(
            compare.Quantity("Error where synthetic data diverge", t, moments.mse.sum(1), line=line)
        )
        draws.append(
            _draw(settings, designs, theta, options, mesh, lambda hat: _squares(hat, theta).sum(2))
        )
    return compare.Experiment(
        "divergence", tuple(quantities), lambda seed: [draw(seed) for draw in draws]
    )


def _far_alphas(settings):
    return np.array([0.05, 0.2, 0.4, 0.6, 0.8])


def _far(settings, designs, beta, mesh):
    """Error after many generations, where the curves of the relative-efficiency figure are."""
    s, theta = settings.linear, _theta(settings)
    all_options = [
        dict(alpha=a, beta=beta, sigma2=s.sigma2, generations=FAR) for a in _far_alphas(settings)
    ]
    exact = [
        linear.closed_form(designs, theta, **options).mse[-1].mean() for options in all_options
    ]
    quantity = compare.Quantity(
        f"Error after {FAR} generations",
        _far_alphas(settings),
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

    return compare.Experiment(f"far__beta_{slug(f'{beta:g}')}", (quantity,), draw)


# ---- the relative-efficiency figure
# -----------------------------------------------------------------------------------


class Optimum(NamedTuple):
    """Where the relative efficiency, averaged over entities and designs, is largest, and what it is
    there and on the coarse grid.
    """

    alpha: float
    beta: float
    value: float
    step: float
    centre: float
    along_half: float
    coarse: tuple[float, float]


def _efficiency(settings, all_designs, alpha, beta, mesh):
    """[A, B] averaged over designs and entities."""
    theta = np.zeros(settings.linear.dim)
    found = [
        linear.sweep(d, theta, alpha=alpha, beta=beta, sigma2=settings.linear.sigma2, mesh=mesh)
        for d in all_designs
    ]
    return np.mean([f.relative_efficiency.mean(2) for f in found], 0)


def _optimum(settings, all_designs, mesh):
    """(grid, efficiency on it, Optimum): a coarse look as the paper's, a grid over the square, and
    a finer one around its best point.
    """
    grid = np.linspace(0.01, 0.99, settings.linear.grid)
    values = _efficiency(settings, all_designs, grid, grid, mesh)
    i, j = np.unravel_index(np.nan_to_num(values, nan=-1).argmax(), values.shape)
    step = (grid[1] - grid[0]) / 10
    fine = [np.clip(grid[x] + step * np.arange(-11, 12), 0, 1) for x in (i, j)]
    refined = _efficiency(settings, all_designs, *fine, mesh)
    a, b = np.unravel_index(np.nan_to_num(refined, nan=-1).argmax(), refined.shape)
    coarse = np.array([0.1, 0.5, 0.9])
    square = _efficiency(settings, all_designs, coarse, coarse, mesh)
    x, y = np.unravel_index(np.nan_to_num(square, nan=-1).argmax(), square.shape)
    along = _efficiency(settings, all_designs, grid, np.array([0.5]), mesh)[:, 0]
    best = Optimum(
        fine[0][a],
        fine[1][b],
        refined[a, b],
        step,
        square[1, 1],
        np.nanmax(along),
        (coarse[x], coarse[y]),
    )
    return grid, values, best


def conclude(settings: "Settings", mesh, checks):
    """The relative-efficiency figure, its optimum, and what the study states."""
    from jaxloop.studies.theory.run import Conclusion

    s = settings.linear
    all_designs = [_designs(settings, i) for i in range(s.designs)]
    alphas = np.linspace(0.001, 0.99, 60)
    curves = np.mean(
        [
            linear.sweep(
                d, np.zeros(s.dim), alpha=alphas, beta=s.betas, sigma2=s.sigma2, mesh=mesh
            ).relative_efficiency
            for d in all_designs
        ],
        0,
    )
    grid, values, best = _optimum(settings, all_designs, mesh)
    rows = [(a, b, values[i, j]) for i, a in enumerate(grid) for j, b in enumerate(grid)]
    tables = {
        "efficiency_grid": pd.DataFrame(rows, columns=["alpha", "beta", "relative_efficiency"]),
        "efficiency_curves": pd.DataFrame(
            [
                (b, i + 1, a, curves[m, n, i])
                for n, b in enumerate(s.betas)
                for i in range(s.entities)
                for m, a in enumerate(alphas)
            ],
            columns=["beta", "entity", "alpha", "relative_efficiency"],
        ),
    }
    note = (
        "Error of the best unbiased estimate from all real data over the error in the limit; "
        f"{s.entities} entities, {s.dim} features, "
        f"{s.rank} private rows each, averaged over {s.designs} draws of the designs. The paper "
        "does not state its sizes; these are the ones that "
        "reproduce its curves (inferred)."
    )
    section = report.Section(
        "Relative efficiency",
        note,
        (*_figures(settings, alphas, curves, grid, values, best, all_designs[0], checks),),
    )
    return Conclusion(_claims(settings, best, checks), (section,), tables)


def _figures(settings, alphas, curves, grid, values, best, designs, checks):
    s = settings.linear
    with figures.style():
        curve, axes = figures.panels(1, 1, panel=(4.2, 3.6))
        top = axes[0, 0]
        for n, (b, (colour, _)) in enumerate(zip(s.betas, figures.palette(len(s.betas)))):
            for i in range(s.entities):
                top.plot(alphas, curves[:, n, i], color=colour, linewidth=0.7, alpha=0.55)
            top.plot(
                alphas, curves[:, n].mean(1), color=colour, linewidth=1.9, label=f"beta = {b:g}"
            )
        top.plot(
            best.alpha,
            best.value,
            "o",
            color=figures.INK,
            markersize=5,
            label=f"optimum: beta = {best.beta:.3f}",
        )
        top.set_xlabel("alpha")
        top.legend(frameon=False, fontsize=8)
        dots, axes = figures.panels(1, 1, panel=(4.2, 3.6))
        axes = axes[0, 0]
        exact = linear.sweep(
            designs, np.zeros(s.dim), alpha=alphas, beta=s.betas, sigma2=s.sigma2
        ).relative_efficiency.mean(2)
        for n, (b, (colour, _)) in enumerate(zip(s.betas, figures.palette(len(s.betas)))):
            axes.plot(alphas, exact[:, n], color=colour, linewidth=1.4, label=f"beta = {b:g}")
            far = next(
                c
                for c in checks
                if c.quantity.name.startswith("Error after") and c.quantity.line == f"beta = {b:g}"
            )
            efficiency = designs.mvue_mse(s.sigma2) / far.empirical
            band = 2 * efficiency * far.se / far.empirical
            axes.errorbar(
                far.quantity.at,
                efficiency,
                band,
                fmt="o",
                color=colour,
                markersize=3.4,
                markerfacecolor="none",
                elinewidth=0.9,
            )
        axes.set_xlabel("alpha")
        axes.legend(frameon=False, fontsize=8)
        plane, square = figures.panels(1, 1, panel=(4.2, 3.6))
        square = square[0, 0]
        levels = np.linspace(0.1, np.nanmax(values), 12)
        lines = square.contour(
            grid, grid, values.T, levels=levels, colors=figures.palette(1)[0][0], linewidths=0.8
        )
        square.clabel(lines, fontsize=7, fmt="%.2f")
        square.plot(best.alpha, best.beta, "o", color=figures.INK, markersize=5)
        square.plot(0.5, 0.5, "x", color=figures.MUTED, markersize=6)
        square.set_xlabel("alpha")
        square.set_ylabel("beta")
    return (
        report.Drawing(
            "Relative efficiency by alpha",
            "thick: mean over entities; thin: one entity each",
            curve,
        ),
        report.Drawing(
            "The optimum on a fine grid",
            f"dot: alpha {best.alpha:.3f}, beta {best.beta:.3f}; cross: (0.5, 0.5)",
            plane,
        ),
        report.Drawing(
            "Simulated and exact",
            f"one draw of the designs; dots: {FAR} generations simulated, mean over entities, ± "
            "2 standard errors",
            dots,
        ),
    )


def _claims(settings, best, checks):
    s, designs, theta = settings.linear, _designs(settings), _theta(settings)
    options = dict(alpha=s.alpha, beta=s.beta, sigma2=s.sigma2)
    moments = linear.closed_form(designs, theta, generations=2000, **options)
    claims = [
        compare.Claim(
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
            compare.Claim(
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
        compare.Claim(
            "The d x d form and the block form of the paper are the same",
            f"largest difference {gap:.1e} of the largest entry",
            gap < 1e-10,
        )
    )
    bad = linear.closed_form(diverging(), np.zeros(2), alpha=0.5, beta=1.0, generations=1)
    statement = (
        "Synthetic data can diverge although every private set determines the truth: there is no "
        "limit, and none is given"
    )
    claims.append(
        compare.Claim(
            statement,
            f"spectral radius {bad.spectral_radius:.4f}",
            bad.limit is None and bad.spectral_radius > 1,
        )
    )
    return claims
