"""The model card of a base."""

from jaxloop.studies.pretrain.config import PretrainConfig
from jaxloop.studies.pretrain.prepare import Prepared


def card(
    config: PretrainConfig, prepared: Prepared, name: str, *, parameters: int, bits: float
) -> str:
    """Return the README.md of a base.

    parameters: how many it has; bits: its bits per character of the held-out texts.
    """
    base, fit = prepared.bases[name].base, prepared.bases[name].fit
    tokens = (fit.steps or 0) * fit.batch_size * config.context
    characters = sum(map(len, prepared.train_texts))
    libraries = ", ".join(prepared.libraries)
    optimizer = {"adamw": "AdamW", "muon": "Muon"}[config.optimizer]
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {config.title}: {name}

A {base.architecture} decoder of {parameters:,} parameters ({base.layers} layers of width \
{base.width}, context {config.context}, byte-level BPE of
{config.vocab:,} tokens, {config.dtype} files), trained from random weights by jaxloop \
(`configs/pretrain.py`) for studies of recursive training.
It knows the prose of software documentation and nothing else.

| | |
|---|---|
| trained on | {len(prepared.train_texts):,} paragraphs, {characters:,} characters of docstrings \
(SHA-256 {prepared.fingerprint[:16]}…) of {libraries} |
| training | {fit.steps:,} steps of {optimizer}, {tokens:,} tokens |
| held out | {len(prepared.heldout_texts):,} paragraphs of the same libraries, chosen by a hash of \
their text |
| held-out bits per character | {bits:.3f} |

Not for use: it states false things about software with confidence. Its place is at the bottom of \
an experiment.
"""
