"""jaxloop: recursive training of language models, many chains in one compiled program."""

__version__ = "0.1.0"
