"""The error of the mean of fits of a Beta distribution by maximum likelihood, for large n."""

import numpy as np
import scipy.special
from numpy.typing import ArrayLike


def first_order_bias(theta: ArrayLike, n: int) -> np.ndarray:
    """Return E[fit] - theta for fits to n draws of Beta(theta), up to terms of order 1 / n^2.

    For an exponential family with log partition A it is -1/(2n) I^-1 (A''' : I^-1), I = A''
    (Cox and Snell 1968, section 3).

    Args:
        theta: [2] alpha and beta.
        n: draws that a fit sees.
    """
    alpha, beta = np.asarray(theta, float)
    # A is ln B(alpha, beta): a function of each parameter, and one of their sum.
    second_own, third_own = (scipy.special.polygamma(k, [alpha, beta]) for k in (1, 2))
    second_sum, third_sum = (float(scipy.special.polygamma(k, alpha + beta)) for k in (1, 2))
    inverse = np.linalg.inv(np.diag(second_own) - second_sum)
    contracted = third_own * np.diag(inverse) - third_sum * inverse.sum()
    return -inverse @ contracted / (2 * n)
