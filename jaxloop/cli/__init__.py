"""The command line: what is asked for, what is printed, and how a refusal is shown.

Exit codes: 0 done · 1 an error that is ours (traceback shown) · 2 bad input (one line on stderr) ·
3 finished, but some chains failed (named in the report) · 4 finished, but a formula and a
simulation disagree (flagged in the report) · 5 scores are missing, because a judge did not answer
(one line says which, and the command that fills them in) · 6 another process of the run is gone
(all leave with one line, the same command goes on) · 28 disk full (the generation before is
intact) · 130 and 143 stopped by Ctrl-C and SIGTERM, saved, the same command resumes.
"""

import importlib
import logging as standard_logging
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from absl import flags, logging

from jaxloop import config, studies
from jaxloop.cli import completion
from jaxloop.cli.words import COMMANDS, WITH_WORDS, to_flags
from jaxloop.config import catalogue
from jaxloop.runtime import user_cache
from jaxloop.runtime.atomic_io import DiskFull, is_disk_full
from jaxloop.runtime.problems import is_refusal, lines_of
from jaxloop.runtime.signals import EXIT_DISK_FULL, EXIT_INTERRUPTED, EXIT_REFUSED

HELP = """jaxloop: recursive training of language models

  jaxloop quickstart               chains collapse on real text, in minutes; a report at the end
  jaxloop run CONFIG --workdir=runs/first
                                   run a study; the same command again resumes it
      --SECTION.FIELD=VALUE            change a field (lists: --chain.ratios=1/8,1)
      --debug                          show the traceback of a refusal
      --timings                        at the end, where the seconds went: start, programs, steps
  jaxloop list                     the studies and the configs
  jaxloop validate CONFIG          check the config, its data and its models; then stop
  jaxloop plan CONFIG              what it would cost: chains, tokens, memory, time; train nothing
      --for=TARGET                     … on hardware that is absent: h100, h200, a100, v5e-8,
                                       v5p-8, v6e-8, or cpu; compiles, runs nothing
  jaxloop fields CONFIG            every field of the config: default, what is allowed, meaning
  jaxloop compare RUN RUN …        runs side by side: one page and one CSV; --out=NAME
  jaxloop export RUN --to=KIND DIR the texts or models of a run for other tools; KIND is
                                   hub-dataset, peft, hf-model or csv
  jaxloop results RUN --expect=FILE
                                   what a run shows of a paper's claims, with verdicts, as a page
                                   in --out=DIR, else in docs/results
  jaxloop env                      versions and devices, for a bug report
  jaxloop cache --info             what is kept in the cache folder (compiled programs, data sets);
                                   --clear deletes it
  jaxloop completion SHELL         a script that completes commands and fields; bash, zsh or fish

CONFIG is the name of a config that comes with jaxloop, or a file, each with an argument such as a
scale after a colon: quickstart, ratio_sweep:tiny, mine.py:small. `python -m jaxloop.main` takes
the same words, and flags: --config=CONFIG --workdir=DIR --config.SECTION.FIELD=VALUE, --list,
--validate, --plan, --fields, --env.

Exit codes: 0 done, 1 internal error, 2 bad input, 3 some chains failed,
4 a formula and a simulation disagree, 5 scores of a judge are missing,
6 another process of the run is gone (run again to resume), 28 disk full,
130 Ctrl-C, 143 SIGTERM (saved; run again to resume)."""

# Commands that read finished runs, with the package that has their `run_action`.
_READS_RUNS = {
    "compare": "jaxloop.compare",
    "export": "jaxloop.exports",
    "results": "jaxloop.results",
}
# Under the list of configs.
_ARGUMENTS = (
    "An argument follows a colon: ratio_sweep:tiny is for two cores and minutes. Without one the "
    "configs of a\npaper have its sizes, and need a GPU, models and data."
)
ACTIONS = ("help", "list", "fields", "env", "validate", "plan")


@dataclass(frozen=True)
class Command:
    """One parsed command line.

    Attributes:
        action: "run", one of `ACTIONS`, or one of `words.WITH_WORDS`.
        argv: the whole command line.
        config: what stands after `--config=`.
        workdir: a local path, or an address of an object store.
        overrides: (dotted field, value as text) of every `--config.FIELD=VALUE`.
        target: the hardware of `--plan --for`.
        timings: whether a run ends with a table of where its seconds went.
    """

    action: str
    argv: tuple[str, ...]
    config: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    workdir: pathlib.Path | str | None = None
    debug: bool = False
    target: str | None = None
    timings: bool = False


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
    flags.DEFINE_bool("timings", False, "where a run's seconds went", flag_values=values)
    for action in ACTIONS:
        flags.DEFINE_bool(action, False, action, flag_values=values)
    return values


def parse(argv: Sequence[str]) -> Command:
    """Return the command of `sys.argv`.

    A command line that makes no sense ends the process: one line on standard error, exit code 2.
    """
    # absl's own flags keep their defaults; ours are not global.
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    # Warnings from before a run has its log are lines without the place in our code.
    plain = standard_logging.Formatter("%(levelname)s %(name)s: %(message)s")
    logging.get_absl_handler().setFormatter(plain)
    try:
        return _parse(list(argv))
    except ValueError as error:
        return refuse(error)


