"""The law of a verifier's outcome given a draft, and drawing from it.

A verifier that draws is written as a law: how likely each node is to be the last one
that is kept, and how the token after it is distributed. `verify` draws from exactly
these arrays, so what an enumeration proves about the law holds for what runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.noise import Noise
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology, gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import Verdict, checked_draft
from jaxspec.typing import Array, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Outcome:
    """Exact distribution of a round's outcome, given the draft.

    Attributes:
      stop: float [B, N], chance that a node is the last one kept; sums to 1.
      final: float [B, N, V], probabilities of the token after it.
    """

    stop: Float[Array, "B N"]
    final: Float[Array, "B N V"]


class OutcomeVerifier(ABC):
    """A verifier that is its law."""

    @property
    def token_exact(self) -> bool:
        """No: what is drawn with fresh noise equals no other run's tokens."""
        return False

    @abstractmethod
    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """The distribution of the outcome; arguments as in `Verifier.verify`."""

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`."""
        _, shape = checked_draft(log_p, draft, tree, noise)
        outcome = self.outcome(log_p, draft, tree, noise.greedy, params)
        return sample_outcome(outcome, shape, noise)


def sample_outcome(outcome: Outcome, shape: Topology, noise: Noise) -> Verdict:
    """One outcome of a law: two Gumbel-max draws, a node and then a token."""
    last = jnp.argmax(jnp.log(outcome.stop) + noise.nodes, axis=-1)
    accepted = gather_nodes(shape.depths, last[:, None])[:, 0]
    final = jnp.take_along_axis(outcome.final, last[:, None, None], axis=1)[:, 0]
    scores = jnp.log(final) + noise.fresh.at(accepted)
    stop = jnp.take_along_axis(outcome.stop, last[:, None], axis=1)[:, 0]
    # NaN in, NaN out; so are a token law of nothing and a law that is none.
    sound = stop * jnp.max(scores, axis=-1)
    sound = jnp.isfinite(sound) & jnp.all(outcome.stop >= 0, axis=-1)
    margin = jnp.where(sound, jnp.inf, jnp.nan)
    path = shape.path(last)
    return Verdict(
        path=path,
        accepted=accepted,
        next_token=jnp.argmax(scores, axis=-1).astype(jnp.int32),
        margin=jnp.broadcast_to(margin[:, None], path.shape),
    )


def tree_outcome(
    shape: Topology,
    draft: Draft,
    p: Float[Array, "B N V"],
    take: Float[Array, "B I W"],
    none: Float[Array, "B I"],
    residual: Float[Array, "B I V"],
) -> Outcome:
    """A law from what happens at each node once it is reached.

    Args:
      shape: the draft's tables.
      draft: the draft.
      p: target probabilities, which a leaf is followed by.
      take: chance that each child is the one taken.
      none: chance that no child is.
      residual: probabilities of the next token then.
    """
    step = jnp.where(draft.valid, shape.children_to_nodes(take), 0.0).at[:, 0].set(1.0)
    if shape.internal is None:
        return Outcome(shape.cumprod_path(step) * none, residual)
    internal = jnp.asarray(shape.internal, jnp.int32)
    stay = jnp.ones_like(step).at[:, internal].set(none)
    return Outcome(shape.cumprod_path(step) * stay, p.at[:, internal].set(residual))


def deterministic_outcome(
    shape: Topology, alive: Bool[Array, "B N"], p: Float[Array, "B N V"], score: Array
) -> Outcome:
    """A law that keeps the deepest node that is alive; ties go to the best `score`."""
    depth = jnp.where(alive, shape.depths, -1)
    deepest = depth == jnp.max(depth, axis=-1, keepdims=True)
    best = jnp.argmax(jnp.where(deepest, score, -jnp.inf), axis=-1)
    nodes = jnp.arange(alive.shape[1])[None]
    return Outcome((nodes == best[:, None]).astype(p.dtype), p)


def ancestors_all(shape: Topology, match: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
    """Nodes that match, and all of whose ancestors do; the root always does."""
    match = match.at[:, 0].set(True)
    return ~jnp.any(shape.ancestors & ~match[:, None, :], axis=-1)


@register_dataclass
@dataclass(frozen=True)
class Siblings:
    """Where a walk over a node's children stands.

    Attributes:
      p: float [B, I, V], target probabilities, as changed by earlier rejections.
      q: float [B, I, V], drafter's probabilities of the child at hand, or None where
        children are given and not drawn.
      token: int32 [B, I], the child at hand.
      depth: int32 [B, I], its depth.
    """

    p: Float[Array, "B I V"]
    q: Float[Array, "B I V"] | None
    token: Int[Array, "B I"]
    depth: Int[Array, "B I"]

    def p_token(self) -> Float[Array, "B I"]:
        """Target's probability of the child."""
        return take_prob(self.p, self.token)

    def q_all(self) -> Float[Array, "B I V"]:
        """Drafter's probabilities; one-hot where the child was given."""
        return self.one_hot().astype(self.p.dtype) if self.q is None else self.q

    def q_token(self) -> Float[Array, "B I"]:
        """Drafter's probability of the child; 1 where it was given."""
        if self.q is None:
            return jnp.ones(self.token.shape, self.p.dtype)
        return take_prob(self.q, self.token)

    def one_hot(self) -> Bool[Array, "B I V"]:
        """The child as a mask over tokens."""
        return jnp.arange(self.p.shape[-1])[None, None] == self.token[..., None]


def take_prob(
    x: Float[Array, "B I V"], token: Int[Array, "B I"]
) -> Float[Array, "B I"]:
    """Entries of a distribution."""
    return jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]


def sequential_siblings(
    shape: Topology,
    draft: Draft,
    p: Float[Array, "B N V"],
    log_q: Float[Array, "B I V"] | None,
    accept: Callable[[Siblings], Float[Array, "B I"]],
    reject: Callable[[Siblings], Float[Array, "B I V"]],
    *,
    remove: bool,
) -> Outcome:
    """The law of trying children one by one until one is accepted.

    All nodes are worked on side by side, so the steps are as many as the most children
    of a node, not as many as nodes. When none is accepted the next token follows what
    the rejections left of `p`.

    Args:
      shape: the draft's tables.
      draft: the draft.
      p: target probabilities.
      log_q: drafter's log-probabilities, or None for children that were given.
      accept: chance to accept the child at hand, in [0, 1].
      reject: what is left of `p` after its rejection, not normalized.
      remove: whether a rejected child cannot be drawn again (without replacement).
    """
    tokens = shape.gather_children(draft.tokens, 0)
    valid = shape.gather_children(draft.valid, False)
    depths = shape.gather_internal(shape.depths) + 1
    left = shape.gather_internal(p)
    depths = jnp.broadcast_to(depths, left.shape[:2])
    q = None if log_q is None else jnp.exp(log_q)
    alive = jnp.ones(left.shape[:2], left.dtype)
    take = []
    for r in range(tokens.shape[2]):
        child, there = tokens[..., r], valid[..., r]
        now = Siblings(left, q, child, depths)
        chance = jnp.where(there, accept(now), 0.0)
        take.append(alive * chance)
        alive = alive * (1.0 - chance)
        left = jnp.where(there[..., None], normalized(reject(now), left), left)
        if q is not None and remove:
            fewer = jnp.where(now.one_hot(), 0.0, q)
            q = jnp.where(there[..., None], normalized(fewer, fewer), q)
    return tree_outcome(shape, draft, p, jnp.stack(take, axis=-1), alive, left)


def normalized(
    x: Float[Array, "... V"], otherwise: Float[Array, "... V"]
) -> Float[Array, "... V"]:
    """`x` scaled to sum 1; `otherwise` where nothing is left of it."""
    total = jnp.sum(x, axis=-1, keepdims=True)
    return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), otherwise)


def accept_ratio(a: Array, b: Array) -> Array:
    """`min(1, a / b)` in [0, 1]; 0 where `b` is 0: such a child cannot be drawn."""
    safe = jnp.where(b > 0, b, 1.0)
    return jnp.where(b > 0, jnp.clip(a / safe, 0.0, 1.0), 0.0)
