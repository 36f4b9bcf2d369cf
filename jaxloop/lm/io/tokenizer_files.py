"""A tokenizer from the files of a model directory, as `transformers` 5 puts it together:
tokenizer.json, and what stands beside it.

Two things are done otherwise. Merges are never dropped at random (`dropout`), so that a text has
the same tokens every time; and classes that `transformers` builds anew take from it how texts are
cut, but no token that no file of the directory names.
"""

import importlib.util
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jaxloop.lm.io import json_fields
from jaxloop.lm.io.json_fields import Refused, optional_json
from jaxloop.runtime.environment import how_to_install

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SENTENCE_PIECE = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
)
_BY_MODEL = {"gpt2": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def read(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a directory, without padding and truncation. Raises ValueError where
    there is none, and `Refused` where its files are damaged or give a token two ids.
    """
    settings = optional_json(folder / "tokenizer_config.json")
    file = folder / "tokenizer.json"
    if file.exists():
        backend = _from_file(file)
        _declared(backend, folder, settings)
        _as_built(backend, folder, settings)
    elif is_there(folder):
        backend = _by_transformers(folder)
    else:
        raise ValueError(
            f"model: {folder} has no tokenizer.json, nor vocab.txt, vocab.json with merges.txt, or "
            "a SentencePiece model; save the tokenizer beside the weights"
        )
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    backend.no_padding()
    backend.no_truncation()
    return backend


def chat_template(folder: Path) -> Any:
    """Return the chat template of a model directory, or its list of named ones; None without any.

    It lies in chat_template.jinja, or in tokenizer_config.json. Raises ValueError where they cannot
    be read.
    """
    file = folder / "chat_template.jinja"
    if file.exists():
        return json_fields.text_of(file)
    return optional_json(folder / "tokenizer_config.json").get("chat_template")


def is_there(folder: Path) -> bool:
    """Return whether a directory has files that a tokenizer is made of: tokenizer.json, vocab.txt,
    vocab.json with merges.txt, or a SentencePiece model.
    """
    pair = all((folder / name).exists() for name in ("vocab.json", "merges.txt"))
    alone = ("tokenizer.json", "vocab.txt", *_SENTENCE_PIECE)
    return pair or any((folder / name).exists() for name in alone)


def named(folder: Path) -> dict[str, Any]:
    """Return the special tokens by name ("eos_token": "</s>"), as tokenizer_config.json and, where
    it lists no added tokens, special_tokens_map.json name them; then `extra`: a list of others.
    """
    settings = optional_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings = settings | optional_json(folder / "special_tokens_map.json")
    found = {name: settings[name] for name in NAMED if settings.get(name)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return found | {"extra": list(extra.values()) if isinstance(extra, dict) else extra}


def check_rows(backend: tokenizers.Tokenizer, rows: int, path: str | Path) -> None:
    """Raises `Refused` where the tokenizer has an id for which a table of embeddings with so many
    rows has none.
    """
    ids = backend.get_vocab(with_added_tokens=True)
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= rows:
        raise Refused(
            f"model: the tokenizer of {path} has token {last!r} with id {ids[last]}, the model's "
            f"embeddings have {rows} rows; "
            "resize the embeddings, or take the added tokens out of the tokenizer"
        )


def cuts_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Return whether the tokens of a text are those of its words, each with the single space before
    it.

    That is known of byte-level tokenizers which cut a text as GPT-2, Llama 3 or Qwen 2 do, in
    Unicode's composed form or as it is.
    """
    parts = json.loads(backend.to_str())
    cut = parts["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [cut])
    if parts["model"].get("type", "BPE") != "BPE" or (parts["normalizer"] or {}).get(
        "type"
    ) not in (
        None,
        "NFC",
    ):
        return False
    if any(" " in token["content"] for token in parts["added_tokens"]):
        return False
    return all(map(_cuts_before_spaces, steps)) and any(map(_cuts_words, steps))


def _cuts_before_spaces(step: dict) -> bool:
    return step.get("type") in ("ByteLevel", "Digits") or _cuts_words(step)


def _cuts_words(step: dict) -> bool:
    if step.get("type") == "ByteLevel":
        return step.get("use_regex", True)
    return (
        step.get("type") == "Split"
        and step.get("pattern") in ({"Regex": _QWEN2}, {"Regex": _LLAMA3})
        and step.get("behavior") == "Isolated"
        and not step.get("invert")
    )


def content(token: Any) -> str | None:
    """Return the text of a special token, which files write as a string or as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def _from_file(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        try:
            json_fields.read_json(file, "tokenizer")
        except ValueError as damaged:
            raise Refused(str(damaged)) from None
        reason = str(error).splitlines()[0]
        raise Refused(
            f"tokenizer: {file} cannot be read ({reason}); it is no file of the tokenizers "
            "library, or of a newer version"
        ) from None


def _by_transformers(folder: Path) -> tokenizers.Tokenizer:
    files = [name for name in _SENTENCE_PIECE if (folder / name).exists()]
    if files and importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            f"tokenizer: {folder} has no tokenizer.json but {files[0]}, a SentencePiece model; "
            f"{how_to_install('sentencepiece')}, or save a tokenizer.json beside it"
        )
    # Takes seconds to import, and a tokenizer.json needs none of it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"tokenizer: transformers cannot build one from the files of {folder} ({reason})"
        ) from None


# ---- classes that transformers builds anew


def _as_built(backend: tokenizers.Tokenizer, folder: Path, settings: dict) -> None:
    """Cuts texts as the class of tokenizer_config.json does where `transformers` builds that class
    anew, whatever tokenizer.json says.
    """
    config = optional_json(folder / "config.json")
    name = (
        settings.get("tokenizer_class")
        or config.get("tokenizer_class")
        or _BY_MODEL.get(str(config.get("model_type")), "")
    )
    prefix = bool(json_fields.truth(settings, "add_prefix_space", False, kind="tokenizer"))
    state = [
        None if part is None else json.loads(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    ]
    if not _needs_building(str(name).removesuffix("Fast"), prefix, *state):
        return
    other = _by_transformers(folder)
    backend.normalizer, backend.pre_tokenizer, backend.decoder = (
        other.normalizer,
        other.pre_tokenizer,
        other.decoder,
    )


def _needs_building(
    name: str, prefix: bool, normalizer: dict | None, cut: dict | None, decoder: dict | None
) -> bool:
    plain = (decoder or {}).get("type") == "ByteLevel"
    if name == "GPT2Tokenizer":
        return not (plain and normalizer is None and _is_byte_level(cut, prefix, True))
    if name == "Qwen2Tokenizer":
        steps = (cut or {}).get("pretokenizers") or [{}]
        split = (
            steps[0].get("pattern") == {"Regex": _QWEN2}
            and steps[0].get("behavior") == "Isolated"
            and not steps[0].get("invert")
        )
        return not (
            plain
            and (normalizer or {}).get("type") == "NFC"
            and split
            and len(steps) == 2
            and _is_byte_level(steps[1], prefix, False)
        )
    if name == "LlamaTokenizer":
        return "ByteLevel" not in json.dumps([cut, decoder])
    return False


def _is_byte_level(step: dict | None, prefix: bool, regex: bool) -> bool:
    step = step or {}
    return (
        step.get("type") == "ByteLevel"
        and step.get("add_prefix_space") == prefix
        and step.get("use_regex", True) == regex
    )


# ---- tokens that stand beside tokenizer.json


def _declared(backend: tokenizers.Tokenizer, folder: Path, settings: dict) -> None:
    """Adds the tokens of added_tokens_decoder or added_tokens.json, then named and extra special
    ones, in the order of `transformers`.
    """
    special = named(folder)
    texts = {
        content(token)
        for token in [*(v for k, v in special.items() if k != "extra"), *special["extra"]]
    }
    if "added_tokens_decoder" in settings:
        where, listed = (
            "added_tokens_decoder of tokenizer_config.json",
            _numbered(settings["added_tokens_decoder"], folder),
        )
    else:
        where, added = "added_tokens.json", optional_json(folder / "added_tokens.json", "tokenizer")
        listed = {
            json_fields.integer(added, text, low=0, kind="tokenizer"): _plain(text, text in texts)
            for text in added
        }
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    for number, token in sorted(listed.items()):
        if repr(token) not in known:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise Refused(
                f"tokenizer: {where} of {folder} gives the token {token.content!r} the id "
                f"{number}, the tokenizer itself {backend.token_to_id(token.content)}"
            )
    names = {key: value for key, value in special.items() if key != "extra"}
    _add_special(backend, [*names.values(), *special["extra"]], folder)


def _numbered(entries: Any, folder: Path) -> dict[int, AddedToken]:
    try:
        return {int(number): AddedToken(**token) for number, token in entries.items()}
    except (TypeError, ValueError, AttributeError):
        raise Refused(
            f"tokenizer: added_tokens_decoder in tokenizer_config.json of {folder} is not {{id: "
            f"token}}"
        ) from None


def _plain(text: str, special: bool) -> AddedToken:
    return AddedToken(text, rstrip=False, lstrip=False, normalized=not special, special=special)


def make_special(backend: tokenizers.Tokenizer, texts: Collection[str | None]) -> None:
    """Makes added tokens of these texts special where the file calls them ordinary, which would be
    read as tokens wherever a text has their names.
    """
    for token in backend.get_added_tokens_decoder().values():
        if token.content in texts and not token.special:
            flags = dict(
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                single_word=token.single_word,
            )
            backend.add_special_tokens([AddedToken(token.content, special=True, **flags)])


def _add_special(backend: tokenizers.Tokenizer, tokens: Collection[Any], folder: Path) -> None:
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    make_special(backend, [content(token) for token in tokens])
    for token in tokens:
        text = content(token)
        if text is None:
            raise Refused(
                f"tokenizer: {json_fields.short(token)} among the special tokens of {folder} "
                "is no token"
            )
        if text not in known:
            known.add(text)
            flags = (
                {
                    k: v
                    for k, v in token.items()
                    if k in ("lstrip", "rstrip", "normalized", "single_word")
                }
                if isinstance(token, dict)
                else {}
            )
            backend.add_tokens([AddedToken(text, special=True, **flags)])
