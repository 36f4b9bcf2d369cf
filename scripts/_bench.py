"""The command line of the three benchmarks: fields of `configs/bench.py` as flags."""

import sys

from jaxloop import config
from jaxloop.studies.bench import run as bench

FIELDS = "Fields: python -m jaxloop.main --config=configs/bench.py:{what} --fields"


def main(what: str, about: str | None) -> int:
    """Run the benchmark named `what` with the flags of the command line; 2 after a refusal.

    about: what `--help` says.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{about}\n{FIELDS.format(what=what)}")
        return 0
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
