"""Coupled verification with a tolerance in codebook distance. Lossy."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.core.noise import Noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    Verdict,
    checked_draft,
    survives,
    target_log_probs,
)
from jaxspec.speculative.verify.coupled import coupled_choice, longest_match
from jaxspec.speculative.verify.neighbors import Neighbors
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    normalized,
    tree_outcome,
)
from jaxspec.speculative.verify.relaxed_set import (
    check_budget,
    is_concrete,
    relaxed_set,
    table_of,
)
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class CoupledRelaxed(OutcomeVerifier):
    """Accepts children whose codebook entry is near that of the target's sample.

    The target's sample `y` is that of `Coupled`. A child `x` is accepted if it is `y`,
    or if `y` is in the relaxed set of `x`: its nearest tokens, nearest first, while
    their total probability is within the budget and their distance within the radius.
    Of several such children the nearest to `y` is accepted. An emitted token is thus
    never farther than `radius` from the sample of the target after the same prefix, and
    with a budget of 0 the verifier equals `Coupled`. There is no residual. Filtered
    children (score -inf) are not accepted.

    A child whose choice does not depend on the noise is accepted with the relaxed
    probability of LANTERN. The verifier is ours.

    Parameters: `{"neighbors": Neighbors}`.

    Attributes:
      k: number of neighbors that may be in a relaxed set.
      budget: largest total probability of a relaxed set; None if `lam` is given.
      radius: largest distance to an accepted neighbor, in units of the code vectors.
      lam: factor of the relative budget `(lam - 1) p(x)`; None if `budget` is given.
    """

    token_exact = True
    selection = "coupled"

    k: int
    budget: float | None = None
    radius: float = float("inf")
    lam: float | None = None

    def __post_init__(self):
        check_budget("budget", self.k, self.budget, self.lam)
        if is_concrete(self.radius) and not self.radius >= 0:
            raise ConfigError(f"radius={self.radius} must not be negative")

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
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        sample = shape.gather_parents(choice)
        total = jax.nn.logsumexp(log_p, axis=-1)  # [B, N]

        def p_at_parent(tokens):  # [B, N, m] tokens to their probabilities
            return jnp.exp(
                shape.at_parent(log_p, tokens) - shape.gather_parents(total)[..., None]
            )

        table = table_of(self, params, self.k, log_p.shape[-1])
        distance = self._distance(table, p_at_parent, draft.tokens, sample[..., None])
        valid = draft.valid & survives(shape, log_p, draft)
        distance = jnp.where(valid, distance[..., 0], jnp.inf)  # [B, N]
        # The nearest sibling is accepted, the first on ties. Siblings with equal tokens
        # both match; the one with the longer path is accepted.
        siblings = shape.parents[:, :, None] == shape.parents[:, None, :]
        siblings = siblings.at[:, :, 0].set(False)
        nodes = jnp.arange(tree.size)[None]
        nearer = (distance[:, None, :] < distance[:, :, None]) | (
            (distance[:, None, :] == distance[:, :, None])
            & (nodes[:, None, :] < nodes[:, :, None])
            & (draft.tokens[:, None, :] != draft.tokens[:, :, None])
        )
        match = jnp.isfinite(distance) & ~jnp.any(siblings & nearer, axis=-1)
        return longest_match(shape, match, choice, margin)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """Distribution for a draft of distinct siblings that ignores the noise."""
        draft, shape = checked_draft(log_p, draft, tree)
        draft = replace(draft, valid=draft.valid & survives(shape, log_p, draft))
        table = table_of(self, params, self.k, log_p.shape[-1])
        p_all = jnp.exp(target_log_probs(log_p, greedy))
        p = shape.gather_internal(p_all)
        # Budgets of greedy sequences use softmax probabilities, too.
        mass = shape.gather_internal(jax.nn.softmax(log_p, axis=-1))
        tokens = shape.gather_children(draft.tokens, 0)
        valid = shape.gather_children(draft.valid, False)
        samples = jnp.arange(p.shape[-1])  # all possible samples of the target
        distances = []
        for r in range(tokens.shape[2]):
            distance = self._distance(
                table,
                lambda ids: jnp.take_along_axis(mass, ids, axis=-1),
                tokens[..., r],
                samples,
            )
            distances.append(jnp.where(valid[..., r, None], distance, jnp.inf))
        distances = jnp.stack(distances, axis=2)  # [B, I, W, V]
        nearest = jnp.argmin(distances, axis=2)
        accepts = jnp.isfinite(jnp.min(distances, axis=2))
        ranks = jnp.arange(tokens.shape[2])[None, None, :, None]
        child = accepts[:, :, None] & (nearest[:, :, None] == ranks)
        take = jnp.sum(jnp.where(child, p[:, :, None], 0.0), axis=-1)
        residual = jnp.where(accepts, 0.0, p)
        none = jnp.sum(residual, axis=-1)
        return tree_outcome(shape, draft, p_all, take, none, normalized(residual, p))

    def _distance(
        self,
        table: Neighbors,
        p_of: Callable[[Int[Array, "B M m"]], Float[Array, "B M m"]],
        tokens: Int[Array, "B M"],
        samples: Int[Array, "..."],
    ) -> Float[Array, "B M m"]:
        """Distance of each of `M` tokens to samples in its relaxed set, else inf.

        `samples` is [V], all tokens, or [B, M, 1], one sample for each token.
        """
        ids, distances, _, members = relaxed_set(
            table, p_of, tokens, self.k, self.budget, self.lam
        )
        members &= distances <= self.radius
        if samples.ndim == 1:
            sequence = jnp.arange(tokens.shape[0])[:, None, None]
            index = jnp.arange(tokens.shape[1])[None, :, None]
            size = samples.shape[0]
            out = jnp.full((*tokens.shape, size), jnp.inf, distances.dtype)
            out = out.at[sequence, index, ids].min(
                jnp.where(members, distances, jnp.inf)
            )
            return jnp.where(samples[None, None] == tokens[..., None], 0.0, out)
        equal = (ids == samples) & members
        out = jnp.min(jnp.where(equal, distances, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(samples == tokens[..., None], 0.0, out)
