"""`jaxloop run quickstart --workdir=runs/first`, or the same by `python -m jaxloop.main`.

Reading a config is in `config`, the command line in `cli`, the work in `studies`.
"""

from pathlib import Path

from absl import app

from jaxloop import cli, config, studies
from jaxloop.accelerators import cards
from jaxloop.runtime import environment, optional


def main(command: cli.Command) -> int:
    """Carry out one parsed command and return its exit code (see `cli`)."""
    environment.refuse_name_clash()
    if command.action == "help":
        return cli.say(cli.HELP)
    if command.action == "list":
        return cli.say(cli.listing())
    if command.action == "env":
        return cli.say(cli.table(environment.describe()))
    if command.action in cli.WITH_WORDS:
        return cli.run_words(command)
    return _of_study(command)


def _of_study(command: cli.Command) -> int:
    """Show the fields of a config, check it, plan it, or run its study."""
    assert command.config is not None  # `cli.parse` refuses a command without one
    if command.target is not None:
        cards.find(command.target)
        cards.keep_to_the_cpu()
    raw = config.read_file(command.config)
    name = raw.get("study")
    schema = studies.config_of(name)
    if command.action == "fields":
        return cli.say(config.reference(schema))
    settings = config.build(schema, config.override(raw, command.overrides, schema))
    if command.target is not None:
        studies.check_target(name, command.target)
    study = studies.load(name)
    if command.action == "validate":
        optional.check_trackers(getattr(getattr(settings, "run", None), "trackers", ()))
        # Of a store that is not this machine's, no room is known.
        workdir = command.workdir if isinstance(command.workdir, Path) else None
        return cli.say("\n".join([*study.check(settings, workdir), f"{command.config} is valid"]))
    if command.action == "plan":
        return cli.say(cli.table(study.plan(settings, command.target)))
    assert command.workdir is not None  # as above
    if not command.timings:
        return studies.run_at(study, settings, command.workdir, argv=command.argv)[0]
    # It imports JAX, which not every command needs.
    from jaxloop.runtime import timings

    with timings.heard() as heard:
        code, _ = studies.run_at(study, settings, command.workdir, argv=command.argv)
    cli.say(heard.table())
    return code


def run() -> None:
    """Run the command of `sys.argv`; the console entry point, which ends the process."""
    app.run(lambda command: cli.guarded(main, command), flags_parser=cli.parse)


if __name__ == "__main__":
    run()
