"""Topics of generated stories: from a file, from the data, or listed by the writer."""

import re
from pathlib import Path

import pandas as pd

from jaxloop.data.stories import opening, word_topics
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.records import Tables
from jaxloop.studies.diversity.sets import bodies
from jaxloop.studies.diversity.writers import ReplyStore

_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])?\s*[\"']?(.*?)[\"'.,;]?\s*$")


def topics_file(settings: DiversityConfig, most: int) -> list[str]:
    """Return the topics of a file, one a line, each once.

    Raises ValueError where there is no such file, or it has fewer than `most` topics.
    """
    path = Path(settings.generator.topics or "")
    if not path.is_file():
        raise ValueError(
            f"config.generator.topics = {settings.generator.topics!r}: there is no such file; "
            "give one, `data`, `openings` or none"
        )
    names = list(
        dict.fromkeys(
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        )
    )
    if len(names) < most:
        raise ValueError(
            f"config.generator.topics = '{path}': has {len(names)} topics, |T| = {most} is asked "
            "for in generator.topic_sizes"
        )
    return names


def openings(settings: DiversityConfig, data: Tables, most: int) -> list[str]:
    """Return the first words of `most` real stories, each once.

    Raises ValueError where there are fewer.
    """

    words = settings.generator.opening_words
    starts = dict.fromkeys(
        start for text in bodies(data.reserve) if (start := opening(text, words)[0])
    )
    if len(starts) < most:
        raise ValueError(
            f"config.generator.topics = 'openings': {len(starts)} stories in reserve open with "
            f"{words} words and go on, "
            f"|T| = {most} is asked for in generator.topic_sizes"
        )
    return list(starts)[:most]


def list_topics(
    settings: DiversityConfig, data: Tables, store: ReplyStore, most: int
) -> tuple[list[str], list[int] | None]:
    """Return (topics, topic of each real story where that is known)."""
    if settings.generator.topics == "data":
        return word_topics(bodies(real_records(data)), most)
    if settings.generator.topics == "openings":
        return openings(settings, data, most), None
    if settings.generator.topics is not None:
        return topics_file(settings, most), None

    def parse(reply):
        return [
            m[1]
            for line in reply.splitlines()
            if (m := _LISTED.match(line)) and m[1] and len(m[1]) <= 60
        ]

    names: dict[str, None] = {}
    for attempt in range(store.attempts):
        missing = most - len(names)
        if missing <= 0:
            break
        count = min(100, missing)
        prompt = settings.generator.topic_prompt.replace("{count}", str(count))
        replies = store.ask(f"topics/attempt={attempt}", [prompt] * -(-2 * missing // count))
        names |= dict.fromkeys(topic for reply in replies for topic in parse(reply))
    if len(names) < most:
        raise ValueError(
            f"generator: {store.writer.name} listed {len(names)} topics, |T| = {most} is asked "
            "for in generator.topic_sizes"
        )
    return list(names)[:most], None


def real_records(data: Tables) -> pd.DataFrame:
    return pd.concat([data.train, data.reserve], ignore_index=True)
