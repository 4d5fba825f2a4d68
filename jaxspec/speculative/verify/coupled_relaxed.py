"""Coupled verification that forgives small codebook distances. Lossy, bounded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.core.noise import Noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LossyVerifier,
    Verdict,
    checked_draft,
    survives,
    target_log_probs,
)
from jaxspec.speculative.verify.coupled import coupled_choice, longest_match
from jaxspec.speculative.verify.neighbors import Neighbors
from jaxspec.speculative.verify.outcome import Outcome, normalized, tree_outcome
from jaxspec.speculative.verify.relaxed_set import (
    check_budget,
    is_concrete,
    relaxed_set,
    table_of,
)
from jaxspec.typing import Array, Bool, Float, Int, Params


@dataclass(frozen=True)
class CoupledRelaxed(LossyVerifier):
    """Accepts a child that is, or lies near, the code that exact sampling draws there.

    The target's sample `y` is drawn as in `Coupled`. A child `x` is accepted if it is
    `y`, or if `y` is in the relaxed set of `x`: its nearest codes, nearest first, while
    their mass stays within the budget and their distance within the radius. Of several
    such children the nearest to `y` is followed. So an emitted code never lies farther
    than `radius` from the one that exact sampling would have drawn after the same
    prefix, and with budget 0 the verifier is `Coupled`. Nothing is resampled. A child
    that the filters removed (a score of -inf) is not accepted, however near it lies.

    A child that was drafted without sight of the noise is accepted with exactly
    LANTERN's relaxed probability. Ours.

    Parameters: `{"neighbors": Neighbors}`.

    Attributes:
      k: neighbors that are looked at.
      budget: most mass of a relaxed set, or None for
      radius: greatest distance to a forgiven code, in units of the code vectors.
      lam: a budget of `(lam - 1) p(x)`.
    """

    k: int
    budget: float | None = None
    radius: float = float("inf")
    lam: float | None = None

    def __post_init__(self):
        check_budget("budget", self.k, self.budget, self.lam)
        if is_concrete(self.radius) and not self.radius >= 0:
            raise ConfigError(f"radius={self.radius} must not be negative")

    @property
    def selection(self) -> Selection:
        """As for `Coupled`."""
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
        """See `Verifier.verify`."""
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        wanted = shape.gather_parents(choice)
        total = jax.nn.logsumexp(log_p, axis=-1)  # [B, N]

        def p_before(tokens):  # probabilities of [B, N, m] tokens at each node's parent
            return jnp.exp(
                shape.at_parent(log_p, tokens) - shape.gather_parents(total)[..., None]
            )

        table = table_of(self, params, self.k, log_p.shape[-1])
        distance = self._distance(table, p_before, draft.tokens, wanted[..., None])
        possible = draft.valid & survives(shape, log_p, draft)
        distance = jnp.where(possible, distance[..., 0], jnp.inf)  # [B, N]
        # Among siblings the nearest is followed, the first on ties. A token that is
        # drafted twice is one child: both may be followed, to the better of their ends.
        siblings = shape.parents[:, :, None] == shape.parents[:, None, :]
        siblings = siblings.at[:, :, 0].set(False)
        nodes = jnp.arange(tree.size)[None]
        ahead = (distance[:, None, :] < distance[:, :, None]) | (
            (distance[:, None, :] == distance[:, :, None])
            & (nodes[:, None, :] < nodes[:, :, None])
            & (draft.tokens[:, None, :] != draft.tokens[:, :, None])
        )
        match = jnp.isfinite(distance) & ~jnp.any(siblings & ahead, axis=-1)
        return longest_match(shape, match, choice, margin)

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """The law for a draft of different siblings made without sight of the noise."""
        draft, shape = checked_draft(log_p, draft, tree)
        draft = replace(draft, valid=draft.valid & survives(shape, log_p, draft))
        table = table_of(self, params, self.k, log_p.shape[-1])
        every = jnp.exp(target_log_probs(log_p, greedy))
        p = shape.gather_internal(every)
        mass = shape.gather_internal(
            jax.nn.softmax(log_p, axis=-1)
        )  # of greedy rows too
        tokens = shape.gather_children(draft.tokens, 0)
        valid = shape.gather_children(draft.valid, False)
        samples = jnp.arange(p.shape[-1])  # every code that might be drawn
        distances = []
        for r in range(tokens.shape[2]):
            d = self._distance(
                table,
                lambda ids: jnp.take_along_axis(mass, ids, axis=-1),
                tokens[..., r],
                samples,
            )
            distances.append(jnp.where(valid[..., r, None], d, jnp.inf))
        distances = jnp.stack(distances, axis=2)  # [B, I, W, V]
        nearest = jnp.argmin(distances, axis=2)
        caught = jnp.isfinite(jnp.min(distances, axis=2))
        ranks = jnp.arange(tokens.shape[2])[None, None, :, None]
        goes_to = caught[:, :, None] & (nearest[:, :, None] == ranks)
        take = jnp.sum(jnp.where(goes_to, p[:, :, None], 0.0), axis=-1)
        left = jnp.where(caught, 0.0, p)
        none = jnp.sum(left, axis=-1)
        return tree_outcome(shape, draft, every, take, none, normalized(left, p))

    def _distance(
        self,
        table: Neighbors,
        p_of: Callable[[Int[Array, "B M m"]], Float[Array, "B M m"]],
        tokens: Int[Array, "B M"],
        wanted: Int[Array, "..."],
    ) -> Float[Array, "B M m"]:
        """Distance from each token to the wanted ones it may stand for, else inf."""
        ids, far, _, fits = relaxed_set(
            table, p_of, tokens, self.k, self.budget, self.lam
        )
        fits &= far <= self.radius
        if wanted.ndim == 1:  # all codes: scatter the set
            row = jnp.arange(tokens.shape[0])[:, None, None]
            column = jnp.arange(tokens.shape[1])[None, :, None]
            out = jnp.full((*tokens.shape, wanted.shape[0]), jnp.inf, far.dtype)
            out = out.at[row, column, ids].min(jnp.where(fits, far, jnp.inf))
            return jnp.where(wanted[None, None] == tokens[..., None], 0.0, out)
        found = (ids == wanted) & fits
        out = jnp.min(jnp.where(found, far, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(wanted == tokens[..., None], 0.0, out)
