"""What classifiers that jaxloop fits reach: macro-F1 on held-out texts, and that of always guessing
the largest class.

    python scripts/bench_classifiers.py tweets.jsonl:party:6000
    tweeteval.jsonl:label:4000:task=sentiment

Every argument is FILE:LABEL[:TEXTS][:COLUMN=VALUE]: the texts of a file (column `text`), the column
that holds their class, how many of them, and which rows. Prints a table and, as its last line, one
JSON object.
"""

import argparse
import json
import os
import time

import _root  # noqa: F401
import numpy as np
import pandas as pd
from _flags import whole

from jaxloop.data.sources import load_texts
from jaxloop.metrics.classifier_training import fit_classifier


def read(task: str, column: str, seed: int) -> tuple[str, pd.DataFrame]:
    """(what it is, rows with `text` and `label`) of an argument, at most as many as it says, drawn
    at random.
    """
    path, label, *rest = task.split(":")
    chosen = dict(part.split("=", 1) for part in rest if "=" in part)
    count = next((int(part) for part in rest if part.isdigit()), None)
    frame = load_texts(path, text_column=column, keep_columns=[label, *chosen])
    for name, value in chosen.items():
        frame = frame[frame[name].astype(str) == value]
    if frame.empty:
        raise SystemExit(f"{task}: no row is left")
    order = np.random.default_rng(seed).permutation(len(frame))[:count]
    frame = frame.iloc[order]
    return ", ".join([os.path.basename(path), label, *chosen.values()]), pd.DataFrame(
        {"text": frame["text"], "label": frame[label].astype(str)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="FILE:LABEL[:TEXTS][:COLUMN=VALUE]")
    parser.add_argument("--text", default="text", help="column that holds the text")
    parser.add_argument("--encoder", help="directory or hub id; none: MiniLM")
    parser.add_argument("--train", default="head", help="head, all, or a number of blocks")
    parser.add_argument(
        "--smallest", type=whole(1), default=50, help="classes with fewer texts are left out"
    )
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args()
    rows = []
    for task in args.tasks:
        what, frame = read(task, args.text, args.seed)
        counts = frame["label"].value_counts()
        frame = frame[frame["label"].isin(counts.index[counts >= args.smallest])]
        start = time.process_time()
        train = int(args.train) if args.train.isdigit() else args.train
        report = fit_classifier(
            list(frame["text"]),
            list(frame["label"]),
            encoder=args.encoder,
            train=train,
            seed=args.seed,
        ).report
        seconds = time.process_time() - start
        found = {
            "texts": len(frame),
            "classes": report["counts"],
            "macro_f1": report["test"]["macro_f1"],
            "accuracy": report["test"]["accuracy"],
        }
        rows.append({"task": what, **found, "majority": report["majority"], "cpu_seconds": seconds})
        print(f"{what}: {len(frame):,} texts, classes {report['counts']}")
        for name, confusion in zip(report["labels"], report["test"]["confusion"], strict=True):
            print(f"    {name:<16} {confusion}")
        same = report["majority"]
        print(
            f"    macro-F1 {found['macro_f1']:.3f} (majority {same['macro_f1']:.3f}), accuracy "
            f"{found['accuracy']:.3f} (majority {same['accuracy']:.3f})",
            flush=True,
        )
    print(json.dumps({"benchmark": "classifiers", "train": args.train, "rows": rows}))


if __name__ == "__main__":
    main()
