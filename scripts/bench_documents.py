"""How much memory it takes to read questions about whole books, beside another commit.

    python scripts/bench_documents.py [--rows=600] [--documents=20] [--against=main]

Writes records as NarrativeQA has them (a question, an answer, the full text of the document of
340,000 characters, in every row) as parquet, as JSON lines and as its archive, and the first part
of a corpus of sentences of which a limit takes a little. Each is read in a process of its own by
this checkout and, with --against, by a copy of that commit in turn. `held` is what Python holds of
the records that were read, `peak` the most that it held meanwhile (tracemalloc, MB). Prints a table
and, as its last line, one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import _root
import pyarrow as pa
import pyarrow.parquet as pq
from _flags import whole

KINDS = ("parquet", "jsonl", "archive", "sentences")
CHARACTERS = 338_000

# Runs under the package that PYTHONPATH names, whichever commit that is of.
READ = """
import gc, json, sys, tracemalloc
from jaxloop.data import qa_tasks, stories
kind, small, path = sys.argv[1:]
def read(path):
    if kind == "sentences":
        count = lambda texts: [len(text) for text in texts]
        return qa_tasks.load("bookcorpus", source=path, prompt_words=16, join_words=128,
            held_out=100, limit=1000, count_tokens=count, max_prompt_tokens=10**6)
    return stories.read_qa(path, passage="full")
read(small)
gc.collect()
tracemalloc.start()
read_rows = read(path)
held, peak = tracemalloc.get_traced_memory()
print(json.dumps({"held": held / 1e6, "peak": peak / 1e6}))
"""


def write(folder: Path, kind: str, rows: int, documents: int) -> Path:
    """Write the records in one of `KINDS` and return the file."""
    folder.mkdir(parents=True)
    if kind == "sentences":
        path = folder / "sentences.parquet"
        texts = [f"this is sentence {i} of a corpus of books ." for i in range(rows * 1000)]
        pq.write_table(pa.table({"text": texts}), path)
        return path
    books = [(f"word{d} of book {d} " * CHARACTERS)[:CHARACTERS] for d in range(documents)]
    book_of = [i * documents // rows for i in range(rows)]
    if kind == "archive":
        (folder / "tmp").mkdir()
        for d, text in enumerate(books):
            (folder / "tmp" / f"doc{d}.content").write_text(text)
        lines = [f"doc{d},train,What is {i}?,It is {i}.,It." for i, d in enumerate(book_of)]
        path = folder / "qaps.csv"
        path.write_text("\n".join(["document_id,set,question,answer1,answer2", *lines]))
        return path
    records = [
        {
            "document": {"id": f"doc{d}", "text": books[d], "summary": {"text": f"Book {d}."}},
            "question": {"text": f"What is {i}?"},
            "answers": [{"text": f"It is {i}."}],
        }
        for i, d in enumerate(book_of)
    ]
    path = folder / f"narrativeqa.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    return path


def measure(checkout: Path, kind: str, small: Path, path: Path) -> dict[str, float]:
    """Return what the package in `checkout` holds of a file, MB: {"held", "peak"}."""
    command = [sys.executable, "-c", READ, kind, str(small), str(path)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, env=environment, cwd=path.parent, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def copy_of(commit: str, folder: Path) -> Path:
    """Write the files of a commit to a folder."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "jaxloop"], cwd=_root.ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def main() -> int:
    """Measure every kind of file with every checkout, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=whole(1), default=600)
    parser.add_argument("--documents", type=whole(1), default=20)
    parser.add_argument("--against", help="a commit of this repository to measure too")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this": _root.ROOT}
        if options.against:
            checkouts[options.against] = copy_of(options.against, Path(folder, "other"))
        for kind in KINDS:
            small = write(Path(folder, "small", kind), kind, 4, 2)
            path = write(Path(folder, "whole", kind), kind, options.rows, options.documents)
            results[kind] = {
                name: measure(checkout, kind, small, path) for name, checkout in checkouts.items()
            }
            for name, megabytes in results[kind].items():
                print(
                    f"{kind:10} {name:12} held {megabytes['held']:8.1f} MB, "
                    f"peak {megabytes['peak']:8.1f} MB",
                    flush=True,
                )
    print(json.dumps({"rows": options.rows, "documents": options.documents, "MB": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
