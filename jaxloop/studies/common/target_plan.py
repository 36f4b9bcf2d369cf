"""`--plan --for=TARGET`: a study's programs compiled for hardware that is absent from here."""

import dataclasses
from pathlib import Path

from jaxloop.accelerators import absent, cards, report
from jaxloop.config import FitConfig, ModelsConfig, RunConfig, SampleConfig
from jaxloop.lm.encoder.config import read_encoder_config
from jaxloop.lm.generation.prompt import render
from jaxloop.lm.io import config_json, tokenizer, tokenizer_files
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.training.autotune import MAX_CHAINS
from jaxloop.lm.training.batching import bucket
from jaxloop.metrics.embed import default_model
from jaxloop.studies.common import published_models
from jaxloop.studies.common.cost import Cost, Rows, Workload, duration, variants
from jaxloop.studies.common.models import (
    generate_options,
    model_path,
    model_shapes,
    train_options,
)

# Tokens of a prompt where neither the config nor a tokenizer says.
PROMPT_TOKENS = 32
# Fields of a fit that change no shape of a program.
_SAME_SHAPES = ("steps", "epochs", "learning_rate", "warmup_steps", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Programs:
    """What decides the shapes of a study's programs.

    Attributes:
        models: section of the study's config, as are `fit`, `sample` and `run`.
        sample: None where nothing is generated.
        prompt: tokens of a prompt, or an instruction, whose tokens the model's tokenizer counts if
            its files are on this machine.
    """

    models: ModelsConfig
    fit: FitConfig
    sample: SampleConfig | None
    run: RunConfig
    prompt: int | str = PROMPT_TOKENS


def shapes(
    study: Programs, card: cards.Card | None, chains: int | None = None
) -> list[report.Shapes]:
    """Return the shapes of each base model's programs at the longest padded lengths of the config.

    Args:
        study: what decides the shapes.
        card: the accelerator; None for a CPU.
        chains: how many chains the study has; None where that is not known.
    """
    limit = MAX_CHAINS["cpu" if card is None else "other"]
    devices = 1 if card is None or study.run.shard_base else card.devices
    most = min(limit, -(-(chains or limit * devices) // devices))
    found = []
    for name in study.models.pool:
        config = model_config_of(study.models, name)
        found.append(
            report.Shapes(
                name=name,
                model_config=config,
                dtype=study.models.dtype,
                fit=study.fit,
                train_options=train_options(study.run),
                sample=study.sample,
                generate_options=generate_options(study.fit),
                time=bucket(study.fit.max_length, config.max_seq_len),
                prompt=bucket(_prompt_tokens(study.prompt, name)),
                chains=most,
                shard_base=study.run.shard_base,
            )
        )
    return found


def model_config_of(models: ModelsConfig, name: str) -> ModelConfig:
    """Return the shapes of a model of the pool, as `models.model_shapes`.

    Where they are nowhere there, they are those of the published model of its short name. Raises
    ValueError where there is none either.
    """
    try:
        return model_shapes(models, name)[0]
    except ValueError:
        published = published_models.by_short_name(name)
        if published is None:
            raise
        return config_json.parse_config(published)


def _prompt_tokens(prompt: int | str, model: str) -> int:
    """Tokens of a prompt, as a model's tokenizer counts them where it is here."""
    if isinstance(prompt, int):
        return prompt
    path = Path(model_path(model))
    if not tokenizer_files.is_there(path):
        return PROMPT_TOKENS
    return max(1, len(tokenizer.load(path).encode([render(prompt)])[0]))


def rows(
    study: Programs, target: str, *, chains: int | None = None, total: Cost | None = None
) -> Rows:
    """Return the (what, amount) rows of `--plan --for`.

    They give the target, the memory of each program, the chains that fit and the rooflines, and
    where the `total` cost is known, the least time that the study takes. Where the target's
    compiler is not installed, one row says how to get it and estimates by arithmetic follow.
    Raises ValueError for a target that does not exist, and for a model of which not one chain fits.
    """
    card = cards.find(target)
    models = shapes(study, card, chains)
    try:
        device = report.device(target, card, study.fit.dtype)
    except absent.Missing as error:
        if card is None:  # a CPU needs no compiler that could be missing
            raise
        found = [("compiler", f"{error}; meanwhile, by arithmetic:")]
        for model in models:
            found += _of_model(report.estimate(model, card), model.name, models)
        return found
    found, best = [report.target_row(device)], []
    for model in models:
        lines, fastest = report.model_rows(model, device)
        found += _of_model(lines, model.name, models)
        best.append(fastest)
    found += _encoder(device)
    if total is not None:
        trained = min(rates.trained for rates in best)
        generated = min(rates.written for rates in best)
        found.append(_least_time(total, device, trained, generated))
    seconds = sum(rates.seconds for rates in best)
    return [*found, ("compiling", f"{seconds:,.0f} s here, the programs of one padded length")]


def rows_of_variants(
    work: Workload, target: str, *, prompt: int | str, total: Cost | None = None
) -> Rows:
    """Return the rows of `rows` for each way in which a study's chains train and generate.

    Chains whose programs have the same shapes are counted together; where there are several, the
    rows say which chains they are of, and the least time, of all chains, is in none of them.
    """
    shaped: dict[str, list[tuple[str, Workload]]] = {}
    for label, part in variants(work):
        shape = part.fit.model_dump(exclude=set(_SAME_SHAPES))
        key = repr((shape, part.sample.max_new_tokens, part.start))
        shaped.setdefault(key, []).append((label, part))
    found: Rows = []
    for parts in shaped.values():
        label, part = parts[0]
        programs = Programs(part.models, part.fit, part.sample, part.run, prompt)
        count = sum(len(one.chains) for _, one in parts)
        lines = rows(programs, target, chains=count, total=total if len(shaped) == 1 else None)
        if len(shaped) > 1:
            lines = [(f"{name}, {label}", amount) for name, amount in lines]
        found += lines
    return found


def _of_model(lines: Rows, name: str, models: list[report.Shapes]) -> Rows:
    """The rows of one model, with its name in front where there are several models."""
    return lines if len(models) == 1 else report.rows_of_model(lines, name)


def _encoder(device: report.Device) -> Rows:
    """The rows of the default sentence encoder; none where it is not installed."""
    try:
        path = default_model()
    except ValueError:
        return []
    return report.encoder_rows(read_encoder_config(path), device)


def _least_time(
    total: Cost, device: report.Device, trained: float, generated: float
) -> tuple[str, str]:
    """The row with the least time of a study on all devices of a target.

    trained, generated: tokens/s that one device trains on and generates at best.
    """
    count = 1 if device.card is None else device.card.devices
    parts = [f"{duration(total.train_tokens / trained / count)} to train"]
    if generated:
        parts.append(f"{duration(total.generated_tokens / generated / count)} to write")
    return (
        "time",
        f"at least {', '.join(parts)}: the sum of rooflines, with every slot busy and no padding",
    )
