"""How large a benchmark is, and how much of it is done, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

from ldm.benchmark.plan import GridCell, Training
from ldm.util import how_many

LOST = {"failed": "failed", "partial": "with failed patients"}  # states of which a reader is told


def trainings_of(cells: Iterable[GridCell]) -> list[Training]:
    """Return each training of the cells once."""
    return list({c.training.folder: c.training for c in cells if c.training}.values())


def to_train(cells: Iterable[GridCell]) -> list[Training]:
    """Return those trainings that are not runs of before, in the order in which they begin."""
    ordered = sorted(cells, key=lambda cell: cell.number)
    return [training for training in trainings_of(ordered) if not training.is_given]


def planned(cells: Sequence[GridCell]) -> str:
    """Return what a grid holds: ``10 cells: 6 samplings of 4 trainings (2 rows x 2 seeds)``."""
    own, every = to_train(cells), trainings_of(cells)
    axes = {name: {getattr(t, name) for t in own} for name in ("row", "space", "seed")}
    counts = {n: len(v) for n, v in axes.items() if n != "space" or len(v) > 1}
    grid = " x ".join(how_many(count, name) for name, count in counts.items())
    is_whole = prod(counts.values()) == len(own)  # not where a space is one of some rows alone
    sources = [how_many(len(own), "training") + (f" ({grid})" if is_whole else "")]
    if given := len(every) - len(own):
        sources = [*(sources if own else []), f"{how_many(given, 'run')} trained before"]
    sampled = sum(cell.training is not None for cell in cells)
    parts = [f"{how_many(sampled, 'sampling')} of {' and '.join(sources)}"]
    if baselines := len(cells) - sampled:
        parts.append(how_many(baselines, "baseline"))
    return f"{how_many(len(cells), 'cell')}: {', '.join(parts)}"


def tally(states: Sequence[str]) -> str:
    """Return how many cells are done, by their states: ``3 of 10 cells done, 1 failed``."""
    found = Counter(states)
    lost = [f"{found[state]} {told}" for state, told in LOST.items() if found[state]]
    return ", ".join([f"{found['done']} of {len(states)} cells done", *lost])
