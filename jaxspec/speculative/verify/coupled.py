"""Coupled verification: the tokens of plain decoding, from any drafter."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.core.noise import Noise
from jaxspec.core.vocab_parallel import argmax_with_margin
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology, gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    Verdict,
    checked_draft,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    ancestors_all,
    sequential_siblings,
)
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class Coupled(OutcomeVerifier):
    """Accepts children that equal the target's own sample after their parent.

    The sample at a node is `argmax(log p + noise)`, with the Gumbel noise of its
    absolute position. The output depends on the noise and on `p` only: for any draft it
    has the tokens of plain decoding with the same noise. Greedy decoding is the case
    without noise. Needs no loop.

    `selection` is a preference: any draft is verified exactly, and drafts ranked by
    `log q + noise` have the highest acceptance.

    Sources: drafter-invariant speculation (arXiv 2408.07978); noise keyed by position
    and its use by drafters are ours.
    """

    lossless = True
    token_exact = True
    selection = "coupled"

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`; `params` and `features` are not read."""
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
        """Distribution for a draft that does not depend on the noise.

        Of siblings with equal tokens the first may be accepted; `verify` takes the one
        with the longer accepted path, which has the same output distribution and needs
        fewer rounds.
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
    """The target's sample at every node, and the lead of its score over the second."""
    return argmax_with_margin(log_p + gather_nodes(noise.coupled, shape.depths))


def longest_match(
    shape: Topology,
    match: Bool[Array, "B N"],
    choice: Int[Array, "B N"],
    margin: Float[Array, "B N"],
) -> Verdict:
    """Accepts the deepest node that matches with all ancestors, lowest id on ties."""
    depth = jnp.where(ancestors_all(shape, match), shape.depths, -1)
    best = jnp.argmax(depth, axis=-1)
    path = shape.path(best)
    return Verdict(
        path=path,
        accepted=jnp.max(depth, axis=-1),
        next_token=jnp.take_along_axis(choice, best[:, None], 1)[:, 0],
        margin=jnp.take_along_axis(margin, path, axis=1),
    )
