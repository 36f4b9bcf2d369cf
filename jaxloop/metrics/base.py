"""What a metric is, and how to add one.

To add a metric, write a function in the file of its group (`lexical.py`, `semantic.py`, …) and add
a `Metric` to the tuple `METRICS` at the end of that file. The function takes the inputs named in
`needs` (see `INPUTS`), each with a leading chain axis [c], and returns one number per chain, [c].
Its keyword arguments are options that a config can set in the metric's name:
"knn_cosine_diversity(k=50)". Its docstring gives formula, range, source, and the value for
collapsed output (no text, one text, or texts that are all alike). To add a group, write a new file
and add it to `registry.GROUPS`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

INPUTS = {
    "texts": "the texts of each chain: [c] lists of strings",
    "reference_texts": "texts to compare with: one list for all chains, or [c] lists",
    "contexts": "the context (document) that each text belongs to: [c] lists",
    "embeddings": "[c, n, d] array, [c] arrays, or a function from a list of strings to [n, d]",
    "reference_embeddings": "[m, d] array to compare with, or [c] arrays; if absent, "
    "reference_texts under `embeddings`, if a function",
    "projection": "the evaluation UMAP (metrics/umap.py): a function from embeddings [n, d] to "
    "points [n, 2], or [c] functions",
    "entity_embeddings": "embeddings of what the entities of each chain wrote: [c] arrays "
    "[entities, prompts, d]",
    "losses": "held-out texts under the generating model: [c] objects with nll [n] and tokens [n]",
    "own_losses": "generated texts under the model that wrote them, in the same form",
    "reference_losses": "generated texts under a fixed reference model, in the same form",
    "token_nll": "-ln p of every held-out token: [c] lists of arrays",
}
# Inputs that may be given once for all chains; all others have one entry for each chain.
SHARED_INPUTS = frozenset({"reference_texts", "reference_embeddings"})

TEXTS = ("texts",)
TEXTS_AND_REFERENCE = ("texts", "reference_texts")
EMBEDDINGS = ("embeddings",)
EMBEDDINGS_AND_REFERENCE = ("embeddings", "reference_embeddings")
PROJECTION = ("projection",)

UNIT_INTERVAL = (0.0, 1.0)
NOT_NEGATIVE = (0.0, None)
UNBOUNDED = (None, None)

Range = tuple[float | None, float | None]


class Unavailable(RuntimeError):
    """A metric's backend (an endpoint, a model) cannot be reached.

    `registry.evaluate` then makes the metric's values nan and computes the others.
    """


@dataclass(frozen=True)
class Metric:
    """A function from inputs with a leading chain axis to one number per chain.

    Attributes:
        name: what configs call it.
        function: function(*inputs named in `needs`, **options) -> [chains].
        needs: names of its inputs, see `INPUTS`.
        range: (least, largest) value; None where there is no bound.
        unit: unit of its values; "" for a pure number.
        per_text: function(*inputs, **options) -> [chains] arrays [n], the value of every single
            text; None if single texts have no value.
        old_options: names that options had in earlier versions, {old name: current name}.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    range: Range = UNBOUNDED
    unit: str = ""
    per_text: Callable[..., Any] | None = None
    old_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def doc(self) -> str:
        """The function's docstring: formula, range, source, and the value of collapsed output."""
        return inspect.getdoc(self.function) or ""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that a name can set, with their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[len(self.needs) :]
        return {p.name: p.default for p in parameters}
