"""Counting the tokens of many texts by counting each word once."""

from collections.abc import Sequence

from jaxloop.lm.io import tokenizer_files
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.studies.recursive_loops.data.cleaning import Counter

# Words whose counts are remembered, at most: about 15 MB.
_REMEMBERED = 100_000
# Longer words, such as addresses, seldom come again.
_LONGEST = 24
# Stands for the count of a word that is counted with its text alone: no sum with it is positive.
_UNKNOWN = -(2**60)
_MARK = "\0"


def counter(tokenizer: Tokenizer) -> Counter:
    """Return a function that counts the tokens of texts as `tokenizer.count` does.

    Where the tokenizer cuts texts at spaces before anything else, each word is counted once.
    """
    if tokenizer_files.cuts_at_spaces(tokenizer.backend):
        return word_by_word(tokenizer.count)
    return tokenizer.count


def word_by_word(count: Counter) -> Counter:
    """Return a function that counts tokens as `count` does, which it asks for each word once.

    count: of a tokenizer that never makes a token across the place before a single space: the
        tokens of a text are those of its words, each with the space before it. Texts with other
        white space are counted whole.
    """
    remembered: dict[str, int] = {}

    def counts(texts: list[str]) -> Sequence[int]:
        if len(remembered) > _REMEMBERED:
            remembered.clear()
        words = [_words(text) for text in texts]
        new = set().union(*words) - remembered.keys()
        plain = [word for word in new if _is_plain(word)]
        remembered.update(dict.fromkeys(new, _UNKNOWN))
        remembered.update(zip(plain, count(plain) if plain else (), strict=True))
        numbers = [sum(map(remembered.__getitem__, of_text)) for of_text in words]
        for word in new:
            if len(word) > _LONGEST:
                del remembered[word]
        whole = [i for i, number in enumerate(numbers) if number < 0]
        if whole:
            for i, number in zip(whole, count([texts[i] for i in whole]), strict=True):
                numbers[i] = number
        return numbers

    return counts


def _words(text: str) -> list[str]:
    """The words of a text, each with the space before it: together they are the text."""
    return [text] if _MARK in text else text.replace(" ", f"{_MARK} ").split(_MARK)


def _is_plain(word: str) -> bool:
    """Whether no white space is in a word but for the space before it."""
    return word.split() == [word.removeprefix(" ")]
