"""What a plan counts on: model and articles of a config, or stand-ins where they are absent.

A plan is read before anything is downloaded. Of a model that is not on this machine the published
shapes count, and tokens are counted in characters; of articles, as many as the config asks for, of
an assumed length.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from jaxloop.data.sources import is_here
from jaxloop.lm.io import config_json
from jaxloop.lm.model.config import ModelConfig
from jaxloop.studies.bias_amplification import checks, family
from jaxloop.studies.bias_amplification.articles import Articles, read_articles
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.prepare import Prepared, assemble
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import published_models

CHARACTERS_PER_TOKEN = 4.5
TITLE_TOKENS, BODY_TOKENS = 14, 900
# Articles of a label where the config takes all of them.
ARTICLES = 1500


class CharacterTokenizer(NamedTuple):
    """Stands in for a tokenizer that is not here: a token is `CHARACTERS_PER_TOKEN` characters."""

    pad: int = 0

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Return as many zeros as a text has tokens."""
        return [[0] * math.ceil(len(text) / CHARACTERS_PER_TOKEN) for text in texts]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return a text of so many tokens."""
        return [_words(len(row)) for row in rows]


def plan_inputs(config: BiasConfig) -> tuple[Prepared, list[str]]:
    """Return what a run prepares, without its classifier, and lines about what is assumed.

    Raises ValueError for articles or a model that are here and cannot be used, and for a model that
    is neither here nor published.
    """
    checks.check_metrics(config)
    name, assumed = config.models.pool[0], []
    model_config, tokenizer = _model(config)
    if tokenizer is None:
        tokenizer = CharacterTokenizer()
        assumed.append(
            f"the published shapes of {name}, since its files are not here, and "
            f"{CHARACTERS_PER_TOKEN} characters a token"
        )
    if is_here(config.data.source):
        articles = read_articles(config.data, family.token_codec(tokenizer), config.chain.block)
    else:
        articles = _stand_ins(config)
        assumed.append(
            f"{len(articles.chosen):,} articles of {BODY_TOKENS} tokens, since "
            f"'{config.data.source}' is not here"
        )
    prepared = assemble(config, model_config, tokenizer, articles, None)
    checks.check_model(config, model_config, family.prompt_len(prepared.prompts))
    return prepared, assumed


def _model(config: BiasConfig) -> tuple[ModelConfig, Any]:
    """The base's shapes, and its tokenizer where its files are on this machine."""
    name = config.models.pool[0]
    try:
        return base_models.describe(config.models, name)
    except ValueError:
        published = published_models.by_short_name(name)
        if published is None:
            raise
        return config_json.parse_config(published), None


def _stand_ins(config: BiasConfig) -> Articles:
    """As many articles as the config takes, of the assumed length."""
    data = config.data
    labels = [data.only] if data.only else list(data.labels or ("one", "another"))
    body = _words(BODY_TOKENS if data.body_tokens is None else min(BODY_TOKENS, data.body_tokens))
    rows = [
        (f"{label} {i}", _words(TITLE_TOKENS), body, label)
        for label in labels
        for i in range(data.per_label or ARTICLES)
    ]
    chosen = pd.DataFrame(rows, columns=["id", "title", "body", "label"], dtype=object)
    return Articles(chosen, chosen.iloc[:0], tuple(labels), 0, 0, "")


def _words(tokens: int) -> str:
    return ("word " * tokens)[: round(tokens * CHARACTERS_PER_TOKEN)]
