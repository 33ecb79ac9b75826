"""Models a layer's chosen experts as a random set of fixed size: the conditional Poisson (maximum entropy) design.

A step uses exactly k of a layer's n experts. Only the inclusion probability of each expert is known: how often a step
uses the expert. Many distributions over sets of k experts have these inclusion probabilities. The conditional Poisson
design is the distribution of greatest entropy among them, and therefore assumes nothing else:

    P(S) = prod_{i in S} w_i / e_k(w)          e_k: the k-th elementary symmetric function of all weights

The weights are the odds w_i = p_i / (1 - p_i) of independent coins. The design is the distribution of the coins under
the condition that exactly k coins show heads. The weights are determined up to a common factor. Here the factor is set
so that sum p_i = k, which makes k the likeliest number of heads. Every recursion below therefore runs over
probabilities and adds only positive numbers, so no recursion can overflow or cancel.

    symbol   paper           here
    pi_i     inclusion       `inclusion`, shape (..., n)
    w_i      weight          `weights`, shape (..., n)
    k        sample size     `chosen`

All functions accept any number of designs at once, one per row.

Source: ZipMoE (arXiv 2601.21198), hierarchical cache planning; Chen, Dempster & Liu, "Weighted finite population
sampling to maximize entropy", Biometrika 81 (1994).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zipmoe.errors import InvalidRequest

Floats = NDArray[np.float64]

_MAX_ROUNDS = 1000
_CERTAIN = 1e-12  # probabilities are clipped to this distance from 0 and 1
_CENTRED = 1e-9


def fit_weights(inclusion: Floats, *, tolerance: float = 1e-9) -> Floats:
    """Finds the weights with which the design has given inclusion probabilities, by iterative proportional fitting.

    Chen, Dempster and Liu's round is w_i <- w_i * pi_i / pi_i(w). This round converges slowly where pi_i is near 1,
    because doubling such a weight hardly changes the probability. Experts with pi_i above 1/2 instead move half of the
    distance in the log-odds of pi_i, which has the same fixed point.

    Args:
        inclusion: float64, shape (..., n), each in [0, 1]; every row sums to the same whole number k of 1 to n.
        tolerance: largest error of a probability at which to stop.

    Returns:
        Float64, same shape, above 0: the odds of coins that show k heads on average. After 1000 rounds the result has
        the accuracy of the last round.

    Raises:
        InvalidRequest: `inclusion` is not as described above.

    Cost: a round is O(n k) a row; about 10 rounds for probabilities below 1/4, at most about 26 for any.
    Source: Chen, Dempster & Liu (1994), section 3.
    """
    chosen = _chosen(inclusion)
    if chosen == inclusion.shape[-1]:
        return np.full_like(inclusion, 1 / _CERTAIN)
    target = np.clip(inclusion, _CERTAIN, 1 - _CERTAIN)
    likely = target > 0.5
    weights = target / (1 - target)
    for _ in range(_MAX_ROUNDS):
        reached = np.clip(inclusion_probabilities(weights, chosen), _CERTAIN, 1 - _CERTAIN)
        if np.abs(reached - target).max(initial=0.0) <= tolerance:
            break
        step = target / reached
        odds_step = np.sqrt(step * (1 - reached) / (1 - target))
        weights = centre(weights * np.where(likely, odds_step, step), chosen, rounds=1)
    return centre(weights, chosen)


def inclusion_probabilities(weights: Floats, chosen: int) -> Floats:
    """Computes each expert's exact inclusion probability, pi_i = w_i e_{k-1}(w without i) / e_k(w).

    Args:
        weights: float64, shape (..., n), above 0 and centred, as returned by `fit_weights`.
        chosen: k, 1 to n.

    Returns:
        Float64, same shape; each row sums to k.
    """
    p = coins(weights)
    before = _heads_before(p, chosen)
    after = _heads_before(p[..., ::-1], chosen)[::-1]
    # The other coins show k - 1 heads: c among the coins before i, k - 1 - c among the coins after i.
    others = np.einsum("n...c,n...c->n...", before[:-1, ..., :chosen], after[1:, ..., chosen - 1 :: -1])
    others = np.moveaxis(others, 0, -1)
    result: Floats = p * others / before[-1, ..., chosen, None]
    return result


def heads(p: Floats, most: int) -> Floats:
    """Computes the distribution of the number of heads of independent coins (Poisson binomial), up to `most` heads.

    Args:
        p: float64, shape (..., n), in [0, 1]; n may be 0.
        most: at least 0.

    Returns:
        Float64, shape (..., most + 1): the probability of 0, 1, .. `most` heads.
    """
    result: Floats = _heads_before(p, most)[-1]
    return result


def coins(weights: Floats) -> Floats:
    """Turns odds into probabilities of heads."""
    p: Floats = weights / (1 + weights)
    return p


def centre(weights: Floats, chosen: int, *, rounds: int = 100) -> Floats:
    """Scales the weights of each design until the design's coins show k heads on average.

    A common factor of all weights does not change the design.

    Args:
        weights: float64, shape (..., n), above 0.
        chosen: k, 1 to n - 1.
        rounds: largest number of Newton steps on the logarithm of the factor. Each step is at most 1.
    """
    for _ in range(rounds):
        p = coins(weights)
        excess = chosen - p.sum(axis=-1, keepdims=True)
        if np.abs(excess).max(initial=0.0) < _CENTRED:
            break
        variance = (p * (1 - p)).sum(axis=-1, keepdims=True)
        # Clipped because the slope is a poor guide far from the solution.
        weights = weights * np.exp(np.clip(excess / np.maximum(variance, _CERTAIN), -1.0, 1.0))
    return weights


def _heads_before(p: Floats, most: int) -> Floats:
    """Computes the distributions of heads among the first 0, 1, .. n coins; shape (n + 1, ..., most + 1)."""
    count = p.shape[-1]
    result = np.zeros((count + 1, *p.shape[:-1], most + 1))
    result[0, ..., 0] = 1.0
    for index in range(count):
        head = p[..., index, None]
        np.multiply(result[index], 1 - head, out=result[index + 1])
        result[index + 1, ..., 1:] += result[index, ..., :-1] * head
    return result


def _chosen(inclusion: Floats) -> int:
    if inclusion.ndim < 1 or inclusion.size == 0 or not np.isfinite(inclusion).all():
        raise InvalidRequest(f"inclusion probabilities have shape {inclusion.shape} or are not all finite")
    if inclusion.min() < 0 or inclusion.max() > 1:
        raise InvalidRequest(f"inclusion probabilities are {inclusion.min()} to {inclusion.max()}, not 0 to 1")
    sums = inclusion.sum(axis=-1)
    chosen = round(float(sums.flat[0]))
    if chosen < 1 or np.abs(sums - chosen).max() > 1e-6:
        raise InvalidRequest(f"inclusion probabilities sum to {sums.min()} to {sums.max()}, not to one whole number")
    return chosen
