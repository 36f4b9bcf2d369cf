"""jaxloop: recursive training of language models, many chains in one compiled program.

Studies, as the command line runs them: `load_config`, `check`, `plan`, `run`. Many chains of one
base model: `load_model`, `fit`, `generate`, `loss`, with the tasks that they take and the sections
of settings. Each name is imported when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# {public name: (module, name there)}
_PUBLIC = {
    **{name: ("jaxloop.api", name) for name in ("load_config", "check", "plan", "run")},
    "load_model": ("jaxloop.lm.family", "load"),
    **{
        name: ("jaxloop.lm.family", name)
        for name in ("fit", "generate", "loss", "FitTask", "GenerateTask", "LossTask")
    },
    **{name: ("jaxloop.config", name) for name in ("FitConfig", "LoraConfig", "SampleConfig")},
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxloop' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
