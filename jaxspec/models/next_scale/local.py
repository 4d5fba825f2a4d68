"""Attention of late maps to tokens nearby."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from jaxspec.errors import ConfigError


class NearbyKeys(NamedTuple):
    """Slots that blocks of tokens attend to; constants of a program.

    Attributes:
      queries: places in the map, int32 [blocks, t], of the tokens of each block.
      keys: slots, int32 [blocks, n], that all tokens of a block attend to.
      order: place, int32 [T], of each token of the map among those of all blocks.
    """

    queries: np.ndarray
    keys: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class LocalAttention:
    """Attention of the last maps to tokens nearby; static. Lossy.

    A token of the last maps attends to all tokens of the first maps and, in each map
    after these (its own is one), to those nearby: the cells that its block of the image
    covers and `radius` more on each side. Windows that would reach over an edge are
    moved inside, so that all blocks attend to equally many tokens.

    Source: the cross-scale local attention of SparVAR (arXiv 2602.04361), as far as its
    abstract describes it; the shape of blocks and windows is ours.

    Attributes:
      maps: number of the last maps whose tokens attend so.
      whole: number of the first maps that every token attends to.
      radius: cells of a map beside a block that it attends to.
      block: side of a block, in cells; the tokens of a block share their keys.

    Raises:
      ConfigError: a number is out of range.
    """

    maps: int
    whole: int = 1
    radius: int = 1
    block: int = 4

    def __post_init__(self):
        for name, least in (("maps", 1), ("whole", 0), ("radius", 0), ("block", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; choose {least} or more"
                )

    def check(self, sides: tuple[int, ...]) -> None:
        """Checks the number of maps.

        Args:
          sides: sides of the token maps.

        Raises:
          ConfigError: there are fewer maps.
        """
        if max(self.maps, self.whole) > len(sides):
            raise ConfigError(
                f"maps={self.maps} and whole={self.whole} of {len(sides)} maps; choose "
                f"at most {len(sides)}"
            )

    def nearby(self, sides: tuple[int, ...], scale: int) -> NearbyKeys | None:
        """Slots that the tokens of a map attend to; None for all.

        Args:
          sides: sides of the token maps.
          scale: the map.
        """
        if scale < len(sides) - self.maps:
            return None
        return _nearby(self, sides[: scale + 1])


@cache
def _nearby(local: LocalAttention, sides: tuple[int, ...]) -> NearbyKeys:
    side = sides[-1]
    block = min(local.block, side)
    starts = [min(at, side - block) for at in range(0, side, block)]
    corners = [(row, column) for row in starts for column in starts]
    queries = np.stack([_cells(side, corner, block) for corner in corners])
    keys, slot = [], 0
    for k, other in enumerate(sides):
        if k < local.whole:
            found = np.tile(np.arange(other * other), (len(corners), 1))
        else:
            first = {at: at * other // side for at in starts}
            last = {at: -(-(at + block) * other // side) for at in starts}
            width = max(last[at] - first[at] for at in starts) + 2 * local.radius
            width = min(width, other)
            start = {
                at: min(max(first[at] - local.radius, 0), other - width)
                for at in starts
            }
            found = np.stack(
                [_cells(other, (start[row], start[col]), width) for row, col in corners]
            )
        keys.append(slot + found)
        slot += other * other
    flat = queries.reshape(-1)
    order = np.unique(flat, return_index=True)[1]  # where a token is in two, the first
    arrays = queries, np.concatenate(keys, axis=1), order
    return NearbyKeys(*(x.astype(np.int32) for x in arrays))


def _cells(side: int, corner: tuple[int, int], width: int) -> np.ndarray:
    """Places of a square of cells in a map."""
    rows, columns = (at + np.arange(width) for at in corner)
    return (rows[:, None] * side + columns).reshape(-1)
