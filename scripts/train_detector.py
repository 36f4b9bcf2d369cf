"""Makes the text-quality detector that comes with jaxloop (jaxloop/assets/detector).

    python scripts/train_detector.py --out jaxloop/assets/detector

The sentences of the embedded `docs` that the tiny bases were trained on, each as it is or in one of
three corruptions; the first blocks of a tiny base, fine-tuned to tell the four apart. Writes a
directory in Hugging Face format with a README.md that holds the confusion matrices: of held-out
sentences, and of libraries that neither the base nor the detector saw. About five minutes of one
core.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from _flags import positive, whole

from jaxloop import lm
from jaxloop.data import docs
from jaxloop.metrics import classifier_training, classifiers, detector_training, quality


def sentences_of(libraries: Sequence[str]) -> list[str]:
    """Different sentences, of 4 to 60 words, of the paragraphs of some libraries."""
    found = dict.fromkeys(
        s for text in docs.load(libraries)["text"] for s in quality.sentences(text)
    )
    return [s for s in found if 4 <= len(s.split()) <= 60]


def first_blocks(base: str, layers: int, folder: Path) -> str:
    """A directory with the first `layers` blocks of a base."""
    model = lm.load(base)
    if not 1 <= layers <= model.config.num_layers:
        raise ValueError(
            f"layers is {layers}; allowed are 1 to {model.config.num_layers}, the blocks of {base}."
        )
    params = {
        **model.params,
        "layers": jax.tree.map(lambda leaf: leaf[:layers], model.params["layers"]),
    }
    lm.save(
        model._replace(config=dataclasses.replace(model.config, num_layers=layers), params=params),
        folder,
    )
    return str(folder)


def matrix(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """A confusion matrix in Markdown; rows are true classes."""
    rows = [["true \\ found", *names, "recall"], ["---"] * (len(names) + 2)]
    rows += [
        [name, *(f"{n:,}" for n in row), f"{row[i] / max(1, sum(row)):.3f}"]
        for i, (name, row) in enumerate(zip(names, confusion, strict=True))
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def card(args: argparse.Namespace, report: dict, outside: dict, parameters: int) -> str:
    """The README.md of the detector."""
    train, _, test = report["split"]
    flags = (
        f"--layers {args.layers} --limit {args.limit} --epochs {args.epochs} --rate {args.rate:g} "
        f"--seed {args.seed}"
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-classification
---

# jaxloop's text-quality detector

Tells whole sentences (clean) from perturbed grammar (mild gibberish), shuffled words (word salad) \
and random letters (noise): the default of
`text_quality_index`. {parameters:,} parameters: \
the first {args.layers} blocks of the tiny base `{Path(args.base).name}`, fine-tuned; float16 files.

    python scripts/train_detector.py --out jaxloop/assets/detector {flags}

| | |
|---|---|
| trained on | {train:,} sentences of the `docs` that the bases were trained on, \
every sentence in one of the four classes |
| best epoch | {report["best_epoch"]} of {args.epochs}, \
by macro-F1 on {report["split"][1]:,} other sentences |
| macro-F1, {test:,} held-out sentences | {report["test"]["macro_f1"]:.3f} \
(always the largest class: {report["majority"]["macro_f1"]:.3f}) |
| macro-F1, {sum(map(sum, outside["confusion"])):,} sentences of {", ".join(docs.HELD_OUT)} \
| {outside["macro_f1"]:.3f} |

Held-out sentences:

{matrix(report["labels"], report["test"]["confusion"])}

Libraries that neither the base nor the detector saw:

{matrix(report["labels"], outside["confusion"])}

It knows the prose of software documentation. On other prose read differences between \
texts of one kind, not the value of one text, and for
results that are to be compared with the paper's name its detector: \
`text_quality_index(detector="madhurjindal/autonlp-Gibberish-Detector-492513457")`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="jaxloop/assets/bases/qwen2")
    parser.add_argument(
        "--layers", type=whole(1), default=2, help="blocks of the base that are kept"
    )
    parser.add_argument("--epochs", type=whole(1), default=2)
    parser.add_argument("--rate", type=positive, default=1e-3)
    parser.add_argument("--limit", type=whole(1), default=45_000, help="sentences, at most")
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args()
    start = time.monotonic()
    real = sentences_of(docs.PRETRAIN)
    real = [real[i] for i in np.random.default_rng(args.seed).permutation(len(real))[: args.limit]]
    print(f"{len(real):,} sentences", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        encoder = first_blocks(args.base, args.layers, Path(folder) / "encoder")
        settings = dict(
            train="all", epochs=args.epochs, learning_rate=args.rate, batch_size=32, max_length=48
        )
        fitted = detector_training.fit_detector(real, encoder=encoder, seed=args.seed, **settings)
    half = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float16), fitted.classifier.encoder.params
    )
    classifiers.save_classifier(
        fitted.classifier._replace(encoder=fitted.classifier.encoder._replace(params=half)),
        args.out,
    )
    detector = classifiers.load_classifier(str(args.out))
    texts, labels = detector_training.corrupted(sentences_of(docs.HELD_OUT)[:8000], args.seed)
    found = classifiers.probabilities(detector, texts).argmax(1)
    names = detector.labels
    outside = classifier_training.evaluation(
        np.array([names.index(label) for label in labels]), found, names
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(detector.encoder.params))
    page = card(args, fitted.report, outside, parameters)
    (args.out / "README.md").write_text(page, encoding="utf8")
    print(
        *(
            f"epoch {i + 1}: loss {e['loss']:.3f}, validation macro-F1 {e['macro_f1']:.3f}"
            for i, e in enumerate(fitted.report["log"])
        ),
        sep="\n",
    )
    print(page, f"{time.monotonic() - start:.0f} s", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
