"""The cells of a diversity study: which models are trained, on what, for which experiment."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxloop.recursion.chains import chain_id
from jaxloop.studies.common.factors import short_name
from jaxloop.studies.diversity.config import EXPERIMENTS, DiversityConfig
from jaxloop.studies.diversity.sets import Counts, mixture


class Cell(NamedTuple):
    """A model that is trained: its task, base and seed, and what its training set is made of.

    level: 0 to 6 of the generated records, None where there are none; duplicates, shift: of a
    crossed set of the control, else None.
    """

    task: str
    base: str
    seed: int
    counts: Counts
    level: int | None = None
    duplicates: float | None = None
    shift: float | None = None

    @property
    def set_name(self) -> str:
        """Name of the training set, which models share: "story-D3-r0-g60-s1"."""
        if self.duplicates is not None:
            crossed = f"d{self.duplicates:g}-o{self.shift:g}"
            return f"{self.task}-crossed-n{self.counts.generated}-{crossed}-s{self.seed}"
        level = "real" if self.level is None else f"D{self.level}"
        return f"{self.task}-{level}-r{self.counts.real}-g{self.counts.generated}-s{self.seed}"

    @property
    def factors(self) -> dict[str, object]:
        """Columns of metrics.csv that identify the cell."""
        total = sum(self.counts)
        level = "real" if self.level is None else f"D{self.level}"
        if self.duplicates is not None:
            level = "crossed"
        crossed = {
            "duplicates": -1.0 if self.duplicates is None else self.duplicates,
            "shift": -1.0 if self.shift is None else self.shift,
        }
        named = {
            "task": self.task,
            "base": short_name(self.base),
            "level": level,
            "real": self.counts.real,
            "generated": self.counts.generated,
        }
        return named | {"rho": self.counts.generated / total} | crossed | {"seed": self.seed}


def chain_name(cell: Cell, *, several_bases: bool) -> str:
    """Return the id of the chain that trains a cell's model."""
    base = chain_id({"base": short_name(cell.base)}) + "_" if several_bases else ""
    return base + cell.set_name


def experiments(settings: DiversityConfig) -> dict[str, list[Cell]]:
    """Return the cells of every experiment that is on. A cell may serve several experiments."""
    cells_of: dict[str, list[Cell]] = {}
    for name in EXPERIMENTS:
        grid = getattr(settings, name)
        cells = [
            Cell(task, base, seed, counts, level if counts.generated else None)
            for task in settings.tasks
            for size in (getattr(grid, task) if grid.levels else ())
            for counts in (mixture(rho, grid.mixing, size) for rho in grid.ratios)
            for level in grid.levels
            for base in (grid.models or settings.models.pool)
            for seed in settings.seeds
        ]
        if cells:
            cells_of[name] = list(dict.fromkeys(cells))
    c = settings.control
    crossed = [
        Cell(
            task,
            settings.models.pool[0],
            seed,
            Counts(0, getattr(c, task)),
            None,
            duplicates,
            shift,
        )
        for task in settings.tasks
        if getattr(c, task)
        for duplicates in c.duplicates
        for shift in c.shifts
        for seed in settings.seeds
    ]
    return cells_of | ({"crossed": crossed} if crossed else {})


def all_cells(settings: DiversityConfig) -> list[Cell]:
    """Return every cell once, in the order of the experiments."""
    return list(dict.fromkeys(cell for cells in experiments(settings).values() for cell in cells))


def needed(cells: Sequence[Cell], task: str) -> dict[int, int]:
    """Return {level: generated records} that the cells of a task take at most."""
    counts: dict[int, int] = {}
    for cell in cells:
        if cell.task == task and cell.level is not None:
            counts[cell.level] = max(counts.get(cell.level, 0), cell.counts.generated)
    return dict(sorted(counts.items()))


def pool_name(cell: Cell) -> str:
    """Return the name of the generated set that a cell draws from. A crossed set is its own."""
    if cell.duplicates is not None:
        return f"{cell.set_name}-generated"
    return f"{cell.task}-D{cell.level}"
