"""The statistics agree with scipy where scipy has them, and keep their promises where it has not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats
from scipy.spatial import distance

from mlflow_deploy.monitoring import stats

RNG = np.random.default_rng(20130201)


@pytest.mark.parametrize("freedom", [1, 2, 5, 11, 60, 400])
@pytest.mark.parametrize("factor", [0.01, 0.5, 0.9, 1.0, 1.1, 2.0, 20.0])
def test_chi2_survival_is_scipys(freedom: int, factor: float) -> None:
    assert stats.chi2_survival(freedom * factor, freedom) == pytest.approx(
        scipy_stats.chi2.sf(freedom * factor, freedom), rel=1e-9, abs=1e-14
    )


def test_gamma_upper_is_scipys_at_its_ends() -> None:
    assert stats.gamma_upper(3.0, 0.0) == 1.0
    assert stats.gamma_upper(3.0, 5000.0) == 0.0
    assert stats.gamma_upper(0.5, 1e-12) == pytest.approx(special.gammaincc(0.5, 1e-12), rel=1e-12)


@pytest.mark.parametrize(("rows", "window"), [(5_000, 800), (800, 5_000), (1_000, 1_000)])
def test_chi2_of_two_samples_is_scipys_contingency_test(rows: int, window: int) -> None:
    shares = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    reference, current = RNG.multinomial(rows, shares), RNG.multinomial(window, shares)
    expected = scipy_stats.chi2_contingency([reference, current], correction=False)
    statistic, freedom, p_value = stats.chi2_two_samples(reference, current)
    assert (statistic, freedom) == (pytest.approx(expected.statistic), expected.dof)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_chi2_needs_two_filled_bins() -> None:
    assert stats.chi2_two_samples(np.array([9, 0]), np.array([5, 0])) == (0.0, 0, 1.0)
    assert stats.chi2_two_samples(np.array([0, 0]), np.array([5, 5])) == (0.0, 0, 1.0)


def test_jensen_shannon_is_scipys_for_many_rows() -> None:
    reference, current = np.array([5, 3, 2, 0]) * 1_000_000, np.array([3, 3, 3, 1]) * 1_000_000
    expected = distance.jensenshannon(reference, current, base=2)
    assert stats.jensen_shannon(reference, current) == pytest.approx(expected, abs=1e-5)
    assert stats.jensen_shannon(np.array([7, 0]), np.array([0, 0])) == 0.0
    assert stats.jensen_shannon(np.array([10**6, 0]), np.array([0, 10**6])) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("window", [200, 1_000, 20_000])
def test_jensen_shannon_does_not_grow_when_windows_get_smaller(window: int) -> None:
    shares = np.full(12, 1 / 12)
    moved = np.array([1.6, 0.4, *[1.0] * 10]) / 12
    truth = distance.jensenshannon(shares, moved, base=2)
    measured = [
        stats.jensen_shannon(RNG.multinomial(50_000, shares), RNG.multinomial(window, moved))
        for _ in range(200)
    ]
    assert np.median(measured) == pytest.approx(truth, abs=0.015)


@pytest.mark.parametrize(
    ("reference", "rows", "current", "window"),
    [(0, 5_000, 3, 200), (50, 5_000, 4, 200), (10, 400, 90, 300), (400, 400, 299, 300), (7, 9, 0, 5)],
)
def test_share_rose_is_fishers_exact_test(reference: int, rows: int, current: int, window: int) -> None:
    table = [[current, window - current], [reference, rows - reference]]
    greater = scipy_stats.fisher_exact(table, alternative="greater").pvalue
    assert stats.share_rose(reference, rows, current, window) == pytest.approx(greater, rel=1e-9)
    less = scipy_stats.fisher_exact(table, alternative="less").pvalue
    assert stats.share_changed(reference, rows, current, window) == pytest.approx(
        min(1.0, 2 * min(greater, less)), rel=1e-9
    )


def test_share_rose_of_many_rows_is_near_the_exact_value() -> None:
    rows = 2_000_000
    exact = scipy_stats.hypergeom.sf(400_999, 2 * rows, 400_000 + 401_000, rows)
    assert stats.share_rose(400_000, rows, 401_000, rows) == pytest.approx(exact, rel=0.01)


def test_holm_is_the_textbook_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_rare_bins_are_pooled_alike_in_both_samples() -> None:
    reference, current = np.array([900, 60, 30, 5, 5]), np.array([90, 6, 3, 0, 1])
    pooled_reference, pooled_current = stats.pool_rare_bins(reference, current)
    assert pooled_reference.sum() == reference.sum()
    assert pooled_current.sum() == current.sum()
    share = (pooled_reference + pooled_current) / (reference.sum() + current.sum())
    assert (share * current.sum() >= stats.MIN_EXPECTED).all()
    assert pooled_reference.size == pooled_current.size == 2


def test_nothing_is_pooled_when_all_bins_are_well_filled() -> None:
    reference, current = np.array([500, 500]), np.array([60, 40])
    assert [part.tolist() for part in stats.pool_rare_bins(reference, current)] == [[500, 500], [60, 40]]


def test_pooling_survives_when_every_bin_is_rare() -> None:
    reference, current = stats.pool_rare_bins(np.array([1, 1, 1]), np.array([2, 0, 1]))
    assert (reference.tolist(), current.tolist()) == ([3], [3])
