"""Tokens of several sub-codes, such as the halves of a code of many bits.

Sources: BAE (arXiv 2410.16257), Open-MAGVIT2 (arXiv 2409.04410).
"""

from collections.abc import Sequence

from jaxspec.typing import Array, Float, Int


def split_codes(tokens: Int[Array, "..."], sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """Sub-codes of tokens, the most significant first.

    Args:
      tokens: tokens below the product of `sizes`.
      sizes: number of values of each sub-code.
    """
    found = []
    for size in sizes[::-1]:
        found.append(tokens % size)
        tokens = tokens // size
    return tuple(found[::-1])


def joint_scores(scores: Sequence[Float[Array, "... n"]]) -> Float[Array, "... V"]:
    """Scores of all tokens from those of the values of each sub-code: their sums.

    The softmax of the result is the product of the softmaxes, so that tokens are
    sampled, guided and verified as a whole while their sub-codes are independent.

    Args:
      scores: scores of the values of each sub-code, the most significant first.
    """
    total = scores[0]
    for other in scores[1:]:
        total = total[..., :, None] + other[..., None, :]
        total = total.reshape(*total.shape[:-2], -1)
    return total
