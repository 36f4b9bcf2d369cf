"""What is measured of every generation of articles: labels, quality, perplexities, the bias projection, neurons (bias_amplification.md, sections 2-5).

Every article's own values lie in articles/chain=…/generation=….parquet, so that errors can be paired over articles; means go to metrics.csv.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxloop.studies.bias import Prepared, Settings

# Texts of a class that fit_classifier needs for 70/15/15.
LEAST = 7
# Column of an article -> metric.
MEANS = {"quality": "text_quality_index", "quality_released": "text_quality_index(released)"} | {n: n for n in ("perplexity_base", "perplexity_own")}
CLASSIFIER, DIRECTION, BASE = "classifier", "direction", "base"


class Ready(NamedTuple):
    """What the measures stand on. fits: reports of the classifiers that were fitted here, the chosen one first; direction: tree or None."""

    classifier: Any
    fits: list[dict]
    direction: Any


def articles_path(chain: str, generation: int) -> str:
    """Where the values of a generation's articles lie, relative to the run directory."""
    return f"articles/chain={chain}/generation={generation:04d}.parquet"


def neurons_path(chain: str, generation: int) -> str:
    """Where the neurons of a model lie, relative to the run directory."""
    return f"neurons/chain={chain}/generation={generation:04d}.parquet"


# ---- what can be refused -----------------------------------------------------------------------------------------------


def check_classifier(settings: "Settings", articles):
    """The ready classifier, or None where one is to be fitted. Raises ValueError where its classes are not the labels of the articles, where
    there are too few articles to fit one, and where the target is no label."""
    from jaxloop.metrics import classifiers, quality
    from jaxloop.studies.chain_setup import model_path

    c, known = settings.classifier, ", ".join(map(repr, articles.labels))
    if c.target not in articles.labels:
        raise ValueError(f"config.classifier.target = {c.target!r} is not a label of the data; there are {known}")
    if settings.measure.quality and settings.measure.detector is None and not quality.default_detector().is_dir():
        raise ValueError(
            "config.measure.detector = none: no detector came with this installation; name one, or set measure.quality to false"
        )  # fmt: skip
    if c.model is None:
        for label in articles.labels:
            count = int((articles.rest["label"] == label).sum())
            if count < LEAST:
                raise ValueError(
                    f"config.classifier.model = none: {count} articles labelled {label!r} are left to fit a classifier on, at least {LEAST} are "
                    "needed; lower data.per_label or name a ready classifier"
                )  # fmt: skip
        return None
    found = classifiers.load_classifier(model_path(c.model), labels=c.labels or None, max_length=c.max_length)
    if set(found.labels) != set(articles.labels):
        mine = ", ".join(map(repr, found.labels))
        raise ValueError(f"config.classifier.model = {c.model!r}: its classes are {mine}, the data's labels are {known}; name them with classifier.labels")
    return found


def check_direction(settings: "Settings", spec, articles) -> None:
    """Raises ValueError where the bias direction is no file of weights of this model, or one of its labels has no articles."""
    p = settings.projection
    if p.direction is None:
        return
    if p.direction == "fit":
        for name in ("toward", "away"):
            if getattr(p, name) not in set(articles.chosen["label"]):
                raise ValueError(f"config.projection.{name} = {getattr(p, name)!r}: no chosen article has this label")
        return
    from jaxloop.lm import projection
    from jaxloop.lm.spec import abstract

    tree = _read_direction(p.direction)
    if settings.fit.mode == "full":
        projection.check(tree, abstract(spec))


def _read_direction(path: str):
    from jaxloop.runtime.trees import load_tree

    file = Path(path).expanduser()
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"config.projection.direction = {path!r}: is no .safetensors file of weights, nor 'fit'")
    return load_tree(file.parent, file.stem)


def check_neurons(settings: "Settings", spec, chains: Sequence) -> None:
    """Raises ValueError for a tensor that the model lacks, and for fewer generations than the lags need."""
    from jaxloop.analysis import neurons as tests
    from jaxloop.lm import neurons

    n, count = settings.neurons, settings.chain.generations
    neurons.check(spec, tensor=n.tensor, average=n.average, max_length=min(n.max_length, spec.context))
    tests.check_design([c.id for c in chains for _ in range(count)], [g for _ in chains for g in range(count)], lags=n.lags)


