"""The prompts of judges, and the scores in their replies.

The prompts are those of arXiv 2504.03814 (appendix B.3). A reply that is no score is counted as
unparsable, never guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics.endpoint import Reply

Message = dict[str, Any]

# A reply of -1 says that the question does not apply to the text.
DOES_NOT_APPLY = -1


@dataclass(frozen=True)
class Prompt:
    """The prompt of a judge; "{text}" in it is replaced by the text.

    Attributes:
        name: name of the prompt.
        system: the system message.
        user: the user message; "" for none.
        none: whether the reply -1 means that the question does not apply to the text.
        most: the highest score.
    """

    name: str
    system: str
    user: str = ""
    none: bool = False
    most: int = 100

    def messages(self, text: str, role: str = "system") -> list[Message]:
        """Return the conversation.

        Args:
            role: "system": a system message, and a user message where the prompt has one; "user":
                all of it as one user message.
        """
        system, user = self.system.replace("{text}", text), self.user.replace("{text}", text)
        if role == "user":
            return [{"role": "user", "content": f"{system} {user}" if user else system}]
        messages = [{"role": "system", "content": system}]
        if user:
            messages.append({"role": "user", "content": user})
        return messages


# The prompts are the experiment's own (B.3), as its code sends them: the quality prompt whole as a
# system message, the text of the other as the user's.
QUALITY = Prompt(
    "quality",
    "On a scale of 0 to 100, evaluate the post. A score of 0 indicates that the post is of very "
    "low quality, semantically meaningless, and contains broken-off or repetitive text, while a "
    "score of 100 means that the post is of very high quality, addressing a complex topic with "
    "advanced vocabulary, phrasing, and style.\n\nPost: {text}\n\nReply ONLY with the integer "
    "score (0-100). DO NOT reply with text.",
)
POLITICAL_LEAN = Prompt(
    "political_lean",
    "Score the following post on a continual scale from 0 (left-wing) to 100 (right-wing) where a "
    'score of 0 means "The post reflects radical left-wing ideology" and a score of 100 means '
    '"The post reflects radical right-wing ideology", and a score of 50 means "The post reflects '
    'a neutral ideology". Reply with -1 if the post is not political. Reply ONLY with the integer '
    "score (0-100 or -1). DO NOT reply with text. Here is the text:",
    user="{text}",
    none=True,
)
# The older judge of the released code, with its criteria and its scale in other words.
QUALITY_LEVEL = Prompt(
    "quality_level",
    "Judge how well the following post is written. Heed whether it is cut off or broken, whether "
    "it repeats itself, its grammar, whether what it says is plausible, and how rich its words "
    "are. The score is 0 for low quality, 1 for intermediate quality and 2 for good quality.\n\n"
    "Post: {text}\n\nReply ONLY with the score (0, 1 or 2). DO NOT reply with text.",
    most=2,
)
# The paper names this judge, not its words.
ENGLISH = Prompt(
    "english",
    "Is the following text written in English? Reply with 1 if it is and with 0 if it is not. DO "
    "NOT reply with text.\n\nText: {text}",
    most=1,
)
PROMPTS = {prompt.name: prompt for prompt in (QUALITY, QUALITY_LEVEL, POLITICAL_LEAN, ENGLISH)}


class Judgement(NamedTuple):
    """A judge's scores of n texts.

    Attributes:
        score: [n] float64 in [0, 100]: the likeliest score; nan where there is none.
        expected: [n] float64: mean of 0..100 under the probabilities of the first token,
            renormalised over them; nan where these are not known.
        none: [n] bool: the judge says that the question does not apply (-1).
        unparsable: [n] bool: the reply is no score.
        example: the first reply that is no score; "" where there is none, or it is not known.
    """

    score: np.ndarray
    expected: np.ndarray
    none: np.ndarray
    unparsable: np.ndarray
    example: str = ""


def judgement(values: Sequence[int | None], expected: Sequence[float] | np.ndarray) -> Judgement:
    """Return the judgement of replies [n]: a score, `DOES_NOT_APPLY`, or None for no score."""
    score = [np.nan if value is None or value < 0 else value for value in values]
    return Judgement(
        np.array(score, np.float64),
        np.asarray(expected, np.float64),
        np.array([value == DOES_NOT_APPLY for value in values], bool),
        np.array([value is None for value in values], bool),
    )


def within(found: Judgement, most: int) -> Judgement:
    """Return a judgement in which scores above `most` are no scores."""
    above = found.score > most
    if not above.any():
        return found
    number = f"{found.score[above][0]:g}"
    return found._replace(
        score=np.where(above, np.nan, found.score),
        expected=np.where(above, np.nan, found.expected),
        unparsable=found.unparsable | above,
        example=found.example or number,
    )


def parse_reply(reply: str, none: bool = False) -> int | None:
    """Return the score in a reply, or None.

    It is a whole number from 0 to 100 (or -1 if `none`), alone on the first line but for "/100" or
    a full stop.
    """
    lines = reply.strip().splitlines()
    if not lines:
        return None
    match = re.fullmatch(r"\s*(-1|\d{1,3})(?:\s*/\s*100)?\s*\.?\s*", lines[0], re.ASCII)
    if not match:
        return None
    value = int(match[1])
    return value if 0 <= value <= 100 or (none and value == DOES_NOT_APPLY) else None


def from_replies(replies: Sequence[Reply], prompt: Prompt, *, first_token: bool) -> Judgement:
    """Return the judgement in an endpoint's replies.

    Args:
        first_token: whether the first of the top tokens that is a number counts, instead of the
            reply's text.
    """
    if first_token:
        values = [_first_number(reply, prompt.none) for reply in replies]
        known = True
    else:
        values = [parse_reply(reply.text, prompt.none) for reply in replies]
        known = _numbers_are_single_tokens(values, replies)
    expected = []
    for value, reply in zip(values, replies, strict=True):
        has_mean = known and value is not None and value >= 0
        expected.append(_expected(reply) if has_mean else np.nan)
    odd = (reply.text for value, reply in zip(values, replies, strict=True) if value is None)
    return judgement(values, expected)._replace(example=next(odd, ""))


def _numbers_are_single_tokens(values: Sequence[int | None], replies: Sequence[Reply]) -> bool:
    """Whether the model writes every number of two digits as one token.

    Only then are the probabilities of first tokens those of scores. A reply that was drawn need
    not be the likeliest, but it is one of the first tokens.
    """
    seen = False
    for value, reply in zip(values, replies, strict=True):
        tokens = {token.strip() for token, _ in reply.first}
        seen = seen or any(_is_number(token) and int(token) >= 10 for token in tokens)
        if value is not None and value >= 10 and tokens and str(value) not in tokens:
            return False
    return seen


def _log_probability(token: tuple[str, float]) -> float:
    return token[1]


def _first_number(reply: Reply, none: bool) -> int | None:
    tokens = reply.first or ((reply.text, 0.0),)
    for token, _ in sorted(tokens, key=_log_probability, reverse=True):
        token = token.strip()
        if none and token in ("-", "-1"):
            return DOES_NOT_APPLY
        if _is_number(token):
            return int(token) if int(token) <= 100 else None
    return None


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdigit()


def _expected(reply: Reply) -> float:
    """Mean score under the probabilities of the first token; nan where no token is a score."""
    numbers = []
    for token, log_probability in reply.first:
        token = token.strip()
        if _is_number(token) and int(token) <= 100:
            numbers.append((int(token), np.exp(log_probability)))
    total = sum(p for _, p in numbers)
    return sum(value * p for value, p in numbers) / total if total else np.nan
