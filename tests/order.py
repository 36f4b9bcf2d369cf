"""In which order the workers of xdist take files: long ones first."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files of more than about thirty seconds of processor time (2 GHz), longest first. All others
# follow by the number of their tests.
LONG = (
    "tests/faults/test_faults.py",
    "tests/lm/generation/test_decode_rows.py",
    "tests/studies/bias_amplification/test_bias.py",
    "tests/lm/model/test_split_layers.py",
    "tests/studies/recursive_loops/test_findings.py",
    "tests/api/test_models.py",
    "tests/simulators/test_beta.py",
    "tests/studies/theory/test_theory.py",
    "tests/lm/generation/test_decode_loop.py",
    "tests/lm/model/test_dropout.py",
    "tests/studies/diversity/test_diversity.py",
    "tests/lm/test_sharding.py",
    "tests/lm/test_programs.py",
    "tests/runtime/test_setup_jit.py",
    "tests/test_fresh_clone.py",
    "tests/lm/training/test_fit.py",
    "tests/core/test_categorical.py",
    "tests/api/test_runs.py",
    "tests/studies/multi_entity/test_entities.py",
    "tests/simulators/test_models.py",
    "tests/lm/encoder/test_encoder.py",
    "tests/simulators/test_linear.py",
    "tests/studies/recursive_loops/test_loops.py",
    "tests/lm/io/test_models.py",
    "tests/studies/diversity/test_measure.py",
    "tests/lm/model/test_lora.py",
    "tests/lm/training/test_gradient_constraint.py",
    "tests/lm/generation/test_beam.py",
    "tests/studies/theory/test_closed_forms.py",
    "tests/api/test_formulas_and_loops.py",
    "tests/lm/training/test_loss.py",
    "tests/simulators/test_family.py",
    "tests/studies/recursive_loops/test_planted.py",
    "tests/studies/chain/test_metrics.py",
)


def starts_first(path: Path, tests: int) -> tuple[int, int, str]:
    """A sorting key of a file with so many tests."""
    name = path.relative_to(ROOT).as_posix()
    place = LONG.index(name) if name in LONG else len(LONG)
    return place, -tests, name
