"""What a manifest of version 0.1.0 says of a run is read under the current names."""

import json

from jaxloop.config import FitConfig, SampleConfig
from jaxloop.recursion import ledger
from jaxloop.recursion.old_names import current_run_info

LORA = {"alpha": 16.0, "dropout": 0.0, "rank": 16, "targets": "all-linear"}
# Of a run with the default settings.
FIT = {
    "batch_size": 16,
    "betas": [0.9, 0.999],
    "chains_at_once": 0,
    "clip": 1.0,
    "constraint": None,
    "dtype": "float32",
    "epochs": 1.0,
    "epsilon": 1e-08,
    "learning_rate": 0.0002,
    "length_classes": 4,
    "lora": LORA,
    "loss_on": "response",
    "max_length": 256,
    "mode": "lora",
    "remat": False,
    "schedule": "linear",
    "steps": None,
    "steps_per_dispatch": 16,
    "warmup_steps": 1,
    "weight_decay": 0.01,
}
SAMPLE = {
    "beams": 4,
    "chains_per_call": 0,
    "decoder": "sample",
    "dtype": "float32",
    "engine": "auto",
    "lane_slots": 0,
    "lora": LORA,
    "max_new_tokens": 300,
    "max_prompt": 0,
    "min_p": 0.2,
    "programs": 0,
    "repetition_penalty": 1.0,
    "slots": 0,
    "temperature": 1.5,
    "texts_per_call": 0,
    "texts_per_job": 0,
    "top_k": 0,
    "top_p": 1.0,
    "window": 16,
}


def test_a_run_of_version_0_1_0_is_the_same_study():
    """Fails where a field of the family's settings is renamed without its old name being listed."""
    chain = {"fit": [["loss_on", "all"]], "id": "a", "sample": [["beams", 5]]}
    info = {
        "chains": {"a": json.dumps(chain, sort_keys=True)},
        "fit": FIT,
        "sample": SAMPLE,
        "evaluate": 250,
    }
    current = current_run_info(info)
    assert current["fit"] == json.loads(ledger.describe(FitConfig()))
    assert current["sample"] == json.loads(ledger.describe(SampleConfig()))
    assert json.loads(current["chains"]["a"]) == {
        "fit": [["completion_only", False]],
        "id": "a",
        "sample": [["num_beams", 5]],
    }
    assert current["evaluate"] == 250 and info["fit"] == FIT
    assert current_run_info(current) == current


def test_chains_that_differ_in_their_mode_are_the_same_study_when_they_go_on():
    """`fit_modes.py` was refused as another study's after a stop."""
    chains = {
        mode: json.dumps({"fit": [["mode", mode]], "id": mode}, sort_keys=True)
        for mode in ("lora", "full", "scratch")
    }
    info = {
        "chains": chains,
        "fit": json.loads(ledger.describe(FitConfig())),
        "sample": json.loads(ledger.describe(SampleConfig())),
    }
    assert current_run_info(info) == info
    # Before models had dropout of their own, full fine-tuning had none.
    old = current_run_info({"chains": chains, "fit": FIT, "sample": SAMPLE})
    assert old["chains"] == chains and old["fit"]["dropout"] == "none"
