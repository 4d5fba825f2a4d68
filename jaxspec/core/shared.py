"""Arrays of a state that all sequences share."""

from dataclasses import dataclass
from typing import Any

from jax.tree_util import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Shared:
    """A part of a drafter's state that all rows share.

    All other arrays of a state have rows (`B`, or streams x rows `R`) as their first
    axis, or none. A row that takes a new prompt gets fresh ones; what is shared stays.

    Attributes:
      value: arrays.
    """

    value: Any
