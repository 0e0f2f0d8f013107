"""How long work says that it goes on: by a function that wraps what is worked through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")
Done = TypeVar("Done")
READERS = 4  # threads; zlib releases the interpreter lock
PART_OF = "DSDIFF_PART_OF"  # in the environment of a process that a benchmark runs


def is_part() -> bool:
    """Return whether a benchmark runs this process, and says itself how to go on."""
    return PART_OF in os.environ


@runtime_checkable
class Progress(Protocol):
    """Yields the items and shows how many are done: ``tqdm.auto.tqdm``, ``rich.progress.track``."""

    def __call__(self, items: Iterable[Item], title: str, total: int | None, /) -> Iterable[Item]:
        """Return ``items``, wrapped; ``total`` is their number."""


def silent(items: Iterable[Item], title: str, total: int | None = None, /) -> Iterable[Item]:
    """Show nothing."""
    return items


def in_threads(
    work: Callable[[Item], Done],
    items: Sequence[Item],
    progress: Progress = silent,
    title: str = "",
) -> list[Done]:
    """Return what work that reads makes of each item, some at once, in their order."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(progress(pool.map(work, items), title, len(items)))


def unheard(told: Any, /) -> None:
    """Take what nobody asked to hear: a line, or the error of one subject."""
