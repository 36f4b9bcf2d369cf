"""What a multi-entity study would cost: timed here where models and data are here, else in hours of
the device that the config names.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jaxloop.studies.chain import prepare as chain_setup
from jaxloop.studies.common import cost as chain_plan
from jaxloop.studies.multi_entity import prepare as entities_setup
from jaxloop.studies.recursive_loops import cost as loops_plan

if TYPE_CHECKING:
    from jaxloop.studies.multi_entity.run import Settings

# config.json of the paper's models, for plans where they are not here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/opt-350m": dict(
        model_type="opt", vocab_size=50272, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096, max_position_embeddings=2048,
        word_embed_proj_dim=512, do_layer_norm_before=False, _remove_final_layer_norm=False, activation_function="relu", tie_word_embeddings=True,
    ),
    "meta-llama/Llama-3.2-1B": loops_plan.PUBLISHED["unsloth/Llama-3.2-1B"],
}  # fmt: skip


def table(settings: "Settings") -> list[tuple[str, str]]:
    """(what, amount) rows. Raises ValueError, as a run would, where everything is here and
    something is wrong.
    """
    here = all(_file(t.source) for t in _tasks(settings)) and all(
        Path(chain_setup.model_path(name)).expanduser().is_dir() for name in settings.models.pool
    )
    return _measured(settings) if here else _assumed(settings)


def _tasks(settings):
    return [
        t
        for t in (*(settings.task(name) for name in settings.entities), settings.public)
        if t.task != "none"
    ]


def _file(source: str | None) -> bool:
    from jaxloop.data.sources import is_here

    return source is not None and is_here(source)


def _like(settings: "Settings") -> SimpleNamespace:
    """The settings under the names of a chain study."""
    e = settings.exchange
    return SimpleNamespace(
        models=settings.models,
        fit=settings.fit,
        sample=settings.sample,
        run=settings.run,
        plan=settings.plan,
        chain=SimpleNamespace(start=e.start, generations=e.generations, size=e.synthetic),
    )


def _measured(settings: "Settings") -> list[tuple[str, str]]:
    """The table of a chain study, on a mixture of all corpora, with what this one adds."""
    from jaxloop.recursion.sources import Dataset

    prepared = entities_setup.prepare(settings)
    texts, prompts = [], []
    for d in prepared.data.values():
        texts += d.texts[:250]
        prompts += [d.prompt(i) for i in range(min(250, len(d.texts)))]
    seen = prepared._replace(data={"all": Dataset(texts, prompts)})
    head = [
        ("chains", entities_setup.line(settings, prepared)),
        _count(settings, prepared),
        *((f"data {name}", said) for name, said in prepared.found),
    ]
    scored = sum(len(texts) for texts, _ in prepared.tests.values())
    return [*head, *chain_plan.table(_like(settings), seen), *_rest(settings, prepared, scored)]


def _count(settings, prepared) -> tuple[str, str]:
    members = len(prepared.chains) * len(settings.entities)
    return (
        "models",
        f"{members} in every generation, {members * settings.exchange.generations} in all; equal "
        "ones are trained once",
    )


def _rest(settings, prepared, scored: int) -> list[tuple[str, str]]:
    members = len(prepared.chains) * len(settings.entities)
    # Those that a call goes on from, and those that it made.
    held = (
        2
        * min(members, settings.together or members)
        * max(entities_setup.weights_bytes(settings, spec) for spec, _ in prepared.models.values())
    )
    return [
        ("test rows to score", f"{scored * members * settings.exchange.generations:,}"),
        ("host memory", f"{held / 1e9:,.2f} GB of weights at most"),
        ("disk", f"{entities_setup.disk(settings, prepared) / 1e9:,.2f} GB at most"),
    ]


def _assumed(settings: "Settings") -> list[tuple[str, str]]:
    """Counts alone, texts as long as the config assumes."""
    from jaxloop.lm.io import huggingface
    from jaxloop.lm.io.config_json import spec_of
    from jaxloop.recursion import driver
    from jaxloop.recursion.sources import Dataset

    models = {}
    for name in settings.models.pool:
        if name in PUBLISHED:
            models[name] = (spec_of(PUBLISHED[name]), None)
        else:
            models[name] = (
                huggingface.read_spec(huggingface.locate(chain_setup.model_path(name), None)),
                None,
            )
    weights, mixing = entities_setup.weights_of(settings), entities_setup.mixing_of(settings)
    names = [
        *(n for n in settings.entities if settings.task(n).task != "none"),
        entities_setup.PUBLIC,
    ]
    sizes = {name: range(max(settings.exchange.size, settings.measure.probes)) for name in names}
    chains, settings_of = entities_setup.make_chains(
        settings,
        {name: SimpleNamespace(texts=rows) for name, rows in sizes.items()},
        weights,
        mixing,
    )
    fit, sample = chain_setup.family_settings(settings)
    common = driver.Settings(
        settings.exchange.generations, fit, sample, evaluate=0, keep=settings.run.keep
    )
    lengths = loops_plan._Assumed(settings.plan.text_tokens, settings.plan.prompt_tokens)
    described = {name: (spec, lengths) for name, (spec, _) in models.items()}
    prepared = entities_setup.Prepared(
        chains, {"all": Dataset(("",), "")}, {}, [], described, common, settings_of, mixing
    )
    like, big = _like(settings), chain_plan.big
    shares = [chain_plan.work(like, prepared, name) for name in settings.models.pool]
    whole = chain_plan.Work(*map(sum, zip(*shares, strict=True)))
    # Scoring is the forward pass, a third of what full fine-tuning does with a token.
    scored = (settings.measure.test_texts or 1000) * len(names)
    members = len(chains) * len(settings.entities) * settings.exchange.generations
    per_token = sum(s.train_flops for s in shares) / max(1.0, whole.tokens) / 3
    score = members * scored * (settings.plan.text_tokens + settings.plan.prompt_tokens) * per_token
    train, write = loops_plan.hours(like, whole)
    judged = score / (settings.plan.flops * settings.plan.train_share) / 3600
    p = settings.plan
    return [
        ("chains", entities_setup.line(settings, prepared)),
        _count(settings, prepared),
        (
            "rows drawn",
            f"{whole.texts:,.0f}, of which {settings.fit.steps or 0} x {settings.fit.batch_size} "
            "are trained on by each model",
        ),
        ("texts to write", f"{whole.written:,.0f}"),
        (
            "tokens",
            f"{whole.tokens:,.0f} to train on, {whole.tokens_written:,.0f} to write (assumed: "
            f"{p.text_tokens:g} per text, {p.prompt_tokens:g} per prompt)",
        ),
        (
            "arithmetic",
            f"{big(whole.train_flops)}FLOP to train, {big(whole.decode_flops)}FLOP and "
            f"{big(whole.decode_bytes)}B read to write, {big(score)}FLOP to score",
        ),
        *(
            (f"model {name}", chain_plan.described(like, spec))
            for name, (spec, _) in models.items()
        ),
        ("memory", f"{big(chain_plan.memory(like, prepared))}B to train one program of models"),
        *_rest(settings, prepared, scored),
        (
            "assumed",
            f"{p.device} of {p.flops / 1e12:,.0f} TFLOP/s and {p.bandwidth / 1e12:.2f} TB/s, of "
            f"which training reaches {p.train_share:.0%} and "
            f"writing {p.write_share:.0%}",
        ),
        (
            "device-hours",
            f"{train:,.1f} to train, {write:,.1f} to write, {judged:,.1f} to score: about "
            f"{train + write + judged:,.0f} {p.device}-hours",
        ),
    ]
