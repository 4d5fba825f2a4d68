"""Outcome distributions of verifiers, and sampling from them.

The outcome of a round is the last accepted node and the token after it. Verifiers that
sample are defined by its exact distribution given the draft. `verify` samples from the
same arrays, so results of an enumeration (`jaxspec.testing.enumeration`) hold for it.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.noise import Noise
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology, gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import Verdict, Verifier, checked_draft
from jaxspec.typing import Array, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class Outcome:
    """Exact distribution of the outcome of a round, given the draft.

    Attributes:
      stop: float [B, N], probability that a node is the last accepted one; sums to 1.
      final: float [B, N, V], probabilities of the token after each node.
    """

    stop: Float[Array, "B N"]
    final: Float[Array, "B N V"]


class OutcomeVerifier(Verifier):
    """Verifier with a known outcome distribution, from which `verify` samples."""

    @abstractmethod
    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """Distribution of the outcome, given the draft.

        Args:
          log_p: processed logits of the target after each node.
          draft: draft of the round.
          tree: draft tree, or the bound of a dynamic one.
          greedy: mask of the sequences that take the likeliest token; None for none.
          params: arrays that the verifier reads.

        Raises:
          ConfigError: arguments do not fit, see `Verifier.verify`.
        """

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
    """Samples an outcome by the Gumbel-max trick: the last node, then a token."""
    last = jnp.argmax(jnp.log(outcome.stop) + noise.nodes, axis=-1)
    accepted = gather_nodes(shape.depths, last[:, None])[:, 0]
    final = jnp.take_along_axis(outcome.final, last[:, None, None], axis=1)[:, 0]
    scores = jnp.log(final) + noise.fresh.at(accepted)
    stop = jnp.take_along_axis(outcome.stop, last[:, None], axis=1)[:, 0]
    # The margin is NaN if the logits or the distributions are not valid.
    finite = stop * jnp.max(scores, axis=-1)
    finite = jnp.isfinite(finite) & jnp.all(outcome.stop >= 0, axis=-1)
    margin = jnp.where(finite, jnp.inf, jnp.nan)
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
    """Outcome distribution from the probabilities of each node once it is reached.

    Args:
      shape: tables of the draft tree.
      draft: draft of the round.
      p: target probabilities, from which the token after a leaf is sampled.
      take: probability that each child is accepted.
      none: probability that no child is accepted.
      residual: probabilities of the next token if no child is accepted.
    """
    step = jnp.where(draft.valid, shape.children_to_nodes(take), 0.0).at[:, 0].set(1.0)
    if shape.internal is None:
        return Outcome(shape.cumprod_path(step) * none, residual)
    internal = jnp.asarray(shape.internal, jnp.int32)
    stay = jnp.ones_like(step).at[:, internal].set(none)
    return Outcome(shape.cumprod_path(step) * stay, p.at[:, internal].set(residual))


def deterministic_outcome(
    shape: Topology,
    accepted: Bool[Array, "B N"],
    p: Float[Array, "B N V"],
    score: Array,
) -> Outcome:
    """Outcome that accepts the deepest node of a mask.

    Args:
      shape: tables of the draft tree.
      accepted: mask of the nodes that may be accepted; the root is one.
      p: target probabilities, from which the next token is sampled.
      score: float [B, N], decides between nodes of equal depth; the largest wins.
    """
    depth = jnp.where(accepted, shape.depths, -1)
    deepest = depth == jnp.max(depth, axis=-1, keepdims=True)
    best = jnp.argmax(jnp.where(deepest, score, -jnp.inf), axis=-1)
    nodes = jnp.arange(accepted.shape[1])[None]
    return Outcome((nodes == best[:, None]).astype(p.dtype), p)


def ancestors_all(shape: Topology, match: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
    """Mask of nodes that match with all their ancestors; the root always matches."""
    match = match.at[:, 0].set(True)
    return ~jnp.any(shape.ancestors & ~match[:, None, :], axis=-1)


@register_dataclass
@dataclass(frozen=True)
class Siblings:
    """State of sequential verification of the children of all nodes.

    Attributes:
      p: float [B, I, V], target probabilities, after earlier rejections.
      q: float [B, I, V], drafter's probabilities of the current child; None if children
        are no samples.
      token: int32 [B, I], token of the current child.
      depth: int32 [B, I], depth of the current child.
    """

    p: Float[Array, "B I V"]
    q: Float[Array, "B I V"] | None
    token: Int[Array, "B I"]
    depth: Int[Array, "B I"]

    def p_token(self) -> Float[Array, "B I"]:
        """Target's probability of the current child."""
        return take_prob(self.p, self.token)

    def q_all(self) -> Float[Array, "B I V"]:
        """Drafter's probabilities; one-hot if children are no samples."""
        return self.one_hot().astype(self.p.dtype) if self.q is None else self.q

    def q_token(self) -> Float[Array, "B I"]:
        """Drafter's probability of the current child; 1 if children are no samples."""
        if self.q is None:
            return jnp.ones(self.token.shape, self.p.dtype)
        return take_prob(self.q, self.token)

    def one_hot(self) -> Bool[Array, "B I V"]:
        """Mask of the token of the current child."""
        return jnp.arange(self.p.shape[-1])[None, None] == self.token[..., None]


def take_prob(
    x: Float[Array, "B I V"], token: Int[Array, "B I"]
) -> Float[Array, "B I"]:
    """Probability of one token in each distribution."""
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
    """Outcome of verifying the children of a node one by one until one is accepted.

    All nodes are processed at once, so the number of steps is the largest number of
    children. If no child is accepted, the next token is sampled from the residual that
    the rejections left of `p`.

    Args:
      shape: tables of the draft tree.
      draft: draft of the round.
      p: target probabilities.
      log_q: drafter's log-probabilities; None if children are no samples.
      accept: function that returns the probability, in [0, 1], to accept the current
        child.
      reject: function that returns the residual of `p` after a rejection of the current
        child, not normalized.
      remove: whether a rejected child is not sampled again (without replacement).
    """
    tokens = shape.gather_children(draft.tokens, 0)
    valid = shape.gather_children(draft.valid, False)
    depths = shape.gather_internal(shape.depths) + 1
    residual = shape.gather_internal(p)
    depths = jnp.broadcast_to(depths, residual.shape[:2])
    q = None if log_q is None else jnp.exp(log_q)
    none = jnp.ones(residual.shape[:2], residual.dtype)
    take = []
    for r in range(tokens.shape[2]):
        exists = valid[..., r]
        now = Siblings(residual, q, tokens[..., r], depths)
        chance = jnp.where(exists, accept(now), 0.0)
        take.append(none * chance)
        none = none * (1.0 - chance)
        residual = jnp.where(
            exists[..., None], normalized(reject(now), residual), residual
        )
        if q is not None and remove:
            fewer = jnp.where(now.one_hot(), 0.0, q)
            q = jnp.where(exists[..., None], normalized(fewer, fewer), q)
    return tree_outcome(shape, draft, p, jnp.stack(take, axis=-1), none, residual)


def normalized(
    x: Float[Array, "... V"], otherwise: Float[Array, "... V"]
) -> Float[Array, "... V"]:
    """Scales `x` to sum 1; `otherwise` where the sum is 0."""
    total = jnp.sum(x, axis=-1, keepdims=True)
    return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), otherwise)


def accept_ratio(a: Array, b: Array) -> Array:
    """Ratio `a / b`, clipped to [0, 1]; 0 where `b` is 0."""
    safe = jnp.where(b > 0, b, 1.0)
    return jnp.where(b > 0, jnp.clip(a / safe, 0.0, 1.0), 0.0)
