"""The command line: parsing, the catalogue, the bug-report block, and how a refusal is shown.

Exit codes: 0 done · 1 an error that is ours (traceback shown) · 2 bad input (one line on stderr) ·
3 finished, but some chains failed (named in the report) · 4 finished, but a formula and a
simulation disagree (flagged in the report) · 28 disk full (the generation before is intact) · 130
and 143 stopped by Ctrl-C and SIGTERM, saved, the same command resumes.
"""

import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from absl import flags, logging

from jaxloop import config, studies
from jaxloop.config import catalogue
from jaxloop.runtime import user_cache
from jaxloop.runtime.atomic_io import DiskFull
from jaxloop.runtime.signals import EXIT_DISK_FULL, EXIT_INTERRUPTED, EXIT_REFUSED

HELP = """jaxloop: recursive training of language models

  python -m jaxloop.main --config=configs/quickstart.py --workdir=runs/first    run a study; the same command again resumes
      --config.SECTION.FIELD=VALUE     change one field (lists with commas: --config.chain.ratios=1/8,1)
      --config=FILE.py:ARGUMENT        give the config file an argument, such as a scale
      --config=NAME[:ARGUMENT]         a config that comes with jaxloop (--list), from any folder
  python -m jaxloop.main --config=FILE.py --validate      check the config, its data and its models; then stop
  python -m jaxloop.main --config=FILE.py --plan          what it would cost: chains, tokens, memory, time; train nothing
      --for=TARGET                     … on hardware that is absent: h100, h200, a100, v5e-8, v5p-8, v6e-8, or cpu; compiles, runs nothing
  python -m jaxloop.main --list                           the studies and the configs
  python -m jaxloop.main --config=FILE.py --fields        every field of the config: default, what is allowed, meaning
  python -m jaxloop.main --env                            versions and devices, for a bug report
  python -m jaxloop.main cache --info                     what is kept in the cache folder (compiled programs, data sets); --clear deletes it
      --debug                          show the traceback of a refusal

Exit codes: 0 done, 1 internal error, 2 bad input, 3 some chains failed,
4 a formula and a simulation disagree, 28 disk full, 130 Ctrl-C, 143 SIGTERM (saved; run again to resume)."""

ACTIONS = ("help", "list", "fields", "env", "validate", "plan")


class Command(NamedTuple):
    """One parsed command line."""

    action: str
    config: str | None
    overrides: tuple[tuple[str, str], ...]
    workdir: pathlib.Path | None
    argv: tuple[str, ...]
    debug: bool = False
    target: str | None = None


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config", None, "config file, FILE.py or FILE.py:ARGUMENT", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "directory that the run writes to", flag_values=values)
    flags.DEFINE_string(
        "for", None, "with --plan: hardware that need not be here", flag_values=values
    )
    flags.DEFINE_bool("debug", False, "show the traceback of a refusal", flag_values=values)
    for action in ACTIONS:
        flags.DEFINE_bool(action, False, action, flag_values=values)
    return values


def parse(argv: Sequence[str]) -> Command:
    """The command of `sys.argv`. A command line that makes no sense ends the process: one line,
    exit code 2.
    """
    flags.FLAGS.mark_as_parsed()  # absl's own flags keep their defaults; ours are not global
    logging.set_verbosity(logging.WARNING)
    try:
        return _parse(list(argv))
    except ValueError as error:
        return refuse(error)


def _parse(argv: list[str]) -> Command:
    if len(argv) == 1:
        return Command("help", None, (), None, tuple(argv))
    if argv[1] == "cache":
        user_cache.asked(argv[2:])
        return Command("cache", None, (), None, tuple(argv))
    rest, overrides = _take_overrides(argv[1:])
    rest = ["--help" if word == "-h" else word for word in rest]
    values = _flags()
    try:
        positional = values([argv[0], *rest])[1:]
    except flags.Error as error:
        unknown = re.search(r"Unknown command line flag '([^']*)'", str(error))
        if not unknown:
            raise ValueError(" ".join(str(error).split())) from None
        names = ["config", "workdir", *ACTIONS, "for", "debug"]
        raise ValueError(f"--{unknown[1]} is not a flag; {_flag_hint(unknown[1], names)}") from None
    if positional:
        raise ValueError(f"'{positional[0]}' was not understood; options start with --, see --help")
    asked = [action for action in ACTIONS if values[action].value]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} cannot be used together")
    action = asked[0] if asked else "run"
    if action in ("run", "fields", "validate", "plan") and not values.config:
        raise ValueError(
            "--config is missing: a config such as --config=quickstart (all of them: --list)"
        )
    target = values["for"].value
    if target is not None and action != "plan":
        raise ValueError(f"--for={target} belongs to --plan: it says for what hardware the plan is")
    if action == "run" and not values.workdir:
        raise ValueError(
            "--workdir is missing: the directory to write to, such as --workdir=runs/first"
        )
    workdir = pathlib.Path(values.workdir) if values.workdir else None
    return Command(
        action, values.config, tuple(overrides), workdir, tuple(argv), values.debug, target
    )


def _flag_hint(name: str, names: Sequence[str]) -> str:
    near = config.nearest(name, names)
    if near:
        return f"did you mean --{near}?"
    return (
        f"a field of the config is set with --config.{name}=…"
        if "." in name
        else f"there are --{', --'.join(names)}"
    )


def _take_overrides(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits `--config.a.b=c`, `--config.a.b c` and the bare `--config.a.b` (true) from the other
    words.
    """
    rest, overrides, words = [], [], list(words)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        path, value = match.groups()
        if not path:
            raise ValueError(f"{word}: names no field, such as --config.chain.generations=5")
        if value is None:
            value = words.pop(0) if words and not words[0].startswith("-") else "true"
        overrides.append((path, value))
    return rest, overrides


# ---- refusing
# ---------------------------------------------------------------------------------------------------------


def refuse(error: BaseException | str, code: int = EXIT_REFUSED) -> NoReturn:
    """One line on stderr, and the end of the process."""
    line = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    print(f"jaxloop: {line}", file=sys.stderr)
    sys.exit(code)


def guarded(main: Callable[[Command], int], command: Command) -> int:
    """`main(command)`, where a refusal of ours ends as one line and exit code 2. Anything else is
    an error of ours and keeps its traceback.
    """
    try:
        return main(command)
    except KeyboardInterrupt:
        refuse("stopped by Ctrl-C before anything was written", EXIT_INTERRUPTED)
    except DiskFull as error:
        refuse(error, EXIT_DISK_FULL)
    except (ValueError, OSError) as error:
        if command.debug or not _is_refusal(error):
            raise
        refuse(error)


def _is_refusal(error: BaseException) -> bool:
    """Raised by the toolkit itself, or by the file system: not by a library that was handed
    something wrong inside.
    """
    if isinstance(error, OSError):
        return error.filename is not None
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    return pathlib.Path(origin).is_relative_to(pathlib.Path(__file__).parent)


def say(text: str) -> int:
    """Prints and returns the exit code of success."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    return 0


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max((len(what) for what, _ in rows), default=0)
    return "\n".join(f"{what:<{width}}  {amount}" for what, amount in rows)


# ---- --list
# ---------------------------------------------------------------------------------------------------------


def listing() -> str:
    """What can be run: the studies, and the config files with the first line of their docstrings."""
    kinds = [(name, study.line) for name, study in studies.STUDIES.items()]
    return (
        f"Studies (config.study)\n{table(kinds)}\n\nConfigs (--config=…)\n{table(catalogue.rows())}"
    )
