"""In which order the workers of xdist take files: long ones first."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files of more than about twenty seconds of processor time, longest first. All others follow by
# the number of their tests.
LONG = (
    "tests/lm/generation/test_decode_rows.py",
    "tests/lm/generation/test_decode_loop.py",
    "tests/studies/bias_amplification/test_bias.py",
    "tests/faults/test_faults.py",
    "tests/studies/bench/test_bench.py",
    "tests/lm/generation/test_beam.py",
    "tests/faults/test_gone.py",
    "tests/faults/test_others.py",
    "tests/lm/test_family.py",
    "tests/lm/model/test_lora.py",
    "tests/studies/diversity/test_diversity.py",
    "tests/studies/theory/test_theory.py",
    "tests/test_fresh_clone.py",
    "tests/studies/multi_entity/test_entities.py",
    "tests/api/test_models.py",
    "tests/api/test_formulas_and_loops.py",
    "tests/studies/recursive_loops/test_loops.py",
    "tests/simulators/test_beta.py",
    "tests/studies/recursive_loops/test_judges_missing.py",
    "tests/lm/training/test_gradient_constraint.py",
    "tests/studies/test_devices.py",
    "tests/api/test_runs.py",
)


def starts_first(path: Path, tests: int) -> tuple[int, int, str]:
    """A sorting key of a file with so many tests."""
    name = path.relative_to(ROOT).as_posix()
    place = LONG.index(name) if name in LONG else len(LONG)
    return place, -tests, name
