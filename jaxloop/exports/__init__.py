"""What a run made, in formats of other tools: `jaxloop export RUN --to=KIND DIR`.

| kind | what DIR becomes |
|---|---|
| hub-dataset | a data set that `datasets.load_dataset(DIR)` reads, with a card |
| peft | an adapter that `peft.PeftModel.from_pretrained(base, DIR)` reads, with a model card |
| hf-model | a model that `transformers.AutoModelForCausalLM.from_pretrained(DIR)` reads |
| csv | metrics, ledger, losses and texts as CSV files |
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxloop.recursion import saved_run
from jaxloop.runtime.user_path import user_path

__all__ = ["KINDS", "export_run", "run_action"]

KINDS = ("hub-dataset", "peft", "hf-model", "csv")
# Options of each kind.
_OPTIONS = {
    "hub-dataset": ("chain", "generation", "licence"),
    "peft": ("chain", "generation", "entity"),
    "hf-model": ("chain", "generation", "entity", "dtype"),
    "csv": (),
}
USAGE = "export RUN --to=hub-dataset|peft|hf-model|csv DIR [--chain=ID] [--generation=N]"


def export_run(
    run: str | os.PathLike[str],
    to: str,
    directory: str | os.PathLike[str],
    *,
    chain: str | None = None,
    generation: int | None = None,
    entity: int | None = None,
    licence: str | None = None,
    dtype: str | None = None,
) -> list[Path]:
    """Write what a run made in the format of another tool, and return what was written.

    Args:
        run: the run directory; it may still be going on.
        to: one of `KINDS`.
        directory: new or empty.
        chain: id of a chain; None: all chains. Of several adapters each is in a directory of its
            own, named after the chain.
        generation: its number; None: all of them, for texts; the last one whose weights were kept,
            for models.
        entity: which model of a chain with several; None: all of them.
        licence: of the source text, for the card; sources that come with jaxloop have their own.
        dtype: "float32" or "bfloat16", of merged weights; None: that of the run's bases.

    Raises:
        ValueError: an option does not belong to the kind, the run has no such thing, its weights
            were not kept, its base is not here or has changed, or `directory` is not empty.
    """
    root, place = user_path(run), user_path(directory)
    options = {
        "chain": chain,
        "generation": generation,
        "entity": entity,
        "licence": licence,
        "dtype": dtype,
    }
    _check(to, options)
    saved_run.require_run(root)
    # pandas, pyarrow and JAX take seconds to load, and a refusal does not need them.
    from jaxloop.exports import models, target, texts

    target.check(place)
    if to == "csv":
        return texts.csv(root, place)
    if to == "hub-dataset":
        return [texts.dataset(root, place, chain=chain, generation=generation, licence=licence)]
    ids = models.chosen(root, chain, generation, entity)
    if to == "hf-model" and len(ids) > 1:
        raise ValueError(
            f"export --to=hf-model: the run has {len(ids)} models of the size of their base; name "
            f"one with --chain, such as --chain={ids[0].chain}"
            + (" and --entity=0" if ids[0].chain == ids[1].chain else "")
        )
    found = [models.describe(root, model) for model in ids]
    if to == "peft":
        return models.peft(root, found, place)
    stored = saved_run.read_config(root).get("models") or {}
    return models.transformers(root, found, place, dtype or stored.get("dtype", "float32"))


def _check(to: str, options: dict[str, Any]) -> None:
    if to not in KINDS:
        near = difflib.get_close_matches(str(to), KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(KINDS)}"
        raise ValueError(f"export --to={to}: is not known; {hint}")
    for name, value in options.items():
        if value is not None and name not in _OPTIONS[to]:
            belongs = ", ".join(kind for kind in KINDS if name in _OPTIONS[kind])
            raise ValueError(f"export --{name}={value}: belongs to --to={belongs}, not to {to}")
    for name in ("generation", "entity"):
        value = options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"export --{name}={value}: must be a whole number")
    if options["dtype"] not in (None, "float32", "bfloat16"):
        raise ValueError(f"export --dtype={options['dtype']}: must be float32 or bfloat16")


def run_action(words: Sequence[str]) -> str:
    """Return what `jaxloop export WORDS` prints, after doing it.

    Raises:
        ValueError: as `export_run`, or a word is not understood.
    """
    places: list[str] = []
    options: dict[str, Any] = {}
    for word in words:
        match = re.fullmatch(r"--(to|chain|generation|entity|licence|license|dtype)=(.+)", word)
        if match:
            name, value = match[1].replace("license", "licence"), match[2]
            number = name in ("generation", "entity") and re.fullmatch(r"\d+", value)
            options[name] = int(value) if number else value
        elif word.startswith("-"):
            raise ValueError(f"export {word}: is not understood; it is {USAGE}")
        else:
            places.append(word)
    if "to" not in options:
        raise ValueError(f"export: --to is missing; it is {USAGE}")
    if len(places) != 2:
        raise ValueError(
            f"export: needs a run and a directory to write to, not {len(places)} words; it is "
            f"{USAGE}"
        )
    written = export_run(places[0], options.pop("to"), places[1], **options)
    return "\n".join(map(str, written))
