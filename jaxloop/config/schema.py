"""From a config file and command-line overrides to frozen, checked settings: once, at the edge.

A config file is Python with `get_config(arg=None) -> ml_collections.ConfigDict`. It names what
differs from the defaults below, which follow the code of arXiv 2504.03814. Every refusal is a
`ValueError` of one sentence that names the field, the value and what is allowed.
"""

import copy
import difflib
import hashlib
import inspect
import json
import re
import types
import typing
from typing import Annotated, Any, Literal

import ml_collections
import pydantic
from pydantic import Field

from jaxloop.config import catalogue
from jaxloop.config.annotations import allowed, bare, options, section_of


def _fraction(value: Any) -> Any:
    """`"1/8"` -> 0.125, so that ratios can be typed as they are spoken of."""
    if isinstance(value, str) and value.count("/") == 1:
        top, bottom = value.split("/")
        try:
            return float(top) / float(bottom)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


def _flat(value: Any) -> Any:
    """{"fit": {"steps": [1, 2]}} -> {"fit.steps": [1, 2]}: names with dots cannot be fields of a
    ConfigDict.
    """
    if not isinstance(value, dict):
        return value
    out = {}
    for name, inner in value.items():
        out |= (
            {f"{name}.{k}": v for k, v in _flat(inner).items()}
            if isinstance(inner, dict)
            else {str(name): inner}
        )
    return out


