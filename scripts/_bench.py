"""The command line of the three benchmarks: fields of `configs/bench.py` as flags."""

import sys

from jaxloop import config
from jaxloop.studies.bench import run as bench


def main(what: str) -> int:
    """Run the benchmark named `what` with the flags of the command line; 2 after a refusal."""
    flags = []
    for word in sys.argv[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        flags.append((name.replace("-", "_"), value or "true"))
    try:
        raw = config.override(config.read_file(f"configs/bench.py:{what}"), flags, bench.CONFIG)
        settings = config.build(bench.CONFIG, raw)
        bench.check(settings)
        bench.measure(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
