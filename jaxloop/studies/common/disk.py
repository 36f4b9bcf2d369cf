"""The bytes that a run leaves on the disk."""

from jaxloop.config import FitConfig
from jaxloop.lm.model.config import ModelConfig, count_parameters, projection_widths
from jaxloop.studies.common.models import trains_adapters


def model_bytes(fit: FitConfig, start: str, config: ModelConfig) -> int:
    """Return the bytes of one trained model in float32, or of its adapters where these train."""
    if not trains_adapters(fit, start):
        return 4 * count_parameters(config)
    widths = sum(inputs + outputs for inputs, outputs in projection_widths(config).values())
    return 4 * config.num_layers * fit.lora.rank * widths * 2


def disk_row(number: int) -> tuple[str, str]:
    """Return the row of a plan for a number of bytes on the disk."""
    return "disk", f"{number / 1e9:,.2f} GB at most"
