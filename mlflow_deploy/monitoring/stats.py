"""Statistics of two samples of bin counts: effect size, significance, and correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

MIN_EXPECTED = 5.0
"""Smallest expected count of a bin for which the chi-square approximation is trusted (Cochran's rule)."""

_EXACT_SUPPORT = 200_000
_ITERATIONS = 100_000
_PRECISION = 1e-15


def pool_rare_bins(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    """Put bins that are too rare for a chi-square test together, in both samples alike.

    A bin is rare when its share of both samples together leaves either of them fewer than `MIN_EXPECTED`
    expected rows. The rare bins become one; when that is still rare, it joins the smallest other bin.

    Args:
        reference: counts of shape [bins].
        current: counts of the same bins.
    """
    together = reference + current
    smaller = min(reference.sum(), current.sum())
    rare = together * (smaller / max(int(together.sum()), 1)) < MIN_EXPECTED
    if not rare.any():
        return reference, current
    # Sorting puts the smallest of the other bins first: the one that a rare remainder joins.
    order = np.flatnonzero(~rare)[np.argsort(together[~rare], kind="stable")]
    kept_reference, kept_current = reference[order], current[order]
    rest_reference, rest_current = reference[rare].sum(), current[rare].sum()
    rest_expected = (rest_reference + rest_current) * (smaller / max(int(together.sum()), 1))
    if rest_expected < MIN_EXPECTED and order.size:
        kept_reference[0] += rest_reference
        kept_current[0] += rest_current
        return kept_reference, kept_current
    return np.append(kept_reference, rest_reference), np.append(kept_current, rest_current)


def chi2_two_samples(reference: Counts, current: Counts) -> tuple[float, int, float]:
    """Chi-square test that two samples of bin counts come from one distribution.

    Both are taken as samples: the reference is no exact distribution, and treating it as one gives false
    alarms when it is not much larger than the window.

    Returns:
        The statistic, its degrees of freedom, and the p-value; (0, 0, 1) when fewer than two bins are filled.
    """
    filled = (reference + current) > 0
    r, c = reference[filled].astype(float), current[filled].astype(float)
    if r.size < 2 or not r.sum() or not c.sum():
        return 0.0, 0, 1.0
    ratio = math.sqrt(c.sum() / r.sum())
    statistic = float((((ratio * r - c / ratio) ** 2) / (r + c)).sum())
    freedom = int(r.size) - 1
    return statistic, freedom, chi2_survival(statistic, freedom)


def chi2_survival(statistic: float, freedom: int) -> float:
    """Probability that a chi-square variable with `freedom` degrees of freedom exceeds `statistic`."""
    return gamma_upper(freedom / 2.0, statistic / 2.0)


def gamma_upper(a: float, x: float) -> float:
    """Regularised upper incomplete gamma function Q(a, x), for a > 0 and x >= 0."""
    if x <= 0.0:
        return 1.0
    log_scale = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1.0:
        return max(0.0, 1.0 - _gamma_series(a, x) * math.exp(log_scale))
    return _gamma_fraction(a, x) * math.exp(log_scale)


def _gamma_series(a: float, x: float) -> float:
    """The power series of the lower function; converges fast below x = a + 1."""
    term = total = 1.0 / a
    for step in range(1, _ITERATIONS):
        term *= x / (a + step)
        total += term
        if term < total * _PRECISION:
            break
    return total


def _gamma_fraction(a: float, x: float) -> float:
    """The continued fraction of the upper function by Lentz's method; converges fast above x = a + 1."""
    tiny = 1e-300
    b = x + 1.0 - a
    c, d = 1.0 / tiny, 1.0 / b
    value = d
    for step in range(1, _ITERATIONS):
        factor = -step * (step - a)
        b += 2.0
        d = 1.0 / (factor * d + b or tiny)
        c = b + factor / c or tiny
        change = c * d
        value *= change
        if abs(change - 1.0) < _PRECISION:
            break
    return value


def jensen_shannon(reference: Counts, current: Counts) -> float:
    """Jensen-Shannon distance of two samples of bin counts, in [0, 1]: root of the divergence in bits.

    The divergence that two samples of one distribution show by chance, (bins - 1) / 8 * (1/n + 1/m) nats to
    first order, is taken off, so that windows of different size can be compared. 0.1 is about what a shift of
    the mean by a quarter of a standard deviation gives.
    """
    n, m = int(reference.sum()), int(current.sum())
    if not n or not m:
        return 0.0
    p, q = reference / n, current / m
    middle = (p + q) / 2.0
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2.0
    by_chance = (int((middle > 0).sum()) - 1) / 8.0 * (1.0 / n + 1.0 / m)
    return math.sqrt(min(1.0, max(0.0, (divergence - by_chance) / math.log(2.0))))


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    filled = p > 0
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


def share_rose(reference: int, reference_rows: int, current: int, current_rows: int) -> float:
    """p-value of the one-sided test that a share is larger in the current rows than in the reference.

    Fisher's exact test, which holds for shares that the reference never showed; for more than 200,000
    possible outcomes, its normal approximation.
    """
    together, rows = reference + current, reference_rows + current_rows
    low, high = max(0, together - reference_rows), min(together, current_rows)
    if current <= low:
        return 1.0
    if high - low > _EXACT_SUPPORT:
        return _share_rose_normal(current, current_rows, together, rows)
    steps = np.arange(low, high, dtype=np.float64)
    log_ratio = (
        np.log(together - steps)
        + np.log(current_rows - steps)
        - np.log(steps + 1.0)
        - np.log(reference_rows - together + steps + 1.0)
    )
    log_weight = np.concatenate(([0.0], np.cumsum(log_ratio)))
    weight = np.exp(log_weight - log_weight.max())
    return min(1.0, float(weight[current - low :].sum() / weight.sum()))


def _share_rose_normal(current: int, current_rows: int, together: int, rows: int) -> float:
    mean = current_rows * together / rows
    variance = mean * (1.0 - together / rows) * (rows - current_rows) / (rows - 1)
    return 0.5 * math.erfc((current - 0.5 - mean) / math.sqrt(2.0 * variance))


def share_changed(reference: int, reference_rows: int, current: int, current_rows: int) -> float:
    """p-value of the two-sided test that a share differs: twice the smaller tail of `share_rose`."""
    rose = share_rose(reference, reference_rows, current, current_rows)
    fell = share_rose(
        reference_rows - reference, reference_rows, current_rows - current, current_rows
    )  # fewer of these rows is more of the others
    return min(1.0, 2.0 * min(rose, fell))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values: flagging those <= alpha keeps the chance of any false flag at most alpha."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
