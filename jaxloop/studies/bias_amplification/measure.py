"""What is measured of every generation of articles: labels, quality, perplexities, the bias
projection, neurons (bias_amplification.md, sections 2-5).

Every article's own values lie in articles/chain=…/generation=….parquet, so that errors can be
paired over articles; means go to metrics.csv.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxloop.studies.bias_amplification.instruments import Ready
    from jaxloop.studies.bias_amplification.run import Prepared, Settings

# Column of an article -> metric.
MEANS = {"quality": "text_quality_index", "quality_released": "text_quality_index(released)"} | {
    n: n for n in ("perplexity_base", "perplexity_own")
}
BASE = "base.json"


def articles_path(chain: str, generation: int) -> str:
    """Where the values of a generation's articles lie, relative to the run directory."""
    return f"articles/chain={chain}/generation={generation:04d}.parquet"


def neurons_path(chain: str, generation: int) -> str:
    """Where the neurons of a model lie, relative to the run directory."""
    return f"neurons/chain={chain}/generation={generation:04d}.parquet"


# ---- of every generation
# -----------------------------------------------------------------------------------------------


def measuring(settings: "Settings", prepared: "Prepared", ready: "Ready", root: Path) -> Callable:
    """The driver's `measure`: values of every chain's articles to articles/ and neurons/, their
    means to metrics.csv.
    """
    from jaxloop.runtime import tables
    from jaxloop.runtime.atomic_io import inside

    reading: list = []  # the real articles, tokenised once

    def measure(model, generation: int, outcomes: Sequence) -> dict:
        columns, means = score(
            settings,
            prepared,
            ready,
            model,
            [o.texts for o in outcomes],
            [o.weights for o in outcomes],
        )
        for o, table in zip(outcomes, columns, strict=True):
            _write(
                inside(root, articles_path(o.chain.id, generation)),
                {"id": o.prompts, **table, "tokens": o.tokens},
            )
        if settings.neurons.measure:
            from jaxloop.studies.bias_amplification import neurons

            if not reading:
                reading.append(_reading(settings, prepared, model))
            read = _once(lambda w: {
                "weight": neurons.weights(model, w, tensor=settings.neurons.tensor, settings=prepared.driver.fit),
                "activation": neurons.activations(model, reading[0], w, settings=prepared.driver.fit),
            })  # fmt: skip
            for o in outcomes:
                found = read(o.weights)
                layer, unit = (x.ravel() for x in _places(*found["weight"].shape))
                _write(
                    inside(root, neurons_path(o.chain.id, generation)),
                    {"layer": layer, "unit": unit} | {k: v.ravel() for k, v in found.items()},
                )
        for o, mean in zip(outcomes, means, strict=True):
            mean["finished"] = float(o.finished.mean())
        return {(o.chain.id, o.entity): mean for o, mean in zip(outcomes, means, strict=True)}

    def _write(path, table):
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.write_parquet(path, table, durable=True)

    return measure


def _places(layers: int, width: int):
    import numpy as np

    return np.indices((layers, width), np.int32)


def _reading(settings, prepared, model):
    from jaxloop.studies.bias_amplification import neurons

    n, count = settings.neurons, len(prepared.articles.chosen)
    texts = [prepared.articles.text(i) for i in range(min(count, n.texts or count))]
    return neurons.prepare(
        model, texts, max_length=min(n.max_length, model.spec.context), average=n.average
    )


def _once(function: Callable) -> Callable:
    """`function` of weights, called once for weights that several chains of a generation share."""
    known: dict[int, Any] = {}
    return lambda weights: (
        known[id(weights)]
        if id(weights) in known
        else known.setdefault(id(weights), function(weights))
    )


