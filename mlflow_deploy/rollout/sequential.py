"""Confidence sequences for a share: bounds that hold at every moment at once, however often one looks.

A rollout looks at its error rates after every few requests and stops when it likes. Bounds made for one look
would be wrong far more often than they say; these are wrong at any time during the whole rollout with at most
the declared probability. They come from the beta-binomial mixture martingale (Ville 1939, Robbins 1970): the
likelihood ratio of a mixture over all shares against one share exceeds 1/alpha ever with probability at most
alpha when that share is the true one.
"""

from __future__ import annotations

import math

_ITERATIONS = 60


def share_bounds(hits: float, trials: int, alpha: float) -> tuple[float, float]:
    """Lower and upper bound of a share.

    A trial may also count as a fraction of a hit. The bounds hold for its mean then too, because the likelihood
    ratio of a fraction is at most the weighted mean of those of a hit and a miss.

    Args:
        hits: how often it happened.
        trials: how often it could have.
        alpha: probability that the bounds ever miss the true share.

    Raises:
        ValueError: more hits than trials, or alpha is not between 0 and 1.
    """
    if not 0 <= hits <= trials or not 0 < alpha < 1:
        raise ValueError(f"{hits} of {trials} at alpha {alpha} makes no sense")
    if trials == 0:
        return 0.0, 1.0
    mean = hits / trials
    limit = math.log(1 / alpha)
    lower = _root(hits, trials, limit, 0.0, mean) if hits else 0.0
    upper = _root(hits, trials, limit, 1.0, mean) if hits < trials else 1.0
    return lower, upper


def _root(hits: float, trials: int, limit: float, outside: float, inside: float) -> float:
    """The share between `outside`, which the data refute, and `inside` at which they begin to."""
    for _ in range(_ITERATIONS):
        middle = (outside + inside) / 2
        if _evidence_against(middle, hits, trials) >= limit:
            outside = middle
        else:
            inside = middle
    return outside


def _evidence_against(share: float, hits: float, trials: int) -> float:
    """Logarithm of the mixture's likelihood ratio against a share."""
    misses = trials - hits
    # log of the beta function B(hits + 1, misses + 1): the mixture with a uniform prior
    mixture = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(trials + 2)
    at_share = (hits * math.log(share) if hits else 0.0) + (misses * math.log1p(-share) if misses else 0.0)
    return mixture - at_share
