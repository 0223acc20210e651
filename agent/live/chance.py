"""How likely chance alone explains what was counted: a few failures of a few requests prove nothing."""

from __future__ import annotations

import math


def tail(k: int, n: int, p: float) -> float:
    """The probability of ``k`` or more of ``n`` independent events of probability ``p``; 1 where ``k`` is no more than
    what is expected. Binomial, summed term by term.
    """
    if k <= n * p or k <= 0:
        return 1.0
    if p <= 0:
        return 0.0
    log_term = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(p) + (n - k) * math.log1p(-p)
    )  # fmt: skip
    term = total = math.exp(log_term)
    odds = p / (1 - p)
    for i in range(k, n):
        term *= (n - i) / (i + 1) * odds  # above the mean each is smaller than the one before
        total += term
        if term <= total * 1e-12:
            break
    return min(1.0, total)
