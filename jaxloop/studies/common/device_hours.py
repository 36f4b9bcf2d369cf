"""Hours of the device that a config describes, for plans without the models or the data."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxloop.studies.common.config import PlanAssumptions
from jaxloop.studies.common.cost import Cost


class AssumedLengths:
    """Stands in for a tokenizer that is not on this machine (a `cost.TokenCounter`).

    Every text has `text_tokens` tokens and every prompt `prompt_tokens`, as a config assumes.
    """

    def __init__(self, text_tokens: float, prompt_tokens: float):
        self.text_tokens, self.prompt_tokens = text_tokens, round(prompt_tokens)

    def count(self, texts: Sequence[str]) -> list[float]:
        """Return the tokens of each text."""
        return [self.text_tokens] * len(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `prompt_tokens` ids for each text."""
        return [[0] * self.prompt_tokens for _ in texts]


class DeviceHours(NamedTuple):
    """Hours of one device to train and to generate."""

    train: float
    generate: float


def device_hours(assumed: PlanAssumptions, total: Cost) -> DeviceHours:
    """Return the hours that the device needs if it reaches the assumed shares of its limits."""
    train = total.train_flops / (assumed.flops * assumed.train_share)
    limit = max(total.decode_bytes / assumed.bandwidth, total.decode_flops / assumed.flops)
    return DeviceHours(train / 3600, limit / assumed.write_share / 3600)


def device_line(assumed: PlanAssumptions) -> str:
    """Return a line that describes the device and the shares of its limits that are assumed."""
    return (
        f"{assumed.device} of {assumed.flops / 1e12:,.0f} TFLOP/s and "
        f"{assumed.bandwidth / 1e12:.2f} TB/s, of which training reaches "
        f"{assumed.train_share:.0%} and writing {assumed.write_share:.0%}"
    )
