#!/usr/bin/env bash
# transformers 5.23.0: adding rope_scaling to a config.json, as model cards say, also changes the base of the rotary frequencies.
#
# Model cards (Qwen2.5 and others) tell people to add {"rope_scaling": {"type": "yarn", "factor": 4.0, ...}} to config.json for long texts. Configs
# that transformers 5 writes hold their rotary settings in rope_parameters, rope_theta among them.
# One would guess: the addition is merged with rope_parameters, or refused beside it.
# What happens: it replaces rope_parameters whole. rope_theta, 1,000,000 in the file, becomes the library's default of 10,000, without a warning, and
# every position of every text is rotated otherwise than in training.
# So: add the scaling inside rope_parameters, and look at config.rope_parameters after loading.
#
# Usage: findings/adding_yarn_forgets_rope_theta.sh [PYTHON]
# Fails once what is written above no longer happens.
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "transformers==5.23.0"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers

WRITTEN = {
    "model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
ADDED = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}


def theta(fields, name):
    path = Path(sys.argv[1]) / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(fields))
    return transformers.AutoConfig.from_pretrained(path).rope_parameters["rope_theta"]


before, after = theta(WRITTEN, "before"), theta(WRITTEN | ADDED, "after")
print(f"transformers {transformers.__version__}: rope_theta {before:,.0f} as the file has it, {after:,.0f} with rope_scaling added")
if before == after:
    raise SystemExit("this no longer happens")
PYTHON
