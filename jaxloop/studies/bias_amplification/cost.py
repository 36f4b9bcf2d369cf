"""What a bias-amplification study would do: models, tokens, arithmetic, disk; counted from the
config and the articles, nothing is run.
"""

from typing import TYPE_CHECKING

from jaxloop.studies.chain import prepare

if TYPE_CHECKING:
    from jaxloop.studies.bias_amplification.run import Prepared, Settings

# Rate at which the time is stated; the share of it that a device reaches is what `bench` measures.
PETAFLOP = 1e15


def distinct(prepared: "Prepared") -> int:
    """Models that differ: chains of one seed that train generation 0 alike have it in common (66
    versions of the paper, 62 of them different).
    """
    shared = len({(chain.seed, chain.fit) for chain in prepared.chains})
    return shared + len(prepared.chains) * (prepared.driver.generations - 1)


def table(settings: "Settings", prepared: "Prepared") -> list[tuple[str, str]]:
    """(what, amount) rows of `--plan`. A written article is taken to be as long as its blocks can
    make it.
    """
    from jaxloop.recursion.progress import duration
    from jaxloop.recursion.workflow import train_size
    from jaxloop.runtime import roofline
    from jaxloop.studies.bias_amplification.chains import codec, training_examples

    sizes = prepare.sizes(settings.fit, prepared.spec)
    frozen = settings.fit.mode == "lora"
    bodies, _ = training_examples(
        prepared.data["articles"].texts, settings.chain.reading, codec(prepared.tokenizer)
    )
    lengths = [min(len(ids) + 1, settings.fit.max_length) for ids in bodies]
    size, blocks = len(prepared.articles.chosen), sum(map(len, prepared.prompts.values()))
    real = sum(lengths) / size
    new = blocks / size * settings.sample.max_new_tokens
    new = min(new, settings.fit.max_length) if settings.chain.reading == "paper" else new
    trained, first = 0.0, set()
    for chain in prepared.chains:
        epochs = dict(chain.fit).get("epochs", settings.fit.epochs)
        for g in range(prepared.driver.generations):
            if g == 0 and (chain.seed, chain.fit) in first:
                continue
            first.add((chain.seed, chain.fit))
            items = train_size(chain.workflow, g)
            if settings.fit.steps is not None:
                trained += (
                    settings.fit.steps * settings.fit.batch_size * sum(lengths) / len(lengths)
                )
            else:
                trained += epochs * items * (real if g == 0 else new)
    written = (
        blocks * settings.sample.max_new_tokens * len(prepared.chains) * prepared.driver.generations
    )
    beams = (
        sum(dict(c.sample).get("beams", 1) - 1 for c in prepared.chains)
        * blocks
        * settings.sample.max_new_tokens
        * prepared.driver.generations
    )
    length = sum(lengths) / len(lengths)
    train = roofline.training_flops(sizes, int(trained), length, frozen=frozen)
    write = roofline.decoding_flops(
        sizes, int(written + beams), settings.chain.block, adapted=frozen
    )
    return [
        (
            "models",
            f"{len(prepared.chains) * prepared.driver.generations:,} versions, "
            f"{distinct(prepared):,} of them different",
        ),
        ("articles", f"{size:,} in every generation, {blocks:,} prompts"),
        ("tokens to train on", f"{trained:,.0f}, padding not counted"),
        ("tokens to write", f"{written:,.0f} at most, {beams:,.0f} more in other beams"),
        ("arithmetic", f"{train:.3g} FLOP to train, {write:.3g} FLOP to write"),
        (
            "time",
            f"{duration((train + write) / (0.4 * PETAFLOP))} on a device of 1 PFLOP/s at 40%; "
            "padding, metrics and compilation come on top",
        ),
        ("disk", f"{disk(settings, prepared) / 1e9:,.2f} GB at most"),
    ]


def disk(settings: "Settings", prepared: "Prepared") -> int:
    """Bytes that the run leaves at most."""
    from jaxloop.recursion import driver

    sizes = prepare.sizes(settings.fit, prepared.spec)
    weights = 4 * (sizes.adapter if settings.fit.mode == "lora" else sizes.total)
    blocks = sum(map(len, prepared.prompts.values()))
    text = 6 * settings.sample.max_new_tokens * blocks // len(prepared.articles.chosen) + 300
    neurons = (
        32
        * prepared.spec.layers
        * prepared.spec.width
        * len(prepared.chains)
        * prepared.driver.generations
        if settings.neurons.measure
        else 0
    )
    return (
        driver.disk_needed(prepared.chains, prepared.driver, weights, text_bytes=text)
        + neurons
        + (weights if settings.projection.direction else 0)
    )
