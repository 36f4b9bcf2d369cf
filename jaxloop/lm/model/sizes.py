"""A decoder in the numbers that the cost model counts with."""

from jaxloop.lm.model.config import Spec, count_parameters, site_widths, sites
from jaxloop.lm.model.lora import Lora, target_names
from jaxloop.runtime.roofline import Sizes


def sizes_of(spec: Spec, lora: Lora = Lora()) -> Sizes:
    """Weights in the blocks and the head, adapter weights of one chain, numbers cached per token:
    from the parameter table.
    """
    widths, targets = site_widths(spec), target_names(spec, lora)
    return Sizes(
        body=spec.layers * sum(a * b for a, b in widths.values()),
        head=spec.vocab * (spec.embed_width or spec.width),
        total=count_parameters(spec),
        adapter=spec.layers
        * lora.rank
        * sum(
            widths[site][0] + p.width
            for site, parts in sites(spec).items()
            for p in parts
            if p.name in targets
        ),
        cache=2 * spec.layers * spec.kv_heads * spec.head_size,
        layers=spec.layers,
        attention_width=spec.heads * spec.head_size,
    )
