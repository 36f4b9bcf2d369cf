"""Counts of a model's weights, for the cost model in `runtime/roofline.py`."""

from jaxloop.config.sections import LoraConfig
from jaxloop.lm.model.config import (
    ModelConfig,
    count_parameters,
    fused_projections,
    projection_widths,
)
from jaxloop.lm.model.lora import target_names
from jaxloop.runtime.roofline import Sizes


def sizes_of(config: ModelConfig, lora: LoraConfig = LoraConfig()) -> Sizes:
    """Count the weights of a model, of one chain's adapters, and the numbers cached per token."""
    widths, targets = projection_widths(config), target_names(config, lora)
    return Sizes(
        body=config.num_layers * sum(a * b for a, b in widths.values()),
        head=config.vocab_size * (config.embed_dim or config.d_model),
        total=count_parameters(config),
        adapter=config.num_layers
        * lora.rank
        * sum(
            widths[projection][0] + p.width
            for projection, parts in fused_projections(config).items()
            for p in parts
            if p.name in targets
        ),
        cache=2 * config.num_layers * config.num_kv_heads * config.head_dim,
        layers=config.num_layers,
        attention_width=config.num_heads * config.head_dim,
    )
