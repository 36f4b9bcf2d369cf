"""Training a byte-level BPE tokenizer, for bases made from scratch."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxloop.lm.io.tokenizer import Tokenizer

EOS, PAD = "<|endoftext|>", "<|pad|>"


def train(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Return a byte-level BPE of `vocab` tokens (256 bytes, EOS and PAD among them): lossless on
    any text, deterministic in the texts' order.

    Raises ValueError where `vocab` cannot hold the bytes.
    """
    if vocab < 258:
        raise ValueError(
            f"tokenizer.vocab: {vocab} is not allowed; at least 258 (256 bytes, EOS and PAD)"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.encode_special_tokens = True
    return Tokenizer(backend, eos=0, bos=None, pad=1, vocab_size=backend.get_vocab_size())
