"""What an experiment would cost, before any data are read: counted from the config, timed here or
in hours of a device that it names.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jaxloop.studies.recursive_loops.config import Settings, instruction

# config.json of the paper's bases, for plans where the models themselves are not here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "unsloth/Llama-3.2-1B": dict(
        model_type="llama", vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    ),
    "unsloth/Qwen2.5-1.5B": dict(
        model_type="qwen2", vocab_size=151936, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960, max_position_embeddings=131072, rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=True,
    ),
    "HuggingFaceTB/SmolLM-1.7B": dict(
        model_type="llama", vocab_size=49152, hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=32,
        intermediate_size=8192, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
    ),
    "tiiuae/Falcon3-1B-Base": dict(
        model_type="llama", vocab_size=131072, hidden_size=2048, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        intermediate_size=8192, max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1000042.0, tie_word_embeddings=False,
    ),
}  # fmt: skip


class _Assumed:
    """A tokenizer's counts without a tokenizer: every text and prompt has the mean length that the
    config assumes.
    """

    def __init__(self, text: float, prompt: float):
        self.text, self.prompt = text, round(prompt)

    def count(self, texts: Sequence[str]) -> list[float]:
        return [self.text] * len(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0] * self.prompt for _ in texts]


def describe(settings: Settings, name: str):
    """(spec, tokenizer or None) of a model: from its directory, where config.json is enough, the
    hub's cache, or `PUBLISHED`.

    Raises ValueError where it is none of these.
    """
    from jaxloop.lm.io import huggingface
    from jaxloop.lm.io.config_json import spec_of
    from jaxloop.studies.chain import prepare

    path = Path(prepare.model_path(name)).expanduser()
    if not path.is_dir() and name in PUBLISHED:
        return spec_of(PUBLISHED[name]), None
    path = huggingface.locate(str(path), prepare._revision(settings, name))
    here = any(path.glob("*.safetensors")) and (path / "tokenizer.json").exists()
    return huggingface.describe(path) if here else (huggingface.read_spec(path), None)


def table(settings: Settings, target: str | None = None) -> list[tuple[str, str]]:
    """(what, amount) rows: chains, texts, tokens, FLOPs, bytes, memory, disk, time."""
    from jaxloop.recursion import driver
    from jaxloop.studies.chain import prepare
    from jaxloop.studies.common import absent_plan, cost
    from jaxloop.studies.recursive_loops import chains
    from jaxloop.studies.recursive_loops import run as loops
    from jaxloop.studies.recursive_loops.config import check_metrics

    check_metrics(settings)
    planned = chains.expected(settings)
    described = {name: describe(settings, name) for name in settings.models.pool}
    here = all(tokenizer is not None for _, tokenizer in described.values())
    common = driver.Settings(
        settings.chain.generations,
        *prepare.family_settings(settings),
        evaluate=settings.chain.eval_texts,
        keep=settings.run.keep,
    )
    data, lengths = _data(settings, described, here)
    models = {name: (spec, lengths or tokenizer) for name, (spec, tokenizer) in described.items()}
    prepared = SimpleNamespace(
        chains=[p.spec for p in planned], data=data, models=models, driver=common
    )
    platform = cost.platform_of(target)
    shares = {name: cost.work(settings, prepared, name, platform) for name in settings.models.pool}
    whole = cost.Work(*map(sum, zip(*shares.values(), strict=True)))
    rows = [
        ("chains", loops.chains_line(settings, planned)),
        ("human texts per chain", f"{max(p.needed for p in planned):,} at most"),
    ]
    rows += [
        ("texts to train on", f"{whole.texts:,.0f}"),
        ("texts to write", f"{whole.written:,.0f}"),
    ]
    rows += [
        (
            "tokens",
            f"{whole.tokens:,.0f} to train on, {whole.tokens_written:,.0f} to write if texts are "
            f"as long as human ones{' (assumed)' if lengths else ''}",
        )
    ]
    big = cost.big
    rows += [
        (
            "arithmetic",
            f"{big(whole.train_flops)}FLOP to train, {big(whole.decode_flops)}FLOP and "
            f"{big(whole.decode_bytes)}B read to write",
        )
    ]
    rows += [
        (f"model {name}", cost.described(settings, spec)) for name, (spec, _) in models.items()
    ]
    if target is not None:
        return [
            *rows,
            *absent_plan.rows(settings, target, chains=len(planned), work=whole),
            ("disk", f"{_disk(settings, prepared) / 1e9:,.2f} GB at most"),
        ]
    rows += [
        ("memory", f"{big(cost.memory(settings, prepared))}B to train one program of chains"),
        ("disk", f"{_disk(settings, prepared) / 1e9:,.2f} GB at most"),
    ]
    if here and lengths is None:
        return rows + _measured(settings, prepared, shares)
    return rows + _assumed(settings, whole)


def _data(settings: Settings, described, here: bool):
    """(a data set to take lengths from, None), or one without texts and the lengths that are
    assumed.
    """
    from jaxloop.data.sources import is_here
    from jaxloop.recursion.sources import Dataset
    from jaxloop.studies.recursive_loops import sources

    name = next(iter(settings.domains))
    local = all(map(is_here, settings.domains[name].source)) and settings.domains[name].source
    if here and local:
        source = sources.read(settings, name, next(iter(described.values()))[1].count)
        return {name: Dataset(source.texts, source.prompt)}, None
    return {name: Dataset(("",), instruction(settings.domains[name]))}, _Assumed(
        settings.plan.text_tokens, settings.plan.prompt_tokens
    )


def _measured(settings: Settings, prepared, shares) -> list[tuple[str, str]]:
    from jaxloop.studies.chain import prepare
    from jaxloop.studies.common import cost

    name = settings.models.pool[0]
    first, trained, wrote = cost.measure(settings, prepared, name)
    train = sum(s.train_flops for s in shares.values()) / trained
    write = (
        sum(
            s.tokens_written * cost.decode_flops_per_token(settings, prepared, n)
            for n, s in shares.items()
        )
        / wrote
    )
    compiling = first * len(shares)
    say = cost.duration
    return [
        (
            "measured with",
            f"{name} on {prepare.device_name()}: {cost.big(trained)}FLOP/s trained, "
            f"{cost.big(wrote)}FLOP/s written",
        ),
        ("time", f"{say(train)} to train, {say(write)} to write, {say(compiling)} to compile"),
        (
            "time in all",
            f"about {say(train + write + compiling)}, clustering and metrics not counted",
        ),
    ]


def hours(settings: Settings, work) -> tuple[float, float]:
    """Device-hours of training and of writing, at the shares of the device's limits that the config
    assumes.
    """
    p = settings.plan
    train = work.train_flops / (p.flops * p.train_share)
    write = max(work.decode_bytes / p.bandwidth, work.decode_flops / p.flops) / p.write_share
    return train / 3600, write / 3600


def _assumed(settings: Settings, work) -> list[tuple[str, str]]:
    p, (train, write) = settings.plan, hours(settings, work)
    limits = f"{p.flops / 1e12:,.0f} TFLOP/s and {p.bandwidth / 1e12:.2f} TB/s"
    return [
        (
            "assumed",
            f"{p.text_tokens:g} tokens per text; {p.device} of {limits}, of which training "
            f"reaches {p.train_share:.0%} and writing {p.write_share:.0%}",
        ),
        (
            "device-hours",
            f"{train:,.1f} to train, {write:,.1f} to write: about {train + write:,.0f} "
            f"{p.device}-hours, clustering and metrics not counted",
        ),
    ]


def disk(settings: Settings, prepared) -> int:
    """Bytes that a run leaves at most."""
    from jaxloop.studies.recursive_loops import chains

    return _disk(
        settings,
        SimpleNamespace(
            chains=[p.spec for p in chains.expected(settings)],
            models=prepared.models,
            driver=prepared.driver,
        ),
    )


def _disk(settings: Settings, prepared) -> int:
    from jaxloop.studies.chain import run as chain

    return chain._disk(settings, prepared)
