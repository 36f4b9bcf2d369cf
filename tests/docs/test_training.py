"""docs/training.md: what it says of a config's fields is what the config has, and what it says of
transformers' trainer is what transformers has.
"""

from pathlib import Path

import pytest

from jaxloop import load_config
from jaxloop.lm.training.step import TrainOptions
from jaxloop.metrics import classifier_fit
from tests.peers import peer

hf = peer("transformers", "torch")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
CONFIGS = {
    "recursive loops": "ratio_sweep",
    "multi-entity": "multi_entity",
    "bias": "bias_amplification",
    "diversity": "diversity",
}
SETTINGS = (
    "mode",
    "dropout",
    "rate",
    "decay",
    "clipping",
    "schedule",
    "warm-up",
    "length",
    "batch",
    "precision",
    "packing",
    "truncation",
    "loss on",
)


def rows():
    """(study, what, released, here, field) of every row of the second table."""
    table = PAGE.split("## Of each study")[1].split("Dropout costs")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in row[:5]) for row in cells[1:]]


@pytest.mark.parametrize("study", list(CONFIGS))
def test_every_field_has_the_stated_value(study):
    config = load_config(str(ROOT / "configs" / f"{CONFIGS[study]}.py"))
    found = 0
    for name, what, _, here, field in rows():
        if name != study or not field:
            continue
        value = config
        for part in field.strip("`").split("."):
            value = getattr(value, part)
        assert str(value) == here, (study, what, field)
        found += 1
    assert found >= 11
    stated = {what.split(" of the")[0] for name, what, *_ in rows() if name == study}
    assert set(SETTINGS) <= stated


def test_the_optimiser_is_that_of_the_trainer():
    options = TrainOptions()
    assert f"`options.adam_betas` = `{options.adam_betas}`" in PAGE
    assert f"`options.adam_epsilon` = `{options.adam_epsilon}`" in PAGE
    theirs = hf.TrainingArguments
    assert (theirs.adam_beta1, theirs.adam_beta2) == options.adam_betas
    assert theirs.adam_epsilon == options.adam_epsilon
    assert theirs.max_grad_norm == classifier_fit.MAX_GRAD_NORM == 1.0
    assert (theirs.weight_decay, theirs.warmup_steps) == (0.0, 0)
    assert theirs.lr_scheduler_type == "linear"
