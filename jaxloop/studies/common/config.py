"""Sections and checks that configs of several studies share. Imports nothing heavy."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxloop.config import ChainSection, FitConfig, ModelsConfig, Positive, Section, Share, Text

# Fields that studies share which measure generated text.
JUDGE: Any = Field(
    "now",
    description="when judges at an address score generated text: in every generation, or after all "
    "chains; what they do not answer is asked for again by the same command",
)
ONLY: Any = Field(
    None,
    description="train nothing, and compute the metrics that the run in `workdir` lacks from its "
    "texts (and its weights, as far as they are kept)",
)
JudgeWhen = Literal["now", "later"]
Only = Literal["metrics"] | None
# Fields of a config that belong to one call and are not stored with the run.
UNSTORED = frozenset({"only"})


class PlanAssumptions(Section):
    """Assumptions of `--plan` where the models or data are not here."""

    text_tokens: Positive = Field(60.0, description="mean tokens of a text")
    prompt_tokens: Positive = Field(14.0, description="tokens of the prompt")
    device: Text = Field("H100", description="name of the device that is counted in")
    flops: Positive = Field(989e12, description="its FLOP/s in bfloat16")
    bandwidth: Positive = Field(3.35e12, description="its bytes/s")
    train_share: Annotated[Share, Field(gt=0)] = Field(
        0.3, description="share of the FLOP/s that training reaches"
    )
    write_share: Annotated[Share, Field(gt=0)] = Field(
        0.3,
        description="share of the bytes/s, or of the FLOP/s where they limit, that writing reaches",
    )


def check_duration(fit: FitConfig) -> None:
    """Raise ValueError where neither steps nor epochs say how long a generation is trained."""
    if fit.steps is None and fit.epochs is None:
        raise ValueError(
            "config.fit.steps and config.fit.epochs are both none: one of them must be a number"
        )


def check_formats(
    models: ModelsConfig,
    fit: FitConfig,
    start: str = "base",
    *,
    factors: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    only: Only = None,
) -> None:
    """Raise ValueError where a chain would train adapters in a wider number format than its base.

    Args:
        models, fit: the sections of the config.
        start: as `config.chain.start`; from scratch there are no adapters.
        factors: as `config.chain.factors`, whose values stand for those of `fit` and `start`.
        only: as `config.only`; with "metrics" nothing is trained.
    """
    if only == "metrics" or models.dtype != "bfloat16":
        return
    # Factors are crossed, so that every value of the one meets every value of the others.
    modes = factors.get("fit.mode", (fit.mode,))
    dtypes = factors.get("fit.dtype", (fit.dtype,))
    starts = factors.get("start", (start,))
    if "lora" in modes and "float32" in dtypes and set(starts) - {"scratch"}:
        field = "config.fit.dtype ="
        if "fit.dtype" in factors:
            field = "config.chain.factors.fit.dtype has"
        raise ValueError(
            f"{field} float32 with config.models.dtype = bfloat16: adapters cannot be "
            "computed in a wider number format than their base; set both to one of them"
        )


# Fields of a chain that only these workflows read.
_OF_WORKFLOWS = {
    "share": ("preserve", "external"),
    "window": ("window",),
    "external": ("external",),
}
# Factors that stand for one of them.
_FACTORS = {"share": "share", "window": "k"}


def check_workflow(chain: ChainSection) -> None:
    """Raise ValueError for a field or a factor that the workflow of the chains does not read.

    Else a workflow that was forgotten would go unnoticed.
    """
    for field, workflows in _OF_WORKFLOWS.items():
        if chain.workflow in workflows:
            continue
        value, factor = getattr(chain, field), _FACTORS.get(field)
        said = ""
        if value != ChainSection.model_fields[field].default:
            said = f"config.chain.{field} = {value!r}"
        elif factor in chain.factors:
            said = f"config.chain.factors.{factor}"
        if said:
            needed = " or ".join(f"'{name}'" for name in workflows)
            raise ValueError(
                f"{said} changes nothing under config.chain.workflow = '{chain.workflow}': it is "
                f"of workflow {needed}"
            )


def check_first_size(chain: ChainSection) -> None:
    """Raise ValueError where workflow `preserve` takes more texts of generation 0 than it has."""
    if chain.workflow != "preserve" or chain.first_size is None:
        return
    for size in chain.factors.get("size", (chain.size,)):
        for share in chain.factors.get("share", (chain.share,)):
            needed = round(share * size)
            if needed > chain.first_size:
                raise ValueError(
                    f"config.chain.first_size = {chain.first_size}: must be at least {needed}, the "
                    f"share of {share:g} of {size} texts that workflow 'preserve' takes of them"
                )


def check_revisions(models: ModelsConfig) -> None:
    """Raise ValueError unless there is one hub revision for every model of the pool, or none."""
    if models.revisions and len(models.revisions) != len(models.pool):
        raise ValueError(
            f"config.models.revisions has {len(models.revisions)} entries: must be empty or one "
            f"per model ({len(models.pool)})"
        )
    revisions: dict[str, str | None] = {}
    for name, revision in zip(models.pool, models.revisions, strict=False):
        if revisions.setdefault(name, revision) != revision:
            raise ValueError(
                f"config.models.revisions has '{revisions[name]}' and '{revision}' for {name}: a "
                "model of the pool is known by its name; download one to a directory of its own"
            )


def check_distinct(fields: Mapping[str, Iterable]) -> None:
    """Raise ValueError where a field repeats a value; fields: {dotted name: values}."""
    for name, value in fields.items():
        values = tuple(value)
        if len(set(values)) < len(values):
            raise ValueError(f"config.{name} = {values} repeats a value: every entry must differ")
