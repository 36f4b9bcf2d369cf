"""Whether a change of the program changes a result: the same small studies before and after it.

    python scripts/compare_results.py main refactoring                  # two git revisions
    python scripts/compare_results.py main~3 . --only=quickstart,bias    # a revision and a checkout
    python scripts/compare_results.py main main --keep=results          # keeps what both wrote
    python scripts/compare_results.py results/before .                  # kept: is not run again

BEFORE and AFTER are git revisions, folders of checkouts, or sides that --keep kept. A revision is
checked out into a temporary worktree. Each study runs in a fresh directory, in this Python's
environment, with a cache folder of the side's own (compiled programs are shared: they are keyed by
what they compute). Compared are the texts of every generation, every table, arrays bit for bit, the
ledger and the words of the report; `LEFT_OUT` in `_same_results.py` names what may differ, and why.
Overrides have the names of BEFORE: a later program takes old names of fields as aliases. A study
that fails on either side is a difference. Prints a table and, as its last line, one JSON object.
Exit codes: 0 all is equal, 1 something differs, 2 bad input.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _root
import _same_results as same_results

from jaxloop.runtime.atomic_io import cache_folder

SIDE = "side.json"
# Exit codes of runs that are complete: 4 where a formula and a simulation disagree, which they may
# do at sizes as small as these.
ENDINGS = (0, 4)
# Two chains in a program, whatever a measurement says; every generation's adapters stay on disk.
_CHAINS = "run.micro_batch=2 run.keep=none"
_LOOPS = f"""{_CHAINS} chain.generations=2 chain.size=16 chain.eval_texts=16 chain.seeds=0
    chain.ratios=1/4 sample.max_new_tokens=12"""
# name -> (config, overrides): every kind of study, so small that compiling takes most of its time.
STUDIES = {
    "quickstart": (
        "configs/quickstart.py",
        f"""{_CHAINS} chain.generations=3 chain.size=48 chain.eval_texts=24 chain.heldout_texts=16
        chain.seeds=1 fit.steps=4 sample.max_new_tokens=24""",
    ),
    "ratio_sweep": (
        "configs/ratio_sweep.py:tiny",
        f"{_LOOPS} chain.ratios=1/4,1",
    ),
    "cluster_study": (
        "configs/cluster_study.py:tiny",
        f"""{_LOOPS} domains.emotions.keep=300 domains.novels.keep=300 domains.speeches.keep=300
        clusters.count=4 clusters.min_size=40 clusters.fit_rows=200
        clusters.methods=kmeans-5,hdbscan-5-1-eom clusters.min_distances=1e-3
        clusters.noise=kept properties.texts=40 properties.lexical_texts=30
        properties.map_rows=200""",
    ),
    "dataset_comparison": ("configs/dataset_comparison.py:tiny", _LOOPS),
    "multi_entity": (
        "configs/multi_entity.py:tiny",
        f"""{_CHAINS} exchange.generations=2 exchange.size=32 exchange.synthetic=8 exchange.seeds=0
        exchange.alphas=0,1/2 exchange.betas=1/2 fit.steps=2 sample.max_new_tokens=8
        measure.test_texts=8 measure.probes=4 measure.similarity_every=1""",
    ),
    "bias": (
        "configs/bias_amplification.py:tiny",
        f"""{_CHAINS} adapt.articles=32 adapt.epochs=1 chain.generations=3 chain.seeds=0
        data.per_label=4 chain.overfit_epochs=2 classifier.texts=60
        classifier.encoders=none,jaxloop/assets/bases/llama classifier.epochs=2
        measure.quality_articles=4 projection.texts=4 neurons.texts=4 sample.max_new_tokens=16""",
    ),
    "diversity": (
        "configs/diversity.py:tiny",
        f"""{_CHAINS} generated.levels=0,6 fixed.levels=0,6 fixed.ratios=1/2 variable.levels=1
        variable.ratios=0.4 sizes.levels= architectures.levels=0 architectures.qa=18
        architectures.story=32 story.train=32
        story.test=8 qa.test=8 generated.story=32 fixed.story=32 control.story=16
        control.qa=18 generated.qa=18 fixed.qa=18""",
    ),
    "linear_dynamics": (
        "configs/linear_dynamics.py",
        "replicates=64 linear.batch=64 linear.grid=20 linear.designs=2 linear.generations=6",
    ),
    "wmle": (
        "configs/wmle.py",
        "replicates=16 wmle.batch=16 wmle.n=500 wmle.error_n=100 wmle.generations=4",
    ),
    "histogram": (
        "configs/histogram.py",
        "histogram.replicates=10 histogram.batch=10 histogram.size=20 histogram.generations=6",
    ),
    "theory": (
        "configs/theory.py",
        "replicates=100 library.batch=100",
    ),
    "pretrain": (
        "configs/pretrain.py",
        """bases.llama.steps=2 bases.qwen2.steps=2 bases.gpt2.steps=2
        data.limit=1000 vocab=512 context=64""",
    ),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One side: its results, and the checkout that makes them (None: they were kept)."""

    spec: str
    results: Path
    checkout: Path | None
    commit: str = ""


