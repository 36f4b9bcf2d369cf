"""Models of `jaxloop.lm` as judges.

Dimensions: R rows, T tokens, D d_model, V vocabulary, K tokens that are numbers.
"""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxloop.config import SampleConfig
from jaxloop.lm import family
from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.tokenizer import Tokenizer, as_text, reading_special
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.target import Target, target_of
from jaxloop.metrics.judge_replies import (
    DOES_NOT_APPLY,
    Judgement,
    Message,
    Prompt,
    judgement,
    parse_reply,
)

_TOP = 20  # the paper's judge looks for a number among the 20 likeliest first tokens
_REPLY_TOKENS = 6  # enough for "100" in three tokens, with a space before and something after
# Joined tokens may be a few more than those of the parts.
_SPARE_TOKENS = 4
_LEAST_TEXT_TOKENS = 16


class NumberToken(NamedTuple):
    """A token that is a whole number; `DOES_NOT_APPLY` for "-" and "-1".

    spaced: whether a space stands before the number.
    """

    token: int
    value: int
    spaced: bool


def judge_by_model(
    texts: Sequence[str],
    model: Model,
    prompt: Prompt,
    role: str,
    batch: int | None,
    reply: str | None = None,
) -> Judgement:
    """Return a model's judgement of texts, see `judges.judge`."""
    template = chat_template(model)
    if template is not None:
        texts = [as_text(model.tokenizer, text) for text in texts]
        model = model._replace(tokenizer=reading_special(model.tokenizer))
    prompts = [
        render(model, template, prompt.messages(text, role))
        for text in _cut_to_context(texts, model, template, prompt, role)
    ]
    tokens = number_tokens(model.tokenizer)
    single = are_all_scores(tokens)
    if reply == "first_token" and not single:
        raise ValueError(
            f"reply = 'first_token': {model.name} writes numbers up to 100 in several tokens, of "
            "which the first is no score; take reply = 'short'."
        )
    if single and reply != "short":
        return _judge_first_token(model, prompts, tokens, prompt.none, batch)
    return _judge_short_replies(model, prompts, prompt)


def chat_template(model: Model) -> str | None:
    """Return the chat template that a model was loaded with, the default one of several."""
    template = model.chat_template
    if isinstance(template, list):
        return next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def render(model: Model, template: str | None, messages: Sequence[Message]) -> str:
    """Return the text that the model reads.

    It is what the chat template makes of the messages; without a template they stand on lines of
    their own.

    Raises:
        ValueError: the template cannot render the messages.
    """
    if template is None:
        return "\n".join(message["content"] for message in messages) + "\n"
    tokenizer = model.tokenizer
    bos = _token_text(tokenizer, tokenizer.bos) or ""
    try:
        text = _compiled(template).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=bos,
            eos_token=_token_text(tokenizer, tokenizer.eos),
            pad_token=_token_text(tokenizer, tokenizer.pad),
        )
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {model.name} cannot render messages of {roles} ({error}); "
            "role = 'user' sends one user message."
        ) from None
    puts_bos_itself = tokenizer.encode([""])[0][:1] == [tokenizer.bos]
    return text.removeprefix(bos) if bos and puts_bos_itself else text


def _token_text(tokenizer: Tokenizer, token: int | None) -> str | None:
    return None if token is None else tokenizer.backend.id_to_token(token)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """A chat template with the functions that those of the hub call."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _cut_to_context(
    texts: Sequence[str], model: Model, template: str | None, prompt: Prompt, role: str
) -> list[str]:
    """The texts, cut where the prompt would not fit into the model's context."""
    tokenizer, context = model.tokenizer, model.config.max_seq_len
    empty_prompt = render(model, template, prompt.messages("", role))
    around = len(tokenizer.encode([empty_prompt])[0])
    room = context - around - _REPLY_TOKENS - _SPARE_TOKENS
    if room < _LEAST_TEXT_TOKENS:
        raise ValueError(
            f"the {prompt.name} prompt has {around} tokens, which leave no room for a text in "
            f"the {context} tokens of {model.name}."
        )
    cut = []
    for text, ids in zip(texts, tokenizer.encode(texts, special=False), strict=True):
        cut.append(text if len(ids) <= room else tokenizer.decode([ids[:room]])[0])
    return cut


