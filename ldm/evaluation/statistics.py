"""Statistics over patients: what a difference between two methods on the same patients is worth.

The patient is the unit: slices of one brain are no independent observations, and neither are
training seeds. Every function is deterministic; the order of the input does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import combinations
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
# With five pairs the smallest two-sided p of the signed-rank test is 2 / 2^5 = 0.0625, and of five
# values even the widest interval of the median, from the smallest to the largest, covers 93.75 %.
FEWEST = 6


class Summary(NamedTuple):
    """One quantity over patients; NaN for what is not defined."""

    mean: float
    sd: float  # sample standard deviation; needs two values
    median: float
    low: float  # 95 % interval of the mean; needs FEWEST values
    high: float
    median_low: float  # 95 % interval of the median; needs FEWEST values
    median_high: float
    n: int  # values that are not NaN


class Comparison(NamedTuple):
    """Two rows on the patients that both have; positive where ``row`` has the larger values."""

    row: str
    other: str
    n: int  # patients with a value in both rows
    difference: float  # mean of the paired differences
    low: float  # 95 % interval of it
    high: float
    p: float  # two-sided Wilcoxon signed-rank test
    p_holm: float  # the same, corrected for the number of comparisons
    effect: float  # matched-pairs rank-biserial correlation, -1 to 1


class Seeds(NamedTuple):
    """Several trainings of one method on the same patients."""

    scores: dict[str, float]  # subject -> mean over the seeds
    means: dict[str, float]  # seed -> mean over the patients that all seeds have
    sd: float  # sample standard deviation of ``means``


def summarise_values(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and median with their intervals.

    Args:
        values: one a patient; NaN means no value. An infinite one (the PSNR of an exact prediction)
            makes the mean infinite and leaves standard deviation and intervals undefined.
    """
    return _summary(tuple(sorted(v for v in values if not isnan(v))))  # any order, same bytes


@lru_cache(maxsize=10_000)  # every table asks for the same again
def _summary(values: tuple[float, ...]) -> Summary:
    """Summarise sorted values."""
    found = np.array(values)
    if not found.size:
        return Summary(*[nan] * 7, 0)
    several = found.size > 1 and bool(np.isfinite(found).all())
    enough = several and found.size >= FEWEST
    return Summary(
        float(found.mean()),
        float(found.std(ddof=1)) if several else nan,
        float(np.median(found)),
        *(mean_interval(found) if enough else (nan, nan)),
        *(median_interval(found) if enough else (nan, nan)),
        found.size,
    )


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t (1908).

    Of few patients it covers the true mean more often than bootstrap intervals do: simulated, 95 %
    of normal values at any number of patients, where BCa covers 80 to 93 % at 6 to 10.
    """
    half = _quantiles(values.size)[0] * values.std(ddof=1) / values.size**0.5
    return float(values.mean() - half), float(values.mean() + half)


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the median between two of the sorted values; of any distribution.

    The true median lies between the k-th smallest and the k-th largest of n unless fewer than k
    values are on one side of it, which is binomial (Thompson 1936); k is the largest that covers.
    """
    k = _quantiles(values.size)[1]
    return float(values[k - 1]), float(values[-k])


@cache
def _quantiles(n: int) -> tuple[float, int]:
    """Return Student's t of the mean of ``n`` values, and the place in order of the median's."""
    from scipy.stats import binom, t

    below = (1 - CONFIDENCE) / 2
    return float(t.ppf(1 - below, n - 1)), int(binom.ppf(below, n, 0.5))


def compare(
    scores: Mapping[str, Mapping[str, float]], reference_row: str | None = None
) -> list[Comparison]:
    """Compare rows pairwise on the same patients, with Holm's correction over all comparisons.

    Two-sided Wilcoxon signed-rank tests (Wilcoxon 1945; exact up to 50 pairs without ties, and
    always up to 13), corrected by Holm (1979), with the matched-pairs rank-biserial correlation as
    effect size (Kerby 2014): the share of rank sum in favour of ``row`` less that against it.

    Args:
        scores: row -> subject -> value. Patients without a value in both rows (NaN, absent) are
            left out of a pair.
        reference_row: compare every other row with this one; None: each row with each.
    """
    if reference_row is None:
        pairs = list(combinations(scores, 2))
    else:
        pairs = [(row, reference_row) for row in scores if row != reference_row]
    found = [_compare(*pair, scores) for pair in pairs]
    corrected = holm([comparison.p for comparison in found])
    return [c._replace(p_holm=p) for c, p in zip(found, corrected, strict=True)]


