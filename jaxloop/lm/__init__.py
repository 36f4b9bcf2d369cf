"""The language-model family: one decoder, batched adapters, training and sampling as pure
functions.
"""

from jaxloop.config.sections import LoraConfig
from jaxloop.lm.io.huggingface import Model, load, save
from jaxloop.lm.io.peft_files import load_peft, save_peft
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.lora import Adapter
from jaxloop.lm.model.transformer import forward

__all__ = [
    "Adapter",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "forward",
    "load",
    "load_peft",
    "save",
    "save_peft",
]
