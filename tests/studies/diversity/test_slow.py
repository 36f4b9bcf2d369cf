"""The paper-scale config with random-weight models of the real architectures, and a run that is
killed: both slow.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pandas as pd
import pytest

from jaxloop import cli, lm, main
from jaxloop.lm.io import config_json
from jaxloop.lm.io import tokenizer as tokenize
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import init
from jaxloop.studies.common import published_models
from tests.studies.diversity import diversity_place as dp

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("ends_processes"),
]
EVERY = ("gpt2", "Llama-3.2-1B", "Llama-3.1-8B", "opt-1.3b", "gpt2-xl")


def narrow(name, folder, tokenizer):
    """A random model of the paper's architecture: its norms, positions, heads in groups, biases and
    ties, a small width and vocabulary.
    """
    whole = config_json.parse_config(published_models.PUBLISHED[name].config)
    group = whole.heads // whole.kv_heads
    small = dataclasses.replace(
        whole,
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=max(1, 4 // group),
        head_dim=8,
        d_ff=64,
        max_seq_len=min(whole.max_seq_len, 1024),
    )
    lm.save(Model(small, init(jax.random.key(0), small, jnp.bfloat16), tokenizer), folder / name)
    return str(folder / name)


def test_the_paper_scale_config_with_narrow_models_and_few_records(tmp_path, capsys):
    dp.write(tmp_path)
    tokenizer = tokenize.load(tmp_path / "base")
    paths = dict(zip(EVERY, [narrow(name, tmp_path, tokenizer) for name in EVERY], strict=True))
    three, others = (
        ",".join(list(paths.values())[:3]),
        ",".join(paths[n] for n in ("opt-1.3b", "Llama-3.2-1B", "gpt2-xl")),
    )
    answers = dp.Answers()
    with dp.endpoint(answers) as url:
        given = {
            "models.pool": ",".join(paths.values()),
            "generator.url": url,
            "generator.versions": 2,
            "generator.replaced": "6,5,4,3,2,1,0",
            "generator.topic_sizes": "1,2,3,4,5,6,8",
            "story.sources": f"{tmp_path}/stories.jsonl",
            "story.split_column": "split",
            "story.train": 24,
            "story.test": 6,
            "qa.source": f"{tmp_path}/qa.jsonl",
            "qa.split_column": "split",
            "qa.per_context": 6,
            "qa.train": 24,
            "qa.test": 6,
            "fit.max_length": 160,
            "fit.batch_size": 4,
            "distances.embedder": "none",
            "distances.points": 12,
            "seeds": "0",
            "run.keep_compiled": "false",
            "generated.models": three,
            "fixed.models": three,
            "variable.models": three,
            "sizes.models": ",".join(list(paths.values())[:2]),
            "architectures.models": others,
            "generated.qa": 12,
            "generated.story": 12,
            "fixed.qa": 12,
            "fixed.story": 12,
            "variable.qa": 2,
            "variable.story": 2,
            "sizes.qa": "6,12",
            "sizes.story": "6,12",
            "architectures.qa": 12,
            "architectures.story": 12,
        }
        words = [f"--config.{name}={value}" for name, value in given.items()]
        command = [
            "jaxloop",
            f"--config={ROOT / 'configs/diversity.py'}",
            f"--workdir={tmp_path / 'run'}",
            *words,
        ]
        assert cli.guarded(main.main, cli.parse(command)) == 0
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert (
        metrics["value"].notna().all()
        and set(metrics["base"]) == set(EVERY)
        and set(metrics["level"]) == {"real", *(f"D{i}" for i in range(7))}
    )
    page = (tmp_path / "run/report.html").read_text()
    for heading in (
        "Levels (section 4.2)",
        "Mixtures of one size",
        "Generated data added",
        "Sizes (section 4.4)",
        "Architectures (appendix D.1)",
    ):
        assert heading in page
    fit = json.loads(pd.read_parquet(tmp_path / "run/ledger.parquet")["fit"].iloc[0])
    assert (
        fit["lora"]["rank"],
        fit["lora"]["alpha"],
        fit["learning_rate"],
        fit["weight_decay"],
        fit["epochs"],
    ) == (8, 16.0, 1e-4, 1e-4, 3.0)
    checks = pd.read_csv(tmp_path / "run/sets.csv").set_index("set")["distinct_matched"]
    assert checks["qa-D0"] < checks["qa-D3"] < checks["qa-D6"]


def test_killed_and_resumed_ends_where_an_undisturbed_run_does(tmp_path):
    """Kills at moments of the generation and of the training; all that counts is equal byte for
    byte.
    """
    (tmp_path / "study.py").write_text(
        dp.write(tmp_path).replace("keep_compiled=False", "keep_compiled=True")
    )
    (tmp_path / "plain.jsonl").write_text(
        "\n".join(
            json.dumps({"question": f"How many {n}?", "answer": f"{i} {n}"})
            for i, n in enumerate(dp.NOUNS)
        )
    )
    variables = os.environ | {
        "JAXLOOP_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    with dp.endpoint(dp.Answers()) as url:

        def start(name):
            command = [
                sys.executable,
                "-m",
                "jaxloop.main",
                f"--config={tmp_path / 'study.py'}",
                f"--workdir={tmp_path / name}",
            ]
            return subprocess.Popen(
                [*command, f"--config.generator.url={url}"],
                cwd=ROOT,
                env=variables,
                stderr=subprocess.PIPE,
                text=True,
            )

        def wait(name, text, process):
            log = tmp_path / name / "run.log"
            while not (log.exists() and text in log.read_text()):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.02)

        for text in ("qa/attempt=0", "story-D0/attempt=0: 8 of 12", "measure, 5 chains"):
            process = start("killed")
            wait("killed", text, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        process = start("killed")
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
        process = start("whole")
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    for name in (
        "metrics.csv",
        "sets.csv",
        "distances.csv",
        "generated/qa-D0.parquet",
        "generated/story-D6.parquet",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert (tmp_path / "killed/report.html").exists()
