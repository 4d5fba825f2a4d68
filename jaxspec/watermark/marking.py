"""Swaps of red tokens for green ones."""

import numpy as np

from jaxspec.errors import ConfigError


def mark(
    tokens: np.ndarray,
    mates: np.ndarray,
    green: np.ndarray,
    *,
    log_p: np.ndarray | None = None,
    mate_log_p: np.ndarray | None = None,
    threshold: float = float("inf"),
) -> np.ndarray:
    """Swaps red tokens for the green codes of their pairs, where these are likely.

    Source: IndexMark (arXiv 2505.14673), whose threshold is a percentile of the ratios
    of a batch; here it is a number, so that an image does not depend on others.

    Args:
      tokens: int [..., T]; -1 where there is none.
      mates: int32 [K], see `pair_codes`.
      green: bool [K], see `green_codes`.
      log_p: float [..., T], log-probability in nats of each token when it was sampled.
      mate_log_p: float [..., T], that of the other code of its pair in its place.
      threshold: nats by which a green code may be less likely than the red one that it
        replaces; infinite to swap all.

    Returns:
      Tokens of the same shape and dtype.

    Raises:
      ConfigError: a finite threshold without log-probabilities, or one that is NaN.
    """
    if np.isnan(threshold):
        raise ConfigError("the threshold of a watermark is NaN; give nats")
    exists = tokens >= 0
    known = np.where(exists, tokens, 0)
    swaps = exists & ~green[known] & (mates[known] >= 0)
    if threshold < np.inf:
        if log_p is None or mate_log_p is None:
            raise ConfigError("a finite threshold needs log-probabilities")
        swaps &= np.asarray(log_p) <= np.asarray(mate_log_p) + threshold
    return np.where(swaps, mates[known], tokens).astype(tokens.dtype)
