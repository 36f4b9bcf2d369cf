"""The language-model family: one decoder, batched adapters, training and sampling as pure
functions.
"""

from jaxloop.lm.adapters import Lora
from jaxloop.lm.huggingface import Model, load, save
from jaxloop.lm.peft_files import load_peft, save_peft
from jaxloop.lm.spec import Spec
from jaxloop.lm.transformer import forward

__all__ = ["Lora", "Model", "Spec", "forward", "load", "load_peft", "save", "save_peft"]
