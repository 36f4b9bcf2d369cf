"""How many words a text has, as NLTK counts them."""

import re

_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)\s+(?=[\"'“‘(@#]*[A-Z0-9])")


def has_punkt() -> bool:
    """Return whether NLTK's sentence model is installed."""
    # NLTK takes a second to load, which one recipe needs.
    import nltk

    try:
        return bool(nltk.data.find("tokenizers/punkt_tab"))
    except (LookupError, OSError):
        return False


def nltk_words(texts: list[str]) -> list[int]:
    """Return how many tokens NLTK's `word_tokenize` splits each text into.

    Its sentence model (punkt) has to be downloaded. Where it is not installed, sentences end where
    a capital letter or a digit follows ., ! or ? and white space; the words are those of NLTK
    either way.
    """
    # NLTK takes a second to load, which one recipe needs.
    from nltk.tokenize import word_tokenize

    if has_punkt():
        return [len(word_tokenize(text)) for text in texts]
    return [
        sum(len(word_tokenize(part, preserve_line=True)) for part in _SENTENCE_BREAK.split(text))
        for text in texts
    ]