def words_of(name: str) -> list[str]:
    """The words after `python -m jaxloop.main` that run a study, without its work directory."""
    config, overrides = STUDIES[name]
    given = dict(override.split("=", 1) for override in overrides.split())
    return [f"--config={config}", *(f"--config.{field}={value}" for field, value in given.items())]


def chosen(only: str | None) -> list[str]:
    """The studies of `--only` in the order of `STUDIES`, or all. ValueError names what there is."""
    wanted = list(STUDIES) if only is None else only.split(",")
    for name in wanted:
        if name not in STUDIES:
            raise ValueError(f"--only={name}: must be one of {', '.join(STUDIES)}")
    return [name for name in STUDIES if name in wanted]


@contextlib.contextmanager
def side(spec: str, results: Path) -> Iterator[Side]:
    """A side as it was named; a revision's worktree lasts as long as the context.

    results: where a run of it writes. Raises ValueError for what is none of the three.
    """
    path = Path(spec)
    if (path / SIDE).is_file():
        yield Side(spec, path.absolute(), None)
    elif (path / "jaxloop" / "main.py").is_file():
        yield Side(spec, results, path.resolve())
    elif path.is_dir() or not (commit := _commit(spec)):
        raise ValueError(
            f"{spec}: must be a git revision, a checkout of jaxloop, or a side that --keep kept"
        )
    else:
        with tempfile.TemporaryDirectory(prefix="jaxloop-compare-") as scratch:
            checkout = Path(scratch).resolve() / "checkout"
            _git("worktree", "add", "--detach", "--quiet", str(checkout), commit, check=True)
            try:
                yield Side(spec, results, checkout, commit)
            finally:
                _git("worktree", "remove", "--force", str(checkout))


def _commit(revision: str) -> str:
    if revision.startswith("-"):
        return ""
    return _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").stdout.strip()


def _git(*words: str, check: bool = False) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["git", "-C", str(_root.ROOT), *words], capture_output=True, text=True, check=check
    )


def environment(checkout: Path, cache: Path) -> dict[str, str]:
    """Variables of a run: `checkout` on the path, a cache without the other side's results."""
    found = dict(os.environ) | {"PYTHONPATH": str(checkout), "JAXLOOP_CACHE": str(cache)}
    cache.mkdir(parents=True, exist_ok=True)
    programs = cache_folder() / "xla"
    programs.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (cache / "xla").is_symlink():
        (cache / "xla").symlink_to(programs.absolute(), target_is_directory=True)
    return found


