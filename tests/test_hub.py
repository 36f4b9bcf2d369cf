"""The directories that rehearsals read: what they hold is what transformers reads from them."""

import json

import numpy as np
import pytest

from jaxloop import lm
from jaxloop.lm.encoder import files as encoder_files
from jaxloop.metrics import classifiers, embed
from tests import hub
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

TEXTS = [
    "The cat sat on the mat, and then the rat ran to the hat of 1984.",
    "A model that reads what another model wrote reads less each time!",
    "Taxes were cut again; nobody's report said by how much, or when.",
]
DECODERS = [name for name, entry in hub.REPOSITORIES.items() if "Causal" in entry.head]
ENCODERS = [name for name in hub.REPOSITORIES if name not in DECODERS]


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_model_is_what_transformers_reads(name, tmp_path):
    path = hub.model(tmp_path, name, TEXTS)
    ours, theirs = lm.load(path), hf.AutoModelForCausalLM.from_pretrained(path).float().eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ours.tokenizer.encode([text]) == [ids]
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
        found = lm.forward(ours.config, ours.params, np.array([ids]))
        np.testing.assert_allclose(np.asarray(found)[0], expected, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_read_by_us(name, tmp_path):
    path = hub.model(tmp_path, name, TEXTS)
    settings = json.loads((path / "config.json").read_text())
    if "Sequence" in hub.REPOSITORIES[name].head:
        found = classifiers.probabilities(classifiers.load_classifier(str(path)), TEXTS)
        assert found.shape == (3, len(settings["id2label"])) and np.ptp(found, axis=0).max() > 1e-3
    else:
        found = embed.load_embedder.__wrapped__(str(path))(TEXTS, None, True)
        assert np.ptp(found, axis=0).max() > 1e-3
        assert encoder_files.load_encoder(path).config.causal is False
