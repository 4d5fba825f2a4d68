"""Arrays of a state that all sequences of a batch share."""

from dataclasses import dataclass
from typing import Any

from jax.tree_util import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Shared:
    """Part of a state that all sequences share.

    The first axis of all other arrays of a state is the batch (`B`, or branches x
    sequences, `R`), unless they are scalars. In continuous batching, a sequence that
    takes a new prompt gets new ones of these; shared arrays stay.

    Attributes:
      value: pytree of arrays.
    """

    value: Any
