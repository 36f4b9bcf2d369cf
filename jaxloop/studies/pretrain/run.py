"""Making the tiny bases: a tokenizer and one model per architecture from the text of some domains,
with a model card each.

Texts whose SHA-256 starts below `data.held_out` are never trained on, whatever else is in the data:
the held-out figure stays honest when the data changes.
"""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from jaxloop.config import Count, Data, Fit, Probability, Run, Section, Seed, Text


class PretrainData(Data):
    """Where text comes from."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of the texts that is held out, chosen by their content"
    )


class Base(Section):
    """Sizes of a decoder."""

    architecture: Literal["llama", "qwen2", "gpt2", "opt"] = Field(
        "llama", description="block, positions, biases and names"
    )
    width: Count = Field(160, description="model width")
    layers: Count = Field(4, description="blocks")
    heads: Count = Field(5, description="query heads; width / heads is their size")
    kv_heads: Count = Field(5, description="key/value heads (llama, qwen2)")
    mlp: Count = Field(432, description="width inside the mlp")
    steps: Count | None = Field(None, description="optimiser steps of this base; none: `fit.steps`")

    @pydantic.model_validator(mode="after")
    def _divides(self) -> "Base":
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} and kv_heads = {self.kv_heads} do not fit width "
                f"{self.width}: width must be a multiple of heads, heads of kv_heads"
            )
        return self


class Settings(Section):
    """The config of a pretraining study."""

    study: Literal["pretrain"] = Field("pretrain", description="which study this is a config of")
    title: Text = Field("Bases from scratch", description="first line of the model cards")
    data: PretrainData = PretrainData()
    bases: dict[str, Base] = Field(
        {"llama": Base()}, description="name -> sizes; one model is made for each"
    )
    vocab: Annotated[int, Field(ge=258)] = Field(
        3072, description="tokens of the byte-level BPE that all bases share"
    )
    context: Count = Field(
        256, description="tokens per block, and the longest sequence of the models"
    )
    seed: Seed = Field(0, description="of weights and order; base k uses seed + k")
    adam_b2: Probability = Field(0.98, description="AdamW's second decay")
    fit: Fit = Fit(mode="scratch", steps=1000)
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="number format of the files"
    )
    run: Run = Run()


def split(texts: Sequence[str], share: float) -> list[bool]:
    """True for the texts that are held out: those whose SHA-256, read as a fraction, is below
    `share`; texts of one content go with the first.
    """
    from jaxloop.data import duplicates

    first: dict[bytes, str] = {}
    alike = [
        first.setdefault(key, text) for key, text in zip(duplicates.keys(texts), texts, strict=True)
    ]
    return [
        int(hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) < share * 2**32
        for t in alike
    ]


def _read(settings: Settings):
    from jaxloop.data import docs, sources
    from jaxloop.data.delimited import Dialect

    data = settings.data
    if docs.is_docs(data.source):
        frame = docs.read(data.source, data.domains or docs.PRETRAIN)
    else:
        dialect = Dialect(data.delimiter, data.csv_options)
        frame = sources.load_texts(
            data.source, text_column=data.text_column, split=data.split, revision=data.revision, limit=data.limit, dialect=dialect
        )  # fmt: skip
    held = split(frame["text"], data.held_out)
    if not any(held) or all(held):
        raise ValueError(
            f"config.data.held_out = {data.held_out} leaves {len(held) - sum(held)} texts to "
            f"train on and {sum(held)} held out: both must be at least 1"
        )
    return frame, held


def check(settings: Settings) -> list[str]:
    """Reads the data; says how much of it there is."""
    frame, held = _read(settings)
    return [
        f"data: {len(held) - sum(held):,} texts to train on, {sum(held):,} held out, "
        f"{frame['text'].str.len().sum():,} characters"
    ]


def plan(settings: Settings) -> list[tuple[str, str]]:
    """The sizes of what a run would make."""
    from jaxloop.lm.model.config import count_parameters

    size = settings.fit.batch_size * settings.context
    return [
        (
            name,
            f"{count_parameters(_spec(settings, b)):,} parameters, "
            f"{(b.steps or settings.fit.steps or 0) * size:,} tokens",
        )
        for name, b in settings.bases.items()
    ]


def _spec(settings: Settings, base: Base):
    from jaxloop.lm.model.config import Spec

    kind = base.architecture
    common = dict(
        architecture=kind, vocab=settings.vocab, width=base.width, layers=base.layers, heads=base.heads, head_size=base.width // base.heads,
        mlp=base.mlp, context=settings.context,
    )  # fmt: skip
    if kind in ("llama", "qwen2"):
        return Spec(
            **common,
            kv_heads=base.kv_heads,
            qkv_bias=kind == "qwen2",
            norm_eps=1e-6 if kind == "qwen2" else 1e-5,
        )
    return Spec(
        **common, kv_heads=base.heads, norm="layer", activation="gelu_new" if kind == "gpt2" else "relu", gated=False, positions="learned",
        position_offset=2 if kind == "opt" else 0, qkv_bias=True, o_bias=True, mlp_bias=True,
    )  # fmt: skip


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """Make every base that is not in `workdir` yet; each is a directory in Hugging Face format with
    README.md. Returns 0.
    """
    import jax
    import jax.numpy as jnp

    from jaxloop.data.docs import fingerprint
    from jaxloop.lm.io import bpe, huggingface
    from jaxloop.lm.model.config import count_parameters
    from jaxloop.lm.training import pretrain
    from jaxloop.lm.training.step import FitSettings
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.workdir import open_workdir

    fields = settings.fit.model_dump()
    if fields["mode"] != "scratch":
        raise ValueError(
            f"config.fit.mode = {fields['mode']!r} cannot make a base: must be 'scratch'"
        )
    unset = [
        name
        for name, base in settings.bases.items()
        if base.steps is None and fields["steps"] is None
    ]
    if unset:
        raise ValueError(
            f"config.fit.steps is none and config.bases.{unset[0]}.steps too: one of them must "
            "be a number"
        )
    frame, held = _read(settings)
    texts = {
        part: [t for t, h in zip(frame["text"], held) if h == (part == "held")]
        for part in ("train", "held")
    }
    groups = [m for m, h in zip(frame["module" if "module" in frame else "domain"], held) if not h]
    kept = {
        name: fields[name]
        for name in (
            "steps",
            "batch_size",
            "learning_rate",
            "schedule",
            "warmup_steps",
            "weight_decay",
            "dtype",
            "remat",
        )
    }
    common = FitSettings(
        mode="scratch",
        clip=fields["clip"] or 0.0,
        betas=(0.9, settings.adam_b2),
        max_length=settings.context,
        **kept,
    )
    with open_workdir(
        workdir, settings.model_dump(mode="json"), may_change=("run", "title"), needs=2**27
    ) as place:
        tokenizer = bpe.train(texts["train"], settings.vocab)
        for number, (name, base) in enumerate(settings.bases.items()):
            target = place.path / "bases" / name
            if (target / "README.md").exists():
                continue
            spec, start = _spec(settings, base), time.monotonic()
            fit = dataclasses.replace(common, steps=base.steps or common.steps)

            def tell(step: int, loss: float, name=name, fit=fit, start=start) -> None:
                if step % 100 < fit.steps_per_dispatch or step == fit.steps:
                    rate = step * fit.batch_size * settings.context / (time.monotonic() - start)
                    LOGGER.info(
                        "%s: step %d of %d, loss %.3f, %.0f tokens/s",
                        name,
                        step,
                        fit.steps,
                        loss,
                        rate,
                    )

            model = pretrain.pretrain(
                spec,
                tokenizer,
                texts["train"],
                groups,
                fit,
                seed=settings.seed + number,
                block=settings.context,
                on_progress=tell,
            )
            model = model._replace(
                params=jax.tree.map(lambda w: w.astype(jnp.dtype(settings.dtype)), model.params)
            )
            bits = pretrain.bits_per_character(
                model._replace(params=jax.tree.map(lambda w: w.astype(jnp.float32), model.params)),
                texts["held"],
            )
            target.parent.mkdir(exist_ok=True)
            huggingface.save(model, target)
            facts = dict(
                parameters=count_parameters(spec), steps=fit.steps, tokens=fit.steps * fit.batch_size * settings.context, bits=bits,
                libraries=sorted(frame["domain"].unique()), texts=len(texts["train"]), characters=sum(map(len, texts["train"])),
                held=len(texts["held"]), fingerprint=fingerprint(frame), dtype=settings.dtype,
            )  # fmt: skip
            (target / "README.md").write_text(_card(settings, name, base, facts), encoding="utf8")
            LOGGER.info("%s: %.3f bits per character held out; written to %s", name, bits, target)
    return 0


def _card(settings: Settings, name: str, base: Base, facts: dict) -> str:
    read = ", ".join(facts["libraries"])
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {settings.title}: {name}

A {base.architecture} decoder of {facts["parameters"]:,} parameters ({base.layers} layers of width {base.width}, context {settings.context}, byte-level BPE of
{settings.vocab:,} tokens, {facts["dtype"]} files), trained from random weights by jaxloop (`configs/pretrain.py`) for studies of recursive training.
It knows the prose of software documentation and nothing else.

| | |
|---|---|
| trained on | {facts["texts"]:,} paragraphs, {facts["characters"]:,} characters of docstrings (SHA-256 {facts["fingerprint"][:16]}…) of {read} |
| training | {facts["steps"]:,} steps, {facts["tokens"]:,} tokens |
| held out | {facts["held"]:,} paragraphs of the same libraries, chosen by a hash of their text |
| held-out bits per character | {facts["bits"]:.3f} |

Not for use: it states false things about software with confidence. Its place is at the bottom of an experiment.
"""
