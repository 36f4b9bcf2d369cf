"""What the closed forms of linear models that train on each other return (see `linear`).

K entities, d features, T generations after generation 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Limit(NamedTuple):
    """Limits for t -> infinity: mean [K, d], cov [Kd, Kd], mse [K], mspe [K, K],
    relative_efficiency [K], disagreement ().
    """

    mean: np.ndarray
    cov: np.ndarray
    mse: np.ndarray
    mspe: np.ndarray
    relative_efficiency: np.ndarray
    disagreement: float


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments over the draws of all labels; entries of entities that have not joined are NaN.

    mean                 [T+1, K, d] expectation of theta_hat
    cov                  [T+1, Kd, Kd]
    mse                  [T+1, K] E|theta_hat_k - theta|^2
    mspe                 [T+1, K, K] E|X~_m (theta_hat_k - theta)|^2 at [:, k, m], summed over the
                         rows of task m, not averaged
    disagreement         [T+1] E (1/K) sum_k |theta_hat_k - mean over entities|^2
    relative_efficiency  [T+1, K] error of the best unbiased estimate from all real data / mse (NaN
    where those leave theta undetermined)
    spectral_radius      of Q in the last generation
    limit                a `Limit`, or None
    no_limit             why there is none, else None
    """

    mean: np.ndarray
    cov: np.ndarray
    mse: np.ndarray
    mspe: np.ndarray
    disagreement: np.ndarray
    relative_efficiency: np.ndarray
    spectral_radius: float
    limit: Limit | None
    no_limit: str | None


class Sweep(NamedTuple):
    """Limits on a grid; NaN where rho(Q) >= 1.

    alpha [A], beta [B], spectral_radius [A, B], mse [A, B, K], relative_efficiency [A, B, K],
    disagreement [A, B].
    """

    alpha: np.ndarray
    beta: np.ndarray
    spectral_radius: np.ndarray
    mse: np.ndarray
    relative_efficiency: np.ndarray
    disagreement: np.ndarray

    def best(self) -> tuple[float, float, float]:
        """(alpha, beta, relative efficiency) where the relative efficiency, averaged over the
        entities, is largest. Raises ValueError where none has one.
        """
        if np.isnan(self.relative_efficiency).all():
            raise ValueError(
                "alpha, beta: no setting of the sweep has a relative efficiency; either rho(Q) is "
                "nowhere below 1, or the real data leave theta undetermined"
            )
        score = np.nan_to_num(self.relative_efficiency.mean(2), nan=-np.inf)
        i, j = np.unravel_index(score.argmax(), score.shape)
        return float(self.alpha[i]), float(self.beta[j]), float(score[i, j])
