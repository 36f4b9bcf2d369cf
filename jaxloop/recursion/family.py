"""What a model family gives to the generation loop: load a base model, fit copies of it, generate.

To run the loop with models of your own, write an object (or a module) with the three functions of
`Family`; `lm.family.LanguageModelFamily` is one, and `FamilyFunctions` makes one of three
functions. Nothing is registered: hand it to `driver.run`, together with the family's settings for
fitting and for generating: two frozen dataclasses, or sections of a config. mypy says whether it
fits:

    family: Family[MyModel, MyFitSettings, MyGenerateSettings] = my_module

The loop knows nothing of a family's models and weights, except that weights are a pytree of arrays
that can be saved.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from jaxloop.config.types import Section
from jaxloop.recursion.chains import ChainSpec

SettingsT = TypeVar("SettingsT", bound="FamilySettings")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


# A section of a config, or a frozen dataclass. A chain may replace single fields of it
# (`ChainSpec.fit`, `.sample`); the ledger and the manifests hold all of them. A field `mode`, where
# there is one, is set to "scratch" for chains that start from random weights.
FamilySettings = Section | _Dataclass


def field_names(settings: FamilySettings) -> set[str]:
    """Return the fields that a chain may replace."""
    if isinstance(settings, Section):
        return set(type(settings).model_fields)
    return set(settings.__dataclass_fields__)


def replace_fields(settings: SettingsT, changes: Mapping[str, Any]) -> SettingsT:
    """Return settings with other values of some fields. Raises ValueError for a bad value."""
    if not changes:
        return settings
    if isinstance(settings, Section):
        return settings.replace(**changes)
    return dataclasses.replace(settings, **changes)


class FitTask(NamedTuple):
    """What one model trains on.

    key             JAX key: everything random in this fit comes from it
    texts, prompts  [n] texts, and [n] prompts that they answer
    sample_weights  [n] weights of the texts in the loss; None: all equal
    start           weights to go on from; None: those of the base model
    """

    key: jax.Array
    texts: Sequence[str]
    prompts: Sequence[str]
    sample_weights: np.ndarray | None = None
    start: Any = None


class FitResult(NamedTuple):
    """A trained model.

    weights  pytree of arrays, as `GenerateTask.weights` and `FitTask.start` take them
    steps    optimiser updates made
    tokens   tokens trained on, padding not counted
    loss     [steps] training loss of every update
    finite   whether the weights are finite; a chain with a model that is not finite stops
    special  texts and prompts that hold the name of a special token, which was read as plain text
    """

    weights: Any
    steps: int
    tokens: int
    loss: np.ndarray
    finite: bool
    special: int = 0


class GenerateTask(NamedTuple):
    """What one model generates: one text per prompt.

    key      JAX key of the task
    weights  as in `FitResult`; None: the base model itself
    prompts  [n]
    rows     [n] row numbers. Text i may depend on (key, rows[i], prompts[i]) and the weights, on
             nothing else: a task that is split gives the same texts
    """

    key: jax.Array
    weights: Any
    prompts: Sequence[str]
    rows: np.ndarray


class GenerateResult(NamedTuple):
    """Generated texts.

    texts     [n] texts, not stripped
    tokens    [n] number of tokens sampled for each text, the end token included
    finished  [n] whether each text ended by itself, not at the limit
    """

    texts: list[str]
    tokens: np.ndarray
    finished: np.ndarray


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """A model and what it generated in one generation of a chain, as a study's `measure` gets it.

    entity    which model of the chain it is
    base      name of the base model
    weights   as in `FitResult`; None where they are not needed or not on the disk any more
    texts, prompts, tokens, finished   [n] of `GenerateResult`, with the prompts answered
    """

    chain: ChainSpec
    entity: int
    base: str
    weights: Any
    texts: list[str]
    prompts: list[str]
    tokens: np.ndarray
    finished: np.ndarray


ModelT = TypeVar("ModelT")
FitT_contra = TypeVar("FitT_contra", bound=FamilySettings, contravariant=True)
GenerateT_contra = TypeVar("GenerateT_contra", bound=FamilySettings, contravariant=True)


class Family(Protocol[ModelT, FitT_contra, GenerateT_contra]):
    """A kind of model that the loop can train and generate with.

    Results come in the order of the tasks and depend on the task, the model and the settings
    alone; the tasks of a call may share compiled programs.
    """

    def load(self, base: str, /) -> ModelT:
        """Return the base model of a name or path."""
        ...

    def fit(
        self, model: ModelT, tasks: Sequence[FitTask], settings: FitT_contra, /
    ) -> Sequence[FitResult]:
        """Train one model per task, each from `task.start` or from the base model."""
        ...

    def generate(
        self, model: ModelT, tasks: Sequence[GenerateTask], settings: GenerateT_contra, /
    ) -> Sequence[GenerateResult]:
        """Generate the texts of every task with its weights."""
        ...


FitT = TypeVar("FitT", bound=FamilySettings)
GenerateT = TypeVar("GenerateT", bound=FamilySettings)


@dataclass(frozen=True)
class FamilyFunctions(Generic[ModelT, FitT, GenerateT]):
    """A family made of three functions, such as another family's with one of them replaced."""

    load: Callable[[str], ModelT]
    fit: Callable[[ModelT, Sequence[FitTask], FitT], Sequence[FitResult]]
    generate: Callable[[ModelT, Sequence[GenerateTask], GenerateT], Sequence[GenerateResult]]
