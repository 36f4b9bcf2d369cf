"""The paper's config with random models of its architectures at reduced width, on files with the
columns of the hub; and a run that is killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from jaxloop import config, lm
from jaxloop.lm.io import bpe, config_json
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import init
from jaxloop.studies.common.published_models import PUBLISHED
from jaxloop.studies.multi_entity import run as entities

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    "water energy cell light plants force heat how many does have left each total cost minutes "
    "she he they why which of the a is are"
).split()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.usefixtures("ends_processes"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files with the columns of SciQ, GSM8K, ARC and BookCorpus; OPT-350m and Llama 3.2 1B with 32
    columns and two layers, random weights.
    """
    place, rng = tmp_path_factory.mktemp("scale"), np.random.default_rng(0)

    def say(low, high):
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    def write(name, row, count=60):
        rows = [
            row() | ({"split": "test" if i % 4 == 0 else "train"} if name != "bookcorpus" else {})
            for i in range(count)
        ]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    write(
        "sciq",
        lambda: (
            {"question": say(5, 9), "correct_answer": say(1, 3), "support": say(9, 20)}
            | {f"distractor{i}": say(1, 3) for i in (1, 2, 3)}
        ),
    )
    write(
        "gsm8k",
        lambda: {"question": say(9, 25), "answer": f"{say(9, 20)}\n#### {rng.integers(99)}"},
    )
    write(
        "arc",
        lambda: {
            "question": say(5, 12),
            "choices": {"text": [say(1, 4) for _ in range(4)], "label": list("ABCD")},
            "answerKey": str(rng.choice(list("ABCD"))),
        },
    )
    write("bookcorpus", lambda: {"text": say(8, 20) + " ."}, 2000)
    tokenizer = bpe.train(
        [say(5, 30) for _ in range(300)] + ["Question: Answer: #### 0123456789"], 320
    )
    opt, llama = PUBLISHED["opt-350m"].config, PUBLISHED["Llama-3.2-1B"].config
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4}
    narrow = {
        "opt": opt
        | {
            "vocab_size": 320,
            "hidden_size": 32,
            "ffn_dim": 128,
            "word_embed_proj_dim": 16,
            "num_attention_heads": 4,
        },
        "llama": llama
        | heads
        | {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 128,
            "max_position_embeddings": 2048,
        },
    }
    for i, (name, about) in enumerate(narrow.items()):
        model_config = config_json.parse_config(about | dict(num_hidden_layers=2))
        lm.save(Model(model_config, init(jax.random.key(i), model_config), tokenizer), place / name)
    return place


def changes(folder, scale):
    """What the rehearsal changes in the paper's config: where data and models are, and how much."""
    names = ("sciq", "gsm8k", "arc") if scale == "three" else ("sciq", "gsm8k")
    out = {f"tasks.{name}.source": f"{folder}/{name}.jsonl" for name in names}
    out |= {
        "public.source": f"{folder}/bookcorpus.jsonl",
        "public.revision": "none",
        "models.pool": f"{folder}/{'llama' if scale == 'llama' else 'opt'}",
    }
    out |= {
        "exchange.generations": 3,
        "exchange.size": 125,
        "exchange.synthetic": 12,
        "fit.steps": 3,
        "sample.max_new_tokens": 12,
    }
    return out | {
        "measure.test_texts": 6,
        "measure.probes": 4,
        "theory.grid": 5,
        "theory.designs": 2,
        "run.keep_compiled": "false",
        "run.devices": 1,
    }


@pytest.mark.parametrize("scale", ["paper", "three", "llama"])
def test_the_papers_configs_run_on_random_models_of_reduced_width(folder, tmp_path, scale):
    raw = config.read_file(f"configs/multi_entity.py:{scale}")
    pairs = [(name, str(value)) for name, value in changes(folder, scale).items()]
    s = config.build(entities.CONFIG, config.override(raw, pairs, entities.CONFIG))
    assert s.fit.dtype == "bfloat16" and s.fit.mode == "full"
    assert entities.run(s, tmp_path / "run") == 0
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    losses = metrics[metrics.metric.str.startswith("task_loss")]
    assert (
        len(losses) == 15 * len(s.entities) * 3 * (len(s.entities) + 1)
        and np.isfinite(losses.value).all()
    )
    assert {"sciq", "gsm8k"} <= {m[len("task_loss(task=") : -1] for m in losses.metric}
    page = (tmp_path / "run/report.html").read_text()
    assert "Beside the paper" in page and len(pd.read_csv(tmp_path / "run/theory.csv")) == 9
    rows = dict(entities.plan(s))
    assert rows["models"].startswith(f"{15 * len(s.entities)} in every generation")


def start(folder, workdir, cache):
    words = [
        f"--config.{name}={value}"
        for name, value in (
            changes(folder, "paper") | {"run.keep_compiled": "true", "exchange.alphas": "0,0.5"}
        ).items()
    ]
    command = [
        sys.executable,
        "-m",
        "jaxloop.main",
        "--config=configs/multi_entity.py",
        f"--workdir={workdir}",
        *words,
    ]
    variables = os.environ | {"JAXLOOP_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(workdir):
    """Everything that counts of a run, byte for byte."""
    names = (
        "texts/**/*.parquet",
        "similarity/*.parquet",
        "metrics.csv",
        "effects.csv",
        "theory.csv",
    )
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for name in names
        for path in sorted(workdir.glob(name))
    }


def test_a_killed_run_ends_where_an_undisturbed_one_does(folder, tmp_path):
    first = start(folder, tmp_path / "undisturbed", tmp_path / "cache")
    began = time.monotonic()
    _, said = first.communicate(timeout=2000)
    took = time.monotonic() - began
    assert first.returncode == 0, said
    for _ in range(2):
        process = start(folder, tmp_path / "run", tmp_path / "cache")
        try:
            process.wait(timeout=random.uniform(0.15, 0.5) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(folder, tmp_path / "run", tmp_path / "cache")
    _, said = process.communicate(timeout=2000)
    assert process.returncode == 0, said
    assert result(tmp_path / "run") == result(tmp_path / "undisturbed")