def number_tokens(tokenizer: Tokenizer) -> list[NumberToken]:
    """Return every token that is a whole number."""
    texts = tokenizer.decode([[token] for token in range(tokenizer.vocab_size)])
    numbers = []
    for token, text in enumerate(texts):
        bare = text.removeprefix(" ")
        if bare.isascii() and bare.isdigit() and (bare == "0" or bare[0] != "0"):
            numbers.append(NumberToken(token, int(bare), bare != text))
        elif bare in ("-", "-1"):
            numbers.append(NumberToken(token, DOES_NOT_APPLY, bare != text))
    return numbers


def are_all_scores(tokens: Sequence[NumberToken]) -> bool:
    """Return whether every score from 0 to 100 is a token, without a space before it."""
    return {token.value for token in tokens if not token.spaced} >= set(range(101))


def _judge_first_token(
    model: Model,
    prompts: Sequence[str],
    tokens: Sequence[NumberToken],
    none: bool,
    batch: int | None,
) -> Judgement:
    """Read the distribution of the first token, after one prefill."""
    chosen = [token for token in tokens if token.value >= 0 or none]
    ids_K = np.array([token.token for token in chosen], np.int32)
    values_K = np.array([token.value for token in chosen])
    run = functools.partial(
        _first_token,
        model.config,
        model.params,
        ids_K,
        target=target_of(model.config, model.params),
    )
    rows = encoders.over_batches(
        run,
        model.tokenizer.encode(prompts),
        limit=model.config.max_seq_len,
        batch=batch or encoders.default_batch(model.params),
    )
    rank_R, log_RK = rows[:, 0], rows[:, 1:].astype(np.float64)
    scores: list[int | None] = []
    for rank, value in zip(rank_R, values_K[log_RK.argmax(1)], strict=True):
        scores.append(None if rank >= _TOP or value > 100 else int(value))
    scale_K = (values_K >= 0) & (values_K <= 100)
    # Contiguous, so that a row is summed the same way however many there are.
    log_RK = np.ascontiguousarray(log_RK[:, scale_K])
    share_RK = np.exp(log_RK - log_RK.max(1, keepdims=True))
    mean_R = (share_RK * values_K[scale_K]).sum(1) / share_RK.sum(1)
    scored_R = [score is not None and score >= 0 for score in scores]
    return judgement(scores, np.where(scored_R, mean_R, np.nan))


@functools.partial(jax.jit, static_argnames=("config", "target"))
def _first_token(
    config: ModelConfig,
    params: dict[str, Any],
    ids_K: jax.Array,
    tokens_RT: jax.Array,
    length_R: jax.Array,
    target: Target,
) -> jax.Array:
    """How many tokens are likelier than all `ids_K`, and the log p of these: [R, 1 + K]."""
    with jax.named_scope("judge_first_token"):
        rolled = target.platform == "cpu"
        x_RTD = transformer.hidden(config, params, tokens_RT, rolled=rolled, target=target)
        last_R = jnp.maximum(length_R - 1, 0)
        last_RD = jnp.take_along_axis(x_RTD, last_R[:, None, None], 1)[:, 0]
        last_RD = transformer.final_norm(config, params, last_RD)
        logits_RV = transformer.lm_logits(config, params, last_RD)
        log_RK = logits_RV[:, ids_K] - jax.nn.logsumexp(logits_RV, -1, keepdims=True)
        rank_R = (logits_RV > logits_RV[:, ids_K].max(-1, keepdims=True)).sum(-1)
        return jnp.concatenate([rank_R[:, None].astype(jnp.float32), log_RK], -1)


def _judge_short_replies(model: Model, prompts: Sequence[str], prompt: Prompt) -> Judgement:
    """Let the model write a few tokens, which must be a number."""
    sample = SampleConfig(decoder="greedy", max_new_tokens=_REPLY_TOKENS)
    task = family.GenerateTask(jax.random.key(0), None, prompts, np.arange(len(prompts)))
    (result,) = family.generate(model, [task], sample)
    scores = [parse_reply(text, prompt.none) for text in result.texts]
    return judgement(scores, np.full(len(prompts), np.nan))
