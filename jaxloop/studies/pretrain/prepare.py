"""Reads and checks what a pretraining study needs, before anything is written.

That is the texts, divided into training and held-out ones, the shapes of every base, and how it is
trained. A text is held out if its SHA-256, read as a fraction, is below `data.held_out`. So it
stays held out when texts are added to the data or removed.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from jaxloop.config import FitConfig
from jaxloop.data import docs, duplicates, sources
from jaxloop.data.dialect import Dialect
from jaxloop.data.digest import fingerprint
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.dropout import DEFAULT_RATES
from jaxloop.runtime.devices import select_devices
from jaxloop.studies.pretrain.config import Base, PretrainConfig


class PreparedBase(NamedTuple):
    """A base model that is to be made: its entry in the config, its shapes, how it is trained."""

    base: Base
    model_config: ModelConfig
    fit: FitConfig


class Prepared(NamedTuple):
    """What a pretraining study needs, read and checked.

    Attributes:
        train_texts: texts to train on.
        groups: the module or domain of each training text; texts of one group stay together.
        heldout_texts: texts that are not trained on.
        libraries: the domains of all texts.
        fingerprint: a hash of all texts.
        bases: the base models that are to be made, by name.
    """

    train_texts: list[str]
    groups: list[str]
    heldout_texts: list[str]
    libraries: list[str]
    fingerprint: str
    bases: dict[str, PreparedBase]


def prepare(config: PretrainConfig) -> Prepared:
    """Read the data. Raises ValueError, one sentence, if a run could not succeed."""
    if config.fit.mode != "scratch":
        raise ValueError(
            f"config.fit.mode = {config.fit.mode!r} cannot make a base: must be 'scratch'"
        )
    select_devices(config.run.platform, config.run.devices)
    bases = {
        name: PreparedBase(base, model_config(config, base), _fit_settings(config, name, base))
        for name, base in config.bases.items()
    }
    frame, held_out = read(config)
    texts, group_column = list(frame["text"]), "module" if "module" in frame else "domain"
    trained = [not held for held in held_out]
    return Prepared(
        train_texts=list(itertools.compress(texts, trained)),
        groups=list(itertools.compress(frame[group_column], trained)),
        heldout_texts=list(itertools.compress(texts, held_out)),
        libraries=sorted(frame["domain"].unique()),
        fingerprint=fingerprint(frame),
        bases=bases,
    )


def read(config: PretrainConfig) -> tuple[pd.DataFrame, list[bool]]:
    """Return the texts of the source, one per row, and for each whether it is held out.

    Raises ValueError where either part is empty.
    """
    data = config.data
    # The bases of the box leave out the libraries that other studies read.
    names_none = bool(docs.default_libraries(data.source))
    frame = sources.load_texts(
        data.source,
        text_column=data.text_column,
        domain_column=data.domain_column,
        domains=data.domains or (docs.PRETRAIN if names_none else ()),
        keep_columns=("module",) if docs.is_docs(data.source) else (),
        name=data.name,
        split=data.split,
        revision=data.revision,
        limit=data.limit,
        dialect=Dialect(data.delimiter, data.csv_options),
    )
    if data.duplicates == "drop":
        first = duplicates.firsts(duplicates.keys(list(frame["text"])))
        frame = frame[first].reset_index(drop=True)
    held_out = split(list(frame["text"]), data.held_out)
    if not any(held_out) or all(held_out):
        raise ValueError(
            f"config.data.held_out = {data.held_out} leaves {len(held_out) - sum(held_out)} texts "
            f"to train on and {sum(held_out)} held out: both must be at least 1"
        )
    return frame, held_out


def split(texts: Sequence[str], share: float) -> list[bool]:
    """Return for each text whether it is held out: its SHA-256 as a fraction is below `share`.

    Texts with the same content (see `data.duplicates`) go where the first of them goes.
    """
    first: dict[bytes, str] = {}
    alike = [
        first.setdefault(key, text) for key, text in zip(duplicates.keys(texts), texts, strict=True)
    ]
    return [
        int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)
        < share * 2**32
        for text in alike
    ]


def model_config(config: PretrainConfig, base: Base) -> ModelConfig:
    """Return the shapes of a base, as its architecture and the config's sizes give them."""
    common: dict[str, Any] = dict(
        architecture=base.architecture,
        vocab_size=config.vocab,
        d_model=base.width,
        num_layers=base.layers,
        num_heads=base.heads,
        head_dim=base.width // base.heads,
        d_ff=base.mlp,
        max_seq_len=config.context,
        dropout=DEFAULT_RATES[base.architecture],
    )
    if base.architecture == "llama":
        return ModelConfig(**common, num_kv_heads=base.kv_heads, norm_eps=1e-5)
    if base.architecture == "qwen2":
        return ModelConfig(**common, num_kv_heads=base.kv_heads, qkv_bias=True, norm_eps=1e-6)
    common |= dict(
        num_kv_heads=base.heads,
        norm="layer",
        gated=False,
        positions="learned",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )
    if base.architecture == "gpt2":
        return ModelConfig(**common, activation="gelu_new")
    return ModelConfig(**common, activation="relu", position_offset=2)


def _fit_settings(config: PretrainConfig, name: str, base: Base) -> FitConfig:
    """How a base is trained. Raises ValueError where the config gives no number of steps."""
    fit, steps = config.fit, base.steps or config.fit.steps
    if steps is None:
        raise ValueError(
            f"config.fit.steps is none and config.bases.{name}.steps too: one of them must be a "
            "number"
        )
    return fit.replace(steps=steps, max_length=config.context)
