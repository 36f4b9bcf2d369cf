"""The cards (README.md) of what is exported: what it is, from where, under which licence."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jaxloop
from jaxloop.data import corpora, qa_tasks
from jaxloop.reporting.scores import share
from jaxloop.runtime.workdir import stored_form

# Beginnings of a corpus's licence and the hub's name for it.
_HUB_LICENCES = {"MIT": "mit", "CC BY 4.0": "cc-by-4.0", "text": "cc0-1.0"}
_SELECTED = (
    " `selected` is the place of a text among those that later generations may draw, -1 where it "
    "was left out."
)


def licences(config: Mapping[str, Any], given: str | None) -> list[tuple[str, str, str]]:
    """Return (source, licence in words, the hub's name of it) of every source of a run.

    Args:
        config: a stored config.
        given: what the user says the licence is, of sources that do not come with jaxloop.
    """
    return [(source, *_licence(source, given)) for source in sources(config)]


def _licence(source: str, given: str | None) -> tuple[str, str]:
    words = corpora.licence(source)
    if words is not None:
        near = (hub for start, hub in _HUB_LICENCES.items() if words.startswith(start))
        return words, next(near, "other")
    if not given:
        return "not stated; ask whoever made it", "other"
    return given, "-".join(given.lower().split())


def sources(config: Mapping[str, Any]) -> list[str]:
    """Return every source of human or outside text that the run of a stored config read."""
    return list(dict.fromkeys(_sources(_as_read(config))))


def _as_read(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config without sections of data that its run did not read, with the sources that its tasks
    have of their own.
    """
    read = dict(config)
    if "dataset" in ((config.get("chain") or {}).get("factors") or {}):
        read.pop("data", None)  # the factor stands in its place
    if config.get("study") == "diversity":
        for task in {"qa", "story"} - set(config.get("tasks") or ()):
            read.pop(task, None)
    if config.get("study") == "multi_entity":
        tasks = config.get("tasks") or {}
        read["tasks"] = {
            name: _with_source(tasks.get(name) or {}, name) for name in config.get("entities") or ()
        }
        read["public"] = _with_source(config.get("public") or {}, "")
    return read


def _with_source(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section about a task, which is called `name` unless it says so itself, with its source."""
    own = qa_tasks.TASKS.get(section.get("task") or name)
    return {**section, "source": section.get("source") or (own.source if own else None)}


def _sources(node: Mapping[str, Any]) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _sources(value)
        elif name in ("source", "sources", "external", "outside", "dataset"):
            values = value if isinstance(value, list) else [value]
            yield from (one for one in values if isinstance(one, str) and one)


def front_matter(fields: Mapping[str, Any]) -> str:
    """Return the head of a card, in YAML; JSON is YAML."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split()).replace("<", "&lt;")


def _value(factor: str, value: Any) -> str:
    if value is None:
        return "none"
    return share(value) if factor == "ratio" else str(value)


def _config_block(config: Mapping[str, Any]) -> str:
    hidden = stored_form({k: v for k, v in config.items() if k != "identity"})
    # Four marks: a field may hold three.
    return f"````json\n{json.dumps(hidden, indent=1, ensure_ascii=False)}\n````"


def of_dataset(
    config: Mapping[str, Any],
    *,
    rows: int,
    chains: int,
    generations: Sequence[int],
    bases: Sequence[str],
    factors: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    measured: bool,
    given: str | None,
) -> str:
    """Return the card of a data set of generated texts.

    Args:
        config: the stored config of the run.
        rows: number of texts.
        chains: number of chains.
        generations: their numbers.
        bases: base models that wrote.
        factors: what the chains differ in, with all values.
        columns: those of the texts.
        measured: whether there are metrics beside them.
        given: as in `licences`.
    """
    stated = licences(config, given)
    names = list(dict.fromkeys(hub for *_, hub in stated)) or ["other"]
    tables = [{"config_name": "texts", "data_files": "data/texts.parquet", "default": True}]
    if measured:
        tables.append({"config_name": "metrics", "data_files": "data/metrics.parquet"})
    head = {
        "license": names[0] if len(names) == 1 else "other",
        "tags": ["synthetic", "recursive-training", "jaxloop"],
        "task_categories": ["text-generation"],
        "pretty_name": str(config.get("title") or "Texts of a jaxloop run"),
        "configs": tables,
    }
    values = [
        [name, ", ".join(_value(name, value) for value in sorted(set(of), key=str))]
        for name, of in factors.items()
    ]
    fit = config.get("fit") or {}
    ratio = ""
    if "ratio" in factors:
        ratio = "`ratio` is the share of synthetic text in what a generation adds. "
    parts = [
        front_matter(head),
        f"# {head['pretty_name']}",
        "**Every text here is synthetic**: language models wrote all of them, most after training "
        "on text that earlier models wrote. They state false things and repeat what was in "
        "their training text. Do not mix them into data that is meant to be human.",
        f"{rows:,} texts of {chains:,} chains, generations {generations[0]} to {generations[-1]}, "
        f"made by [jaxloop](https://pypi.org/project/jaxloop-lm/) {jaxloop.__version__}.",
        "## Models",
        "\n".join(f"* `{base}`" for base in bases)
        + (f"\n\nTrained in mode `{fit['mode']}` in every generation." if "mode" in fit else ""),
        "## What the chains differ in",
        _table(["factor", "values"], values) if values else "There is one chain.",
        ratio + "Generation 0 was trained on human text only.",
        "## Source text and its licence",
        _table(["source", "licence"], [[f"`{s}`", words] for s, words, _ in stated])
        if stated
        else "No source of human text is named in the config.",
        "## Columns",
        ", ".join(f"`{name}`" for name in columns)
        + ". A lone surrogate is written as U+001A and its four hexadecimal digits."
        + (_SELECTED if "selected" in columns else ""),
        "## Config of the run",
        _config_block(config),
    ]
    return "\n\n".join(parts) + "\n"


def of_model(
    config: Mapping[str, Any],
    base: str,
    about: Mapping[str, Any],
    ledger: Mapping[str, Any],
    library: str,
    *,
    on_hub: bool,
) -> str:
    """Return the card of an adapter or of a whole model.

    Args:
        config: the stored config of the run.
        base: name of the base model.
        on_hub: whether that is an id of the hub; a path may look like one.
        about: (fact, value) pairs of the table.
        ledger: the model's row of the ledger.
        library: "peft" or "transformers".
    """
    head: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["recursive-training", "jaxloop", *(["lora"] if library == "peft" else [])],
    }
    if on_hub:
        head["base_model"] = base
    facts = {**about, **{n: ledger[n] for n in ("steps", "tokens_trained", "real_share_train")}}
    what = "A LoRA adapter for" if library == "peft" else "A fine-tuned copy of"
    load = (
        "PeftModel.from_pretrained(base, path)"
        if library == "peft"
        else "AutoModelForCausalLM.from_pretrained(path)"
    )
    stated = licences(config, None)
    parts = [
        front_matter(head),
        f"# {config.get('title') or 'A jaxloop run'}: {about['chain']}, generation "
        f"{about['generation']}",
        f"{what} `{base}` from a study of recursive training, in which models learn from text "
        "that earlier models wrote. It is the object of an experiment, not for use: what it "
        f"writes may be false, repetitive or degenerate. `{load}` reads it.",
        _table(["", ""], [[name, f"`{value}`"] for name, value in facts.items()]),
        "`real_share_train` is the share of human text in its training set. "
        "The licence is that of the base model; the source text's:",
        _table(["source", "licence"], [[f"`{s}`", words] for s, words, _ in stated])
        if stated
        else "no source is named in the config.",
        "## Config of the run",
        _config_block(config),
    ]
    return "\n\n".join(parts) + "\n"
