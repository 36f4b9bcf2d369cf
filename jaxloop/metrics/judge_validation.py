"""How well a judge of quality agrees with people, on a file of the OpenMEVA form."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from jaxloop.metrics.judge_replies import Judgement

GENERATORS = ("fusion", "s2s", "gpt_kg", "gpt", "plan_write")
_NO_INTERVAL = (float("nan"), float("nan"))


class Validation(NamedTuple):
    """How a judge's scores correlate with people's.

    Intervals are 95% of a bootstrap over stories.
    """

    n: int
    unparsable: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]


class HumanScores(NamedTuple):
    """Texts [n], their mean human scores [n] and the number of the story of each [n]."""

    texts: list[str]
    score: np.ndarray
    story: np.ndarray


def read_openmeva(path: str | Path, generators: Sequence[str] = GENERATORS) -> HumanScores:
    """Read a file of the OpenMEVA form (Guan et al. 2021, mans_roc.json).

    The file maps a story to {"prompt": str, "gen": {generator: {"text": str, "score": [numbers]}}};
    a text is the prompt and what the generator wrote after it, without a space between (arXiv
    2504.03814's code).

    Raises:
        ValueError: the file cannot be read, or is of another form.
    """
    try:
        stories = json.loads(Path(path).read_text(encoding="utf8"))
        rows = [
            (story["prompt"] + story["gen"][name]["text"], fmean(story["gen"][name]["score"]), i)
            for i, story in enumerate(stories.values())
            for name in generators
        ]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        needed = f"each story needs 'prompt' and, in 'gen', {', '.join(generators)}"
        raise ValueError(
            f"{path} is not of the OpenMEVA form ({type(error).__name__} {error}); {needed}."
        ) from None
    if not rows or not np.isfinite([score for _, score, _ in rows]).all():
        raise ValueError(f"{path} holds no stories, or a story without human scores.")
    texts, scores, numbers = zip(*rows, strict=True)
    return HumanScores(list(texts), np.array(scores), np.array(numbers))


def validate_judge(
    scorer: Callable[[list[str]], Judgement | np.ndarray],
    path: str | Path,
    *,
    generators: Sequence[str] = GENERATORS,
    draws: int = 2000,
    seed: int = 0,
) -> Validation:
    """Correlate a judge's scores with people's (Pearson, Spearman), on a file of the OpenMEVA form.

    Texts of one story are not independent, so the bootstrap draws stories. Texts without a score
    are left out and counted. A correlation of fewer than two scores, or of equal ones, is nan. The
    paper's judge reaches 0.516 and 0.522 (arXiv 2504.03814, table 2).

    Args:
        scorer: texts -> `Judgement`, or scores [n] with nan where there is none; such as
            lambda texts: judge(texts, model).
        draws: of the bootstrap.

    Raises:
        ValueError: as `read_openmeva`; or the scorer gives another number of scores.
    """
    texts, human, story = read_openmeva(path, generators)
    scores = scorer(texts)
    score = np.asarray(scores.score if isinstance(scores, Judgement) else scores, np.float64)
    if score.shape != human.shape:
        raise ValueError(
            f"the scorer gave scores of shape {list(score.shape)} for {len(texts)} texts, one "
            "each is needed."
        )
    valid = np.isfinite(score)
    score, human, story = score[valid], human[valid], story[valid]
    members = [np.flatnonzero(story == s) for s in np.unique(story)]
    rng = np.random.default_rng(seed)
    pearson, spearman = [], []
    for _ in range(draws if len(members) > 1 else 0):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        pearson.append(_pearson(score[rows], human[rows]))
        spearman.append(_spearman(score[rows], human[rows]))
    return Validation(
        n=len(score),
        unparsable=int((~valid).sum()),
        pearson=_pearson(score, human),
        pearson_interval=_interval(pearson),
        spearman=_spearman(score, human),
        spearman_interval=_interval(spearman),
    )


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return _pearson(rankdata(x), rankdata(y))


def _interval(draws: Sequence[float]) -> tuple[float, float]:
    """The middle 95% of the finite draws."""
    finite = np.array([value for value in draws if np.isfinite(value)])
    if not len(finite):
        return _NO_INTERVAL
    low, high = np.quantile(finite, (0.025, 0.975)).tolist()
    return low, high
