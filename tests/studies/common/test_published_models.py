"""The published shapes give the sizes that the models have, and are found by the names in use."""

import pytest

from jaxloop.lm.io.config_json import config_fields, parse_config
from jaxloop.lm.model.config import count_parameters
from jaxloop.studies.common import published_models
from jaxloop.studies.common.published_models import PUBLISHED
from tests.peers import require

# Parameters of the weights on the hub.
PARAMETERS = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-1.5B": 1_543_714_304,
    "SmolLM-1.7B": 1_711_376_384,
    "Falcon3-1B-Base": 1_669_408_768,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_parameters_of_its_weights(name):
    assert count_parameters(parse_config(PUBLISHED[name].config)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_shapes(name):
    """The fields that are listed mean to transformers what they mean here: its own config class
    fills in the rest, and both have as many parameters.
    """
    torch, transformers = require("torch", "transformers")
    fields = dict(PUBLISHED[name].config)
    kind = fields.pop("model_type")
    config = transformers.AutoConfig.for_model(kind, **fields)
    with torch.device("meta"):
        net = transformers.AutoModelForCausalLM.from_config(config)
    net.tie_weights()
    assert net.num_parameters() == PARAMETERS[name]


def test_written_and_read_again_a_config_is_the_same():
    for model in PUBLISHED.values():
        config = parse_config(model.config)
        assert parse_config(config_fields(config)) == config


def test_models_are_found_by_hub_id_and_by_the_last_part_of_a_path():
    llama = PUBLISHED["Llama-3.2-1B"].config
    for name in ("meta-llama/Llama-3.2-1B", "unsloth/Llama-3.2-1B"):
        assert published_models.by_hub_id(name) is llama
    assert published_models.by_hub_id("somebody/Llama-3.2-1B") is None
    assert published_models.by_short_name("models/Llama-3.2-1B/") is llama
    assert published_models.by_short_name("models/unknown") is None


def test_a_hub_id_belongs_to_one_model():
    ids = [name for model in PUBLISHED.values() for name in model.hub_ids]
    assert len(ids) == len(set(ids))
