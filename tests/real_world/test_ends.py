"""Texts end where `transformers.generate` ends them: at any of the tokens that the model's files
name.
"""

import collections
import json

import jax
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.config import SampleConfig
from jaxloop.lm import family
from tests.lm.conftest import make, write_tokenizer
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

PROMPTS = ["the cat", "a", "rat ran to", "hat hat", "on the mat and then", "reads"]
NEW = 16


def generated(path, prompts):
    """New tokens by transformers, by the directory's own generation_config.json."""
    model = hf.AutoModelForCausalLM.from_pretrained(path).eval()
    found = []
    for ids in prompts:
        given = dict(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        )
        found.append(
            model.generate(**given, do_sample=False, max_new_tokens=NEW)[0, len(ids) :].tolist()
        )
    return found


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_every_end_stops_a_text(decoder, tmp_path):
    made = make("smollm")
    made.generation_config.update(
        eos_token_id=None, pad_token_id=0, num_beams=1 if decoder == "greedy" else 3
    )
    made.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    ids = lm.load(tmp_path).tokenizer.encode(PROMPTS)
    free = generated(tmp_path, ids)
    assert {len(text) for text in free} == {NEW}
    counted = collections.Counter(token for text in free for token in set(text[2:]))
    ends = [token for token, _ in counted.most_common(2)]
    settings = json.loads((tmp_path / "generation_config.json").read_text()) | dict(
        eos_token_id=ends
    )
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = lm.load(tmp_path)
    assert set(model.tokenizer.ends) == set(ends)
    task = family.GenerateTask(jax.random.key(0), None, PROMPTS, np.arange(len(PROMPTS)))
    asked = SampleConfig(
        decoder=decoder, max_new_tokens=NEW, num_beams=3, slots=8, texts_per_call=8
    )
    (written,) = family.generate(model, [task], asked)
    expected = generated(tmp_path, ids)
    stop = [
        next((i + 1 for i, token in enumerate(text) if token in ends), NEW) for text in expected
    ]
    assert written.tokens.tolist() == stop
    assert written.finished.tolist() == [
        text[n - 1] in ends for text, n in zip(expected, stop, strict=True)
    ]
    bare = [
        text[: n - done] for text, n, done in zip(expected, stop, written.finished, strict=True)
    ]
    assert written.texts == model.tokenizer.decode(bare)
    assert 0 < sum(written.finished) and min(stop) < NEW
