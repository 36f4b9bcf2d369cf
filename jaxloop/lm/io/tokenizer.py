"""Tokenizers from tokenizer.json, without torch and without remote code."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from jaxloop.lm.io import json_fields, tokenizer_files
from jaxloop.lm.io.json_fields import optional_json


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer and the special ids that a chain needs.

    `encode` adds the special tokens that the model was trained with in front of a text (Llama:
    BOS); EOS is never added. Text is text: "</s>" written in one is its characters, not the token,
    as with `split_special_tokens=True` in transformers; `reading_special` is for templates. `eos`
    is what training appends to a text; `other_ends` end a text while decoding as it does.
    """

    backend: tokenizers.Tokenizer
    eos: int
    bos: int | None
    pad: int
    vocab_size: int
    other_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Every token that ends a text, what training appends first."""
        return (self.eos, *self.other_ends)

    def describe_ends(self) -> str:
        """Return what training appends to a text, and what else ends one, in words."""
        names = [f"{self.backend.id_to_token(i)!r} ({i})" for i in self.ends]
        return f"training appends {names[0]}; " + (
            "it alone ends a text"
            if len(names) == 1
            else f"a text ends with any of {', '.join(names)}"
        )

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of each text, in parallel over texts. Lone surrogates are read as U+FFFD.

        ValueError where a text has a word for which the tokenizer has no token, nor one for unknown
        words.
        """
        encoded = self._encoded(texts, special=special)
        return [_open_ended(e, self.eos) if special else e.ids for e in encoded]

    def _encoded(self, texts: Sequence[str], *, special: bool) -> list[tokenizers.Encoding]:
        """What the library makes of the texts, but for the places of the tokens in them."""
        try:
            return self.backend.encode_batch_fast(
                [clean(t) for t in texts], add_special_tokens=special
            )
        except Exception as error:
            reason = str(error).splitlines()[0].split(": ")[-1]
            raise ValueError(
                f"tokenizer: a text cannot be encoded ({reason}); give the tokenizer a token for "
                "unknown words"
            ) from None

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence, special tokens skipped, not stripped."""
        return self.backend.decode_batch([list(map(int, i)) for i in ids], skip_special_tokens=True)

    def names_special(self, texts: Sequence[str]) -> list[bool]:
        """Return whether a text holds the name of a special token, which is not read as one."""
        names = [
            token.content
            for token in self.backend.get_added_tokens_decoder().values()
            if token.special
        ]
        found = re.compile(
            "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)"
        )
        return [found.search(text) is not None for text in texts]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text without special ones."""
        return [len(encoded) for encoded in self._encoded(texts, special=False)]


def _open_ended(encoded: tokenizers.Encoding, eos: int) -> list[int]:
    """The ids without those that the tokenizer puts behind a text: BERT-like templates and some OPT
    variants close with EOS; a prompt must not.
    """
    ids, added = encoded.ids, encoded.special_tokens_mask
    if 0 in added:
        return ids[: len(added) - added[::-1].index(0)]
    while len(ids) > 1 and ids[-1] == eos:
        ids = ids[:-1]
    return ids


def reading_special(tokenizer: Tokenizer) -> Tokenizer:
    """Return the same tokenizer for what a chat template wrote, in which the names of special
    tokens are these tokens.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = False
    return dataclasses.replace(tokenizer, backend=backend)


def as_text(tokenizer: Tokenizer, text: str) -> str:
    """Return a text to put into a template: names of special tokens are parted by an invisible word
    joiner, so that they stay text.
    """
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        if token.special and token.content in text and len(token.content) > 1:
            text = text.replace(token.content, f"{token.content[0]}\u2060{token.content[1:]}")
    return text


def clean(text: str) -> str:
    """Return the text with lone surrogates, which have no UTF-8, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def load(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a model directory: tokenizer.json, or what `transformers` can build
    from vocab and merges files.

    Raises ValueError where there is no tokenizer, or none of config.json, generation_config.json
    and tokenizer_config.json names an EOS token.
    """
    path = Path(path)
    backend = tokenizer_files.read(path)
    backend.encode_special_tokens = True
    names = {key: value for key, value in tokenizer_files.named(path).items() if key != "extra"}
    settings = [
        optional_json(path / "generation_config.json"),
        optional_json(path / "config.json"),
        names,
    ]
    ends = _ends(backend, settings)
    if not ends:
        raise ValueError(
            f"model: the tokenizer of {path} has no EOS token, without which no text ends; set "
            "eos_token in its tokenizer_config.json"
        )
    tokenizer_files.make_special(backend, [backend.id_to_token(i) for i in ends])
    pad = _special(backend, settings, "pad")
    return Tokenizer(
        backend,
        eos=ends[0],
        bos=_special(backend, settings, "bos"),
        pad=ends[0] if pad is None else pad,
        vocab_size=backend.get_vocab_size(),
        other_ends=ends[1:],
    )


def _ends(backend: tokenizers.Tokenizer, settings: list[dict]) -> tuple[int, ...]:
    """Every token that ends a text, as `transformers.generate` stops: all of the first file that
    names one. First comes the one that training appends: the tokenizer's own, where it is among
    them, as chat models have it.
    """
    found = next((ids for values in settings if (ids := _named(backend, values, "eos"))), ())
    own = _named(backend, settings[-1], "eos")
    return tuple(dict.fromkeys((*(i for i in own if i in found), *found)))


def _special(backend: tokenizers.Tokenizer, settings: list[dict], kind: str) -> int | None:
    return next((ids[0] for values in settings if (ids := _named(backend, values, kind))), None)


def _named(backend: tokenizers.Tokenizer, values: dict, kind: str) -> tuple[int, ...]:
    """The ids of a special token that one file names, by number or by content. ValueError for what
    is neither.
    """
    field = f"{kind}_token_id"
    numbers = values.get(field)
    numbers = [n for n in (numbers if isinstance(numbers, list) else [numbers]) if n is not None]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        json_fields.refuse(field, values[field], "token ids, whole numbers")
    if fine := tuple(n for n in numbers if n >= 0):
        return fine
    token = tokenizer_files.content(values.get(f"{kind}_token"))
    number = None if token is None else backend.token_to_id(token)
    return () if number is None else (number,)
