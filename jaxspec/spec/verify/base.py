"""What every verification rule takes and returns."""

from dataclasses import dataclass
from typing import Protocol

from jax.tree_util import register_dataclass

from jaxspec.spec.draft import Draft
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Float, Int, Noise


@register_dataclass
@dataclass(frozen=True)
class Verdict:
    """Which part of a draft is kept, and the token that follows it.

    Attributes:
      path: int32 [B, A], nodes from the root along the accepted branch; entries after
        `accepted` repeat the last node.
      accepted: int32 [B], drafted tokens kept, 0 to `A - 1`.
      next_token: int32 [B], the target's own token after them.
      margin: float32 [B, A], by how much each decision on the path was won: the
        distance between the best and the second best score at that node.
    """

    path: Int[Array, "B A"]
    accepted: Int[Array, "B"]
    next_token: Int[Array, "B"]
    margin: Float[Array, "B A"]


class Rule(Protocol):
    """A frozen, hashable verification rule."""

    @property
    def lossless(self) -> bool:
        """Whether the output follows the target's distribution exactly."""
        ...

    def verify(
        self, log_p: Float[Array, "B N V"], draft: Draft, tree: Tree, noise: Noise
    ) -> Verdict:
        """Judges a draft.

        Args:
          log_p: processed target scores after each node, up to a constant a node.
          draft: the drafter's guesses.
          tree: their shape.
          noise: float32 [B, A, V], Gumbel noise by depth.
        """
        ...
