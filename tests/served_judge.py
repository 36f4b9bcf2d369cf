"""A judge that a real server can serve: a Llama of random weights, laid out as on the hub, whose
last layer is fitted so that to each question of a judge it answers with one of that question's own
answers, by what the text says.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxloop.metrics.judge_replies import ENGLISH, POLITICAL_LEAN, QUALITY, QUALITY_LEVEL, Prompt
from tests import hub
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

NAME = "meta-llama/Llama-3.1-8B"
# Question -> its answers, and how much likelier each is than the others, in standard deviations.
ANSWERS: dict[Prompt, dict[str, float]] = {
    QUALITY: {"20": 0.4, "40": 0.2, "60": 0.0, "80": 0.0, "55": -1.0},
    POLITICAL_LEAN: {"10": 0.0, "30": 0.0, "50": 0.0, "70": 0.0, "90": 0.0, "-": -0.5},
    QUALITY_LEVEL: {"0": 0.0, "1": 0.0, "2": 0.0},
    ENGLISH: {"1": 3.0, "0": 0.0},
}
# Words of a question that no other has.
_WORDS = {
    QUALITY: "On a scale of 0 to 100, evaluate the post",
    POLITICAL_LEAN: "0 (left-wing) to 100 (right-wing)",
    QUALITY_LEVEL: "0 for low quality",
    ENGLISH: "written in English",
}
# Texts on which the last layer is fitted.
_FITTED = 120
# How far the answers of a question lie above all other tokens.
_ABOVE = 60.0


def _mark(number: int) -> str:
    """The last token of a conversation, which says which question was asked."""
    return f"<|reserved_special_token_{number}|>"


def _template() -> str:
    branches = "".join(
        f"{{% {'elif' if i else 'if'} '{_WORDS[prompt]}' in messages[0].content %}}{_mark(i)}"
        for i, prompt in enumerate(ANSWERS)
    )
    said = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    return f"{{{{ bos_token }}}}{said}{branches}{{% endif %}}"


def build(folder: Path, texts: Sequence[str]) -> Path:
    """Writes the judge below a folder and returns where it is."""
    answers = sorted({answer for own in ANSWERS.values() for answer in own})
    texts = texts[:_FITTED]
    counted = [f"{text} {answer}" for text in texts for answer in answers]
    path = hub.model(folder, NAME, counted, width=32, layers=1, vocab=900, positions=2048)
    (path / "chat_template.jinja").write_text(_template())
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    model = hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        _fit(model, tokenizer, texts)
    model.save_pretrained(path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"torch_dtype": "float32"}))
    return path


def _fit(model, tokenizer, texts: Sequence[str]) -> None:
    """Of the hidden width one number for each question says whether it was asked."""
    count = len(ANSWERS)
    layer = model.model.layers[0]
    embedding = model.model.embed_tokens.weight
    embedding[:, :count] = 0
    for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        weight[:count] = 0
    model.model.norm.weight[:] = 1
    model.lm_head.weight[:] = 0
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    for number, (prompt, answers) in enumerate(ANSWERS.items()):
        embedding[tokenizer.convert_tokens_to_ids(_mark(number)), number] = 4.0
        hidden = np.stack([_last(model, tokenizer, prompt, text) for text in texts])
        # The norm before the last layer scales the mark with the rest: what is left is the text.
        asked = hidden[:, number].mean()
        mean = hidden[:, count:].mean(0) / asked
        rest = hidden[:, count:] - np.outer(hidden[:, number], mean)
        # In the axes of the covariance every text is as far from the mean as any other.
        values, axes = np.linalg.eigh(np.cov(rest.T))
        white = axes[:, -8:] / np.sqrt(values[-8:])
        for axis, (answer, likelier) in enumerate(answers.items()):
            (row,) = tokenizer.encode(answer, add_special_tokens=False)
            towards = white @ turn[:, axis]
            offset = (_ABOVE + likelier) / asked - mean @ towards
            model.lm_head.weight[row, number] = float(offset)
            model.lm_head.weight[row, count:] += torch.tensor(towards, dtype=torch.float32)


def _last(model, tokenizer, prompt: Prompt, text: str) -> np.ndarray:
    """What the last layer reads after a question about a text."""
    ids = tokenizer.apply_chat_template(
        prompt.messages(text), return_tensors="pt", return_dict=True
    )
    return model.model(**ids).last_hidden_state[0, -1].double().numpy()
