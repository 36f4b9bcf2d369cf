"""The sizes of what a pretraining study would make, and the bytes that it leaves."""

from jaxloop.lm.model.config import count_parameters
from jaxloop.studies.pretrain.config import PretrainConfig
from jaxloop.studies.pretrain.prepare import Prepared, model_config

# An upper bound for the tokenizer and all bases, which are small.
DISK_BYTES = 2**27


def table(config: PretrainConfig) -> list[tuple[str, str]]:
    """Return (name of a base, parameters and tokens) rows."""
    step_tokens = config.fit.batch_size * config.context
    rows = []
    for name, base in config.bases.items():
        parameters = count_parameters(model_config(config, base))
        tokens = (base.steps or config.fit.steps or 0) * step_tokens
        rows.append((name, f"{parameters:,} parameters, {tokens:,} tokens"))
    return rows


def disk_bytes(config: PretrainConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that a run leaves on the disk."""
    return DISK_BYTES
