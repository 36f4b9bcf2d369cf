"""Limits of K entities with designs of scaled orthogonal rows, in four numbers: private, public and
synthetic Gram matrices n I, n_* I and m I. All are derived [D], see
tests/studies/theory/test_closed_forms.py and tests/studies/multi_entity/test_control.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

from scipy.optimize import brentq


@dataclass(frozen=True, kw_only=True)
class Setting:
    """K entities with Gram matrices n I, n_* I and m I in `d` dimensions.

    Attributes:
        entities: K.
        d: coefficients.
        private: n, of an entity's own rows.
        public: n_*, of the rows that all share.
        synthetic: m, of the rows that the models label.
        alpha: weight of synthetic data, in [0, 1).
        beta: weight of private data among the real.
        sigma2: variance of the noise of labels.
    """

    entities: int
    d: int
    private: float
    public: float
    synthetic: float
    alpha: float
    beta: float
    sigma2: float = 1.0


class Isotropic(NamedTuple):
    """Limits of K entities with designs of scaled orthogonal rows: mse and disagreement per entity,
    spectral radius of Q.
    """

    mse: float
    disagreement: float
    spectral_radius: float


def limit(s: Setting) -> Isotropic:
    """Return what the chains of all entities settle at [D].

    Synthetic labels homogenise by (1-q)^2 exactly.

    Raises ValueError for alpha outside [0, 1), where there is no limit, and for real data without
    weight.
    """
    w, q = _shares(s)
    own = w**2 / s.private if w else 0.0
    shared = (1 - w) ** 2 / s.public if w < 1 else 0.0
    noise = q**2 / (s.synthetic * s.entities * (1 - q**2)) if q else 0.0
    between = own * (1 - 1 / s.entities) * (1 - q) ** 2
    scale = s.d * s.sigma2
    return Isotropic(scale * (own / s.entities + between + shared + noise), scale * between, q)


class Transfer(NamedTuple):
    """How much smaller the error on another entity's task is in the limit, per direction of the
    task's Gram matrix, by what it is compared with.

    others: with the control that reads as much synthetic text, all of it its own.
    own_text: how much that control's error exceeds the error at alpha = 0.
    paper: with alpha = 0, which is others - own_text.
    """

    others: float
    own_text: float
    paper: float


def transfer(s: Setting) -> Transfer:
    """Return what an entity gains from the others' synthetic data, and loses by its own [D].

    The control is K entities of one, so that its error is `limit` at K = 1. With w the private
    share of the real weight and q the synthetic share of all,
        others   = d sigma2 (1 - 1/K) [w^2 q (2 - q) / n + q^2 / (m (1 - q^2))]
        own_text = d sigma2 q^2 / (m (1 - q^2)).
    Neither is ever negative; their difference, the paper's comparison, has both signs.

    Raises ValueError as `limit` does.
    """
    w, q = _shares(s)
    noise = q**2 / (s.synthetic * (1 - q**2)) if q else 0.0
    private_noise = w**2 * q * (2 - q) / s.private if w else 0.0
    scale = s.d * s.sigma2
    others = scale * (1 - 1 / s.entities) * (private_noise + noise)
    own_text = scale * noise
    return Transfer(others, own_text, others - own_text)


def _shares(s: Setting) -> tuple[float, float]:
    """(w, q): the private share of the real weight, and the synthetic share of all."""
    if not 0 <= s.alpha < 1:
        raise ValueError(f"alpha={s.alpha}: must lie in [0, 1), the variance grows for ever at 1")
    real = 1 - s.alpha
    a, b, c = real * s.beta * s.private, real * (1 - s.beta) * s.public, s.alpha * s.synthetic
    if not a + b > 0:
        raise ValueError(f"beta={s.beta}: real data have no weight, theta is undetermined")
    return a / (a + b), c / (a + b + c)


def best_q(*, entities: int, private: float, synthetic: float, weight: float) -> float:
    """Return the q (how much synthetic data counts) of smallest error [D].

    It solves (1-q)^3 (1+q)^2 / q = n / (w^2 m (K-1)); it is 0 for one entity, which synthetic data
    only hurt.
    """
    for name, value in (("private", private), ("synthetic", synthetic), ("weight", weight)):
        if not value > 0:
            raise ValueError(f"{name}={value}: must be positive")
    if entities == 1:
        return 0.0
    goal = private / (weight**2 * synthetic * (entities - 1))
    return float(brentq(lambda q: (1 - q) ** 3 * (1 + q) ** 2 - goal * q, 0.0, 1.0, xtol=1e-14))
