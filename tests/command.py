"""The command line as the tests call it."""

from jaxloop import cli, main


def call(capsys, *words):
    """(exit code, stdout, stderr) of `jaxloop words…` in this process."""
    try:
        code = cli.guarded(main.main, cli.parse(["jaxloop", *map(str, words)]))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()
