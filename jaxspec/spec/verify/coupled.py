"""Equality under shared noise: exact for any drafter, token for token."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.spec.draft import Draft, Selection
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.noise import Noise
from jaxspec.spec.topology import Topology, pick
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify.base import (
    LosslessRule,
    Verdict,
    checked_draft,
    log_probabilities,
)
from jaxspec.spec.verify.law import Law, all_above, walk_siblings
from jaxspec.spec.vocabulary import choose
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class Coupled(LosslessRule):
    """Follows the children that equal the target's own sample at each node.

    The sample of a node is `argmax(log p + noise)` with the noise of its absolute
    position, so the output is a function of the noise and of `p` alone: the very
    tokens that plain sampling draws with the same noise, whatever was drafted. Greedy
    decoding is the same rule with noise 0. Loop-free.

    Sources: drafter-invariant speculation (arXiv 2408.07978); position keys and the
    drafter's side are ours.
    """

    @property
    def selection(self) -> Selection:
        """Any draft will do; one that ranks by `log q + noise` is accepted most."""
        return "coupled"

    @property
    def settles(self) -> bool:
        """Yes: the target's samples are those of plain decoding."""
        return True

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | Envelope,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Rule.verify`; needs neither parameters nor features."""
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        match = (draft.tokens == shape.of_parents(choice)) & draft.valid
        return follow(shape, match, choice, margin)

    def law(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | Envelope,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Law:
        """The law for a draft made without sight of the noise.

        Of siblings that repeat a token it follows the first; `verify` follows the one
        whose branch goes on for longer, which emits the same law in fewer rounds.
        """
        draft, shape = checked_draft(log_p, draft, tree)
        p = jnp.exp(log_probabilities(log_p, greedy))
        return walk_siblings(
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
    return choose(log_p + pick(noise.coupled, shape.depths))


def follow(
    shape: Topology,
    match: Bool[Array, "B N"],
    choice: Int[Array, "B N"],
    margin: Float[Array, "B N"],
) -> Verdict:
    """Keeps the deepest node all of whose line matches, lowest index on ties."""
    depth = jnp.where(all_above(shape, match), shape.depths, -1)
    best = jnp.argmax(depth, axis=-1)
    path = shape.path(best)
    return Verdict(
        path=path,
        accepted=jnp.max(depth, axis=-1),
        next_token=jnp.take_along_axis(choice, best[:, None], 1)[:, 0],
        margin=jnp.take_along_axis(margin, path, axis=1),
    )
