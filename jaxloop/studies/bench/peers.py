"""The peers of the benchmarks: the same model, weights and work in torch, through transformers and
peft.
"""

import tempfile

import numpy as np


def _device_and_dtype(settings):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, getattr(torch, settings.dtype)


def _load(spec, lora, base, tree, settings):
    """peft model with the first chain's adapter, on the device."""
    import jax
    import peft
    import torch
    import transformers

    from jaxloop.lm.io import peft_files
    from jaxloop.lm.io.config_json import config
    from jaxloop.lm.model import lora as adapters

    device, dtype = _device_and_dtype(settings)
    names = transformers.AutoConfig.for_model(**config(spec))
    with tempfile.TemporaryDirectory() as folder, torch.device(device):
        net = transformers.AutoModelForCausalLM.from_config(names, dtype=dtype)
        _copy(net, spec, base)
        peft_files.save_peft(folder, spec, adapters.split(jax.device_get(tree), 0), lora)
        net = peft.PeftModel.from_pretrained(net, folder, is_trainable=True)
    return net.to(device)


def _copy(net, spec, base):
    """Our weights into a transformers model, through the table of names."""
    import torch

    from jaxloop.lm.model.config import table

    state = net.state_dict()
    with torch.no_grad():
        for p in table(spec):
            leaf = base
            for name in p.path:
                leaf = leaf[name]
            leaf = np.array(leaf, np.float32)
            for i in range(spec.layers if p.path[0] == "layers" else 1):
                value, at = (leaf[i] if p.path[0] == "layers" else leaf), 0
                for source in p.sources:
                    part = value[..., at : at + source.width]
                    at += source.width
                    tensor = state[source.name.format(i=i)]
                    tensor.copy_(
                        torch.from_numpy(
                            np.ascontiguousarray(
                                part.T if p.transposed and part.ndim == 2 else part
                            )
                        ).to(tensor.dtype)
                    )


def train_one_chain(spec, lora, base, tree, tokens_SCBT, settings):
    """A function that runs `settings.steps` AdamW steps of one chain on the same tokens."""
    import torch

    net = _load(spec, lora, base, tree, settings)
    device, _ = _device_and_dtype(settings)
    ours = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(ours, lr=2e-4, weight_decay=0.01)
    batches = torch.from_numpy(np.ascontiguousarray(tokens_SCBT[:, 0])).long().to(device)

    def run():
        for batch in batches:
            loss = net(input_ids=batch, labels=batch, use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(ours, 1.0)
            optimizer.step()
        float(loss.detach())

    return run


def generate(spec, lora, base, tree, prompt, lengths, batch, settings):
    """A function that writes texts of the given lengths with the adapter merged: every batch runs
    to its longest text, as padding makes it.
    """
    import torch

    net = _load(spec, lora, base, tree, settings).merge_and_unload().eval()
    device, _ = _device_and_dtype(settings)
    net.generation_config.eos_token_id = None
    ids = torch.from_numpy(np.asarray(prompt)).long().to(device)

    def run():
        for at in range(0, len(lengths), batch):
            some = lengths[at : at + batch]
            with torch.no_grad():
                net.generate(
                    ids[None].expand(len(some), -1), attention_mask=torch.ones(len(some), len(ids), device=device, dtype=torch.long), do_sample=True,
                    temperature=1.5, min_p=0.2, top_k=0, max_new_tokens=int(some.max()), min_new_tokens=int(some.max()), pad_token_id=0,
                )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()

    return run
