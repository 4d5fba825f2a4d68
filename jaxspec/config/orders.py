"""Orders in which the cells of a grid get their tokens."""

from functools import cache
from typing import Any, Literal, get_args

from jaxspec.config.checks import require

Order = Literal["raster", "coarse", "halton"]


def check_order(order: str) -> None:
    """Checks the name of an order.

    Raises:
      ConfigError: it is unknown.
    """
    known = get_args(Order)
    require(order in known, f"order={order!r}; choose {', '.join(known)}")


def order_of(config: Any) -> str:
    """Order of the tokens of a tokenizer or a model; "raster" if it has no choice."""
    return getattr(config, "order", "raster")


def require_raster(order: str) -> None:
    """Checks the order of networks whose tokens are in an arrangement of their own.

    Raises:
      ConfigError: it is another one than "raster".
    """
    require(
        order == "raster",
        f"order={order!r} of networks whose tokens are in another arrangement",
    )


@cache
def cells_of(order: Order, grid: int) -> tuple[int, ...]:
    """Cell of each token, as its index in raster order.

    Args:
      order: "raster"; "coarse", see `levels_of`; or "halton", see `halton_order`.
      grid: tokens along each side.
    """
    if order == "halton":
        return halton_order(grid, grid)
    if order == "coarse":
        return tuple(cell for level in levels_of(grid) for cell in level)
    return tuple(range(grid * grid))


def levels_of(grid: int) -> tuple[tuple[int, ...], ...]:
    """Cells of each level of the order "coarse", each level in raster order.

    The first level is the first cell. Each further one adds the cells in between, at
    half the distance, so that what is known is always a grid.

    Args:
      grid: tokens along each side.
    """
    step = 1
    while step < grid:
        step *= 2
    levels, known = [], set()
    while step >= 1:
        side = range(0, grid, step)
        new = [i * grid + j for i in side for j in side if i * grid + j not in known]
        known.update(new)
        levels.append(tuple(new))
        step //= 2
    return tuple(levels)


def halton_order(height: int, width: int) -> tuple[int, ...]:
    """Cells of a grid in the order of a Halton sequence, which spreads them evenly.

    Source: the Halton scheduler (Besnier et al., ICLR 2025). Bases 2 and 3; cells that
    the sequence has met are left out.

    Args:
      height: rows of the grid.
      width: columns of the grid.
    """
    found: dict[int, None] = {}
    index = 0
    while len(found) < height * width:
        index += 1
        row, column = _radical_inverse(index, 2), _radical_inverse(index, 3)
        found.setdefault(int(row * height) * width + int(column * width))
    return tuple(found)


def _radical_inverse(index: int, base: int) -> float:
    """Digits of a number, mirrored at the point."""
    value, scale = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        scale /= base
        value += digit * scale
    return value
