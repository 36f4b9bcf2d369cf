"""What the first rows of a source say about it, before anything is cleaned."""

from collections.abc import Sequence
from typing import Any

from jaxloop.data.batches import Batch, all_names, chosen
from jaxloop.studies.recursive_loops.config import Domain, LoopsConfig
from jaxloop.studies.recursive_loops.data import recipes


def columns(domain: Domain) -> list[str]:
    """Return the columns of a domain's source that its text and its rules are read from."""
    if domain.recipe == "plain":
        return [domain.text_column]
    recipe = recipes.RECIPES[domain.recipe]
    renamed = {of_recipe: of_source for of_source, of_recipe in domain.rename.items()}
    return [renamed.get(column, column) for column in (*recipe.columns, *recipe.optional)]


def check(config: LoopsConfig, domain: Domain, labels: Sequence[str], batch: Batch) -> None:
    """Raise ValueError where the first rows lack a column that is read, or have no known label.

    labels: the columns of labels that the experiment reads.
    """
    names = all_names(batch) if isinstance(batch, list) else list(batch)
    needed = [domain.text_column] if domain.recipe == "plain" else []
    if lacking := [column for column in (*needed, *labels) if column not in names]:
        raise ValueError(f"has no column {lacking[0]!r}; there are {', '.join(map(str, names))}")
    for column in labels:
        _check_sides(config, chosen(batch, [column])[column])


def _check_sides(config: LoopsConfig, labels: Sequence[Any]) -> None:
    """Raise ValueError where the labels of the first rows differ, and none is a side.

    Where all are one label the rows may be sorted by it, and the sides come later.
    """
    leaning = config.political_leaning
    seen = dict.fromkeys(str(label) for label in labels if label is not None)
    if len(seen) > 1 and not {leaning.left, leaning.right} & set(seen):
        raise ValueError(
            f"column '{leaning.label_column}' has {', '.join(map(repr, [*seen][:5]))} in its first "
            f"{len(labels):,} rows, and neither config.political_leaning.left = '{leaning.left}' "
            f"nor right = '{leaning.right}'"
        )
