"""Polynomial terms of contrasts: what the closed-form regression of one contrast on others uses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TypeVar

T = TypeVar("T")  # an array or tensor


def polynomial(contrasts: Sequence[T], degree: int) -> list[T]:
    """Return 1, each contrast and, of degree 2, the products x_i x_j for i <= j."""
    terms = [contrasts[0] * 0 + 1, *contrasts]
    if degree == 2:
        terms += [a * b for a, b in combinations_with_replacement(contrasts, 2)]
    return terms