def run(which: Side, names: Sequence[str]) -> None:
    """Runs the studies of one side, one after another; writes after each what became of them.

    Studies that a kept folder has of the same commit are not run again. Raises ValueError where it
    has another program's, or Python would import the package from elsewhere than the checkout.
    """
    checkout = which.checkout
    assert checkout is not None, "what was kept is not run"
    which.results.mkdir(parents=True, exist_ok=True)
    variables = environment(checkout, which.results / "cache")
    code = [sys.executable, "-c", "import jaxloop; print(jaxloop.__file__)"]
    done = subprocess.run(code, cwd=checkout, env=variables, capture_output=True, text=True)
    found = done.stdout.strip() or _last_line(done)
    if not Path(found).is_relative_to(checkout):
        raise ValueError(f"{which.spec}: must be what `import jaxloop` finds, got {found}")
    record: dict[str, Any] = {"commit": which.commit, "results": str(which.results), "studies": {}}
    if (which.results / SIDE).is_file():
        record = json.loads((which.results / SIDE).read_text(encoding="utf-8"))
        if not which.commit or record["commit"] != which.commit:
            raise ValueError(f"{which.results}: must be new, has results of {record['commit']}")
    done_before = {
        name for name, study in record["studies"].items() if study["words"] == words_of(name)
    }
    (which.results / SIDE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for name in names:
        if name in done_before:
            continue
        shutil.rmtree(which.results / name, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "jaxloop.main", *words_of(name)]
        command.append(f"--workdir={which.results / name}")
        done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record["studies"][name] = {
            "words": words_of(name),
            "checkout": str(checkout),
            "code": done.returncode,
            "last": _last_line(done),
            "cpu_s": spent,
        }
        (which.results / SIDE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(
            f"{which.spec}: {name} ended with {done.returncode}, {spent:.0f} s of processor time",
            file=sys.stderr,
        )


def _last_line(done: subprocess.CompletedProcess) -> str:
    return (done.stderr.strip().splitlines() or [""])[-1]


def compared(name: str, sides: Sequence[Side], records: Sequence[Mapping]) -> same_results.Compared:
    """What differs in one study; not run, failed or run otherwise is a difference too."""
    about = [record["studies"].get(name) for record in records]
    troubles = []
    for when, study in zip(("before", "after"), about, strict=True):
        if study is None:
            troubles.append(f"was not run {when}")
        elif study["code"] not in ENDINGS:
            troubles.append(f"ended with {study['code']} {when}: {study['last']}")
    if all(about) and about[0]["code"] != about[1]["code"]:
        troubles.append(f"ended with {about[0]['code']} before and {about[1]['code']} after")
    if all(about) and about[0]["words"] != about[1]["words"]:
        troubles.append("was run with other words before than after")
    if troubles:
        none = dict.fromkeys(same_results.KINDS, 0)
        return same_results.Compared(none, none, tuple(troubles))
    runs = [
        same_results.Run(
            which.results / name,
            (
                (f"{record['results']}/{name}", "WORKDIR"),
                (record["results"], "RESULTS"),
                (study["checkout"], "CODE"),
            ),
        )
        for which, record, study in zip(sides, records, about, strict=True)
    ]
    return same_results.compare(*runs)


def table(found: Mapping[str, same_results.Compared]) -> str:
    """A line a study: files of each kind (`1 of 6`: one differs), `equal` or what differs first."""
    rows: list[tuple[str, ...]] = [("study", *same_results.KINDS, "result")]
    for name, study in found.items():
        counts = [
            f"{study.differ[kind]} of {study.files[kind]}"
            if study.differ[kind]
            else str(study.files[kind])
            for kind in same_results.KINDS
        ]
        more = f" (and {len(study.differences) - 1} more)" if len(study.differences) > 1 else ""
        rows.append(
            (name, *counts, f"{study.differences[0]}{more}" if study.differences else "equal")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not there, compares, prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "before", metavar="BEFORE", help="git revision, checkout, or a side that was kept"
    )
    parser.add_argument("after", metavar="AFTER", help="the same")
    parser.add_argument("--only", metavar="NAME,...", help=f"some of {', '.join(STUDIES)}")
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="keeps the work directories: DIR/before, DIR/after; of a revision, goes on there",
    )
    args = parser.parse_args(argv)
    try:
        names = chosen(args.only)
        made = args.keep and any(
            (Path(args.keep) / w / SIDE).is_file() for w in ("before", "after")
        )
        if args.keep and Path(args.keep).exists() and not made:
            raise ValueError(f"--keep={args.keep}: must be a new folder, or one that --keep made")
        with contextlib.ExitStack() as stack:
            folder = Path(
                args.keep
                or stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxloop-results-"))
            )
            folder = folder.absolute()
            specs = (("before", args.before), ("after", args.after))
            sides = [stack.enter_context(side(spec, folder / when)) for when, spec in specs]
            for which in sides:
                if which.checkout is not None:
                    run(which, names)
            records = [
                json.loads((which.results / SIDE).read_text(encoding="utf-8")) for which in sides
            ]
            found = {name: compared(name, sides, records) for name in names}
    except ValueError as error:
        parser.error(str(error))
    print(table(found))
    seconds = [
        sum(record["studies"].get(name, {}).get("cpu_s", 0) for name in names) for record in records
    ]
    different = {name: study.differences[0] for name, study in found.items() if study.differences}
    summary = {"equal": not different, "studies": len(found), "different": different}
    print(
        json.dumps(
            summary | {"before_cpu_s": round(seconds[0], 1), "after_cpu_s": round(seconds[1], 1)}
        )
    )
    return 1 if different else 0


if __name__ == "__main__":
    # So that worktrees are removed then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
