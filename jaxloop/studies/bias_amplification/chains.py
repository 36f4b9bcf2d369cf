"""The chains of the bias-amplification study, and its family: items are articles, continued block
by block (bias_amplification.md, section 2).

A family for `recursion.driver`: `fit` turns articles into the training examples of the chosen
reading, `sample` an article's name into the prompts of its blocks and their continuations into one
article. Both call the language-model family of `lm` on token ids, so that a block that ends inside
a word, or inside a character, is continued there.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxloop.studies.bias_amplification.run import Settings

# Rows of one article in the random numbers of a generation: more than any article has blocks.
STRIDE = 1 << 16
# Bytes of prompts whose keys and values are held at once.
CACHED = 2e9


def workflow(settings: "Settings", setup: str, size: int):
    """What the generations of a setup train on; every generation goes on from the weights of the
    one before.
    """
    from jaxloop.recursion import workflow as flows

    start = {"start": "previous"}
    if setup == "preserve":
        return flows.preserve(size, settings.chain.share, **start)
    if setup == "accumulate":
        return flows.accumulate(size, **start)
    if setup == "accumulate_matched":
        return flows.accumulate_subsample(size, **start)
    return flows.replace(size, **start)


def changes(settings: "Settings", setup: str) -> dict[str, Any]:
    """Fields of the fit and sample settings that a setup has of its own, "fit.x" and "sample.x"."""
    c = settings.chain
    if setup == "beam":
        return {"sample.decoder": "beam", "sample.beams": c.beams}
    if setup == "nucleus":
        return {"sample.decoder": "sample", "sample.top_p": c.top_p}
    if setup == "penalty":
        return {
            "sample.decoder": "beam",
            "sample.beams": c.penalty_beams,
            "sample.repetition_penalty": c.penalty,
        }
    if setup == "overfit":
        return {"fit.epochs": c.overfit_epochs, "fit.weight_decay": 0.0}
    if setup == "constrained":
        from jaxloop.lm.training.gradient_constraint import Constraint

        p = settings.projection
        return {"fit.constraint": Constraint(p.lam, p.gam, p.per)}
    return {}


def make(settings: "Settings", size: int) -> list:
    """One chain per setup and seed. Chains of one seed share all of generation 0's draws, so setups
    that train alike have one generation 0.
    """
    from jaxloop.recursion.chains import make_chain

    common = {"dataset": "articles", "bases": settings.models.pool}
    return [
        make_chain(
            {
                **common,
                **changes(settings, setup),
                "workflow": workflow(settings, setup, size),
                "seed": seed,
            },
            factors={"setup": setup, "seed": seed},
        )
        for setup in settings.chain.setups
        for seed in settings.chain.seeds
    ]


class Codec(NamedTuple):
    """A model's tokens: `encode` and `decode` without special tokens, the ids `start` that stand
    before every text, and the one for a blank line.
    """

    encode: Any
    decode: Any
    start: tuple[int, ...]
    blank: int


def codec(tokenizer) -> Codec:
    """The codec of a `jaxloop.lm.io.tokenizer.Tokenizer`."""
    return Codec(
        lambda texts: tokenizer.encode(list(texts), special=False),
        tokenizer.decode,
        tuple(tokenizer.encode([""])[0]),
        tokenizer.pad,
    )


def on_ids(model, *, ends: bool):
    """The model with token ids in place of texts. ends: sampling stops at EOS; without, training
    appends none, as the released code never learns it.
    """
    t = model.tokenizer
    plain = lambda rows: [list(map(int, row)) for row in rows]
    none = lambda rows: [False] * len(rows)
    coded = dict(encode=lambda rows, special=True: plain(rows), decode=plain, names_special=none)
    eos, stops = (t.eos, t.ends) if ends else (None, ())
    tokenizer = SimpleNamespace(**coded, eos=eos, ends=stops, bos=t.bos, pad=t.pad)
    return model._replace(tokenizer=tokenizer)


def prompts_of(articles, code: Codec, size: int) -> dict[str, list[tuple[int, ...]]]:
    """The prompts of every chosen article by its name."""
    from jaxloop.studies.bias_amplification.articles import blocks

    titles = code.encode([f"title: {title}" for title in articles.chosen["title"]])
    bodies = code.encode(articles.chosen["body"].tolist())
    return {
        name: blocks(t, b, size, code.start)
        for name, t, b in zip(articles.chosen["id"], titles, bodies, strict=True)
    }


def training_examples(
    texts: Sequence[str], reading: str, code: Codec
) -> tuple[list[tuple], list[tuple]]:
    """(continuations, first tokens) of the examples of articles: a first token is never predicted,
    so it is the prompt.
    """
    from jaxloop.studies.bias_amplification.articles import examples

    found = [
        ids
        for text in texts
        for ids in examples(text, reading, code.encode, code.start, code.blank)
    ]
    return [ids[1:] for ids in found], [ids[:1] for ids in found]


def sample_settings(settings: "Settings", spec, prompts: Mapping[str, list], sample):
    """`sample` with the sizes that all generations share: one padded prompt length, and as many
    prompts a call as memory holds.
    """
    from jaxloop.lm.model.sizes import sizes_of
    from jaxloop.lm.training.batching import bucket

    longest = max(len(p) for mine in prompts.values() for p in mine)
    length = bucket(longest)
    width = 2 if sample.dtype == "bfloat16" else 4
    fits = CACHED / (length * sizes_of(spec).cache * width)
    wanted = 1 << (sum(map(len, prompts.values())) - 1).bit_length()
    calls = max(
        64, min(wanted, 1 << max(0, int(fits).bit_length() - 1), sample.texts_per_call or 4096)
    )
    chains = 1 if settings.fit.mode == "full" else sample.chains_per_call
    return dataclasses.replace(
        sample, max_prompt=length, texts_per_call=calls, chains_per_call=chains
    )


def base_weights(settings: "Settings", model):
    """The base's weights as those of a chain, on the host, so that one compiled program serves
    both; None where chains are adapters.
    """
    import jax

    return jax.device_get(model.params) if settings.fit.mode == "full" else None


def family(
    settings: "Settings",
    articles,
    prompts: Mapping[str, list],
    code: Codec,
    load: Callable,
    direction=None,
) -> SimpleNamespace:
    """load, fit and sample of articles. load: name of a base -> model; direction: of the
    constrained setup, a tree like a chain's weights.
    """
    from jaxloop.lm import family as lm

    titles = dict(zip(articles.chosen["id"], articles.chosen["title"], strict=True))
    first: dict[str, Any] = {}  # generation 0 of every seed, which setups that train alike share

    def fit(model, tasks, fitting):
        names = [_name(task, fitting) for task in tasks]
        if any(task.start is not None for task in tasks):
            first.clear()
        waiting = {name: task for name, task in zip(names, tasks, strict=True) if name not in first}
        base = base_weights(settings, model) if waiting else None
        ids = [
            lm.FitTask(
                t.key,
                *training_examples(t.texts, settings.chain.reading, code),
                None,
                base if t.start is None else t.start,
            )
            for t in waiting.values()
        ]
        along = {} if fitting.constraint is None else {"direction": direction}
        made = dict(
            zip(
                waiting,
                lm.fit(on_ids(model, ends=False), ids, fitting, **along) if ids else (),
                strict=True,
            )
        )
        out = [made.get(name) or first[name] for name in names]
        first.update(
            {
                name: result
                for name, task, result in zip(names, tasks, out, strict=True)
                if task.start is None
            }
        )
        return out

    def sample(model, tasks, sampling):
        # Equal weights with equal numbers write the same: in generation 0 one chain's articles are
        # those of all that share its model.
        own = [(id(task.weights), _bits(task.key), tuple(task.prompts)) for task in tasks]
        place = {name: i for i, name in reversed(list(enumerate(own)))}
        asked = []
        for i in sorted(place.values()):
            task = tasks[i]
            rows = [
                (int(row) * STRIDE + b, block)
                for row, name in zip(task.rows, task.prompts, strict=True)
                for b, block in enumerate(prompts[name])
            ]
            asked.append(
                lm.SampleTask(
                    task.key, task.weights, [block for _, block in rows], [row for row, _ in rows]
                )
            )
        made = dict(
            zip(
                sorted(place.values()),
                lm.sample(on_ids(model, ends=True), asked, sampling),
                strict=True,
            )
        )
        joined = {
            i: _join(tasks[i].prompts, prompts, titles, result, code) for i, result in made.items()
        }
        return [joined[place[name]] for name in own]

    return SimpleNamespace(
        load=load, FitTask=lm.FitTask, fit=fit, SampleTask=lm.SampleTask, sample=sample
    )


def _bits(key) -> tuple:
    import jax
    import numpy as np

    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def _name(task, fitting) -> str:
    """What a fit from the base depends on; a fit that goes on from weights is always its own."""
    if task.start is not None:
        return f"own {id(task)}"
    content = hashlib.sha256("\0".join(task.texts).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_bits(task.key)} {content} {fitting}"


def _join(
    names: Sequence[str],
    prompts: Mapping[str, list],
    titles: Mapping[str, str],
    result,
    code: Codec,
):
    """Articles from the continuations of their blocks: the tokens one after the other, decoded at
    once, under the real title.
    """
    import numpy as np

    from jaxloop.lm.family import SampleResult
    from jaxloop.studies.bias_amplification.articles import whole

    bodies, tokens, finished, at = [], [], [], 0
    for name in names:
        end = at + len(prompts[name])
        bodies.append([token for ids in result.texts[at:end] for token in ids])
        tokens.append(int(result.tokens[at:end].sum()))
        finished.append(bool(np.asarray(result.finished[at:end]).all()))
        at = end
    texts = [
        whole(titles[name], body) for name, body in zip(names, code.decode(bodies), strict=True)
    ]
    return SampleResult(texts, np.array(tokens, np.int64), np.array(finished, bool))
