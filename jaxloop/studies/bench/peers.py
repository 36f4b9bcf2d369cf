"""The peers of the benchmarks: the same model, weights and work in torch, through transformers and
peft. Imported only where `config.peer` asks for them, since all three are optional.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers

from jaxloop.lm.io import peft_files
from jaxloop.lm.io.config_json import config_fields
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, table
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import BenchModel


def train_one_chain(
    model: BenchModel, tokens_SCBT: np.ndarray, config: BenchConfig
) -> Callable[[], None]:
    """Return a function that runs `config.steps` AdamW steps of the first chain on its tokens."""
    net = _load(model, config)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    batches = torch.from_numpy(np.ascontiguousarray(tokens_SCBT[:, 0])).long().to(_device())

    def run() -> None:
        for batch in batches:
            loss = net(input_ids=batch, labels=batch, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        float(loss.detach())

    return run


def generate(
    model: BenchModel, prompt: np.ndarray, lengths: np.ndarray, batch: int, config: BenchConfig
) -> Callable[[], None]:
    """Return a function that generates texts of the given lengths with the adapter merged: every
    batch runs to its longest text, as padding makes it.
    """
    net = _load(model, config).merge_and_unload().eval()
    net.generation_config.eos_token_id = None
    ids = torch.from_numpy(np.asarray(prompt)).long().to(_device())

    def run() -> None:
        for start in range(0, len(lengths), batch):
            longest = int(lengths[start : start + batch].max())
            rows = len(lengths[start : start + batch])
            with torch.no_grad():
                net.generate(
                    ids[None].expand(rows, -1),
                    attention_mask=torch.ones(rows, len(ids), device=_device(), dtype=torch.long),
                    do_sample=True,
                    temperature=1.5,
                    min_p=0.2,
                    top_k=0,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    pad_token_id=0,
                )
        if _device() == "cuda":
            torch.cuda.synchronize()

    return run


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(model: BenchModel, config: BenchConfig) -> Any:
    """The peft model with the first chain's adapter, on the device."""
    fields = transformers.AutoConfig.for_model(**config_fields(model.config))
    with tempfile.TemporaryDirectory() as folder, torch.device(_device()):
        net = transformers.AutoModelForCausalLM.from_config(
            fields, dtype=getattr(torch, config.dtype)
        )
        _copy(net, model.config, model.base)
        adapter = adapters.split(jax.device_get(model.adapters), 0)
        peft_files.save_peft(folder, model.config, adapter)
        net = peft.PeftModel.from_pretrained(net, folder, is_trainable=True)
    return net.to(_device())


def _copy(net: Any, model_config: ModelConfig, base: dict) -> None:
    """Our weights into a transformers model, through the table of names."""
    state = net.state_dict()
    with torch.no_grad():
        for parameter in table(model_config):
            leaf: Any = base
            for name in parameter.path:
                leaf = leaf[name]
            leaf = np.array(leaf, np.float32)
            stacked = parameter.path[0] == "layers"
            for layer in range(model_config.num_layers if stacked else 1):
                value, start = leaf[layer] if stacked else leaf, 0
                for source in parameter.sources:
                    part = value[..., start : start + source.width]
                    start += source.width
                    if parameter.transposed and part.ndim == 2:
                        part = part.T
                    tensor = state[source.name.format(i=layer)]
                    array = np.ascontiguousarray(part)
                    tensor.copy_(torch.from_numpy(array).to(tensor.dtype))
