"""The rates of dropout of an encoder and its head: read from a config.json, and written to one."""

from collections.abc import Mapping
from typing import Any

from jaxloop.lm.io.config_json import dropout_rate
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.dropout import DropoutRates


def block_rates(c: Mapping[str, Any], kind: str) -> DropoutRates:
    """Return the rates of the blocks of an architecture; absent ones are those of transformers."""
    if kind == "distilbert":  # it drops nothing of what attention adds
        hidden = dropout_rate(c, "dropout", 0.1)
        attention = dropout_rate(c, "attention_dropout", 0.1)
        return DropoutRates(embedding=hidden, attention=attention, mlp_output=hidden)
    default = 0.0 if kind == "albert" else 0.1
    hidden = dropout_rate(c, "hidden_dropout_prob", default)
    return DropoutRates(
        embedding=hidden,
        attention=dropout_rate(c, "attention_probs_dropout_prob", default),
        attention_output=hidden,
        mlp_output=hidden,
    )


def head_rate(c: Mapping[str, Any], kind: str) -> float:
    """Return the rate of what a classification head reads."""
    if kind == "distilbert":
        return dropout_rate(c, "seq_classif_dropout", 0.2)
    if kind == "albert":
        return dropout_rate(c, "classifier_dropout_prob", 0.1)
    hidden = dropout_rate(c, "hidden_dropout_prob", 0.1)
    return hidden if kind == "mpnet" else dropout_rate(c, "classifier_dropout", hidden)


def fields(core: ModelConfig, head: float) -> dict[str, float]:
    """Return the fields of a config.json with the rates of blocks and head."""
    rates, albert = core.dropout, core.architecture == "albert"
    if core.architecture == "distilbert":
        return dict(
            dropout=rates.mlp_output,
            attention_dropout=rates.attention,
            seq_classif_dropout=head,
        )
    return dict(
        hidden_dropout_prob=rates.mlp_output,
        attention_probs_dropout_prob=rates.attention,
        **{"classifier_dropout_prob" if albert else "classifier_dropout": head},
    )
