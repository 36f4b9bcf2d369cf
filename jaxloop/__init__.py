"""jaxloop: recursive training of language models, many chains in one compiled program.

>>> import jaxloop
>>> result = jaxloop.run("quickstart", "runs/first")                          # doctest: +SKIP
>>> model = jaxloop.load("jaxloop/assets/bases/gpt2")                         # doctest: +SKIP
>>> adapter = jaxloop.finetune(model, texts, learning_rate=2e-3, epochs=10)   # doctest: +SKIP
>>> jaxloop.generate(model, 8, adapter=adapter, max_new_tokens=32)            # doctest: +SKIP

One model: `load`, `finetune`, `finetune_many`, `generate`, `score`, `merge`, `save`,
`save_adapter`, `load_adapter`. Texts: `evaluate`. Studies: `load_config`, `check`, `plan`, `run`,
`open_run`. Models with a formula: `simulate`, `closed_form`. The loop with a model of your own:
`loop`, with a workflow from `workflows`. Each name is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# `__init__.pyi` says the same to type checkers.
_MODULES = {
    "jaxloop.api.formulas": ("closed_form", "simulate"),
    "jaxloop.api.loops": ("loop",),
    "jaxloop.api.measures": ("evaluate",),
    "jaxloop.api.models": (
        "Adapter",
        "finetune",
        "finetune_many",
        "generate",
        "instruction",
        "load",
        "load_adapter",
        "merge",
        "save",
        "save_adapter",
        "score",
    ),
    "jaxloop.api.runs": ("RunResult", "check", "load_config", "open_run", "plan", "run"),
    "jaxloop.config": ("FitConfig", "LoraConfig", "SampleConfig"),
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Adapter",
    "FitConfig",
    "LoraConfig",
    "RunResult",
    "SampleConfig",
    "__version__",
    "check",
    "closed_form",
    "evaluate",
    "finetune",
    "finetune_many",
    "generate",
    "instruction",
    "load",
    "load_adapter",
    "load_config",
    "loop",
    "merge",
    "open_run",
    "plan",
    "run",
    "save",
    "save_adapter",
    "score",
    "simulate",
    "workflows",
]


def __getattr__(name: str) -> Any:
    if name == "workflows":
        return importlib.import_module("jaxloop.recursion.workflow")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxloop' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
