"""`--plan --for=TARGET`: a study's own programs, compiled for hardware that is absent."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jaxloop.accelerators import cards

if TYPE_CHECKING:
    from jaxloop.accelerators.report import Shapes
    from jaxloop.studies.common.cost import Work

# Tokens of a prompt where neither the config nor a tokenizer says.
PROMPT = 32


def shapes(settings: Any, card: cards.Card | None, chains: int | None = None) -> list["Shapes"]:
    """The shapes of each base model's programs on a card (None: a CPU), at the longest padded
    lengths of the config. `chains`: of the study, where it is known.
    """
    from jaxloop.accelerators.report import Shapes
    from jaxloop.config import Sample
    from jaxloop.lm.training.autotune import LIMIT
    from jaxloop.lm.training.batching import bucket
    from jaxloop.studies.chain import prepare

    writes = getattr(settings, "sample", None)
    fit, sample = prepare.family_settings(
        SimpleNamespace(fit=settings.fit, sample=writes or Sample(), run=settings.run)
    )
    found = []
    for name in settings.models.pool:
        spec, prompt = spec_of(name), bucket(_prompt(settings, name))
        time = bucket(settings.fit.max_length, spec.context)
        limit, devices = (
            LIMIT["cpu" if card is None else "other"],
            1 if card is None else card.devices,
        )
        devices = 1 if settings.run.cut_base else devices
        most = min(limit, -(-(chains or limit * devices) // devices))
        found.append(
            Shapes(
                name,
                spec,
                settings.models.dtype,
                fit,
                sample if writes else None,
                time,
                prompt,
                most,
                settings.run.cut_base,
            )
        )
    return found


def spec_of(name: str):
    """Shapes of a model: from its directory or the hub's cache, or the published ones where it is
    not here. Raises ValueError where it is neither.
    """
    from jaxloop.lm.io import config_json, huggingface
    from jaxloop.studies.chain import prepare
    from jaxloop.studies.diversity import cost as diversity_plan
    from jaxloop.studies.multi_entity import cost as entities_plan
    from jaxloop.studies.recursive_loops import cost as loops_plan

    published = loops_plan.PUBLISHED | entities_plan.PUBLISHED
    try:
        return huggingface.read_spec(huggingface.locate(prepare.model_path(name), None))
    except ValueError:
        known = diversity_plan.known_specs().get(diversity_plan.short(name))
        if name in published:
            return config_json.spec_of(published[name])
        if known is None:
            raise
        return known


def _prompt(settings: Any, name: str) -> int:
    """Tokens of the config's prompt: a block of a continued article, or counted, where the
    tokenizer is here, or assumed.
    """
    from pathlib import Path

    from jaxloop.lm.generation.prompt import render
    from jaxloop.lm.io import tokenizer
    from jaxloop.studies.chain import prepare

    if block := getattr(getattr(settings, "chain", None), "block", None):
        return block
    text = getattr(getattr(settings, "data", None), "instruction", None)
    path = Path(prepare.model_path(name))
    if text is not None and (path / "tokenizer.json").exists():
        return max(1, len(tokenizer.load(path).encode([render(text)])[0]))
    return int(getattr(getattr(settings, "plan", None), "prompt_tokens", PROMPT))


def rows(
    settings: Any, target: str, *, chains: int | None = None, work: "Work | None" = None
) -> list[tuple[str, str]]:
    """Lines of `--plan --for`: the target, each program's memory, chains that fit, rooflines; the
    least time of the study where its `work` is known.

    Where the compiler is not installed, one line says how to get it and the arithmetic follows.
    Raises ValueError for a target that does not exist, and for a model of which not one chain fits.
    """
    card = cards.find(target)
    from jaxloop.accelerators import absent, report

    models = shapes(settings, card, chains)
    try:
        at = report.device(target, card, settings.fit.dtype)
    except absent.Missing as error:
        found = [("compiler", f"{error}; meanwhile, by arithmetic:")]
        for each in models:
            more = report.estimate(each, card)
            found += more if len(models) == 1 else report.unique(more, each.name)
        return found
    found, trained, written, seconds = [report.told(at)], [], [], 0.0
    for each in models:
        more, best = report.model_rows(each, at)
        found += more if len(models) == 1 else report.unique(more, each.name)
        trained, written, seconds = (
            [*trained, best.trained],
            [*written, best.written],
            seconds + best.seconds,
        )
    found += _encoder(at)
    return [
        *found,
        *_time(work, at, min(trained), min(written)),
        ("compiling", f"{seconds:,.0f} s here, the programs of one padded length"),
    ]


def _encoder(at) -> list[tuple[str, str]]:
    """Lines of the default sentence encoder, where it is installed."""
    from jaxloop.accelerators import report
    from jaxloop.lm.encoder.config import read_encoder_spec
    from jaxloop.metrics.embed import default_model

    try:
        path = default_model()
    except ValueError:
        return []
    return report.encoder_rows(read_encoder_spec(path), at)


def _time(work, at, trained: float, written: float) -> list[tuple[str, str]]:
    """The least time of a study on all devices of a target."""
    from jaxloop.studies.common.cost import duration

    if work is None:
        return []
    count = 1 if at.card is None else at.card.devices
    parts = [(work.tokens / trained / count, "to train")] + (
        [(work.tokens_written / written / count, "to write")] if written else []
    )
    said = ", ".join(f"{duration(seconds)} {what}" for seconds, what in parts)
    return [("time", f"at least {said}: the sum of rooflines, with every slot busy and no padding")]