# ---- before the first generation ---------------------------------------------------------------------------------------


def make_ready(settings: "Settings", prepared: "Prepared", root: Path) -> Ready:
    """The classifier and the bias direction: read, or fitted once and kept in the run directory."""
    from jaxloop.runtime.devices import barrier, processes

    if processes()[0] == 0:
        if prepared.classifier is None and not (root / CLASSIFIER / "fits.json").exists():
            _fit_classifiers(settings, prepared.articles, root / CLASSIFIER)
        if settings.projection.direction == "fit" and not (root / f"{DIRECTION}.safetensors").exists():
            _fit_direction(settings, prepared, root)
    barrier("classifier and direction are ready")
    classifier, fits = prepared.classifier, []
    if classifier is None:
        from jaxloop.metrics.classifiers import load_classifier

        fits = json.loads((root / CLASSIFIER / "fits.json").read_text(encoding="utf-8"))
        classifier = load_classifier(str(root / CLASSIFIER), max_length=settings.classifier.max_length)
    return Ready(classifier, fits, _direction(settings, root))


def _direction(settings, root):
    from jaxloop.lm import projection
    from jaxloop.runtime.trees import load_tree

    path = settings.projection.direction
    if path is None:
        return None
    return projection.unit(load_tree(root, DIRECTION) if path == "fit" else _read_direction(path))


def _fit_classifiers(settings, articles, folder: Path) -> None:
    """Fits every encoder on articles that no chain sees; the one with the best macro-F1 on the validation texts is kept."""
    from jaxloop.metrics.classifiers import fit_classifier, save_classifier
    from jaxloop.runtime.files import write_atomic
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.bias_data import whole
    from jaxloop.studies.chain_setup import model_path

    c, rest = settings.classifier, articles.rest
    if c.texts is not None:
        rest = rest.groupby("label", group_keys=False)[rest.columns].apply(lambda t: t.sample(n=min(len(t), c.texts), random_state=c.seed))
    texts = [whole(title, body) for title, body in zip(rest["title"], rest["body"], strict=True)]
    fits, best = [], None
    for name in c.encoders:
        fitted = fit_classifier(
            texts, rest["label"].tolist(), encoder=None if name is None else model_path(name), train=c.train, epochs=c.epochs, batch_size=c.batch_size,
            learning_rate=c.learning_rate, max_length=_readable(name, c.max_length), seed=c.seed,
        )  # fmt: skip
        report = fitted.report | {"encoder": name or "MiniLM", "validation": fitted.report["log"][fitted.report["best_epoch"] - 1]["macro_f1"]}
        LOGGER.info("classifier on %s: macro-F1 %.3f on validation, %.3f on test texts", report["encoder"], report["validation"], report["test"]["macro_f1"])
        fits.append(report)
        if best is None or report["validation"] > best[1]["validation"]:
            best = fitted.classifier, report
    save_classifier(best[0], folder)
    ordered = [best[1], *(report for report in fits if report is not best[1])]
    write_atomic(folder / "fits.json", json.dumps(ordered, indent=1).encode())


def _readable(name: str | None, limit: int) -> int:
    """Tokens that an encoder reads, at most `limit`."""
    from jaxloop.lm import encoder
    from jaxloop.metrics.embed import default_model
    from jaxloop.studies.chain_setup import model_path

    return min(limit, encoder.load_encoder(str(default_model()) if name is None else model_path(name), max_length=None).spec.core.context)


def _fit_direction(settings, prepared, root) -> None:
    """The base fine-tuned on the real articles of `toward` minus the base fine-tuned on those of `away`, by the settings of a generation."""
    from jaxloop.kernels.keys import chain_key
    from jaxloop.lm import family as lm
    from jaxloop.lm import projection
    from jaxloop.runtime.trees import save_tree
    from jaxloop.studies import bias_chains, chain_setup

    articles, code, p = prepared.articles, bias_chains.codec(prepared.tokenizer), settings.projection
    model = bias_chains.on_ids(chain_setup.load_model(settings, settings.models.pool[0]), ends=False)
    tasks = []
    for label in (p.toward, p.away):
        texts = [articles.text(i) for i in range(len(articles.chosen)) if articles.chosen["label"].iloc[i] == label]
        tasks.append(lm.FitTask(chain_key(0), *bias_chains.training_examples(texts, settings.chain.reading, code)))
    toward, away = (result.weights for result in lm.fit(model, tasks, prepared.driver.fit))
    save_tree(root, DIRECTION, projection.difference(toward, away))


