"""Statistics over patients against scipy, closed forms, published procedures and enumeration."""

from itertools import product
from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ldm.evaluation.statistics import (
    compare,
    fewest_patients,
    holm,
    leading,
    mean_interval,
    median_interval,
    over_seeds,
    rank_biserial,
    smallest_p,
    summarise_values,
)


def scores(values, first=0):
    return {f"patient {first + place}": value for place, value in enumerate(values)}


@pytest.fixture
def ten():
    """PSNR of ten patients, and of a method that gains about 1 dB on each."""
    rng = np.random.default_rng(0)
    base = rng.normal(27, 1.5, 10)
    return base, base + rng.normal(1, 0.4, 10)


def test_summary_is_that_of_numpy_and_scipy(ten):
    values, _ = ten
    summary = summarise_values(values)
    assert summary.mean == pytest.approx(values.mean())
    assert summary.sd == pytest.approx(values.std(ddof=1))
    assert summary.median == pytest.approx(np.median(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (summary.low, summary.high) == pytest.approx(tuple(expected))
    expected = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (summary.median_low, summary.median_high) == pytest.approx(tuple(expected))
    assert summary.n == 10


@pytest.mark.parametrize("n", [6, 10, 20])
def test_the_printed_intervals_cover_the_truth(n):
    """Simulated: 95 % of the intervals hold the true mean and median, to the error of 4000 draws.

    Of normal values; of skewed ones (log-normal, sigma 0.5) the mean is covered a little less, the
    median as before. A bootstrap interval of six normal values covers the mean in 80 to 83 %.
    """
    rng = np.random.default_rng(n)

    def covered(draws, interval, truth):
        ends = np.array([interval(np.sort(values)) for values in draws])
        return np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))

    normal, skewed = rng.normal(27, 1.5, (4000, n)), rng.lognormal(0, 0.5, (4000, n))
    assert covered(normal, mean_interval, 27) == pytest.approx(0.95, abs=0.012)
    assert 0.9 < covered(skewed, mean_interval, np.exp(0.125)) < 0.96
    for draws, truth in ((normal, 27), (skewed, 1)):
        assert 0.94 < covered(draws, median_interval, truth) < 0.99


def test_interval_agrees_with_the_normal_one_for_many_patients():
    values = np.random.default_rng(1).normal(27, 1.5, 400)
    half = 1.96 * values.std(ddof=1) / 20
    summary = summarise_values(values)
    assert summary.low == pytest.approx(values.mean() - half, abs=0.02)
    assert summary.high == pytest.approx(values.mean() + half, abs=0.02)


def test_summary_of_corner_cases():
    assert summarise_values([]).n == 0
    assert all(map(isnan, summarise_values([nan])[:7]))
    assert summarise_values([3.0, nan])[:3] == pytest.approx((3, nan, 3), nan_ok=True)
    two = summarise_values([1.0, 3.0])
    assert (two.mean, two.sd) == (2, pytest.approx(np.sqrt(2)))
    five, six = (summarise_values([5.0] * n) for n in (5, 6))
    assert all(map(isnan, five[3:7])) and six[3:7] == (5, 5, 5, 5)
    infinite = summarise_values([20.0, inf, 22.0])  # an exact prediction
    assert infinite.mean == inf
    assert infinite.median == 22
    assert isnan(infinite.sd)
    assert isnan(infinite.low)


@given(st.permutations([20.1, 22.7, 19.3, 31.9, 25.5]))
def test_order_does_not_matter(values):
    assert summarise_values(values) == summarise_values(sorted(values))


def test_wilcoxon_equals_the_enumeration_of_all_signs():
    """The p-value is the share of the 2^n sign patterns with a rank sum at least as extreme."""
    gaps = np.array([0.4, -0.1, 0.9, 0.3, -0.2, 1.3, 0.7])
    ranks = stats.rankdata(np.abs(gaps))
    observed = abs(np.sum(np.sign(gaps) * ranks))
    sums = [abs(np.dot(signs, ranks)) for signs in product((-1, 1), repeat=7)]
    expected = np.mean(np.array(sums) >= observed - 1e-9)
    (found,) = compare({"a": scores(27 + gaps), "b": scores(np.full(7, 27.0))})
    assert found.p == pytest.approx(expected)
    assert found.difference == pytest.approx(gaps.mean())


def test_comparison_follows_the_patients_not_their_order(ten):
    base, better = ten
    one = compare({"new": scores(better), "old": scores(base)})
    shuffled = dict(reversed(scores(base).items()))
    assert compare({"new": scores(better), "old": shuffled}) == one
    assert one[0].difference == pytest.approx(np.mean(better - base))
    assert one[0].effect == 1  # every patient gains
    assert one[0].p == pytest.approx(2 / 2**10)
    assert 0 < one[0].low < one[0].difference < one[0].high


def test_swapped_rows_mirror_each_other(ten):
    base, better = ten
    gaps = np.array([1, 1, -1, 1, 1, -1, 1, 1, 1, 1]) * (better - base)
    rows = {"x": scores(base + gaps), "y": scores(base)}
    (there,), (back,) = compare(rows), compare(dict(reversed(rows.items())))
    assert (there.difference, there.effect) == (-back.difference, pytest.approx(-back.effect))
    assert there.p == pytest.approx(back.p)
    assert 0 < there.effect < 1


