"""What the neurons of a model version are: one weight and one mean activation per layer and
coordinate of the residual stream (arXiv 2410.15234, section 5.4; 12 x 768 = 9,216 of them in
GPT-2). `jaxloop.studies.bias_amplification.neuron_study` tests them.

Dimensions: V versions, L layers, R rows, T time, D model, F mlp.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.family import place
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import Spec, sites
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.step import FitSettings

# The paper does not say which tensor its weights are. `down` (c_proj, fc2, down_proj) writes the
# mlp's output into the stream, `up` (c_fc, fc1, gate_proj with up_proj) reads from it; a matrix is
# reduced over the F side, by its length or its mean.
WEIGHTS = ("down_norm", "down_mean", "down_bias", "up_norm", "up_mean")
AVERAGES = ("tokens", "texts", "released")


class Reading(NamedTuple):
    """Texts ready to be read by every version: batches of tokens [R, T] with the weight [R, T] of
    each token in the mean, which sum to at most 1; how the mean is taken; numbers of texts and of
    tokens that enter it.
    """

    batches: list[tuple[np.ndarray, np.ndarray]]
    average: str
    texts: int
    tokens: int


def check(
    spec: Spec, *, tensor: str = "down_norm", average: str = "tokens", max_length: int | None = None
) -> None:
    """Raises ValueError for a tensor that the architecture does not have, an unknown average, and a
    max_length outside 1 .. context.
    """
    if tensor not in WEIGHTS:
        raise ValueError(f"tensor={tensor!r}: allowed are {', '.join(WEIGHTS)}")
    if tensor == "down_bias" and not spec.mlp_bias:
        raise ValueError(
            f"tensor={tensor!r}: this {spec.architecture} model has no bias in its mlp; choose "
            f"one of {', '.join(t for t in WEIGHTS if t != tensor)}"
        )
    if average not in AVERAGES:
        raise ValueError(f"average={average!r}: allowed are {', '.join(AVERAGES)}")
    if max_length is not None and not 1 <= max_length <= spec.context:
        raise ValueError(
            f"max_length={max_length}: must be between 1 and the model's context of {spec.context}"
        )


def prepare(
    model: Model,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    rows: int = 8,
    average: str = "tokens",
) -> Reading:
    """Tokenises the texts that every version reads, `rows` of similar length to a batch, each cut
    at max_length tokens (None: 512 or the model's context).

    average: "tokens" (every token of every text counts the same), "texts" (mean over texts of their
    own means), or "released" (the paper's code: arrays are cut to the shortest text, filled up with
    zeros and divided by texts x max_length, so that only the first tokens count and all values
    shrink by the same factor). Raises ValueError as `check` does, without texts, and for a text
    without tokens.
    """
    check(model.spec, average=average, max_length=max_length)
    limit = min(512, model.spec.context) if max_length is None else max_length
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
    order, batches = np.argsort(lengths, kind="stable"), []
    for at in range(0, len(order), rows):
        chosen = np.concatenate(
            [order[at : at + rows], np.full(max(0, rows - len(order[at:])), -1, np.int64)]
        )
        dispatch = batching.Dispatch(
            batching.bucket(int(lengths[chosen[chosen >= 0]].max()), limit), chosen[None]
        )
        tokens, mask = batching.fill(examples, dispatch, 1, model.tokenizer.pad)
        batches.append(
            (tokens[0], np.where(mask[0], np.where(chosen < 0, 0.0, share[chosen])[:, None], 0.0))
        )
    return Reading(batches, average, len(ids), int(lengths.sum()))


def activations(
    model: Model, reading: Reading, version: Any = None, *, settings: FitSettings = FitSettings()
) -> np.ndarray:
    """Mean output of every block, [L, D] float64: the residual stream after it, before the final
    norm.

    version: weights as training gives them, all of them or an adapter, without chain axis (None:
    the model's own); settings: the Lora of an adapter and the dtype of the forward pass. Sums over
    a row's tokens are taken in float32, over rows and batches in float64.
    """
    params, fused = place(model, version, settings)
    total = np.zeros((model.spec.layers, model.spec.width))
    for tokens_RT, share_RT in reading.batches:
        scale = share_RT.max()  # so that float32 sums are of order one
        rows_LRD = _row_sums(
            model.spec,
            target_of(model.spec, params),
            params,
            fused,
            tokens_RT,
            (share_RT / scale).astype(np.float32),
        )
        total += np.asarray(rows_LRD, np.float64).sum(1) * scale
    return total


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_sums(spec, target, params, fused, tokens_RT, share_RT):
    rows, time = tokens_RT.shape

    def watch(x_ND):
        x_RTD = x_ND.reshape(rows, time, -1).astype(jnp.float32)
        return jnp.einsum("rt,rtd->rd", share_RT, x_RTD, precision=jax.lax.Precision.HIGHEST)

    return transformer.hidden(spec, params, tokens_RT, fused=fused, watch=watch, target=target)[1]


def weights(
    model: Model,
    version: Any = None,
    *,
    tensor: str = "down_norm",
    settings: FitSettings = FitSettings(),
) -> np.ndarray:
    """The weight of every neuron, [L, D] float64; `version` and `settings` as in `activations`, an
    adapter being added to its base.

    tensor: "down_norm" (L2 norm of what the mlp writes into a coordinate, the default),
    "down_mean", "down_bias", "up_norm" or "up_mean" (of what the mlp reads from it; gate and up
    projection together). Raises ValueError as `check` does.
    """
    check(model.spec, tensor=tensor)
    site, reduction = tensor.split("_")
    whole = model.params if version is None or "embed" not in version else version
    adapter = None if version is None or whole is version else version
    if reduction == "bias":
        return np.asarray(whole["layers"]["down_bias"], np.float64)
    axis = 0 if site == "down" else 1
    out = np.empty((model.spec.layers, model.spec.width))
    for i in range(model.spec.layers):
        w = _matrix(model.spec, whole, adapter, site, i, settings)
        out[i] = np.sqrt(np.square(w).sum(axis)) if reduction == "norm" else w.mean(axis)
    return out


def _matrix(spec, params, adapter, site, layer, settings) -> np.ndarray:
    """One layer's fused projection [in, out] with the adapter's product added, in float64."""
    w = np.array(params["layers"][site][layer], np.float64)
    at = 0
    for part in sites(spec)[site]:
        if adapter is not None and part.name in adapter:
            a, b = (
                np.asarray(adapter[part.name][factor][layer], np.float64) for factor in ("a", "b")
            )
            w[:, at : at + part.width] += settings.lora.scale * (a @ b)
        at += part.width
    return w


def tables(
    model: Model,
    versions: Iterable[Any],
    reading: Reading,
    *,
    tensor: str = "down_norm",
    settings: FitSettings = FitSettings(),
    done=None,
) -> dict[str, np.ndarray]:
    """{"weight": [V, L, D], "activation": [V, L, D]} of many versions, float64, for
    `studies.bias_amplification.neuron_study.neuron_study`.

    versions: as `version` of `activations`, in any iterable; with a generator that loads one
    checkpoint at a time, one version is held at a time, and what is kept of 66 versions of GPT-2 is
    10 MB. done: called with the number of versions read so far. Raises ValueError as `check` does,
    before anything is read.
    """
    check(model.spec, tensor=tensor)
    made: dict[str, list[np.ndarray]] = {"weight": [], "activation": []}
    for number, version in enumerate(versions, 1):
        made["weight"].append(weights(model, version, tensor=tensor, settings=settings))
        made["activation"].append(activations(model, reading, version, settings=settings))
        if done is not None:
            done(number)
    shape = (model.spec.layers, model.spec.width)
    return {name: np.array(rows).reshape(len(rows), *shape) for name, rows in made.items()}
