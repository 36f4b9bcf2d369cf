"""What the neurons of a model version are: one weight and one mean activation per layer and
coordinate of the residual stream (arXiv 2410.15234, section 5.4; 12 x 768 = 9,216 of them in
GPT-2). `jaxloop.studies.bias_amplification.neuron_study` tests them.

Dimensions: V versions, L layers, R rows, T time, D model, F mlp.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config import FitConfig
from jaxloop.lm.family import params_of
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import ModelConfig, fused_projections
from jaxloop.lm.model.lora import Adapter, as_adapter
from jaxloop.lm.target import Target, target_of
from jaxloop.lm.training import batching
from jaxloop.runtime.devices import platform_of

# The paper does not say which tensor its weights are. `down` (c_proj, fc2, down_proj) writes the
# mlp's output into the stream, `up` (c_fc, fc1, gate_proj with up_proj) reads from it; a matrix is
# reduced over the F side, by its length or its mean.
WEIGHTS = ("down_norm", "down_mean", "down_bias", "up_norm", "up_mean")
AVERAGES = ("tokens", "texts", "released")


class TokenBatches(NamedTuple):
    """Texts ready to be read by every version.

    Attributes:
        batches: tokens [R, T] with the weight [R, T] of each in the mean; weights of all batches
            sum to at most 1.
        average: how the mean is taken.
        texts: how many texts enter it.
        tokens: how many tokens do.
    """

    batches: list[tuple[np.ndarray, np.ndarray]]
    average: str
    texts: int
    tokens: int


def check(
    model_config: ModelConfig,
    *,
    tensor: str = "down_norm",
    average: str = "tokens",
    max_length: int | None = None,
) -> None:
    """Raise ValueError for a tensor that the architecture does not have, an unknown average, and a
    max_length outside 1 .. context.
    """
    if tensor not in WEIGHTS:
        raise ValueError(f"tensor={tensor!r}: allowed are {', '.join(WEIGHTS)}")
    if tensor == "down_bias" and not model_config.mlp_bias:
        raise ValueError(
            f"tensor={tensor!r}: this {model_config.architecture} model has no bias in its mlp; "
            f"choose one of {', '.join(t for t in WEIGHTS if t != tensor)}"
        )
    if average not in AVERAGES:
        raise ValueError(f"average={average!r}: allowed are {', '.join(AVERAGES)}")
    if max_length is not None and not 1 <= max_length <= model_config.max_seq_len:
        raise ValueError(
            f"max_length={max_length}: must be between 1 and the model's context of "
            f"{model_config.max_seq_len}"
        )


def prepare(
    model: Model,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    rows: int = 8,
    average: str = "tokens",
) -> TokenBatches:
    """Tokenise the texts that every version reads, `rows` of similar length to a batch.

    Args:
        model: its tokenizer and context.
        texts: at least one.
        max_length: tokens that a text is cut to; None: 512 or the model's context.
        rows: texts of a batch.
        average: "tokens" (every token of every text counts the same), "texts" (mean over texts of
            their own means), or "released" (the paper's code: arrays are cut to the shortest text,
            filled up with zeros and divided by texts x max_length, so that only the first tokens
            count and all values shrink by the same factor).

    Raises:
        ValueError: as `check` does; no texts, or a text without tokens.
    """
    check(model.config, average=average, max_length=max_length)
    limit = min(512, model.config.max_seq_len) if max_length is None else max_length
    if rows < 1:
        raise ValueError(f"rows={rows}: must be at least 1")
    if not len(texts):
        raise ValueError("texts: there are none; the mean activation needs at least one")
    ids = [np.array(i[:limit], np.int32) for i in model.tokenizer.encode(texts)]
    empty = [n for n, i in enumerate(ids) if not len(i)]
    if empty:
        raise ValueError(f"texts: number {empty[0]} has no tokens; leave it out")
    if average == "released":
        shortest = min(len(i) for i in ids)
        ids = [i[:shortest] for i in ids]
    lengths = np.array([len(i) for i in ids])
    share = {
        "tokens": np.full(len(ids), 1 / lengths.sum()),
        "texts": 1 / (len(ids) * lengths),
        "released": np.full(len(ids), 1 / (len(ids) * limit)),
    }[average]
    examples = batching.Examples(ids, np.zeros(len(ids), np.int64))
    batches = []
    for batch in batching.evaluation_batches(lengths, rows, limit, platform_of(model.params)):
        chosen = batch.rows[0]
        tokens, mask = batching.fill(examples, batch, 1, model.tokenizer.pad)
        share_R1 = np.where(chosen < 0, 0.0, share[chosen])[:, None]
        batches.append((tokens[0], np.where(mask[0], share_R1, 0.0)))
    return TokenBatches(batches, average, len(ids), int(lengths.sum()))


def activations(
    model: Model, batches: TokenBatches, version: Any = None, *, fit: FitConfig = FitConfig()
) -> np.ndarray:
    """Return the mean output of every block, [L, D] float64: the residual stream after it, before
    the final norm.

    Sums over a row's tokens are taken in float32, over rows and batches in float64.

    Args:
        model: the base.
        batches: the texts.
        version: weights as training gives them, all of them or an adapter, without chain axis;
            None: the model's own.
        fit: the `lora` of an adapter that is a plain tree, and the dtype of the forward pass.
    """
    params, packed = params_of(model, version, fit)
    total = np.zeros((model.config.num_layers, model.config.d_model))
    for tokens_RT, share_RT in batches.batches:
        scale = share_RT.max()  # so that float32 sums are of order one
        rows_LRD = _row_sums(
            model.config,
            target_of(model.config, params),
            params,
            packed,
            jnp.asarray(tokens_RT),
            jnp.asarray((share_RT / scale).astype(np.float32)),
        )
        total += np.asarray(rows_LRD, np.float64).sum(1) * scale
    return total


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_sums(
    model_config: ModelConfig,
    target: Target,
    params: dict,
    packed: Any,
    tokens_RT: jax.Array,
    share_RT: jax.Array,
) -> jax.Array:
    rows, seq_len = tokens_RT.shape

    def watch(x_ND: jax.Array) -> jax.Array:
        x_RTD = x_ND.reshape(rows, seq_len, -1).astype(jnp.float32)
        return jnp.einsum("rt,rtd->rd", share_RT, x_RTD, precision=jax.lax.Precision.HIGHEST)

    return transformer.hidden(
        model_config, params, tokens_RT, packed=packed, watch=watch, target=target
    )[1]


def weights(
    model: Model,
    version: Any = None,
    *,
    tensor: str = "down_norm",
    fit: FitConfig = FitConfig(),
) -> np.ndarray:
    """Return the weight of every neuron, [L, D] float64.

    Args:
        model: the base.
        version: as in `activations`; an adapter is added to its base.
        tensor: "down_norm" (L2 norm of what the mlp writes into a coordinate), "down_mean",
            "down_bias", "up_norm" or "up_mean" (of what the mlp reads from it; gate and up
            projection together).
        fit: as in `activations`.

    Raises:
        ValueError: as `check` does.
    """
    check(model.config, tensor=tensor)
    projection, reduction = tensor.split("_")
    whole = model.params if version is None or "embed" not in version else version
    adapter = None
    if version is not None and whole is not version:
        adapter = as_adapter(version, fit.lora)
    if reduction == "bias":
        return np.asarray(whole["layers"]["down_bias"], np.float64)
    axis = 0 if projection == "down" else 1
    out = np.empty((model.config.num_layers, model.config.d_model))
    for i in range(model.config.num_layers):
        w = _matrix(model.config, whole, adapter, projection, i)
        out[i] = np.sqrt(np.square(w).sum(axis)) if reduction == "norm" else w.mean(axis)
    return out


def _matrix(
    model_config: ModelConfig,
    params: dict,
    adapter: Adapter | None,
    projection: str,
    layer: int,
) -> np.ndarray:
    """One layer's fused projection [in, out] with the adapter's product added, in float64."""
    w = np.array(params["layers"][projection][layer], np.float64)
    at = 0
    for part in fused_projections(model_config)[projection]:
        if adapter is not None and part.name in adapter:
            a, b = (
                np.asarray(adapter[part.name][factor][layer], np.float64) for factor in ("a", "b")
            )
            w[:, at : at + part.width] += adapter.config.scale * (a @ b)
        at += part.width
    return w


def tables(
    model: Model,
    versions: Iterable[Any],
    batches: TokenBatches,
    *,
    tensor: str = "down_norm",
    fit: FitConfig = FitConfig(),
    progress: Callable[[int], object] | None = None,
) -> dict[str, np.ndarray]:
    """Return {"weight": [V, L, D], "activation": [V, L, D]} of many versions, float64, as
    `neuron_study.neuron_study` takes them.

    Args:
        model: the base.
        versions: as `version` of `activations`. Of a generator that loads one checkpoint at a
            time, one version is in memory at a time; the result for 66 versions of GPT-2 is 10 MB.
        batches: the texts.
        tensor: as in `weights`.
        fit: as in `activations`.
        progress: called with the number of versions read so far.

    Raises:
        ValueError: as `check` does, before anything is read.
    """
    check(model.config, tensor=tensor)
    rows: dict[str, list[np.ndarray]] = {"weight": [], "activation": []}
    for number, version in enumerate(versions, 1):
        rows["weight"].append(weights(model, version, tensor=tensor, fit=fit))
        rows["activation"].append(activations(model, batches, version, fit=fit))
        if progress is not None:
            progress(number)
    shape = (model.config.num_layers, model.config.d_model)
    return {name: np.array(values).reshape(len(values), *shape) for name, values in rows.items()}
