"""Completion of commands, configs and fields in bash, zsh and fish.

`jaxloop completion bash` prints a script, which asks `jaxloop completion words …` at every Tab.
"""

from collections.abc import Sequence

from jaxloop import config, studies
from jaxloop.cli.words import COMMANDS, FLAGS, OF_FLAGS
from jaxloop.config import catalogue

# Each asks with the words before the cursor and the one under it. Bash takes "=" for a space; the
# word is put together again, and what stands before its last "=" cut from the answers.
_SCRIPTS = {
    "bash": """_jaxloop() {
    local line="${COMP_LINE:0:$COMP_POINT}" words word cut
    read -ra words <<< "$line"
    word="${line##* }"
    [ -z "$word" ] && words+=("")
    cut="${word%"${word##*[=:]}"}"
    mapfile -t COMPREPLY < <(jaxloop completion words "${words[@]}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -o nospace -o default -F _jaxloop jaxloop""",
    "zsh": """#compdef jaxloop
_jaxloop() {
    local -a answers
    answers=("${(@f)$(jaxloop completion words "${(@)words[1,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- $answers
}
compdef _jaxloop jaxloop""",
    "fish": """function __jaxloop
    jaxloop completion words (commandline -opc) (commandline -ct) 2>/dev/null
end
complete -c jaxloop -f -a '(__jaxloop)'""",
}
SHELLS = tuple(_SCRIPTS)


def run_action(words: Sequence[str]) -> str:
    """Return what `jaxloop completion WORDS` prints.

    Args:
        words: a shell, for its script; or "words" and a command line up to the cursor, for what
            its last word can be.

    Raises:
        ValueError: there is no such shell.
    """
    if words and words[0] == "words":
        return "\n".join(answers(words[2:]))
    if len(words) != 1 or words[0] not in _SCRIPTS:
        raise ValueError(
            f"completion {' '.join(words)}".rstrip()
            + f": must be followed by a shell, one of {', '.join(SHELLS)}"
        )
    return _SCRIPTS[words[0]]


def answers(words: Sequence[str]) -> list[str]:
    """Return what the last of the words of a command line, without `jaxloop`, can become."""
    before, word = list(words[:-1]), (words[-1] if words else "")
    if not before:
        return _beginning(word, COMMANDS)
    if before == ["completion"]:
        return _beginning(word, SHELLS)
    takes_config = OF_FLAGS.get(before[0], False)
    if takes_config and len(before) == 1:
        return _beginning(word, catalogue.names()) or _beginning(word, catalogue.paths())
    if not word.startswith("-") or not (takes_config or before[0] == "quickstart"):
        return []
    name = before[1] if takes_config else "quickstart"
    return _beginning(word, [*(f"--{flag}" for flag in FLAGS), *_fields(name)])


def _fields(name: str) -> list[str]:
    """The fields of a shipped config. Other files are not read: that would execute them."""
    path, _ = catalogue.locate(name)
    if path.parent != catalogue.shipped() or not path.exists():
        return []
    schema = studies.config_of(config.read_file(name).get("study"))
    return [f"--{field}=" for field in config.field_names(schema)]


def _beginning(word: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
