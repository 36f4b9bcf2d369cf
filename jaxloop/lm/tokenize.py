"""Tokenizers from tokenizer.json, without torch and without remote code."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer and the special ids that a chain needs.

    `encode` adds the special tokens that the model was trained with in front of a text (Llama: BOS); EOS is never added. Text is text: "</s>"
    written in one is its characters, not the token, as with `split_special_tokens=True` in transformers; `reading_special` is for templates.
    """

    backend: tokenizers.Tokenizer
    eos: int
    bos: int | None
    pad: int
    vocab_size: int

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of each text, in parallel over texts. Lone surrogates are read as U+FFFD."""
        ids = [e.ids for e in self.backend.encode_batch([clean(t) for t in texts], add_special_tokens=special)]
        # Some tokenizers (BERT-like templates, OPT variants) close with EOS; a prompt must not.
        return [i[:-1] if special and len(i) > 1 and i[-1] == self.eos else i for i in ids]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence, special tokens skipped, not stripped."""
        return self.backend.decode_batch([list(map(int, i)) for i in ids], skip_special_tokens=True)

    def names_special(self, texts: Sequence[str]) -> list[bool]:
        """Whether a text holds the name of a special token, which it would not be read as."""
        names = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        found = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
        return [found.search(text) is not None for text in texts]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text without special ones."""
        return [len(i) for i in self.encode(texts, special=False)]


def reading_special(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for what a chat template wrote, in which the names of special tokens are these tokens."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = False
    return dataclasses.replace(tokenizer, backend=backend)


def as_text(tokenizer: Tokenizer, text: str) -> str:
    """A text to put into a template: names of special tokens are parted by an invisible word joiner, so that they stay text."""
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        if token.special and token.content in text and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]}\u2060{token.content[1:]}")
    return text


def clean(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def load(path) -> Tokenizer:
    """The tokenizer of a model directory: tokenizer.json, or what `transformers` can build from vocab and merges files.

    Raises ValueError where there is no tokenizer, or none of config.json, generation_config.json and tokenizer_config.json names an EOS token.
    """
    path = Path(path)
    file = path / "tokenizer.json"
    if file.exists():
        backend = tokenizers.Tokenizer.from_file(str(file))
    elif (path / "vocab.json").exists() or (path / "tokenizer.model").exists():
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(path, trust_remote_code=False).backend_tokenizer
    else:
        raise ValueError(f"model: {path} has no tokenizer.json; save the tokenizer beside the weights")
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    settings = [_json(path / name) for name in ("generation_config.json", "config.json", "tokenizer_config.json")]
    eos = _special(backend, settings, "eos")
    if eos is None:
        raise ValueError(f"model: the tokenizer of {path} has no EOS token, without which no text ends; set eos_token in its tokenizer_config.json")
    pad = _special(backend, settings, "pad")
    return Tokenizer(backend, eos=eos, bos=_special(backend, settings, "bos"), pad=eos if pad is None else pad, vocab_size=backend.get_vocab_size())


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def _special(backend, settings: list[dict], kind: str) -> int | None:
    for values in settings:
        number = values.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if isinstance(number, int) and number >= 0:
            return number
        token = values.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token and backend.token_to_id(token) is not None:
            return backend.token_to_id(token)
    return None
