"""LANTERN and LANTERN++: credit a code with its neighbors' mass. Lossy."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import Topology
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    DETERMINISTIC,
    Filtered,
    LossyVerifier,
    checked_draft,
    log_softmax,
    require_samples,
    survives,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    Siblings,
    accept_ratio,
    ancestors_all,
    deterministic_outcome,
    normalized,
    sequential_siblings,
    take_prob,
)
from jaxspec.speculative.verify.relaxed_set import (
    check_budget,
    relaxed_set,
    table_of,
)
from jaxspec.typing import Array, Bool, Float, Params

Residual = Literal["published", "zero_target", "keep_target", "drop_target", "optimal"]


@dataclass(frozen=True)
class Lantern(LossyVerifier, OutcomeVerifier):
    """The published relaxed test: accept `x` if `u <= (p(x) + mass of its set) / q(x)`.

    The set holds the `k` nearest codes of `x`, nearest first, while their mass stays
    within `delta` (LANTERN, arXiv 2410.03355) or `(lam - 1) p(x)` (LANTERN++, arXiv
    2502.06352). Children that were given and not drawn have `q = 1`. Greedy rows accept
    a child that would be the argmax if it had its relaxed probability.

    What becomes of the target's distribution after a rejection differs within the
    release (jadohu/LANTERN); all three forms are here, and the one that is best for the
    total variation distance. With `relaxed` meaning that a neighbor fitted, and the
    neighbors being `k + 1`, one more than were tested, as released:

    - "zero_target": `x` loses its mass; if relaxed, so do its neighbors. The release
      does this for dynamic trees.
    - "keep_target": subtract the drafter's distribution; if relaxed, not where the
      neighbors are. Static trees of LlamaGen and Anole.
    - "drop_target": subtract it; if relaxed, the neighbors lose their mass first.
      Static trees of Lumina-mGPT.
    - "optimal": subtract the accepted part of the drafter's distribution, `q min(1,
      relaxed p / q)` (Cool-SD, arXiv 2601.09212). A relaxed probability is at least
      `p`, so what is left is `max(p - q, 0)`: that of exact rejection.
    - "published": "keep_target" for drawn children, "zero_target" for given ones.

    Deviations from the release: probabilities are float32, not the model's dtype; the
    same filter order as the engine's. Two ways in which the release emits codes that
    top-k or top-p removed are off by default, see `fallback` and `filtered`.

    Parameters: `{"neighbors": Neighbors}`.

    Attributes:
      k: neighbors that are tested; the release's default is 1000.
      delta: additive budget, .1 by default there; or None for
      lam: multiplicative budget.
      residual: see above.
      fallback: what to draw from when a rejection leaves nothing: the "target" as it
        was before that rejection, or "uniform" over the whole vocabulary, as released.
      selection: how the drafter should draw.
      filtered: whether a code that top-k or top-p removed (a score of -inf) is "never"
        accepted, or for the mass of its neighbors, as "published" (with `delta`; under
        `lam` the budget of such a code is 0).
    """

    k: int
    delta: float | None = None
    lam: float | None = None
    residual: Residual = "published"
    fallback: Literal["target", "uniform"] = "target"
    selection: Selection = "without_replacement"
    filtered: Filtered = "never"

    def __post_init__(self):
        check_budget("delta", self.k, self.delta, self.lam)
        for name, value, known in (
            ("residual", self.residual, Residual.__args__),
            ("fallback", self.fallback, ("target", "uniform")),
            ("filtered", self.filtered, Filtered.__args__),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r}; use one of {', '.join(known)}")

    def outcome(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        greedy: Bool[Array, "B"] | None = None,
        params: Params = None,
    ) -> Outcome:
        """See `OutcomeVerifier.outcome`."""
        table = table_of(self, params, self.k, log_p.shape[-1])
        draft, shape = checked_draft(log_p, draft, tree)
        scores = shape.gather_internal(log_p)
        p = jnp.exp(log_softmax(log_p))
        log_q = None
        if draft.selection not in DETERMINISTIC:
            draft, log_q = require_samples(self, draft, shape, tree)
        residual = self.residual
        if residual == "published":
            residual = "zero_target" if log_q is None else "keep_target"
        if log_q is None and residual in ("keep_target", "drop_target"):
            raise ConfigError(
                f"residual={residual!r} subtracts the drafter's distribution, but "
                "candidates were given, not drawn; use 'zero_target' or 'optimal'"
            )

        def credit(now: Siblings):
            """Relaxed probability of the child, and whether a neighbor fitted."""
            _, _, masses, fits = relaxed_set(
                table,
                lambda ids: jnp.take_along_axis(now.p, ids, axis=-1),
                now.token,
                self.k,
                self.delta,
                self.lam,
            )
            more = jnp.sum(jnp.where(fits, masses, 0.0), axis=-1)
            return now.p_token() + more, fits[..., 0]

        def accept(now: Siblings):
            chance = accept_ratio(credit(now)[0], now.q_token())
            if self.filtered == "published":
                return chance
            return jnp.where(take_prob(scores, now.token) > -jnp.inf, chance, 0.0)

        def reject(now: Siblings):
            around = table.ids[now.token, : self.k + 1]
            relaxed = credit(now)[1][..., None]

            def without_neighbors(x):
                row = jnp.arange(x.shape[0])[:, None, None]
                column = jnp.arange(x.shape[1])[None, :, None]
                return jnp.where(relaxed, x.at[row, column, around].set(0.0), x)

            q = now.q_all()
            if residual == "zero_target":
                left = without_neighbors(jnp.where(now.one_hot(), 0.0, now.p))
            elif residual == "keep_target":
                left = now.p - without_neighbors(q)
            elif residual == "drop_target":
                left = without_neighbors(now.p) - q
            else:
                left = now.p - q
            left = jnp.maximum(left, 0.0)
            if self.fallback == "uniform":
                left = normalized(left, jnp.full_like(left, 1 / left.shape[-1]))
            # A child that cannot have been drawn changes nothing.
            return jnp.where(now.q_token()[..., None] > 0, left, now.p)

        sampled = sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=accept,
            reject=reject,
            remove=draft.selection == "without_replacement",
        )
        if greedy is None:
            return sampled
        sharp = self._greedy_law(shape, draft, log_p, p, table)
        return Outcome(
            jnp.where(greedy[:, None], sharp.stop, sampled.stop),
            jnp.where(greedy[:, None, None], sharp.final, sampled.final),
        )

    def _greedy_law(self, shape: Topology, draft: Draft, log_p, p, table) -> Outcome:
        """Temperature 0: a child that its relaxed probability makes the argmax."""
        _, _, masses, fits = relaxed_set(
            table,
            lambda ids: shape.at_parent(p, ids),
            draft.tokens,
            self.k,
            self.delta,
            self.lam,
        )
        own = shape.at_parent(p, draft.tokens[..., None])[..., 0]
        own = own + jnp.sum(jnp.where(fits, masses, 0.0), axis=-1)
        best = shape.gather_parents(jnp.argmax(log_p, axis=-1))
        top = shape.gather_parents(jnp.max(p, axis=-1))
        wins = (own > top) | ((own == top) & (draft.tokens <= best))
        if self.filtered == "never":
            wins &= survives(shape, log_p, draft)
        match = (wins | (draft.tokens == best)) & draft.valid
        alive: Bool[Array, "B N"] = ancestors_all(shape, match)
        everyone = jnp.ones(log_p.shape[0], bool)
        sharp = jnp.exp(target_log_probs(log_p, everyone))
        return deterministic_outcome(shape, alive, sharp, jnp.zeros_like(own))