# ---- of every generation -----------------------------------------------------------------------------------------------


def measuring(settings: "Settings", prepared: "Prepared", ready: Ready, root: Path) -> Callable:
    """The driver's `measure`: values of every chain's articles to articles/ and neurons/, their means to metrics.csv."""
    from jaxloop.runtime import tables
    from jaxloop.runtime.files import inside

    reading: list = []  # the real articles, tokenised once

    def measure(model, generation: int, outcomes: Sequence) -> dict:
        columns, means = score(settings, prepared, ready, model, [o.texts for o in outcomes], [o.weights for o in outcomes])
        for o, table in zip(outcomes, columns, strict=True):
            _write(inside(root, articles_path(o.chain.id, generation)), {"id": o.prompts, **table, "tokens": o.tokens})
        if settings.neurons.measure:
            from jaxloop.lm import neurons

            if not reading:
                reading.append(_reading(settings, prepared, model))
            read = _once(lambda w: {
                "weight": neurons.weights(model, w, tensor=settings.neurons.tensor, settings=prepared.driver.fit),
                "activation": neurons.activations(model, reading[0], w, settings=prepared.driver.fit),
            })  # fmt: skip
            for o in outcomes:
                found = read(o.weights)
                layer, unit = (x.ravel() for x in _places(*found["weight"].shape))
                _write(inside(root, neurons_path(o.chain.id, generation)), {"layer": layer, "unit": unit} | {k: v.ravel() for k, v in found.items()})
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
    from jaxloop.lm import neurons

    n, count = settings.neurons, len(prepared.articles.chosen)
    texts = [prepared.articles.text(i) for i in range(min(count, n.texts or count))]
    return neurons.prepare(model, texts, max_length=min(n.max_length, model.spec.context), average=n.average)


def _once(function: Callable) -> Callable:
    """`function` of weights, called once for weights that several chains of a generation share."""
    known: dict[int, Any] = {}
    return lambda weights: known[id(weights)] if id(weights) in known else known.setdefault(id(weights), function(weights))


def score(settings: "Settings", prepared: "Prepared", ready: Ready, model, texts: Sequence[list[str]], weights: Sequence) -> tuple[list[dict], list[dict]]:
    """Values of every article [chains] {column: [n]} and their means [chains] {metric: value}.

    weights: those that wrote each chain's texts, None for the base. label: the classifier's, p(…): its probabilities; quality: mean over the
    sentences of the written body of 3 clean … 0 noise, quality_released: the released code's reading; perplexity_base and perplexity_own: under
    the base and under the weights, per article or, in reading "released", the mean over its paragraphs.
    """
    import numpy as np

    from jaxloop.metrics import registry
    from jaxloop.metrics.classifiers import probabilities
    from jaxloop.metrics.quality import text_qualities
    from jaxloop.studies.bias_chains import codec, on_ids
    from jaxloop.studies.bias_data import body_of

    labels = ready.classifier.labels
    unique = list(dict.fromkeys(text for mine in texts for text in mine))
    row = {text: i for i, text in enumerate(unique)}
    shares = probabilities(ready.classifier, unique)
    values: dict[str, Any] = {f"p({label})": shares[:, i].astype(np.float64) for i, label in enumerate(labels)}
    values["label"] = np.array(labels, object)[shares.argmax(1)]
    bodies = [body_of(text) for text in unique]
    if settings.measure.quality:
        for name, how in (("quality", {}), ("quality_released", {"reading": "confidence", "split": "period"})):
            values[name] = text_qualities(bodies, settings.measure.detector, **how)[0]
    code, ids = codec(prepared.tokenizer), on_ids(model, ends=False)
    values["perplexity_base"] = np.array(_perplexities(settings, prepared, ids, None, unique, code))
    own = _once(lambda w: dict(zip(mine, _perplexities(settings, prepared, ids, w, mine, code), strict=True)))
    columns, means = [], []
    registered = registry.evaluate(settings.measure.metrics, texts=[[body_of(t) for t in mine] for mine in texts]) if settings.measure.metrics else {}
    for chain, (mine, w) in enumerate(zip(texts, weights, strict=True)):
        at = [row[text] for text in mine]
        table = {name: value[at] for name, value in values.items()}
        if w is not None:
            known = own(w)
            table["perplexity_own"] = np.array([known[text] for text in mine])
        mean = {f"share({label})": float((table["label"] == label).mean()) for label in labels}
        mean |= {MEANS[name]: float(np.nanmean(v)) if np.isfinite(v).any() else math.nan for name, v in table.items() if name in MEANS}
        mean |= _projection(settings, prepared, ready, ids, w, mine, code)
        mean |= {name: float(found[chain]) for name, found in registered.items()}
        columns.append(table | {"label": table["label"].tolist()})
        means.append(mean)
    return columns, means


