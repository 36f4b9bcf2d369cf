"""Runs of earlier versions: what their manifests say of them, under current names."""

import json
from collections.abc import Mapping
from typing import Any

from jaxloop.config import FitConfig, SampleConfig, Section, current_names

SECTIONS: dict[str, type[Section]] = {"fit": FitConfig, "sample": SampleConfig}
# Fields of a family's settings that no config section has: they are settings no longer.
DROPPED = {
    "fit": ("betas", "epsilon", "chains_at_once", "chains_per_program", "steps_per_dispatch"),
    "sample": ("lora", "dtype", "programs", "window", "texts_per_job"),
}
# Fields whose 0 is none today.
ZERO_IS_NONE = {
    "fit": ("max_grad_norm",),
    "sample": ("slots", "slots_per_adapter", "texts_per_call", "chains_per_call"),
}
# Fields that only some studies have; others had them with this value.
UNUSED: dict[str, dict[str, Any]] = {"fit": {"constraint": None}, "sample": {"max_prompt": 0}}


def current_run_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `finalise.about_run` said in an earlier version with the current field names.

    Fields of the fit and sample settings are renamed, in the settings of the run and in those that
    single chains change.
    """
    settings = {name: _settings(name, info[name]) for name in SECTIONS}
    chains = {name: _chain(text) for name, text in info["chains"].items()}
    fit = settings["fit"]
    if isinstance(fit, Mapping) and "mode" in fit and "dropout" not in fit:
        # Models of earlier versions had no dropout of their own.
        modes = {fit["mode"], *filter(None, map(_mode, chains.values()))}
        settings["fit"] = {**fit, "dropout": "auto" if modes == {"lora"} else "none"}
    return {**info, **settings, "chains": chains}


def _mode(text: str) -> str | None:
    """The mode of fitting in the JSON text of a chain that has its own."""
    return dict(json.loads(text).get("fit", ())).get("mode")


def without_unused(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `finalise.about_run` says without the fields of `UNUSED` that change nothing.

    Of a study that has such fields they are in what is current, too, and `current_run_info` leaves
    them out of what was written.
    """
    settings = {
        section: {k: v for k, v in info[section].items() if (k, v) not in UNUSED[section].items()}
        for section in SECTIONS
        if isinstance(info[section], Mapping)
    }
    return {**info, **settings}


def changed_checksums(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the models and held-out texts that differ between two manifests, as text.

    What a run of an earlier version did not store is not compared.
    """
    changed = []
    for field, what in (("identity", "the files of"), ("held_out", "the held-out texts of data")):
        old = before.get(field, {})
        changed += [
            f"{what} {name} {old[name][:12]} -> {value[:12]}"
            for name, value in now[field].items()
            if old.get(name, value) != value
        ]
    return changed


def _settings(section: str, settings: Any) -> Any:
    if not isinstance(settings, Mapping):  # a family without settings of its own
        return settings
    settings = current_names(SECTIONS[section], settings, quiet=True)
    unused = UNUSED[section].items()
    return {
        name: None if value == 0 and name in ZERO_IS_NONE[section] else value
        for name, value in settings.items()
        if name not in DROPPED[section] and (name, value) not in unused
    }


def _chain(text: str) -> str:
    """The JSON text of a chain, whose changes of the settings are lists of (field, value)."""
    chain = json.loads(text.replace('"Constraint(', '"GradientConstraint('))
    for section in SECTIONS:
        if section in chain:
            chain[section] = [
                list(pair) for pair in _settings(section, dict(chain[section])).items()
            ]
    return json.dumps(chain, sort_keys=True)