def _compare(row: str, other: str, scores: Mapping[str, Mapping[str, float]]) -> Comparison:
    from scipy.stats import wilcoxon

    shared = sorted(set(scores[row]) & set(scores[other]))
    pairs = np.array([(scores[row][s], scores[other][s]) for s in shared]).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    equal = pairs[:, 0] == pairs[:, 1]  # also two infinite values
    gaps = np.where(equal, 0.0, np.subtract(*np.where(equal[:, None], 0.0, pairs).T))
    summary = summarise_values(gaps)
    differing = gaps[gaps != 0]
    p = nan if not gaps.size else float(wilcoxon(gaps).pvalue) if differing.size else 1.0
    interval = (summary.low, summary.high)
    return Comparison(row, other, gaps.size, summary.mean, *interval, p, nan, rank_biserial(gaps))


def leading(scores: Mapping[str, Mapping[str, float]], higher: bool) -> list[str]:
    """Return the row of the best mean, and those that no paired test tells from it.

    Every other row is compared with the best (:func:`compare`): it is worse where p after Holm is
    below 0.05 and most of the rank sum is against it. Where no row is worse, none leads.

    Args:
        scores: row -> subject -> value.
        higher: values are the better the higher.
    """
    sign = 1 if higher else -1
    means = {row: summarise_values(list(values.values())).mean for row, values in scores.items()}
    known = {row: sign * mean for row, mean in means.items() if not isnan(mean)}
    if len(known) < 2:
        return []
    best = max(known, key=known.__getitem__)
    found = compare({row: scores[row] for row in known}, best)
    worse = {c.row for c in found if c.p_holm < 1 - CONFIDENCE - 1e-12 and sign * c.effect < 0}
    return [row for row in known if row not in worse] if worse else []


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Matched-pairs rank-biserial correlation, ``(W+ - W-) / (W+ + W-)``; zeros do not count.

    Returns:
        1 if every difference is positive, -1 if every one is negative, 0 if neither side outweighs
        the other (or none differs); NaN without differences.
    """
    from scipy.stats import rankdata

    differing = differences[differences != 0]
    if not differences.size or np.isnan(differences).any():
        return nan
    ranks = rankdata(np.abs(differing))
    return float(np.sum(np.sign(differing) * ranks) / ranks.sum()) if ranks.size else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by the step-down procedure of Holm (1979); NaN stays NaN."""
    adjusted = [nan] * len(p_values)
    valid = sorted((p, place) for place, p in enumerate(p_values) if not isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(valid):
        largest = max(largest, min(1.0, p * (len(valid) - rank)))
        adjusted[place] = largest
    return adjusted


def over_seeds(runs: Mapping[str, Mapping[str, float]]) -> Seeds:
    """Average the scores of each patient over training seeds, and report the spread apart.

    Tests between methods use the averages: seeds are repeats of one patient, not more patients.

    Args:
        runs: seed -> subject -> value. NaN and absent patients do not enter.
    """
    known = {
        seed: {subject: value for subject, value in scores.items() if not isnan(value)}
        for seed, scores in runs.items()
    }
    subjects = sorted(set().union(*known.values()))
    averages = {
        subject: float(np.mean([scores[subject] for scores in known.values() if subject in scores]))
        for subject in subjects
    }
    shared = [s for s in subjects if all(s in scores for scores in known.values())]
    means = {
        seed: float(np.mean([scores[s] for s in shared])) if shared else nan
        for seed, scores in known.items()
    }
    return Seeds(averages, means, summarise_values(list(means.values())).sd)


def smallest_p(n: int, comparisons: int = 1) -> float:
    """Smallest two-sided p of the signed-rank test of ``n`` pairs, Holm-corrected."""
    return min(1.0, comparisons * 2.0 / 2**n) if n else inf


def fewest_patients(comparisons: int) -> int:
    """Fewest patients with whom one of so many comparisons can reach a corrected p below 0.05."""
    p = 1 - CONFIDENCE - 1e-12
    return next(n for n in range(1, 1024) if smallest_p(n, comparisons) < p)