def test_pairing_finds_what_the_means_hide():
    """Patients differ by 3 dB, methods by 0.2 dB: the means overlap, the pairs do not."""
    rng = np.random.default_rng(2)
    base = rng.normal(27, 3, 20)
    (found,) = compare({"a": scores(base + rng.normal(0.2, 0.05, 20)), "b": scores(base)})
    assert found.p < 1e-4
    assert stats.ttest_ind(base + 0.2, base).pvalue > 0.5


def test_holm_equals_a_worked_example():
    """Four p-values times 4, 3, 2 and 1, never falling and at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, nan, 0.5]) == pytest.approx([1.0, nan, 1.0], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p <= corrected <= min(1, p * len(p_values)) + 1e-12


def test_every_pair_is_compared_and_corrected_together(ten):
    base, better = ten
    rows = {"a": scores(base), "b": scores(better), "c": scores(base + 0.01)}
    found = compare(rows)
    assert [(c.row, c.other) for c in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [c.p_holm for c in found] == pytest.approx(holm([c.p for c in found]))
    against = compare(rows, reference_row="a")
    assert [(c.row, c.other) for c in against] == [("b", "a"), ("c", "a")]
    assert against[0].p == pytest.approx(found[0].p)
    with pytest.raises(KeyError):
        compare(rows, reference_row="z")


def test_patients_that_one_row_lacks_are_left_out(ten):
    base, better = ten
    partly = scores(better)
    del partly["patient 3"]
    partly["patient 5"] = nan
    (found,) = compare({"new": partly, "old": scores(base)})
    kept = [i for i in range(10) if i not in (3, 5)]
    assert found.n == 8
    assert found.difference == pytest.approx(np.mean((better - base)[kept]))


def test_corner_cases_of_a_comparison():
    same = scores([20.0, 21.0, 22.0])
    (equal,) = compare({"a": same, "b": dict(same)})
    assert (equal.difference, equal.p, equal.effect) == (0, 1, 0)
    (nobody,) = compare({"a": same, "b": scores([1.0], first=9)})
    assert nobody.n == 0
    assert isnan(nobody.p)
    assert isnan(nobody.p_holm)
    exact = scores([inf, inf, inf])
    (both,) = compare({"a": exact, "b": dict(exact)})
    assert (both.difference, both.p) == (0, 1)
    (infinite,) = compare({"a": exact, "b": same})
    assert (infinite.difference, infinite.effect) == (inf, 1)
    assert compare({"a": same}) == []


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9])
def test_smallest_p_is_reached_when_all_patients_agree(n):
    (found,) = compare({"a": scores(27 + np.arange(1.0, n + 1)), "b": scores(np.full(n, 27.0))})
    assert found.p == pytest.approx(smallest_p(n))
    assert (smallest_p(n) < 0.05) == (n >= 6)


@given(st.integers(1, 60))
def test_the_patients_asked_for_are_just_enough(comparisons):
    n = fewest_patients(comparisons)
    assert smallest_p(n, comparisons) < 0.05 <= smallest_p(n - 1, comparisons)


def test_rank_biserial_is_the_share_of_ranks_for_less_that_against():
    gaps = np.array([3.0, -1.0, 2.0, 0.0])  # ranks 3 and 2 for, 1 against
    assert rank_biserial(gaps) == pytest.approx((3 + 2 - 1) / 6)
    assert isnan(rank_biserial(np.array([])))


def test_seeds_are_repeats_of_a_patient_not_more_patients(ten):
    base, _ = ten
    seeds = {str(seed): scores(base + shift) for seed, shift in enumerate((-0.3, 0.0, 0.3))}
    found = over_seeds(seeds)
    assert found.scores == pytest.approx(scores(base))
    assert found.sd == pytest.approx(0.3)
    assert list(found.means.values()) == pytest.approx(base.mean() + np.array([-0.3, 0, 0.3]))


def test_a_patient_that_failed_in_one_seed():
    """Its mean is that of the other seeds; seeds are compared on the patients they share."""
    found = over_seeds({"0": {"a": 20.0, "b": 10.0}, "1": {"a": 22.0, "b": nan}})
    assert found.scores == {"a": 21, "b": 10}
    assert found.means == {"0": 20, "1": 22}


def test_the_best_leads_with_what_no_test_tells_from_it(ten):
    """And nobody where every row is as good, or alone."""
    base, better = ten
    rows = {"base": scores(base), "better": scores(better), "copy": scores(better + 1e-6)}
    flat = scores(better + 0.01 * (-1.0) ** np.arange(10))
    assert leading({**rows, "copy": flat, "none": {}}, higher=True) == ["better", "copy"]
    assert leading(rows, higher=True) == ["copy"]  # on every patient, by however little
    assert leading(rows, higher=False) == ["base"]
    assert leading({"better": scores(better), "copy": flat}, higher=True) == []
    assert leading({"base": scores(base)}, higher=True) == []
    assert leading({r: scores([*v.values()][:5]) for r, v in rows.items()}, higher=True) == []


def test_a_mean_that_one_patient_lifts_does_not_lead_alone():
    """The test tells them apart, but in favour of the other."""
    base = np.linspace(20, 21, 12)
    rows = {"lifted": scores(np.r_[base[:-1] - 0.2, 90]), "steady": scores(base), "low": {}}
    worst = scores(base - 5)
    assert leading({**rows, "low": worst}, higher=True) == ["lifted", "steady"]
