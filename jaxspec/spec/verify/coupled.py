"""Equality under shared noise: exact for any drafter, token for token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxspec.spec.draft import Draft
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify.base import Verdict
from jaxspec.typing import Array, Float, Noise


@dataclass(frozen=True)
class Coupled:
    """Follows the children that equal the target's own sample at each node.

    The sample of a node is `argmax(log p + noise)` with the noise of its absolute
    position, so the output is a function of the noise and of `p` alone: the very
    tokens that plain sampling draws with the same noise, whatever was drafted. Greedy
    decoding is the same rule with noise 0. Loop-free.

    Sources: drafter-invariant speculation (arXiv 2408.07978); position keys and the
    drafter's side are ours.
    """

    @property
    def lossless(self) -> bool:
        """Always."""
        return True

    def verify(
        self, log_p: Float[Array, "B N V"], draft: Draft, tree: Tree, noise: Noise
    ) -> Verdict:
        """See `Rule.verify`."""
        depths = jnp.asarray(tree.depths)
        choice, margin = choose(log_p + noise[:, depths])  # [B, N]
        parents = jnp.maximum(jnp.asarray(tree.parents), 0)
        match = (draft.tokens == choice[:, parents]) & draft.valid
        match = match.at[:, 0].set(True)
        above = jnp.asarray(tree.ancestors)[None]
        alive = ~jnp.any(above & ~match[:, None, :], axis=-1)  # [B, N]
        best = jnp.argmax(jnp.where(alive, depths, -1), axis=-1)
        path = jnp.asarray(tree.paths)[best]
        return Verdict(
            path=path,
            accepted=depths[best],
            next_token=jnp.take_along_axis(choice, best[:, None], 1)[:, 0],
            margin=jnp.take_along_axis(margin, path, axis=1),
        )


def choose(scores: Float[Array, "... V"]) -> tuple[Array, Array]:
    """The best token, lowest id on ties, and its lead over the second best."""
    token = jnp.argmax(scores, axis=-1)
    top = jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0]
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    others = jnp.where(ids == token[..., None], -jnp.inf, scores)
    return token.astype(jnp.int32), top - jnp.max(others, axis=-1)
