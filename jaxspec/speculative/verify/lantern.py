"""LANTERN and LANTERN++: acceptance relaxed by codebook neighbors. Lossy."""

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
    checked_draft,
    log_softmax,
    require_samples,
    survives,
    target_log_probs,
)
from jaxspec.speculative.verify.neighbors import Neighbors
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
class Lantern(OutcomeVerifier):
    """Accepts by relaxed probabilities: those of a token and of its nearest neighbors.

    A child `x` is accepted with probability `min(1, relaxed p(x) / q(x))`, where the
    relaxed probability is that of `x` and of its relaxed set: the `k` nearest tokens in
    the codebook, nearest first, while their total probability is within `delta`
    (LANTERN, arXiv 2410.03355) or `(lam - 1) p(x)` (LANTERN++, arXiv 2502.06352).
    Children that are no samples have `q = 1`. Greedy sequences accept a child that
    would be the argmax with its relaxed probability.

    The residual after a rejection differs within the release (jadohu/LANTERN). All
    three forms are implemented, and the one that minimizes the total variation
    distance. Below, `x` is relaxed if its nearest neighbor is in the relaxed set, and
    its neighbors are the `k + 1` nearest tokens, one more than are tested, as released:

    - "zero_target": `x` gets probability 0 and, if relaxed, so do its neighbors. The
      release does this for dynamic trees.
    - "keep_target": subtracts `q`, if relaxed except at the neighbors. The release does
      this for static trees of LlamaGen and Anole.
    - "drop_target": subtracts `q`; if relaxed, the neighbors get probability 0 first.
      The release does this for static trees of Lumina-mGPT.
    - "optimal": subtracts the accepted mass `q min(1, relaxed p / q)` (Cool-SD, arXiv
      2601.09212). A relaxed probability is at least `p`, so the residual is
      `max(p - q, 0)`, that of exact rejection.
    - "published": "keep_target" for samples, "zero_target" for other children.

    Deviations from the release: probabilities are float32 instead of the dtype of the
    model, and filters have the order of the engine. In two cases the release emits
    tokens that top-k or top-p removed; both are off by default, see `fallback` and
    `filtered`.

    Parameters: `{"neighbors": Neighbors}`.

    Attributes:
      k: number of neighbors that are tested; 1000 by default in the release.
      delta: largest total probability of a relaxed set, .1 by default in the release;
        None if `lam` is given.
      lam: factor of the relative budget `(lam - 1) p(x)`; None if `delta` is given.
      residual: form of the residual, see above.
      fallback: distribution used when a residual is 0 everywhere: "target" is the one
        before the rejection; "uniform", over the whole vocabulary, is as released.
      selection: selection of candidates by the drafter.
      filtered: treatment of tokens that top-k or top-p removed (score -inf): "never"
        accepts none, "published" accepts them by the probability of their neighbors
        (with `delta`; with `lam` the budget of such a token is 0).
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
        """See `OutcomeVerifier.outcome`.

        Raises:
          ConfigError: the residual needs samples, and the candidates are none.
        """
        table = table_of(self, params, self.k, log_p.shape[-1])
        draft, shape = checked_draft(log_p, draft, tree)
        scores = shape.gather_internal(log_p)
        p = jnp.exp(log_softmax(log_p))
        log_q = None
        if draft.selection not in DETERMINISTIC:
            draft, log_q = require_samples(self, draft, shape, tree)
        residual = self._residual_form(sampled=log_q is not None)
        outcome = sequential_siblings(
            shape,
            draft,
            p,
            log_q,
            accept=lambda now: self._accept(now, table, scores),
            reject=lambda now: self._reject(now, table, residual),
            remove=draft.selection == "without_replacement",
        )
        if greedy is None:
            return outcome
        argmax = self._greedy_outcome(shape, draft, log_p, p, table)
        return Outcome(
            jnp.where(greedy[:, None], argmax.stop, outcome.stop),
            jnp.where(greedy[:, None, None], argmax.final, outcome.final),
        )

    def _residual_form(self, *, sampled: bool) -> Residual:
        """Form of the residual for candidates that are samples, or not."""
        residual = self.residual
        if residual == "published":
            residual = "keep_target" if sampled else "zero_target"
        if not sampled and residual in ("keep_target", "drop_target"):
            raise ConfigError(
                f"residual={residual!r} subtracts the drafter's distribution, but the "
                "candidates are no samples of it; use 'zero_target' or 'optimal'"
            )
        return residual

    def _relaxed(
        self, now: Siblings, table: Neighbors
    ) -> tuple[Float[Array, "B I"], Bool[Array, "B I"]]:
        """Relaxed probability of the current child, and whether it is relaxed."""
        _, _, masses, members = relaxed_set(
            table,
            lambda ids: jnp.take_along_axis(now.p, ids, axis=-1),
            now.token,
            self.k,
            self.delta,
            self.lam,
        )
        mass = jnp.sum(jnp.where(members, masses, 0.0), axis=-1)
        return now.p_token() + mass, members[..., 0]

    def _accept(
        self, now: Siblings, table: Neighbors, scores: Float[Array, "B I V"]
    ) -> Float[Array, "B I"]:
        """Probability to accept the current child."""
        chance = accept_ratio(self._relaxed(now, table)[0], now.q_token())
        if self.filtered == "published":
            return chance
        return jnp.where(take_prob(scores, now.token) > -jnp.inf, chance, 0.0)

    def _reject(
        self, now: Siblings, table: Neighbors, residual: Residual
    ) -> Float[Array, "B I V"]:
        """Residual after a rejection of the current child, not normalized."""
        neighbors = table.ids[now.token, : self.k + 1]
        is_relaxed = self._relaxed(now, table)[1][..., None]

        def zero_neighbors(x):
            sequence = jnp.arange(x.shape[0])[:, None, None]
            node = jnp.arange(x.shape[1])[None, :, None]
            return jnp.where(is_relaxed, x.at[sequence, node, neighbors].set(0.0), x)

        q = now.q_all()
        if residual == "zero_target":
            rest = zero_neighbors(jnp.where(now.one_hot(), 0.0, now.p))
        elif residual == "keep_target":
            rest = now.p - zero_neighbors(q)
        elif residual == "drop_target":
            rest = zero_neighbors(now.p) - q
        else:
            rest = now.p - q
        rest = jnp.maximum(rest, 0.0)
        if self.fallback == "uniform":
            rest = normalized(rest, jnp.full_like(rest, 1 / rest.shape[-1]))
        # A child that the drafter cannot have sampled changes nothing.
        return jnp.where(now.q_token()[..., None] > 0, rest, now.p)

    def _greedy_outcome(
        self,
        shape: Topology,
        draft: Draft,
        log_p: Float[Array, "B N V"],
        p: Float[Array, "B N V"],
        table: Neighbors,
    ) -> Outcome:
        """Outcome at temperature 0: accepts a child whose relaxed probability wins."""
        _, _, masses, members = relaxed_set(
            table,
            lambda ids: shape.at_parent(p, ids),
            draft.tokens,
            self.k,
            self.delta,
            self.lam,
        )
        relaxed = shape.at_parent(p, draft.tokens[..., None])[..., 0]
        relaxed = relaxed + jnp.sum(jnp.where(members, masses, 0.0), axis=-1)
        best = shape.gather_parents(jnp.argmax(log_p, axis=-1))
        top = shape.gather_parents(jnp.max(p, axis=-1))
        wins = (relaxed > top) | ((relaxed == top) & (draft.tokens <= best))
        if self.filtered == "never":
            wins &= survives(shape, log_p, draft)
        match = (wins | (draft.tokens == best)) & draft.valid
        accepted = ancestors_all(shape, match)
        all_greedy = jnp.ones(log_p.shape[0], bool)
        one_hot = jnp.exp(target_log_probs(log_p, all_greedy))
        return deterministic_outcome(shape, accepted, one_hot, jnp.zeros_like(relaxed))
