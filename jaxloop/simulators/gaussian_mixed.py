"""A Gaussian that is refitted, generation after generation, on real and on its own samples: what is
expected of its variance and of its mean, without a simulation.
"""

from typing import NamedTuple

import numpy as np

from jaxloop.core.checks import check_whole


class MixedChain(NamedTuple):
    """Expected state of the fit of every generation, in units of the real total variance.

    variance: [T] total variance of the fitted distribution.
    shift: [T] squared distance of the fitted mean from the real one.
    """

    variance: np.ndarray
    shift: np.ndarray


def mixed_chain(
    generations: int, *, n: int, synthetic: int, first: int | None = None, pooled: bool = False
) -> MixedChain:
    """Return what is expected of maximum-likelihood fits on n samples each [D].

    Every generation g >= 1 brings n new samples: `synthetic` of them drawn from the fit before it,
    the others from the real distribution. It is fitted on these or, with `pooled`, on n samples
    drawn without replacement from the new samples of generations 1 to g, as the chains of arXiv
    2504.03814 are. The samples of generation 0, all of them real, are never used again. The number
    of dimensions is of no account.

    With r = synthetic / n, W and D the variance and the shift of a fit, and p and q the mean and
    the mean square of what is drawn from (k = g blocks of n samples if pooled, else k = 1),
        E q_g   = ((k - 1) E q_(g-1) + 1 - r + r (W + D)) / k
        E p_g^2 = ((k - 1) (k - 1 + 2 r) E p_(g-1)^2 + (1 - r + r W) / n + r^2 D) / k^2
        D_g     = E p_g^2 + (k - 1) (E q_g - E p_g^2) / (k n - 1)
        W_g     = E q_g - D_g
    where W and D stand for those of generation g - 1, and W_0 = 1 - 1 / first, D_0 = 1 / first. The
    second term of D_g is the error of a sample of n from a finite population of k n. At r = 1
    without a pool it is W_g = (1 - 1 / n)^(g + 1).

    Args:
        generations: T, generation 0 counted.
        n: samples that a fit sees.
        synthetic: of the new samples of a generation, from 0 to n.
        first: samples of generation 0; None: n.
        pooled: whether samples of all generations stay.

    Raises:
        ValueError: a number is not allowed.
    """
    start = n if first is None else first
    for name, value in (("generations", generations), ("n", n), ("first", start)):
        check_whole(name, value)
    if check_whole("synthetic", synthetic, 0) > n:
        raise ValueError(f"synthetic={synthetic}: must lie between 0 and n = {n}")
    r = synthetic / n
    variance, shift = [1 - 1 / start], [1 / start]
    square = mean2 = 0.0
    for generation in range(1, generations):
        k = generation if pooled else 1
        within, before = 1 - r + r * variance[-1], shift[-1]
        square = ((k - 1) * square + within + r * before) / k
        mean2 = ((k - 1) * (k - 1 + 2 * r) * mean2 + within / n + r**2 * before) / k**2
        # One sample, which has no spread, is its own population.
        drawn = (k - 1) * (square - mean2) / (k * n - 1) if k > 1 else 0.0
        shift.append(mean2 + drawn)
        variance.append(square - shift[-1])
    return MixedChain(np.array(variance), np.array(shift))
