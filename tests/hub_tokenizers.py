"""Tokenizers as the repositories of the hub hold them, trained on a few texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_CUT = LLAMA3_CUT.replace(r"\p{N}{1,3}", r"\p{N}")


class Bpe(NamedTuple):
    """A byte-level tokenizer: how words are cut, its special tokens, the files that hold it.

    Attributes:
        cut: a pattern, or "" for GPT-2's own.
        special: special tokens; they follow the others, as in the real files, or are the first.
        named: special tokens by their part in tokenizer_config.json.
        files: "json", "pair" (vocab.json and merges.txt), or both.
        first: whether the special tokens are the first.
        begin, end: tokens that every text gets.
        kind: tokenizer_class.
    """

    special: tuple[str, ...]
    named: dict[str, str]
    cut: str = ""
    files: tuple[str, ...] = ("json", "pair")
    first: bool = False
    begin: str = ""
    end: str = ""
    kind: str = "GPT2Tokenizer"


class WordPiece(NamedTuple):
    """BERT's tokenizer: vocab.txt, and tokenizer.json where "json" is among the files."""

    files: tuple[str, ...] = ("json", "vocab.txt")
    kind: str = "BertTokenizer"


class Unigram(NamedTuple):
    """ALBERT's tokenizer: SentencePiece's pieces and their probabilities, as tokenizer.json."""

    files: tuple[str, ...] = ("json",)
    kind: str = "AlbertTokenizer"


_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(8)),
)
UNIGRAM = dict(pad="<pad>", unk="<unk>", cls="[CLS]", sep="[SEP]", mask="[MASK]")
WORD_PIECE = dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
LLAMA3 = Bpe(
    _LLAMA3_SPECIAL,
    dict(bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|finetune_right_pad_id|>"),
    LLAMA3_CUT,
    ("json",),
    begin="<|begin_of_text|>",
    kind="PreTrainedTokenizerFast",
)
QWEN2 = Bpe(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"),
    dict(eos="<|endoftext|>", pad="<|vision_pad|>"),
    QWEN2_CUT,
    kind="Qwen2Tokenizer",
)
GPT2 = Bpe(("<|endoftext|>",), dict(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>"))
FALCON3 = Bpe(
    (">>TITLE<<", "<|pad|>", "<|endoftext|>"),
    dict(eos="<|endoftext|>", pad="<|pad|>"),
    LLAMA3_CUT,
    ("json",),
    kind="PreTrainedTokenizerFast",
)
OPT = Bpe(
    ("<s>", "<pad>", "</s>", "<unk>"),
    dict(bos="</s>", eos="</s>", pad="<pad>", unk="</s>"),
    files=("pair",),
    first=True,
    begin="</s>",
)
ROBERTA = Bpe(
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    dict(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>"),
    first=True,
    begin="<s>",
    end="</s>",
    kind="RobertaTokenizer",
)


def write(
    tokens: Bpe | WordPiece | Unigram, folder: Path, texts: Sequence[str], size: int
) -> Tokenizer:
    """Writes the files of a tokenizer that is trained on the texts; size: its tokens, at most."""
    if isinstance(tokens, Bpe):
        made = _bpe(tokens, texts, size)
    else:
        made = (_unigram if isinstance(tokens, Unigram) else _word_piece)(texts, size)
    if "json" in tokens.files:
        made.save(str(folder / "tokenizer.json"))
    if "pair" in tokens.files:
        made.model.save(str(folder))
        vocabulary = made.get_vocab(with_added_tokens=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf8")
    if "vocab.txt" in tokens.files:
        vocabulary = made.get_vocab(with_added_tokens=True)
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf8")
    settings = {f"{name}_token": token for name, token in named(tokens).items()}
    write_json(folder / "special_tokens_map.json", settings)
    if isinstance(tokens, WordPiece):
        settings |= {"do_lower_case": True, "model_max_length": 512}
    settings["tokenizer_class"] = tokens.kind
    write_json(folder / "tokenizer_config.json", settings)
    return made


def named(tokens: Bpe | WordPiece | Unigram) -> dict[str, str]:
    """The special tokens by their part: {"eos": "</s>"}."""
    if isinstance(tokens, Unigram):
        return dict(UNIGRAM)
    return tokens.named if isinstance(tokens, Bpe) else dict(WORD_PIECE)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf8")


def _bpe(tokens: Bpe, texts: Sequence[str], size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not tokens.cut)
    if tokens.cut:
        cut = pre_tokenizers.Split(Regex(tokens.cut), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, whole])
    else:
        made.pre_tokenizer = whole
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - (0 if tokens.first else len(tokens.special)),
        special_tokens=list(tokens.special) if tokens.first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens(list(tokens.special))
    around = [token for token in (tokens.begin, tokens.end) if token]
    byte_level = processors.ByteLevel(trim_offsets=False)
    made.post_processor = byte_level
    if around:
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in (tokens.begin, "$A", tokens.end) if part),
            special_tokens=[(token, made.token_to_id(token)) for token in dict.fromkeys(around)],
        )
    return made


def _word_piece(texts: Sequence[str], size: int) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(WORD_PIECE.values()), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made


def _unigram(texts: Sequence[str], size: int) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = [UNIGRAM[part] for part in ("pad", "unk", "cls", "sep", "mask")]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return made
