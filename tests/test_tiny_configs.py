"""What a newcomer can run on two cores, run to the end in a fresh clone without a network."""

import csv

import pytest

from tests import fresh

pytestmark = pytest.mark.slow
# Those that take more than a few minutes do so because of their generations.
FEWER = {
    "bias_amplification:tiny": ["--config.chain.generations=2"],
    "cluster_study:tiny": ["--config.chain.generations=2"],
    "multi_domain:tiny": ["--config.chain.generations=2"],
    "multi_entity:tiny": ["--config.exchange.generations=2"],
    "pretrain": [f"--config.bases.{name}.steps=4" for name in ("llama", "qwen2", "gpt2")],
    "pretrain:longer": ["--config.bases.llama_longer.steps=4"],
    "pretrain:shapes": ["--config.fit.steps=4"],
}
# The bases of `pretrain` by scale.
MADE = {
    "": {"llama", "qwen2", "gpt2"},
    "longer": {"llama_longer"},
    "shapes": {"deep", "middle", "wide"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return fresh.clone(tmp_path_factory.mktemp("tiny"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in fresh.names() if not name.startswith("bench")])
def test_a_config_runs_to_its_end(place, tmp_path, name):
    file, _, scale = name.partition(":")
    path = f"--config=configs/{file}.py{':' * bool(scale)}{scale}"
    done = fresh.python(
        place,
        "-m",
        "jaxloop.main",
        path,
        f"--workdir={tmp_path}",
        *FEWER.get(name, ()),
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if file == "pretrain":
        made = {path.parent.name for path in tmp_path.glob("bases/*/model.safetensors")}
        assert made == MADE[scale]
        return
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report or "<img" in report
    if (tmp_path / "metrics.csv").exists():
        with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as stream:
            assert next(csv.reader(stream), None) and next(stream, None)
