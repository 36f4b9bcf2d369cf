"""The studies that can be run: name -> module and one line. A module exposes

    Settings                          pydantic schema of its config (a `config.Section`), with a field `study`
    check(settings) -> list[str]      reads everything a run would read first (data, models), refuses with ValueError, writes nothing;
                                      the lines say what was found
    plan(settings, target=None) -> list[(what, amount)]   optional: the table of `--plan`; `target`: of `--plan --for`, where the study has it
    run(settings, workdir, *, argv) -> int         the exit code

and imports nothing heavy before one of its functions is called, so that `--list` and a typo in a
config cost no start-up time.
"""

import importlib
import inspect
from types import ModuleType
from typing import NamedTuple

from jaxloop import config

# Exit code of a study that finished although some of its chains stopped.
FAILED_CHAINS = 3
# Exit code of a study that finished although a formula and a simulation disagree.
DISAGREES = 4


class Study(NamedTuple):
    module: str
    line: str


STUDIES: dict[str, Study] = {
    "chain": Study(
        "jaxloop.studies.chain.run",
        "language models trained on their predecessors' text, one chain per ratio and seed",
    ),
    "bias": Study(
        "jaxloop.studies.bias_amplification.run",
        "language models that continue labelled articles, trained on their predecessors' "
        "continuations",
    ),
    "loops": Study(
        "jaxloop.studies.recursive_loops.run",
        "the recursive-loops experiments: ratios, datasets, clusters, domains, quality, "
        "politics, interventions",
    ),
    "multi_entity": Study(
        "jaxloop.studies.multi_entity.run",
        "several language models that train on each other's text, with the linear model beside "
        "them",
    ),
    "diversity": Study(
        "jaxloop.studies.diversity.run",
        "fine-tuning on generated data of seven levels of diversity, alone and mixed with real "
        "data",
    ),
    "theory": Study(
        "jaxloop.studies.theory.run",
        "models with a formula: what the formulas say beside what simulations give",
    ),
    "pretrain": Study(
        "jaxloop.studies.pretrain.run", "tokenizer and tiny base models from scratch"
    ),
    "bench": Study("jaxloop.studies.bench.run", "microbenchmarks of training and decoding"),
}


def load(name: object) -> ModuleType:
    """The module of a study. Raises ValueError where there is no study of that name."""
    if name is None:
        raise ValueError(f"config.study is missing: one of {', '.join(STUDIES)}")
    if name not in STUDIES:
        raise ValueError(
            f"config.study = {name!r} is not a study; {config.suggestion(str(name), STUDIES)}"
        )
    return importlib.import_module(STUDIES[str(name)].module)


def plan_for(study: ModuleType, settings: config.Section, target: str) -> list[tuple[str, str]]:
    """The plan of a study for hardware that is absent. Raises ValueError for a study whose plan
    knows none.
    """
    if "target" not in inspect.signature(study.plan).parameters:
        known = "chain, loops, bias, multi_entity, diversity"
        raise ValueError(
            f"--for={target}: a study of kind '{settings.study}' has no plan for hardware that "
            f"is absent; those of kind {known} have"
        )
    return study.plan(settings, target)
