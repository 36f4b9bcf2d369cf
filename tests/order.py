"""In which order the workers of xdist take files: long ones first."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files of more than about twenty seconds of processor time (2 GHz), longest first. All others
# follow by the number of their tests.
LONG = (
    "tests/simulators/test_beta.py",
    "tests/lm/generation/test_decode_rows.py",
    "tests/studies/recursive_loops/test_findings.py",
    "tests/faults/test_faults.py",
    "tests/lm/model/test_split_layers.py",
    "tests/studies/bias_amplification/test_bias.py",
    "tests/lm/model/test_lora.py",
    "tests/lm/generation/test_decode_loop.py",
    "tests/api/test_models.py",
    "tests/studies/theory/test_closed_forms.py",
    "tests/runtime/test_setup_jit.py",
    "tests/studies/multi_entity/test_entities.py",
    "tests/simulators/test_models.py",
    "tests/core/test_categorical.py",
    "tests/metrics/test_classifiers.py",
    "tests/lm/model/test_dropout.py",
    "tests/lm/test_programs.py",
    "tests/exports/test_exports.py",
    "tests/lm/encoder/test_encoder.py",
    "tests/studies/theory/test_theory.py",
    "tests/lm/generation/test_sampling.py",
    "tests/lm/io/test_models.py",
    "tests/lm/training/test_gradient_constraint.py",
    "tests/lm/generation/test_beam.py",
    "tests/studies/diversity/test_diversity.py",
    "tests/studies/recursive_loops/test_loops.py",
    "tests/lm/model/test_kernels.py",
    "tests/lm/generation/test_ring_attention.py",
    "tests/simulators/test_family.py",
    "tests/studies/recursive_loops/test_planted.py",
    "tests/recursion/test_driver.py",
)


def starts_first(path: Path, tests: int) -> tuple[int, int, str]:
    """A sorting key of a file with so many tests."""
    name = path.relative_to(ROOT).as_posix()
    place = LONG.index(name) if name in LONG else len(LONG)
    return place, -tests, name
