"""The ways in which `transformers` scales rotary frequencies, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor`: positions are interpolated (`rope_type: linear`)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """Frequencies that change only beyond the model's context (`rope_type: dynamic`).

    Within the context they are those of the model without scaling.
    """

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclass(frozen=True)
class YarnScaling:
    """Low frequencies interpolated, high ones kept (arXiv 2309.00071; `rope_type: yarn`).

    Cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    original_max_seq_len: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """A divisor for each frequency (arXiv 2402.13753; `rope_type: longrope`).

    The `short` ones hold up to `original_max_seq_len` tokens, which is the longest sequence of the
    model here. Beyond, `transformers` changes to the `long` ones in the middle of a text.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_seq_len: int
    attention_factor: float


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling
