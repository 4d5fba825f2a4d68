"""Equality under shared noise: exact for any drafter, token for token."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.noise import Noise
from jaxspec.core.vocab_parallel import argmax_with_margin
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology, gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LosslessVerifier,
    Verdict,
    checked_draft,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    ancestors_all,
    sequential_siblings,
)
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class Coupled(LosslessVerifier):
    """Follows the children that equal the target's own sample at each node.

    The sample of a node is `argmax(log p + noise)` with the noise of its absolute
    position, so the output is a function of the noise and of `p` alone: the very
    tokens that plain sampling draws with the same noise, whatever was drafted. Greedy
    decoding is the same verifier with noise 0. Loop-free.

    Sources: drafter-invariant speculation (arXiv 2408.07978); position keys and the
    drafter's side are ours.
    """

    @property
    def selection(self) -> Selection:
        """Any draft will do; one that ranks by `log q + noise` is accepted most."""
        return "coupled"

    @property
    def token_exact(self) -> bool:
        """Yes: the target's samples are those of plain decoding."""
        return True

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`; needs neither parameters nor features."""
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        match = (draft.tokens == shape.gather_parents(choice)) & draft.valid
        return longest_match(shape, match, choice, margin)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """The law for a draft made without sight of the noise.

        Of siblings that repeat a token it follows the first; `verify` follows the one
        whose branch goes on for longer, which emits the same law in fewer rounds.
        """
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(target_log_probs(log_p, greedy))
        return sequential_siblings(
            shape,
            draft,
            p,
            None,
            accept=lambda now: now.p_token(),
            reject=lambda now: jnp.where(now.one_hot(), 0.0, now.p),
            remove=False,
        )


def coupled_choice(
    log_p: Float[Array, "B N V"], shape: Topology, noise: Noise
) -> tuple[Int[Array, "B N"], Float[Array, "B N"]]:
    """The target's sample at every node, and by how much it won."""
    return argmax_with_margin(log_p + gather_nodes(noise.coupled, shape.depths))


def longest_match(
    shape: Topology,
    match: Bool[Array, "B N"],
    choice: Int[Array, "B N"],
    margin: Float[Array, "B N"],
) -> Verdict:
    """Keeps the deepest node all of whose line matches, lowest index on ties."""
    depth = jnp.where(ancestors_all(shape, match), shape.depths, -1)
    best = jnp.argmax(depth, axis=-1)
    path = shape.path(best)
    return Verdict(
        path=path,
        accepted=jnp.max(depth, axis=-1),
        next_token=jnp.take_along_axis(choice, best[:, None], 1)[:, 0],
        margin=jnp.take_along_axis(margin, path, axis=1),
    )
