"""`python -m jaxloop.main --config=configs/quickstart.py --workdir=runs/first
[--config.chain.generations=5 …]`

Kept short: reading is in `config`, the command line in `cli`, the work in `studies`.
"""

import sys

from absl import app

from jaxloop import cli, config, studies
from jaxloop.accelerators import cards
from jaxloop.runtime import environment, user_cache


def main(command: cli.Command) -> int:
    """Carries out one parsed command and returns its exit code (see `cli`)."""
    environment.refuse_a_clash()
    if command.action == "help":
        return cli.say(cli.HELP)
    if command.action == "list":
        return cli.say(cli.listing())
    if command.action == "env":
        return cli.say(cli.table(environment.describe()))
    if command.action == "cache":
        return cli.say(user_cache.act(command.argv[2:]))
    if command.target is not None:
        cards.find(command.target)
        cards.keep_to_the_cpu()
    raw = config.read_file(command.config)
    study = studies.load(raw.get("study"))
    if command.action == "fields":
        return cli.say(config.reference(study.Settings))
    settings = config.build(study.Settings, config.override(raw, command.overrides, study.Settings))
    if command.action == "validate":
        return cli.say("\n".join([*study.check(settings), f"{command.config} is valid"]))
    if command.action == "plan":
        return cli.say(
            cli.table(
                study.plan(settings)
                if command.target is None
                else studies.plan_for(study, settings, command.target)
            )
        )
    return study.run(settings, command.workdir, argv=command.argv)


def run() -> None:
    """Console entry: refusals become one line on stderr and exit code 2."""
    app.run(lambda command: cli.guarded(main, command), flags_parser=cli.parse)


if __name__ == "__main__":
    sys.exit(run())
