"""Detection of a watermark, with the exact probability of a false alarm."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detection:
    """Result of a test for one key.

    Attributes:
      green: number of green tokens.
      tokens: number of tokens whose code has a pair.
      p_value: probability that a random key has at least as many green tokens in these
        images; of several tests, of which this is the surest, a bound of that of any
        being as sure.
      tests: number of tests.
    """

    green: int
    tokens: int
    p_value: float
    tests: int = 1

    @property
    def share(self) -> float:
        """Share of green tokens; one half is expected without a watermark."""
        return self.green / max(self.tokens, 1)


def detect(tokens: np.ndarray, mates: np.ndarray, green: np.ndarray) -> Detection:
    """Tests tokens of one or several images for a watermark.

    The probability of a false alarm is exact for any image that was made without the
    key, however often its codes repeat: the key is random, one fair coin for each pair,
    so the number of green tokens is a sum of independent terms whose distribution is
    computed. The usual normal approximation counts repeated codes as independent.

    Args:
      tokens: int [..., T]; -1 where there is none.
      mates: int32 [K], see `pair_codes`.
      green: bool [K], see `green_codes`.
    """
    found = np.asarray(tokens).reshape(-1)
    found = found[found >= 0]
    found = found[mates[found] >= 0]
    counts = np.bincount(found, minlength=len(mates))
    total, count = int(counts[green].sum()), len(found)
    codes = np.flatnonzero(mates > np.arange(len(mates)))
    apart = np.abs(counts[codes] - counts[mates[codes]])
    least = int(np.minimum(counts[codes], counts[mates[codes]]).sum())
    return Detection(total, count, _tail(apart[apart > 0], total - least))


def _tail(steps: np.ndarray, least: int) -> float:
    """Probability that random ones of `steps` add up to at least `least`."""
    law = np.zeros(int(steps.sum()) + 1)
    law[0] = 1.0
    for step in steps:
        moved = np.zeros_like(law)
        moved[step:] = law[:-step]
        law = (law + moved) / 2
    return float(min(law[max(least, 0) :].sum(), 1.0))
