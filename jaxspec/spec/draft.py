"""What passes between the loop, a drafter and a rule in one round."""

from dataclasses import dataclass
from typing import Any, Protocol

from jax.tree_util import register_dataclass

from jaxspec.spec.sampling import Sampling, Step
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Round:
    """What a drafter may know before it proposes.

    Attributes:
      root: int32 [B], the newest committed token; the target has not read it yet.
      position: int32 [B], the root's absolute position.
      index: int32 [B], which generated token comes next (0 is the first).
      noise: float32 [B, A, V], Gumbel noise of the positions after the root; zero in
        greedy rows. Ranking by `log q + noise` is what makes drafts agree with a
        coupled verification.
      sampling: the settings that the target's distribution will be processed with.
    """

    root: Int[Array, "B"]
    position: Int[Array, "B"]
    index: Int[Array, "B"]
    noise: Float[Array, "B A V"]
    sampling: Sampling


@register_dataclass
@dataclass(frozen=True)
class Draft:
    """Guesses laid out on a tree.

    Attributes:
      tokens: int32 [B, N]; node 0 is the root.
      valid: bool [B, N]; a node that is not valid is never accepted.
    """

    tokens: Int[Array, "B N"]
    valid: Bool[Array, "B N"]


class Drafter(Protocol):
    """Three pure functions, in the manner of an optax transformation.

    A drafter is static and hashable; what changes lives in its state, a tree of
    arrays of fixed shapes. It may be wrong in any way: under a lossless rule it can
    change the speed and nothing else.
    """

    def init(
        self, params: Params, features: Float[Array, "R P E"], extra: int, tree: Tree
    ) -> Any:
        """State after a prompt of `P` positions; at most `extra` more will follow."""
        ...

    def propose(
        self,
        params: Params,
        state: Any,
        this: Round,
        tree: Tree,
        order: tuple[Step, ...],
    ) -> tuple[Draft, Any]:
        """Guesses the tokens of `tree` after the root."""
        ...

    def observe(
        self,
        params: Params,
        state: Any,
        features: Float[Array, "R A E"],
        counts: Int[Array, "R"],
    ) -> Any:
        """Learns the target's features of the `counts` newly committed tokens."""
        ...