Share = Annotated[
    float,
    pydantic.BeforeValidator(_fraction),
    pydantic.BeforeValidator(_not_bool),
    Field(ge=0, le=1),
]
Count = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=1)]
Whole = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=0)]
# As many as every generator of random numbers here takes (scikit-learn's and pandas' stop at 32
# bits).
Seed = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, pydantic.BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[
    float, pydantic.BeforeValidator(_not_bool), Field(ge=0, allow_inf_nan=False)
]
Probability = Annotated[float, pydantic.BeforeValidator(_not_bool), Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(pydantic.BaseModel):
    """A frozen group of fields; a name it does not know is an error."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


# Of every section that names files.
CsvOptions = tuple[
    Literal["no_header", "quotes", "no_quotes", "backslash", "spaces", "short_rows"], ...
]
DELIMITER = Field(
    None,
    description="what parts the cells of a .csv or .tsv file; none: the one that fits, else "
    "comma or tab",
)
CSV_OPTIONS = Field(
    (),
    description="of .csv and .tsv files; a refusal names the one that reads what it found, see "
    "data/delimited.py",
)


class Data(Section):
    """Where human text comes from."""

    source: Text = Field(
        "docs",
        description="`docs` or `jaxloop:NAME` (in the box), a .jsonl, .json, .csv, .tsv, "
        ".parquet or .txt file (also compressed), or a Hugging Face dataset id",
    )
    text_column: Text = Field(
        "text",
        description="column that holds the text, dotted where nested; the default also finds "
        "`messages`, and `prompt` with `completion`",
    )
    domain_column: Text | None = Field(
        None,
        description="column that holds the domain; none: the source is one domain (`docs`: the "
        "library)",
    )
    domains: tuple[Text, ...] = Field(
        (),
        description="keep only these domains; empty: all (`docs`: the libraries that the tiny "
        "bases never saw)",
    )
    prompt_column: Text | None = Field(
        None,
        description="column that holds the instruction of a text; none: `instruction` is "
        "everyone's",
    )
    instruction: Text = Field("Write a paragraph.", description="the instruction of every prompt")
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="texts equal but for case, spaces and punctuation: keep the first, or all; "
        "none is ever both held out and trained on",
    )
    long_prompts: Literal["refuse", "drop", "truncate_left"] = Field(
        "refuse",
        description="prompts that leave no token of the answer to learn, or no room to write it: "
        "refused, dropped, or cut from the left",
    )
    name: Text | None = Field(None, description="configuration of a Hugging Face dataset")
    split: Text = Field("train", description="split of a Hugging Face dataset")
    revision: Text | None = Field(None, description="commit of a Hugging Face dataset")
    limit: Count | None = Field(
        None, description="stop reading after this many usable texts; none: read all"
    )
    min_tokens: Whole = Field(
        20,
        description="drop texts with this many tokens or fewer, as the first model of the pool "
        "counts them",
    )
    max_tokens: Count = Field(200, description="drop texts with this many tokens or more")


class Models(Section):
    """The base models; every generation of a chain draws one of them, by its seed."""

    pool: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        (
            "jaxloop/assets/bases/llama",
            "jaxloop/assets/bases/qwen2",
            "jaxloop/assets/bases/gpt2",
            "jaxloop/assets/bases/opt",
        ),
        description="directories in Hugging Face format or hub ids",
    )
    revisions: tuple[Text | None, ...] = Field(
        (), description="one hub revision per model of the pool; empty: the latest"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the base weights"
    )


class Chain(Section):
    """What a chain is, and which chains the study consists of: every ratio with every seed."""

    generations: Count = Field(
        20, description="number of generations, generation 0 (human text only) included"
    )
    size: Count = Field(
        4000,
        description="texts added per generation, human and synthetic; also the size of every "
        "training set",
    )
    first_size: Count | None = Field(
        None, description="human texts that generation 0 trains on; none: `size`"
    )
    ratios: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
        description="synthetic share of what a generation adds; `1/8` is understood",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1, 2, 3, 4), description="one chain per ratio and seed"
    )
    workflow: Literal[
        "fresh_human",
        "replace",
        "accumulate",
        "accumulate_subsample",
        "preserve",
        "window",
        "external",
    ] = Field("fresh_human", description="what a generation trains on; see recursion/workflow.py")
    share: Share = Field(0.1, description="real share that workflow `preserve` keeps")
    window: Count = Field(1, description="generations that workflow `window` looks back")
    external: Text | None = Field(
        None, description="file of synthetic texts for workflow `external`"
    )
    start: Literal["base", "previous", "scratch"] = Field(
        "base", description="weights that a generation starts from"
    )
    factors: Annotated[dict[str, tuple[Any, ...]], pydantic.BeforeValidator(_flat)] = Field(
        {},
        description="further factors, name -> values, crossed with ratios and seeds: `dataset` "
        "(sources), `bases` (models of the pool, each alone), "
        "`size`, `share`, `k`, `start`, and fields of `fit` and `sample`, as in "
        "`--config.chain.factors.sample.temperature=1,1.5`",
    )
    eval_texts: Count = Field(250, description="texts of every generation that are measured")
    heldout_texts: Whole = Field(
        250,
        description="human texts, used by no chain, on which every generation's loss is "
        "measured; 0: none",
    )


class Lora(Section):
    """Low-rank adapters."""

    rank: Count = Field(16, description="rank of every adapter")
    alpha: Positive = Field(
        16.0, description="scale: the adapter's output is multiplied by alpha / rank"
    )
    targets: Text | tuple[Text, ...] = Field(
        "all-linear", description="`all-linear`, or names of projections"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout on the adapter's input"
    )


class Fit(Section):
    """How a generation is trained."""

    mode: Literal["lora", "full", "scratch"] = Field(
        "lora", description="adapters, all weights, or all weights from random ones"
    )
    lora: Lora = Field(Lora(), description="see below")
    steps: Count | None = Field(
        None, description="optimiser steps per generation; none: `epochs` decides"
    )
    epochs: Positive | None = Field(
        1.0, description="passes over the training set, where `steps` is none"
    )
    batch_size: Count = Field(16, description="texts per step and chain")
    learning_rate: Positive = Field(2e-4, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls to 0 after warm-up"
    )
    warmup_steps: Whole = Field(1, description="steps of linear warm-up")
    weight_decay: NonNegative = Field(0.01, description="AdamW's weight decay")
    clip: Positive | None = Field(
        1.0, description="largest gradient norm, per chain; none: no clipping"
    )
    max_length: Count = Field(
        256, description="tokens per training text, prompt included; longer ones are cut"
    )
    loss_on: Literal["response", "all"] = Field(
        "response", description="tokens that the loss counts"
    )
    length_classes: Count = Field(
        4,
        description="padded lengths in one epoch, each compiled once: more of them waste less "
        "padding",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the computation"
    )
    remat: bool = Field(
        False, description="compute activations again in the backward pass: less memory, more time"
    )


class Sample(Section):
    """How a generation writes."""

    decoder: Literal["sample", "greedy", "beam"] = Field(
        "sample", description="random sampling, greedy, or beam search"
    )
    temperature: Positive = Field(1.5, description="applied before min_p")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="drop tokens below this share of the likeliest one's probability"
    )
    top_p: Probability = Field(
        1.0, description="keep the likeliest tokens of this total probability"
    )
    top_k: Whole = Field(0, description="keep this many tokens; 0: all")
    repetition_penalty: Positive = Field(
        1.0, description="above 1: tokens already written become less likely"
    )
    beams: Count = Field(4, description="beams of decoder `beam`")
    max_new_tokens: Count = Field(300, description="longest text, in tokens")
    engine: Literal["auto", "rows", "blocks"] = Field(
        "auto",
        description="where caches lie: `rows` (one for each slot, accelerators), `blocks` (CPUs)",
    )
    slots: Count | None = Field(
        None,
        description="texts written at the same time per program; none: planned from the device "
        "and the work",
    )
    lane_slots: Count | None = Field(
        None, description="slots that share one chain's adapter; none: planned"
    )
    texts_per_job: Count | None = Field(
        None,
        description="texts of a chain that its slots write in a row, in `blocks`; none: planned",
    )
    texts_per_call: Count | None = Field(
        None, description="most texts in one call of the decoding program; none: planned"
    )
    chains_per_call: Count | None = Field(
        None, description="most chains in one call of the decoding program; none: planned"
    )


class Run(Section):
    """Where and how it runs; nothing here changes a result beyond rounding."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="`gpu` and `tpu` are refused where absent"
    )
    devices: Count | None = Field(None, description="devices to use; none: all")
    micro_batch: Count | None = Field(
        None,
        description="chains in one program per device; none: as many as fit an accelerator, or "
        "measured on a CPU where that is worth it",
    )
    cut_base: bool = Field(
        False,
        description="cut the base over all devices instead of sharing out the chains: for bases "
        "larger than a device",
    )
    measure_beside: bool | None = Field(
        None, description="measure models while the next ones are trained; none: on a CPU"
    )
    keep_compiled: bool = Field(
        True,
        description="keep compiled programs in the cache folder (~/.cache/jaxloop, "
        "$JAXLOOP_CACHE) for the next run",
    )
    keep: Count | None = Field(
        2, description="newest generations whose adapters stay on disk; none: all"
    )

    @pydantic.model_validator(mode="after")
    def _apart(self) -> "Run":
        if self.measure_beside and self.cut_base:
            raise ValueError(
                "config.run.measure_beside = true with config.run.cut_base = true: programs on a "
                "base that is cut run one after another"
            )
        return self


