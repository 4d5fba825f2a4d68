"""Block verification: joint acceptance of the tokens of a chain."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    checked_draft,
    require_samples,
    target_log_probs,
)
from jaxspec.speculative.verify.outcome import (
    Outcome,
    OutcomeVerifier,
    normalized,
    take_prob,
)
from jaxspec.typing import Array, Bool, Float, Params


@dataclass(frozen=True)
class Block(OutcomeVerifier):
    """Accepts a prefix of a chain jointly; never shorter than `Rejection` on average.

    Source: arXiv 2403.10444. Chains only; their tokens must be samples of `log_q`.
    """

    lossless = True
    selection = "without_replacement"

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
          ConfigError: the tree branches.
        """
        if not isinstance(tree, Tree) or tree.width > 1:
            raise ConfigError(
                "Block verifies chains only; use Tree.chain(length), or "
                "--tree chain-LENGTH"
            )
        draft, shape = checked_draft(log_p, draft, tree)
        draft, log_q = require_samples(self, draft, shape, tree)
        q = jnp.exp(log_q)
        p = jnp.exp(target_log_probs(log_p, greedy))
        token = draft.tokens[:, 1:]  # [B, A - 1]
        exists = jnp.cumprod(draft.valid[:, 1:], axis=-1) > 0
        p_token, q_token = take_prob(p[:, :-1], token), take_prob(q, token)
        odds = jnp.where(q_token > 0, p_token / jnp.where(q_token > 0, q_token, 1), 0)

        # Joint ratio of target and drafter for each prefix, at most 1.
        joint = [jnp.ones_like(odds[:, 0])]
        for i in range(tree.depth):
            joint.append(jnp.minimum(joint[-1] * odds[:, i], 1.0))
        joint = jnp.stack(joint, axis=1)  # [B, A]

        residual = jnp.maximum(joint[:, :-1, None] * p[:, :-1] - q, 0.0)
        mass = jnp.sum(residual, axis=-1)
        total = mass + (1.0 - joint[:, :-1])  # at least `mass`, also when rounded
        inner = jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), 1.0)
        # The whole block is accepted with its joint ratio.
        true = jnp.ones_like(exists[:, :1])
        is_last = ~jnp.concatenate([exists, ~true], axis=1)
        exists = jnp.concatenate([true, exists], axis=1)
        inner = jnp.pad(inner, ((0, 0), (0, 1)))
        chance = jnp.where(exists, jnp.where(is_last, joint, inner), 0.0)
        # The longest accepted prefix wins: none of the longer ones is accepted.
        rejected = jnp.cumprod((1.0 - chance)[:, ::-1], axis=1)[:, ::-1]
        longer = jnp.concatenate([rejected[:, 1:], jnp.ones_like(joint[:, :1])], axis=1)
        final = jnp.concatenate([normalized(residual, p[:, :-1]), p[:, -1:]], axis=1)
        return Outcome(chance * longer, jnp.where(is_last[..., None], p, final))
