"""What the chains of a run show of weighted maximum likelihood: statements that come from its means
and standard errors, and can come out the other way.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from jaxloop.studies.theory.compare import Check, Claim
from jaxloop.studies.theory.config import TheoryConfig

WIDE = 4.0  # standard errors that a measured number may be away

# (name of a quantity) -> its check, of one weighting.
Found = Mapping[str, Check]


def claims(config: TheoryConfig, checks: Sequence[Check], lines: Mapping[str, str]) -> list[Claim]:
    """Return the statements about the weightings that were run. lines: {weighting: its line}."""
    found = {
        weighting: {c.quantity.name: c for c in checks if c.quantity.line == line}
        for weighting, line in lines.items()
    }
    out: list[Claim] = []
    if found.get("model"):
        out += _of_last_fit(config, found["model"])
    if found.get("pretrained"):
        out.append(_steps(found["pretrained"], config))
    if found.get("none"):
        out.append(_spread(found["none"]))
    return out


def _of_last_fit(config: TheoryConfig, found: Found) -> list[Claim]:
    w = config.wmle
    alpha = found["Parameter alpha"]
    factor = (alpha.empirical[1:] - 1) / (alpha.empirical[:-1] - 1)
    # To first order in the errors of both.
    allowed = _allowed(alpha) / np.abs(alpha.empirical - 1)
    wide = np.abs(factor) * (allowed[1:] + allowed[:-1])
    out = [
        Claim(
            f"In the chains alpha - 1 grows by {1 + w.exponent:g} in every generation",
            f"measured factors {factor.min():.4f} to {factor.max():.4f}",
            bool((np.abs(factor - (1 + w.exponent)) <= wide).all()),
        )
    ]
    if "Mode" in found:
        mode = found["Mode"]
        change = np.abs(mode.empirical - mode.empirical[0])
        wide = _allowed(mode) + _allowed(mode)[0]
        out.append(
            Claim(
                "In the chains the mode stays where generation 0 puts it",
                f"{mode.empirical[0]:.5f}, later {mode.empirical.min():.5f} to "
                f"{mode.empirical.max():.5f}",
                bool((change <= wide).all()),
            )
        )
    return [*out, *_of_the_mean(config, found)]


def _of_the_mean(config: TheoryConfig, found: Found) -> list[Claim]:
    w = config.wmle
    pre, real = (np.asarray(x, float) for x in (w.pretrained, w.real))
    towards = np.sign(pre[0] / pre.sum() - real[0] / real.sum())
    if not towards:
        return []
    mean, above = found["Mean"], found["P(X > 1/2)"]
    pre_mean, pre_above = pre[0] / pre.sum(), scipy.stats.beta.sf(0.5, *pre)
    beyond = towards * (mean.empirical - pre_mean)
    farther = np.flatnonzero(towards * (above.empirical - pre_above) > _allowed(above))
    shift = towards * (mean.empirical - real[0] / real.sum())
    share = shift[0] / shift[-1] if shift[-1] else float("nan")
    when = f"from generation {farther[0]} on" if len(farther) else "in no generation"
    side = ">" if towards > 0 else "<"
    return [
        Claim(
            "In the chains the mean goes past the pre-trained model's "
            + ("in some generation" if (beyond > _allowed(mean)).any() else "in no generation"),
            f"pre-trained {pre_mean:.5f}; generations {mean.empirical[0]:.5f} to "
            f"{mean.empirical[-1]:.5f}",
            _as_predicted(beyond > _allowed(mean), towards * (mean.quantity.analytic - pre_mean)),
        ),
        Claim(
            f"In the chains P(X {side} 1/2) is beyond the pre-trained model's {when}",
            f"P(X > 1/2): pre-trained {pre_above:.4f}; generations {above.empirical[0]:.4f} to "
            f"{above.empirical[-1]:.4f}",
            _as_predicted(
                towards * (above.empirical - pre_above) > _allowed(above),
                towards * (above.quantity.analytic - pre_above),
            ),
        ),
        Claim(
            f"In the chains {'most' if share > 0.5 else 'less than half'} of the mean's shift "
            "happens in generation 0",
            f"{share:.0%} of {shift[-1]:+.4f}",
            bool(np.isfinite(share)),
        ),
    ]


def _as_predicted(seen: np.ndarray, predicted: np.ndarray) -> bool:
    """Whether something is seen only where the formula has it."""
    return not (seen & (predicted <= 0)).any()


def _steps(found: Found, config: TheoryConfig) -> Claim:
    alpha = found["Parameter alpha"]
    steps, wide = np.diff(alpha.empirical), _allowed(alpha)[1:] + _allowed(alpha)[:-1]
    step = config.wmle.exponent * (config.wmle.pretrained[0] - 1)
    return Claim(
        "In the chains that the pre-trained model weights, alpha grows by the same number in every "
        "generation",
        f"measured steps {steps.min():.4f} to {steps.max():.4f}",
        bool((np.abs(steps - step) <= wide).all()),
    )


def _spread(found: Found) -> Claim:
    name = next(name for name in found if name.startswith("Standard deviation of alpha"))
    sd = found[name]
    ratio = sd.empirical / sd.empirical[0]
    root = np.sqrt(np.arange(1, len(ratio) + 1))
    relative = _allowed(sd) / np.abs(sd.empirical)
    return Claim(
        "Without weights the spread between the chains grows with the root of the number of fits",
        f"{ratio[-1]:.3f} times after {len(ratio)} fits, the root is {root[-1]:.3f}",
        bool((np.abs(ratio - root) <= ratio * (relative + relative[0])).all()),
    )


def _allowed(check: Check) -> np.ndarray:
    """[n] how far a mean may be away."""
    return WIDE * check.se + check.quantity.tolerance * np.abs(check.quantity.analytic)