def nearest(name: str, names: typing.Iterable[str]) -> str | None:
    """The one of `names` that a person who typed `name` most likely meant, or None."""
    names = list(names)
    by_case = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.6)
    return by_case[close[0]] if close else None


def suggestion(name: str, names: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the whole list where nothing is near."""
    names = list(names)
    near = nearest(name, names)
    return f"did you mean '{near}'?" if near else f"there are: {', '.join(names)}"


# ---- reading
# ----------------------------------------------------------------------------------------------------------


def read_file(spec: str) -> dict[str, Any]:
    """The ConfigDict of `path.py`, `path.py:argument` or a shipped config (see `catalogue.locate`)
    as a plain dict.

    Raises ValueError where the file is missing, not UTF-8, not Python, or its `get_config` is
    missing or fails.
    """
    path, argument = catalogue.locate(spec)
    where = f"--config={spec}"
    if not path.exists():
        siblings = catalogue.siblings(path)
        near = (
            nearest(str(path), siblings)
            or nearest(f"configs/{path.stem}.py", siblings)
            or nearest(path.stem, siblings)
        )
        hint = (
            f"did you mean {near}?"
            if near
            else "a Python file of yours, or one of those that --list shows"
        )
        raise ValueError(f"{where}: there is no file {path}; {hint}")
    if path.is_dir() or path.suffix != ".py":
        raise ValueError(f"{where}: must be a Python file (.py) with get_config()")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None
    module = types.ModuleType("config")
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
        get_config = module.__dict__.get("get_config")
        if not callable(get_config):
            raise ValueError(f"{where}: defines no get_config()")
        if argument is not None and not inspect.signature(get_config).parameters:
            raise ValueError(f"{where}: get_config() takes no argument, got ':{argument}'")
        config = get_config() if argument is None else get_config(argument)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, str(path))
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"{where}: {path}{f', line {line}' if line else ''}: {type(error).__name__}: "
            f"{' '.join(what.split())}"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{where}: get_config() must return an ml_collections.ConfigDict, got "
            f"{type(config).__name__}"
        )
    return config.to_dict()


def _line_in(error: BaseException, filename: str) -> int | None:
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# ---- overriding
# -------------------------------------------------------------------------------------------------------


def override(
    config: dict[str, Any], assignments: typing.Iterable[tuple[str, str]], schema: type[Section]
) -> dict[str, Any]:
    """`config` with every ("chain.generations", "5") applied; values are read as the schema's type
    of that field.

    Lists are given with commas (`1/8,1`), brackets allowed; `none` empties an optional field.
    Raises ValueError.
    """
    config = copy.deepcopy(config)
    for path, text in assignments:
        annotation = _annotation(schema, path)
        if section_of(annotation):
            fields = ", ".join(f"{path}.{name}" for name in section_of(annotation).model_fields)
            raise ValueError(f"--config.{path}={text}: '{path}' is a section; set one of {fields}")
        *parents, leaf = path.split(".")
        node = config
        for part in parents:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[leaf] = _from_text(text, annotation)
    return config


def _annotation(schema: type[Section], path: str) -> Any:
    """The type of the field at a dotted path; ValueError with the nearest name where there is none."""
    section, seen, annotation = schema, [], None
    for part in path.split("."):
        fields = section.model_fields if section else {}
        entry = next(
            (o for o in map(bare, options(annotation)) if typing.get_origin(o) is dict), None
        )
        if (
            part not in fields and entry and section_of(typing.get_args(entry)[1])
        ):  # a section for each name, such as `domains`
            annotation = typing.get_args(entry)[1]
            seen.append(part)
            section = section_of(annotation)
            continue
        if part not in fields and entry:
            value = bare(typing.get_args(entry)[1])
            return tuple[Any, ...] if typing.get_origin(value) is tuple else value
        if part not in fields:
            raise ValueError(f"--config.{path}: {_unknown(part, '.'.join(seen), section, schema)}")
        seen.append(part)
        field = fields[part]
        annotation = (
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        )
        section = section_of(annotation)
    return annotation


def _unknown(name: str, parent: str, section: type[Section] | None, schema: type[Section]) -> str:
    """Says that `parent.name` does not exist, and what was probably meant, looking in the section
    first and then everywhere.
    """
    full = f"{parent}.{name}" if parent else name
    if section is None:
        return f"'{parent}' has no fields, so '{full}' cannot be set"
    near = nearest(name, section.model_fields)
    if near is None:
        elsewhere = {p.split(".")[-1]: p for p in field_names(schema)}
        near = elsewhere.get(nearest(name, elsewhere) or "")
        hint = (
            f"did you mean '{near}'?" if near else f"there are: {', '.join(section.model_fields)}"
        )
    else:
        hint = f"did you mean '{parent}.{near}'?" if parent else f"did you mean '{near}'?"
    return f"unknown field '{full}'; {hint}"


def field_names(schema: type[Section], prefix: str = "") -> list[str]:
    """Dotted names of all fields of a schema, sections opened."""
    names = []
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        names += field_names(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return names


def reference(schema: type[Section]) -> str:
    """Markdown table of all fields of a schema: name, default, what is allowed, meaning."""
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for name in field_names(schema):
        section: Any = schema
        for part in name.split("."):
            field = section.model_fields[part]
            section = section_of(field.annotation)
        default = _shown(field.get_default())
        rows.append(
            f"| `{name}` | {default} | {allowed(_annotation(schema, name))} | {field.description} |"
        )
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value) or "empty"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "empty"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _from_text(text: str, annotation: Any) -> Any:
    found = [bare(o) for o in options(annotation)]
    if any(o is type(None) or o is Any for o in found) and text.strip().lower() in (
        "none",
        "null",
        "",
    ):
        return None
    if any(typing.get_origin(o) is tuple for o in found) and (str not in found or "," in text):
        inside = text.strip()
        if inside[:1] + inside[-1:] in ("()", "[]"):
            inside = inside[1:-1]
        # A comma inside brackets belongs to its entry: knn_cosine_diversity(k=5),
        # distinct_n_size_matched(n=2, size=500).
        items = [item.strip() for item in re.split(r",(?![^()]*\))", inside) if item.strip()]
        inner = typing.get_args(next(o for o in found if typing.get_origin(o) is tuple))[0]
        return [
            _from_text(item[1:-1] if item[:1] + item[-1:] in ("''", '""') else item, inner)
            for item in items
        ]
    return text if str in found else _number(text)


def _number(text: str) -> Any:
    for read in (int, float, _fraction):
        try:
            return read(text)
        except ValueError:
            pass
    return text


# ---- checking
# ---------------------------------------------------------------------------------------------------------


def build(schema: type[Section], config: dict[str, Any]) -> Any:
    """`config` as an instance of `schema`; `identity`, which config.json of a run holds too (see
    `studies/common/identity.py`), is left out.

    Raises ValueError: one sentence about the first problem, and how many more there are.
    """
    config = {name: value for name, value in config.items() if name != "identity"}
    try:
        return schema.model_validate(config)
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
        sentences = {
            name.split("[")[0]: sentence
            for name, sentence in reversed([_sentence(p, schema) for p in problems])
        }
        more = f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""
        raise ValueError(_sentence(problems[0], schema)[1] + more) from None


def _sentence(problem: dict[str, Any], schema: type[Section]) -> tuple[str, str]:
    """(name of the field, sentence) of one of pydantic's error records."""
    # pydantic adds the name of a union's branch to the location; those parts are not ours.
    annotation: Any = schema
    parts: list[str] = []
    for part in problem["loc"]:
        section = section_of(annotation)
        if section and part in section.model_fields:
            field = section.model_fields[part]
            annotation = (
                Annotated[(field.annotation, *field.metadata)]
                if field.metadata
                else field.annotation
            )
            parts.append(str(part))
        elif isinstance(part, int):
            inner = next(
                (o for o in map(bare, options(annotation)) if typing.get_origin(o) is tuple), None
            )
            annotation = typing.get_args(inner)[0] if inner else Any
            parts[-1] += f"[{part}]"
        elif mapping := next(
            (o for o in map(bare, options(annotation)) if typing.get_origin(o) is dict), None
        ):
            annotation = typing.get_args(mapping)[1]
            parts.append(str(part))
        elif problem["type"] == "extra_forbidden":
            name = f"config.{'.'.join([*parts, str(part)])}"
            return name, f"{name}: {_unknown(str(part), '.'.join(parts), section, schema)}"
    name = "config." + ".".join(parts) if parts else "config"
    if problem["type"] == "missing":
        return name, f"{name} is missing: {allowed(annotation)}"
    if problem["type"] == "value_error" and not isinstance(problem["input"], bool):
        return name, f"{name}: {problem['ctx']['error']}" if parts else str(problem["ctx"]["error"])
    value = problem["input"]
    shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
    text = f"{name} = {shown} is not allowed: {allowed(annotation)}"
    choices = [
        c
        for o in map(bare, options(annotation))
        if typing.get_origin(o) is Literal
        for c in typing.get_args(o)
    ]
    near = nearest(value, choices) if isinstance(value, str) else None
    return name, f"{text}; did you mean '{near}'?" if near else text


# ---- writing
# ----------------------------------------------------------------------------------------------------------


def to_json(settings: Section) -> str:
    """The settings as text that `json.loads` reads, in a fixed order."""
    return (
        json.dumps(settings.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=True)
        + "\n"
    )


def fingerprint(settings: Section, ignore: typing.Iterable[str] = ()) -> str:
    """Twelve hex digits that change when any field outside the sections in `ignore` does."""
    kept = {k: v for k, v in settings.model_dump(mode="json").items() if k not in set(ignore)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