def score(
    settings: "Settings",
    prepared: "Prepared",
    ready: "Ready",
    model,
    texts: Sequence[list[str]],
    weights: Sequence,
) -> tuple[list[dict], list[dict]]:
    """Values of every article [chains] {column: [n]} and their means [chains] {metric: value}.

    weights: those that wrote each chain's texts, None for the base. label: the classifier's, p(…):
    its probabilities; quality: mean over the sentences of the written body of 3 clean … 0 noise,
    quality_released: the released code's reading; perplexity_base and perplexity_own: under the
    base and under the weights, per article or, in reading "released", the mean over its paragraphs.
    """
    import numpy as np

    from jaxloop.metrics import registry
    from jaxloop.metrics.classifiers import probabilities
    from jaxloop.metrics.quality import text_qualities
    from jaxloop.studies.bias_amplification.articles import body_of
    from jaxloop.studies.bias_amplification.chains import base_weights, codec, on_ids

    labels = ready.classifier.labels
    unique = list(dict.fromkeys(text for mine in texts for text in mine))
    row = {text: i for i, text in enumerate(unique)}
    shares = probabilities(ready.classifier, unique)
    values: dict[str, Any] = {
        f"p({label})": shares[:, i].astype(np.float64) for i, label in enumerate(labels)
    }
    values["label"] = np.array(labels, object)[shares.argmax(1)]
    if settings.measure.quality:
        chosen = sorted(
            {row[text] for mine in texts for text in mine[: settings.measure.quality_articles]}
        )
        bodies = [body_of(unique[i]) for i in chosen]
        for name, how in (
            ("quality", {}),
            ("quality_released", {"reading": "confidence", "split": "period"}),
        ):
            values[name] = np.full(len(unique), np.nan)
            values[name][chosen] = text_qualities(bodies, settings.measure.detector, **how)[0]
    code, ids = codec(prepared.tokenizer), on_ids(model, ends=False)
    values["perplexity_base"] = np.array(
        _perplexities(settings, prepared, ids, base_weights(settings, model), unique, code)
    )
    own = _once(
        lambda w: dict(
            zip(mine, _perplexities(settings, prepared, ids, w, mine, code), strict=True)
        )
    )
    columns, means = [], []
    registered = (
        registry.evaluate(
            settings.measure.metrics, texts=[[body_of(t) for t in mine] for mine in texts]
        )
        if settings.measure.metrics
        else {}
    )
    for chain, (mine, w) in enumerate(zip(texts, weights, strict=True)):
        at = [row[text] for text in mine]
        table = {name: value[at] for name, value in values.items()}
        if w is not None:
            known = own(w)
            table["perplexity_own"] = np.array([known[text] for text in mine])
        mean = {f"share({label})": float((table["label"] == label).mean()) for label in labels}
        mean |= {
            MEANS[name]: float(np.nanmean(v)) if np.isfinite(v).any() else math.nan
            for name, v in table.items()
            if name in MEANS
        }
        mean |= _projection(settings, prepared, ready, ids, w, mine, code)
        mean |= {name: float(found[chain]) for name, found in registered.items()}
        columns.append(table | {"label": table["label"].tolist()})
        means.append(mean)
    return columns, means


def _perplexities(settings, prepared, model, weights, texts: Sequence[str], code) -> list[float]:
    """Mean perplexity of each text's chunks; nan for a text without tokens to predict."""
    import numpy as np

    from jaxloop.lm import family as lm

    pieces = [
        [p for p in re.split(r"\n\s*\n", t) if p.strip()]
        if settings.chain.reading == "released"
        else [t]
        for t in texts
    ]
    chunks = list(dict.fromkeys(p for mine in pieces for p in mine))
    ids = [(*code.start, *row) for row in code.encode(chunks)]
    scored = [i for i, row in enumerate(ids) if len(row) > 1]
    fit = dataclasses.replace(
        prepared.driver.fit, max_length=min(1024, model.spec.context), constraint=None
    )
    found = dict.fromkeys(chunks, math.nan)
    if scored:
        result = lm.loss(
            model,
            [lm.LossTask(weights, [ids[i][1:] for i in scored], [ids[i][:1] for i in scored])],
            fit,
        )[0]
        found.update(
            {
                chunks[i]: float(v)
                for i, v in zip(
                    scored, np.exp(result.nats / np.maximum(result.tokens, 1)), strict=True
                )
            }
        )
    means = []
    for mine in pieces:
        finite = [found[p] for p in mine if math.isfinite(found[p])]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def _projection(settings, prepared, ready, model, weights, texts, code) -> dict[str, float]:
    """c_t = u' grad L on the articles that the next generation trains on, at the weights that it
    starts from; and u' (weights - base).
    """
    if ready.direction is None or weights is None:
        return {}
    import jax
    import numpy as np

    from jaxloop.lm.training import gradient_constraint
    from jaxloop.studies.bias_amplification.chains import training_examples

    bodies, heads = training_examples(
        texts[: settings.projection.texts], settings.chain.reading, code
    )
    start = model.params if settings.fit.mode == "full" else jax.tree.map(np.zeros_like, weights)
    return {
        "projection": gradient_constraint.coefficient(
            model, weights, ready.direction, bodies, heads, prepared.driver.fit
        ),
        "bias_component": gradient_constraint.component(weights, start, ready.direction),
    }


def base_values(
    settings: "Settings", prepared: "Prepared", ready: "Ready", family, root: Path
) -> dict[str, float]:
    """Means of what the base model writes before any fine-tuning, greedily; measured once and kept
    in base.json.
    """
    import numpy as np

    from jaxloop.core.keys import chain_key
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.studies.bias_amplification.chains import base_weights

    path = root / BASE
    if not settings.measure.base:
        return {}
    if not path.exists():
        model = family.load(settings.models.pool[0])
        names = prepared.articles.chosen["id"].tolist()
        task = family.SampleTask(
            chain_key(0), base_weights(settings, model), names, np.arange(len(names))
        )
        written = family.sample(model, [task], prepared.driver.sample)[0]
        _, means = score(settings, prepared, ready, model, [written.texts], [None])
        write_atomic(
            path, json.dumps({k: v for k, v in means[0].items() if math.isfinite(v)}).encode()
        )
    return json.loads(path.read_text(encoding="utf-8"))


def real_values(prepared: "Prepared", ready: "Ready") -> Mapping[str, float]:
    """Label shares that the classifier finds among the real articles."""
    from jaxloop.metrics.classifiers import predict

    found = predict(
        ready.classifier, [prepared.articles.text(i) for i in range(len(prepared.articles.chosen))]
    )
    return {f"share({label})": found.count(label) / len(found) for label in ready.classifier.labels}