def _perplexities(settings, prepared, model, weights, texts: Sequence[str], code) -> list[float]:
    """Mean perplexity of each text's chunks; nan for a text without tokens to predict."""
    import numpy as np

    from jaxloop.lm import family as lm

    pieces = [[p for p in re.split(r"\n\s*\n", t) if p.strip()] if settings.chain.reading == "released" else [t] for t in texts]
    chunks = list(dict.fromkeys(p for mine in pieces for p in mine))
    ids = [(*code.start, *row) for row in code.encode(chunks)]
    scored = [i for i, row in enumerate(ids) if len(row) > 1]
    fit = dataclasses.replace(prepared.driver.fit, max_length=min(1024, model.spec.context), constraint=None)
    found = dict.fromkeys(chunks, math.nan)
    if scored:
        result = lm.loss(model, [lm.LossTask(weights, [ids[i][1:] for i in scored], [ids[i][:1] for i in scored])], fit)[0]
        found.update({chunks[i]: float(v) for i, v in zip(scored, np.exp(result.nats / np.maximum(result.tokens, 1)), strict=True)})
    means = []
    for mine in pieces:
        finite = [found[p] for p in mine if math.isfinite(found[p])]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def _projection(settings, prepared, ready, model, weights, texts, code) -> dict[str, float]:
    """c_t = u' grad L on the articles that the next generation trains on, at the weights that it starts from; and u' (weights - base)."""
    if ready.direction is None or weights is None:
        return {}
    import jax
    import numpy as np

    from jaxloop.lm import projection
    from jaxloop.studies.bias_chains import training_examples

    bodies, heads = training_examples(texts[: settings.projection.texts], settings.chain.reading, code)
    start = model.params if settings.fit.mode == "full" else jax.tree.map(np.zeros_like, weights)
    return {
        "projection": projection.coefficient(model, weights, ready.direction, bodies, heads, prepared.driver.fit),
        "bias_component": projection.component(weights, start, ready.direction),
    }


def base_values(settings: "Settings", prepared: "Prepared", ready: Ready, family, root: Path) -> dict[str, float]:
    """Means of what the base model writes before any fine-tuning, greedily; measured once and kept in base.json."""
    import numpy as np

    from jaxloop.kernels.keys import chain_key
    from jaxloop.runtime.files import write_atomic

    path = root / f"{BASE}.json"
    if not settings.measure.base:
        return {}
    if not path.exists():
        model = family.load(settings.models.pool[0])
        names = prepared.articles.chosen["id"].tolist()
        written = family.sample(model, [family.SampleTask(chain_key(0), None, names, np.arange(len(names)))], prepared.driver.sample)[0]
        _, means = score(settings, prepared, ready, model, [written.texts], [None])
        write_atomic(path, json.dumps({k: v for k, v in means[0].items() if math.isfinite(v)}).encode())
    return json.loads(path.read_text(encoding="utf-8"))


def real_values(prepared: "Prepared", ready: Ready) -> Mapping[str, float]:
    """Label shares that the classifier finds among the real articles."""
    from jaxloop.metrics.classifiers import predict

    found = predict(ready.classifier, [prepared.articles.text(i) for i in range(len(prepared.articles.chosen))])
    return {f"share({label})": found.count(label) / len(found) for label in ready.classifier.labels}
