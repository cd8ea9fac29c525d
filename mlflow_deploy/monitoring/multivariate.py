"""Multivariate drift: do columns still move together as they did, although each looks the same by itself?

Rows are reconstructed from a few principal components of the reference. Where a
relation between columns breaks,
the reconstruction gets worse. What error a window shows by chance is told by the errors of reference rows
that the components were not fitted on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bins = npt.NDArray[np.int64]

SAMPLE_ROWS = 20_000
MAX_COLUMNS = 100
MAX_COMPONENTS = 20
EXPLAINED = 0.65
MISSING = -1
MIN_ROWS = 200

_QUANTILES = 200
_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class MultivariateProfile:
    """Principal components of the reference, and how well they reconstruct rows that they did not see.

    Attributes:
        columns: names of the columns, at most `MAX_COLUMNS`.
        components: shape [components, columns]; rows are orthonormal.
        errors: quantiles of the reconstruction error of the held-out rows, one per equal share of them.
        rows: number of held-out rows.
    """

    columns: tuple[str, ...]
    components: tuple[tuple[float, ...], ...]
    errors: tuple[float, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A window's reconstruction error beside the reference's.

    Attributes:
        error: mean over the window's sample.
        error_reference: mean over the held-out reference rows.
        effect: their difference in standard deviations of a row's error.
        p_value: two-sided, against what samples of the reference's errors show.
    """

    error: float
    error_reference: float
    effect: float
    p_value: float


def sample_positions(rows: int) -> Bins:
    """Row numbers of the sample, rising; always the same ones for a number of rows."""
    if rows <= SAMPLE_ROWS:
        return np.arange(rows)
    # One row out of each of equal stretches, so that the whole time of the window is in it.
    stretches = np.linspace(0, rows, SAMPLE_ROWS + 1)
    offsets = np.random.default_rng(0).random(SAMPLE_ROWS)
    return (stretches[:-1] + offsets * np.diff(stretches)).astype(np.int64)


def fit(columns: Sequence[str], counts: Sequence[Sequence[int]], bins: Bins) -> MultivariateProfile | None:
    """Find the components on one half of the sample and their errors on the other.

    Args:
        columns: names, in the order of the columns of `bins`.
        counts: reference rows per bin of each column.
        bins: bin of each value of the sample, shape [rows, columns]; `MISSING` where there is none.

    Returns:
        None with fewer than two columns or too few rows to tell anything.
    """
    if len(columns) < 2 or len(bins) < 2 * MIN_ROWS:
        return None
    rows = np.random.default_rng(0).permutation(_encode(counts, bins))
    fitted, held_out = rows[::2], rows[1::2]
    values, vectors = np.linalg.eigh(fitted.T @ fitted / len(fitted))
    values, vectors = values[::-1], vectors[:, ::-1]
    if values.sum() <= 0.0:
        return None
    enough = int(np.searchsorted(np.cumsum(values) / values.sum(), EXPLAINED)) + 1
    components = vectors[:, : min(enough, MAX_COMPONENTS, len(columns) - 1)].T.round(_DIGITS)
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return MultivariateProfile(
        columns=tuple(columns),
        components=tuple(tuple(row) for row in components.tolist()),
        errors=tuple(np.quantile(_errors(held_out, components), middles).round(_DIGITS).tolist()),
        rows=len(held_out),
    )


def compare(profile: MultivariateProfile, counts: Sequence[Sequence[int]], bins: Bins) -> Comparison:
    """Reconstruct the window's rows and tell how far their error is from the reference's.

    Args:
        profile: what `fit` found.
        counts: as given to `fit`.
        bins: of the window's sample, at least one row.
    """
    components = np.asarray(profile.components)
    reference = np.asarray(profile.errors)
    # Errors beyond the outermost kept quantiles are cut on both sides alike, so that no single row decides.
    error = float(np.clip(_errors(_encode(counts, bins), components), reference[0], reference[-1]).mean())
    expected, spread = float(reference.mean()), float(reference.std())
    # What resampling both sides from the reference's errors converges to, without doing it for each window.
    by_chance = spread * math.sqrt(1.0 / len(bins) + 1.0 / profile.rows)
    distance = abs(error - expected) / by_chance if by_chance else 0.0
    return Comparison(
        error=error,
        error_reference=expected,
        effect=(error - expected) / spread if spread else 0.0,
        p_value=math.erfc(distance / math.sqrt(2.0)),
    )


def _errors(rows: Floats, components: Floats) -> Floats:
    """Euclidean length of what the components do not explain of each row."""
    return np.asarray(np.linalg.norm(rows - rows @ components.T @ components, axis=1), dtype=np.float64)


def _encode(counts: Sequence[Sequence[int]], bins: Bins) -> Floats:
    """Values for bins: normal scores of the reference's ranks, with mean 0 and variance 1; missing is 0."""
    encoded = np.empty(bins.shape)
    for index, column in enumerate(counts):
        encoded[:, index] = np.append(_scores(column), 0.0)[bins[:, index]]
    return encoded


def _scores(counts: Sequence[int]) -> Floats:
    weights = np.asarray(counts, dtype=np.float64)
    total = weights.sum()
    if not total:
        return np.zeros(weights.size)
    ranks = np.clip((np.cumsum(weights) - weights / 2.0) / total, 0.5 / total, 1.0 - 0.5 / total)
    normal = statistics.NormalDist()
    scores = np.array([normal.inv_cdf(rank) for rank in ranks.tolist()])
    scores -= (scores * weights).sum() / total
    spread = math.sqrt(float((scores**2 * weights).sum() / total))
    return np.asarray(scores / spread, dtype=np.float64) if spread else np.zeros(weights.size)