def _parse(argv: list[str]) -> Command:
    if len(argv) == 1 or _asks_for_help(argv[1:]):
        return Command("help", tuple(argv))
    if argv[1] == "cache":
        user_cache.requested_action(argv[2:])
    if argv[1] in WITH_WORDS:
        return Command(argv[1], tuple(argv))
    words, overrides = _take_overrides(to_flags(argv[1:]))
    values = _read_flags([argv[0], *("--help" if word == "-h" else word for word in words)])
    actions = [action for action in ACTIONS if values[action].value]
    if len(actions) > 1:
        raise ValueError(f"--{actions[0]} and --{actions[1]} cannot be used together")
    command = Command(
        action=actions[0] if actions else "run",
        argv=tuple(argv),
        config=values.config,
        overrides=tuple(overrides),
        workdir=studies.place_of(values.workdir) if values.workdir else None,
        debug=values.debug,
        target=values["for"].value,
        timings=values.timings,
    )
    _check_complete(command)
    return command


def _asks_for_help(words: list[str]) -> bool:
    """Whether the words are a command and `--help`, in either order: there is one text for all."""
    asked = [word for word in words if word in ("help", "--help", "-h")]
    return len(words) == 2 and bool(asked) and set(words) <= {*COMMANDS, *asked}


def _read_flags(argv: list[str]) -> flags.FlagValues:
    values = _flags()
    try:
        positional = values(argv)[1:]
    except flags.Error as error:
        unknown = re.search(r"Unknown command line flag '([^']*)'", str(error))
        if not unknown:
            raise ValueError(" ".join(str(error).split())) from None
        raise ValueError(f"--{unknown[1]} is not a flag; {_flag_hint(unknown[1])}") from None
    if positional:
        raise ValueError(f"'{positional[0]}' was not understood; options start with --, see --help")
    return values


def _check_complete(command: Command) -> None:
    if command.action in ("run", "fields", "validate", "plan") and not command.config:
        raise ValueError(
            "--config is missing: a config such as --config=quickstart (all of them: --list)"
        )
    if command.target is not None and command.action != "plan":
        raise ValueError(
            f"--for={command.target} belongs to --plan: it says for what hardware the plan is"
        )
    if command.timings and command.action != "run":
        raise ValueError(f"--timings belongs to a run; --{command.action} has none")
    if command.action == "run" and not command.workdir:
        raise ValueError(
            "--workdir is missing: the directory to write to, such as --workdir=runs/first"
        )


def _flag_hint(name: str) -> str:
    names = ["config", "workdir", *ACTIONS, "for", "debug", "timings"]
    if near := config.nearest(name, names):
        return f"did you mean --{near}?"
    if "." in name:
        return f"a field of the config is set with --config.{name}=…"
    return f"there are --{', --'.join(names)}"


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(other words, overrides) of a command line.

    Overrides are `--config.a.b=c`, `--config.a.b c`, and the bare `--config.a.b`, which is true.
    """
    words, others, overrides = list(argv), [], []
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            others.append(word)
            continue
        path, value = match.groups()
        if not path:
            raise ValueError(f"{word}: names no field, such as --config.chain.generations=5")
        if value is None:
            value = words.pop(0) if words and not words[0].startswith("-") else "true"
        overrides.append((path, value))
    return others, overrides


def refuse(error: BaseException | str, code: int = EXIT_REFUSED) -> NoReturn:
    """Print a line on standard error, one for each thing that is wrong, and end the process."""
    lines = lines_of(error) if isinstance(error, BaseException) else (" ".join(error.split()),)
    for line in lines:
        shown = line.encode("utf-8", "backslashreplace").decode()
        print(f"jaxloop: {shown}", file=sys.stderr)
    sys.exit(code)


def guarded(main: Callable[[Command], int], command: Command) -> int:
    """Return `main(command)`; a refusal of ours ends the process with one line and exit code 2.

    Any other exception is an internal error and keeps its traceback.
    """
    try:
        return main(command)
    except KeyboardInterrupt:
        refuse(f"stopped by Ctrl-C{_left_by(command)}", EXIT_INTERRUPTED)
    except studies.JudgeSilent as error:
        refuse(error, studies.MISSING_SCORES)
    except DiskFull as error:
        refuse(error, EXIT_DISK_FULL)
    except Exception as error:
        if command.debug:
            raise
        if is_disk_full(error):  # also where a library has written
            refuse(f"disk full: {error}", EXIT_DISK_FULL)
        if not isinstance(error, ValueError | OSError) or not is_refusal(error):
            raise
        refuse(error)


def _left_by(command: Command) -> str:
    """What is on the disk of a run that was interrupted before or after its chains."""
    if command.action != "run" or command.workdir is None:
        return ""
    if studies.is_address(command.workdir) or pathlib.Path(command.workdir).exists():
        return "; what was finished is on disk, the same command goes on"
    return " before anything was written"


def run_words(command: Command) -> int:
    """Carry out a command that has words of its own, and print what it says."""
    return say(_run_action(command.action)(command.argv[2:]))


def _run_action(word: str) -> Callable[[Sequence[str]], str]:
    if word in _READS_RUNS:
        # They import pandas, which no other command needs.
        return importlib.import_module(_READS_RUNS[word]).run_action
    return {"cache": user_cache.run_action, "completion": completion.run_action}[word]


def say(text: str) -> int:
    """Print, and return the exit code of success."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    return 0


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return the rows as two aligned columns."""
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)


def listing() -> str:
    """Return what can be run: the studies and the configs, with a line on each."""
    kinds = table([(name, entry.line) for name, entry in studies.STUDIES.items()])
    configs = table(catalogue.rows())
    return f"Studies (config.study)\n{kinds}\n\nConfigs (--config=…)\n{configs}\n\n{_ARGUMENTS}"
