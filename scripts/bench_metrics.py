"""How fast the metrics are, and with --peer how fast the code is that they are held to.

    python scripts/bench_metrics.py --peer --data posts.jsonl [more files]

Prints a table (median of the repeats after one warm-up) and, as its last line, one JSON object.
sacrebleu's loop over 2,000 texts takes minutes: --peer times `--peer-rows` of its rows, evenly
spaced, against all the others, and scales up; --peer-full runs all of them. --only=quickstart runs
two generations of the quickstart and says which share of the second the metrics of texts are. On a
machine that other work shares, --clock=cpu compares the processor time of both sides, which waiting
for a core does not lengthen.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import _root  # noqa: F401
import jax
import numpy as np
from _flags import whole
from _peer_rows import row

from jaxloop.data.sources import load_texts
from jaxloop.metrics import (
    REGISTRY,
    bleu,
    distances,
    evaluate,
    lexical,
    semantic,
    sentiment,
    tokens,
    validate,
    words,
)

PARTS = ("self_bleu", "texts", "embeddings", "encoder", "quickstart")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def self_bleu_rows(texts: list[str], args: argparse.Namespace) -> None:
    """Self-BLEU beside sacrebleu's loop, and its tokenising alone."""
    few, many = texts[: args.few], texts[: args.many]
    index = (
        np.arange(len(few))
        if args.peer_full
        else np.linspace(0, len(few) - 1, args.peer_rows).astype(int)
    )

    def loop():
        from sacrebleu.metrics import BLEU

        metric = BLEU(effective_order=True)
        return [
            metric.sentence_score(few[i], few[:i] + few[i + 1 :]).score / 100
            for i in index.tolist()
        ]

    what = "sacrebleu's loop" + (
        "" if args.peer_full else f", {len(index)} of {len(few)} rows scaled up"
    )
    scale = len(few) / len(index)
    row(
        args,
        f"self_bleu, {len(few):,} texts",
        lambda: bleu.self_bleu(few),
        args.repeats,
        loop,
        what,
        1e-9,
        scale,
        lambda s: s[index],
    )

    def cut():
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

        tokenizer = Tokenizer13a()
        return [tokenizer(text.rstrip()).split() for text in many]

    repeats = max(3, args.repeats // 2)
    own = row(
        args,
        f"13a tokens, {len(many):,} texts",
        lambda: tokens.tokens_13a(many),
        repeats,
        cut,
        "sacrebleu's tokenizer",
    )
    whole = row(args, f"self_bleu, {len(many):,} texts", lambda: bleu.self_bleu(many), repeats)
    args.rows[-1]["times_tokenising"] = whole / own
    print(f"    that is {whole / own:.2f} times its own tokenising of these texts")


def embedding_rows(args: argparse.Namespace) -> None:
    """Metrics of points, beside scikit-learn and SciPy."""
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import NearestNeighbors

    draw = np.random.default_rng(0)
    x = draw.standard_normal((args.points, args.dimensions)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    flat = draw.standard_normal((args.points, 2))
    size = f"{len(x):,} x {x.shape[1]}"

    def near(points, k, metric):
        def distance():
            found = (
                NearestNeighbors(n_neighbors=k + 1, metric=metric, n_jobs=-1)
                .fit(points)
                .kneighbors(points)[0]
            )
            return found[:, 1:].mean() if metric == "cosine" else np.log(found[:, k]).mean()

        return distance

    for k in (5, 50, 1000):
        if k < len(x):
            row(
                args,
                f"knn_cosine_diversity(k={k}), {size}",
                partial(semantic.knn_cosine_diversity, x, k),
                args.slow_repeats,
                near(x, k, "cosine"),
                "scikit-learn",
                1e-5,
            )
    for points, ks in ((x, (5, 50)), (flat, (50, 1000))):
        for k in ks:
            if k < len(points):
                row(
                    args,
                    f"kl_entropy(k={k}), {len(points):,} x {points.shape[1]}",
                    partial(semantic.kl_entropy, points, k),
                    args.slow_repeats,
                    near(points, k, "euclidean"),
                    "scikit-learn",
                    1e-5,
                    same=partial(_mean_log_distance, n=len(points), d=points.shape[1], k=k),
                )
    row(
        args,
        f"gaussian_aic, {len(flat):,} x 2",
        lambda: semantic.gaussian_aic(flat),
        args.repeats,
        lambda: GaussianMixture(1).fit(flat).aic(flat),
        "scikit-learn",
        1e-5,
    )
    row(
        args,
        f"cosine_diversity, {size}",
        lambda: semantic.cosine_diversity(x),
        args.repeats,
        lambda: _pairwise(x),
        "scikit-learn",
        1e-6,
    )
    distance_rows(x, args)


def encoder_rows(texts: list[str], args: argparse.Namespace) -> None:
    """Texts per second of the default encoder; both sides start with every program compiled."""
    from jaxloop.metrics.embed import default_model, embed

    few = texts[:: max(1, len(texts) // args.embedded)][: args.embedded]
    model: Any = None
    if args.peer:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(default_model()), device="cpu")

    def encode():
        return model.encode(few, show_progress_bar=False, normalize_embeddings=True)

    row(
        args,
        f"embed, MiniLM, {len(few):,} texts",
        lambda: embed(few),
        args.slow_repeats,
        encode,
        "sentence-transformers",
        1e-4,
        enough=float("inf"),
    )


def quickstart_rows(args: argparse.Namespace) -> None:
    """Share of the processor time of a generation of the quickstart, on one of its bases, that the
    metrics of its texts take.
    """
    from jaxloop import config
    from jaxloop.recursion import driver
    from jaxloop.runtime.workdir import open_workdir
    from jaxloop.studies.chain import measure as chain_measure
    from jaxloop.studies.chain import prepare
    from jaxloop.studies.chain import run as chain
    from jaxloop.studies.common import models as base_models

    raw = config.read_file("configs/quickstart.py")
    changes = [("chain.generations", "2"), ("models.pool", raw["models"]["pool"][0])]
    settings = config.build(chain.CONFIG, config.override(raw, changes, chain.CONFIG))
    prepared = prepare.prepare(settings)
    written: dict[int, list[list[str]]] = {}
    ends: dict[int, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workdir(f"{folder}/run", {}, console=False) as place,
    ):
        metrics = chain_measure.measuring(settings, prepared, place.path)

        def measure(model, generation, outcomes):
            found = metrics(model, generation, outcomes, settings.metrics)
            written[generation] = [o.texts[: settings.chain.eval_texts] for o in outcomes]
            ends[generation] = time.process_time()
            return found

        driver.run(
            base_models.family(settings.models, settings.fit, settings.run),
            prepared.chains,
            prepared.data,
            prepared.driver,
            place.path,
            measure=measure,
            progress=False,
        )
    generation = ends[1] - ends[0]  # the first generation compiles
    asked = [
        name
        for name, (metric, _) in zip(settings.metrics, validate(settings.metrics), strict=True)
        if metric.needs == ("texts",)
    ]
    for what, names in (
        (f"the quickstart's {len(asked)}", asked),
        (f"all {len(of_texts())}", of_texts()),
    ):
        seconds = row(
            args,
            f"{what} metrics of texts, {len(written[1])} chains",
            partial(evaluate, names, texts=written[1]),
            args.repeats,
        )
        args.rows[-1]["share_of_a_generation"] = seconds / generation
        print(
            f"    that is {seconds / generation:.2%} of a generation of the quickstart, which "
            f"takes {generation:.1f} s of processor time"
        )


def of_texts() -> list[str]:
    """Names of the metrics that read texts alone and ask no model."""
    own = {module.__name__ for module in (bleu, lexical, sentiment)}
    return [
        name
        for name, metric in REGISTRY.items()
        if metric.needs == ("texts",) and metric.function.__module__ in own
    ]


def _mean_log_distance(entropy, n, d, k):
    from scipy.special import digamma, gammaln

    return (
        entropy
        - digamma(n)
        + digamma(k)
        - d / 2 * np.log(np.pi)
        + gammaln(d / 2 + 1)
        - d * np.log(2)
    ) / d


def _pairwise(x):
    from sklearn.metrics.pairwise import cosine_distances

    return cosine_distances(x).sum(dtype=np.float64) / (len(x) * (len(x) - 1))


def distance_rows(x: np.ndarray, args: argparse.Namespace) -> None:
    """Distances of two sets of points, beside SciPy."""
    from scipy import linalg
    from scipy.spatial.distance import cdist

    half = len(x) // 2
    a, b = x[:half], x[half:] * 1.1
    size = f"{half:,} and {half:,} x {x.shape[1]}"

    def frechet():
        s, t = np.cov(a.T.astype(np.float64)), np.cov(b.T.astype(np.float64))
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)

    def energy():
        p, q = a.astype(np.float64), b.astype(np.float64)
        return np.sqrt(2 * cdist(p, q).mean() - cdist(p, p).mean() - cdist(q, q).mean())

    row(
        args,
        f"frechet_distance, {size}",
        lambda: distances.frechet_distance(a, b),
        args.slow_repeats,
        frechet,
        "scipy sqrtm",
        1e-5,
    )
    row(
        args,
        f"energy_distance, {size}",
        lambda: distances.energy_distance(a, b),
        args.slow_repeats,
        energy,
        "scipy cdist",
        1e-6,
    )
    row(args, f"mmd2, {size}", lambda: distances.mmd2(a, b), args.slow_repeats)
    row(
        args,
        f"sliced_wasserstein, {size}",
        lambda: distances.sliced_wasserstein(a, b),
        args.slow_repeats,
    )


def text_rows(texts: list[str], args: argparse.Namespace) -> None:
    """Metrics of texts, beside vaderSentiment and NLTK."""
    few = texts[: args.few]

    def vader():
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyser = SentimentIntensityAnalyzer()
        return [analyser.polarity_scores(text)["compound"] for text in few]

    def nltk():
        from nltk.tokenize import NLTKWordTokenizer

        tokenizer = NLTKWordTokenizer()
        return [len(tokenizer.tokenize(text)) for text in few]

    row(
        args,
        f"positivity, {len(few):,} texts",
        lambda: sentiment.positivities(few),
        args.repeats,
        vader,
        "vaderSentiment",
        0,
    )
    row(
        args,
        f"words, {len(few):,} texts",
        lambda: words.words(few, sentences=False),
        args.repeats,
        nltk,
        "NLTK's tokenizer",
        0,
        same=lambda t: t.lengths,
    )
    chains = [texts[i * args.eval_texts : (i + 1) * args.eval_texts] for i in range(args.chains)]
    names = of_texts()
    what = f"{args.chains} chains x {args.eval_texts} texts"
    for name in names:
        row(
            args,
            f"  {name}, {what}",
            partial(evaluate, [name], texts=chains),
            args.repeats,
        )
    row(
        args,
        f"all {len(names)} metrics of texts, {what}",
        lambda: evaluate(names, texts=chains),
        args.repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["docs"],
        help="text files (.jsonl, .csv, .parquet, .txt) or docs; text column: text",
    )
    parser.add_argument(
        "--peer",
        action="store_true",
        help="also time the code that the results are held to, and check that they agree",
    )
    parser.add_argument(
        "--peer-rows", type=whole(1), default=40, help="rows of sacrebleu's loop that are timed"
    )
    parser.add_argument(
        "--peer-full", action="store_true", help="time all rows of sacrebleu's loop"
    )
    parser.add_argument(
        "--few",
        type=whole(1),
        default=2000,
        help="texts against sacrebleu, vaderSentiment and NLTK",
    )
    parser.add_argument(
        "--many", type=whole(1), default=100_000, help="texts against the time of tokenising"
    )
    parser.add_argument("--points", type=whole(1), default=10_000)
    parser.add_argument("--dimensions", type=whole(1), default=384)
    parser.add_argument(
        "--chains", type=whole(1), default=4, help="chains of one generation (quickstart: 4)"
    )
    parser.add_argument(
        "--eval-texts",
        type=whole(1),
        default=250,
        help="texts measured of each chain (quickstart: 250)",
    )
    parser.add_argument("--repeats", type=whole(1), default=7)
    parser.add_argument("--slow-repeats", type=whole(1), default=3)
    parser.add_argument("--embedded", type=whole(1), default=1000, help="texts that are embedded")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS[:4])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    args.now, args.rows = CLOCKS[args.clock], []
    texts: list[str] = []
    if {"self_bleu", "texts", "encoder"} & set(args.only):
        for source in args.data:
            texts += load_texts(source)["text"].tolist()
        if len(texts) < max(args.few, args.chains * args.eval_texts):
            parser.error(
                f"--data has {len(texts)} texts, at least "
                f"{max(args.few, args.chains * args.eval_texts)} are needed"
            )
        print(
            f"{len(texts):,} texts, {sum(map(len, texts)):,} characters; "
            f"{jax.default_backend()}, {os.cpu_count()} cores"
        )
    print(f"{'':<58}{'ours':>12}{'theirs':>14}{'ratio':>12}")
    if "self_bleu" in args.only:
        self_bleu_rows(texts, args)
    if "texts" in args.only:
        text_rows(texts, args)
    if "embeddings" in args.only:
        embedding_rows(args)
    if "encoder" in args.only:
        encoder_rows(texts, args)
    if "quickstart" in args.only:
        args.clock, args.now = "cpu", CLOCKS["cpu"]
        quickstart_rows(args)
    packages = (
        "jax",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
        "nltk",
        *(("sacrebleu",) if args.peer else ()),
    )
    facts = {
        "clock": args.clock,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "texts": len(texts),
        "versions": {p: version(p) for p in packages},
    }
    print(json.dumps({"benchmark": "metrics", **facts, "rows": args.rows}))


if __name__ == "__main__":
    main()
