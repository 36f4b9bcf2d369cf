"""Somebody else's peft adapter as the start of a study: what it computes goes on from there."""

import json
import re
import shutil

import numpy as np
import pytest

from jaxloop import cli, exports, main
from tests.peers import peer
from tests.real_world.support import TOLERANCE, edit
from tests.studies.conftest import place  # noqa: F401  the fixture

hf = peer("transformers", "torch")
peft = peer("peft", "torch")
torch = peer("torch")

TOKENS = np.random.default_rng(0).integers(3, 300, (2, 24))


@pytest.fixture(scope="module")
def adapter(place):  # noqa: F811
    """An adapter with ranks and scales of its own by module, under rslora."""
    base = hf.AutoModelForCausalLM.from_pretrained(place / "base")
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"down_proj": 3},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape) * 0.3)
    model.save_pretrained(place / "theirs")
    return place / "theirs"


def command(place, workdir, *fields):  # noqa: F811
    return cli.parse(
        [
            "jaxloop",
            f"--config={place / 'study.py'}",
            f"--workdir={workdir}",
            "--config.metrics=text_length",
            "--config.chain.ratios=1",
            *fields,
        ]
    )


def refusal(place, workdir, capsys, *fields):  # noqa: F811
    with pytest.raises(SystemExit) as caught:
        cli.guarded(main.main, command(place, workdir, *fields))
    said = capsys.readouterr().err.strip().split("\n")
    assert caught.value.code == 2 and len(said) == 1 and not workdir.exists()
    return said[0]


def logits(path, folder):
    model = peft.PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(path), folder)
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("start", ["base", pytest.param("previous", marks=pytest.mark.slow)])
def test_training_starts_from_the_adapter(place, adapter, tmp_path, start):  # noqa: F811
    """With next to no learning every generation computes what peft computes with the adapter."""
    run = tmp_path / "run"
    fields = (f"--config.chain.start_adapter={adapter}", f"--config.chain.start={start}")
    still = ("--config.fit.learning_rate=1e-12", "--config.fit.steps=1")
    assert cli.guarded(main.main, command(place, run, *fields, *still)) == 0
    expected = logits(place / "base", adapter)
    for generation in (0, 1):
        (path,) = exports.export_run(run, "peft", tmp_path / f"{generation}", generation=generation)
        np.testing.assert_allclose(logits(place / "base", path), expected, atol=TOLERANCE, rtol=0)
    stored = json.loads((run / "config.json").read_text())
    assert stored["fit"]["lora"]["rank"] == 4 and stored["fit"]["lora"]["targets"] == ["q", "down"]
    assert any(name == f"chain.start_adapter {adapter}" for name in stored["identity"])
    # And what was exported is a start in its turn, for the same base alone.
    more = (f"--config.chain.start_adapter={tmp_path / '1'}", *still)
    assert cli.guarded(main.main, command(place, tmp_path / "more", *more)) == 0


def test_what_does_not_go_together_is_refused(place, adapter, tmp_path, capsys):  # noqa: F811
    run, field = tmp_path / "run", f"--config.chain.start_adapter={adapter}"
    for more, said in (
        ([field, "--config.fit.mode=full"], "needs config.fit.mode = lora, and it is 'full'"),
        ([field, "--config.chain.start=scratch"], "needs config.chain.start = base or previous"),
        ([field, "--config.fit.lora.rank=16"], "config.fit.lora.rank = 16: .* has 4; leave it out"),
        ([field, f"--config.models.pool={place / 'base'},jaxloop/assets/bases/gpt2"], "has 2;"),
        (["--config.chain.start_adapter=none/here"], "there is no such directory"),
        (
            [field, "--config.models.pool=jaxloop/assets/bases/llama"],
            "targets it; is it of another base",
        ),
        ([field, "--config.models.pool=jaxloop/assets/bases/gpt2"], "is not a projection of gpt2"),
    ):
        found = refusal(place, run, capsys, *more)
        assert re.search(said, found), (said, found)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"bias": "lora_only"}, "bias = 'lora_only' is not supported; allowed: 'none'"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
    ],
)
def test_what_is_more_than_a_and_b_is_refused(
    place,  # noqa: F811
    adapter,
    tmp_path,
    capsys,
    changes,
    said,
):
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    edit("adapter_config.json", **changes)(copy)
    assert said in refusal(place, tmp_path / "run", capsys, f"--config.chain.start_adapter={copy}")


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(
    place,  # noqa: F811
    adapter,
    tmp_path,
    capsys,
):
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    (copy / "jaxloop.json").write_text(json.dumps({"base": "other/one", "base_sha256": "0" * 64}))
    said = refusal(place, tmp_path / "run", capsys, f"--config.chain.start_adapter={copy}")
    assert "was trained on other files of a base (other/one, SHA-256 000000000000)" in said
