"""Adaptive draft length: policies that mark nodes of a draft as invalid.

Shapes stay static, so nothing is recompiled; an invalid node is never accepted. Which
verifiers stay exact depends on the information a policy uses: see `Policy.past_only`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.drafters.combine.wrapper import DrafterWrapper
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    InitContext,
    RoundResult,
)
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.speculative.verify.outcome import ancestors_all
from jaxspec.typing import Array, Bool, Float, Int, Params


class Policy(Protocol):
    """Protocol of frozen, hashable policies that shorten drafts."""

    @property
    def past_only(self) -> bool:
        """Whether the decision about a node ignores the node's own token.

        If it does not, verifiers that need unbiased samples of `q` refuse the draft:
        dropping nodes because of their token biases the samples. `Coupled` accepts any
        policy.
        """
        ...

    def init(self, batch: int) -> Any:
        """Makes the state before the first round, arrays with `batch` as first axis."""
        ...

    def keep(self, state: Any, draft: Draft, ctx: DraftContext) -> tuple[Array, Any]:
        """Returns which nodes to verify, bool [B, N], and the new state."""
        ...

    def observe(self, state: Any, result: RoundResult) -> Any:
        """Updates the state with the result of a round."""
        ...


@dataclass(frozen=True)
class Adaptive(DrafterWrapper):
    """A drafter whose drafts are shortened by a policy.

    Attributes:
      drafter: drafter whose drafts are shortened.
      policy: policy that chooses the nodes to verify.
    """

    policy: Policy

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `Drafter`."""
        return self.drafter.init(params, ctx), self.policy.init(ctx.batch)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `Drafter`."""
        draft, drafter_state = self.drafter.propose(params, state[0], ctx)
        keep, policy_state = self.policy.keep(state[1], draft, ctx)
        draft = draft.keep(keep, past=self.policy.past_only)
        return draft, (drafter_state, policy_state)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """See `Drafter`."""
        drafter_state = self.drafter.observe(params, state[0], result)
        return drafter_state, self.policy.observe(state[1], result)


class _Stateless:
    def init(self, batch: int) -> Any:
        """Returns an empty state."""
        return ()

    def observe(self, state: Any, result: RoundResult) -> Any:
        """Returns the state unchanged."""
        return state


@dataclass(frozen=True)
class EntropyCutoff(_Stateless):
    """Ends a path where the drafter's next-token distribution has high entropy.

    Uses only a node's ancestors: exact under every lossless verifier.

    Attributes:
      most: largest entropy, in nats, of a node that keeps its children.
    """

    most: float

    def __post_init__(self):
        if not self.most >= 0:
            raise ConfigError(f"most={self.most} nats: an entropy is at least 0")

    @property
    def past_only(self) -> bool:
        """True."""
        return True

    def keep(self, state: Any, draft: Draft, ctx: DraftContext) -> tuple[Array, Any]:
        """See `Policy.keep`."""
        if draft.log_q is None:
            raise ConfigError("EntropyCutoff needs the drafter's Draft.log_q")
        shape = draft.topology(ctx.tree)
        q = jnp.exp(draft.log_q)
        entropy = -jnp.sum(jnp.where(q > 0, q * draft.log_q, 0.0), axis=-1)  # [B, I]
        before = gather_nodes(entropy, gather_nodes(shape.slots, shape.parents))
        return ancestors_all(shape, before <= self.most), state


@dataclass(frozen=True)
class ConfidenceCutoff(_Stateless):
    """Ends a path where it is unlikely to be accepted as a whole.

    The probability of a path is the product of the confidences of its tokens. With
    `source="head"` and `least=0.7` this is SpecDec++ (arXiv 2405.19715), whose optimal
    policy is such a threshold.

    Attributes:
      least: path probability below which a path ends.
      source: confidence of a token: the drafter's own probability ("q"), or the
        predicted acceptance ("head", `Draft.confidence`).
      least_length: depth up to which all nodes are kept.
      keep_trigger: keep the token at which the probability fell below `least`, and drop
        those after it. Without, that token is dropped because of what it is; then only
        `Coupled` and verifiers of deterministic candidates stay exact.
    """

    least: float
    source: Literal["q", "head"] = "q"
    least_length: int = 1
    keep_trigger: bool = True

    def __post_init__(self):
        if not 0 <= self.least <= 1:
            raise ConfigError(f"least={self.least} is not a probability")
        if self.source not in ("q", "head"):
            raise ConfigError(f"source={self.source!r} is neither 'q' nor 'head'")
        if self.least_length < 0:
            raise ConfigError(f"least_length={self.least_length} is not a depth")

    @property
    def past_only(self) -> bool:
        """Whether the token that triggers the stop is kept."""
        return self.keep_trigger

    def keep(self, state: Any, draft: Draft, ctx: DraftContext) -> tuple[Array, Any]:
        """See `Policy.keep`."""
        shape = draft.topology(ctx.tree)
        chance = shape.cumprod_path(self._confidence(shape, draft).at[:, 0].set(1.0))
        if self.keep_trigger:
            chance = shape.gather_parents(chance)
        return (chance >= self.least) | (shape.depths <= self.least_length), state

    def _confidence(self, shape, draft: Draft) -> Float[Array, "B N"]:
        if self.source == "head":
            if draft.confidence is None:
                raise ConfigError(
                    "this drafter does not predict acceptance; use source='q'"
                )
            return draft.confidence
        if draft.log_q is None:
            raise ConfigError("ConfidenceCutoff needs the drafter's Draft.log_q")
        sequence = jnp.arange(draft.tokens.shape[0])[:, None]
        slot = gather_nodes(shape.slots, shape.parents)
        return jnp.exp(draft.log_q[sequence, slot, draft.tokens])


@register_dataclass
@dataclass(frozen=True)
class LengthState:
    """State of `LengthController` for each sequence.

    Attributes:
      length: int32 [B], longest draft of this round in tokens.
      generated: float32 [B], moving average of the drafted lengths.
      accepted: float32 [B], moving average of the accepted lengths.
      drafted: int32 [B], length of the last draft, up to an end token.
    """

    length: Int[Array, "B"]
    generated: Float[Array, "B"]
    accepted: Float[Array, "B"]
    drafted: Int[Array, "B"]


@dataclass(frozen=True)
class LengthController:
    """DiffuSpec's adaptive draft length (arXiv 2510.02358).

    The next draft has `floor(mean drafted) + step` tokens if the mean accepted length
    is not below the mean drafted length, else `floor(mean drafted)`, within bounds. The
    means are moving averages that start at 0. Uses earlier rounds only: exact under
    every lossless verifier.

    Attributes:
      least: shortest draft in tokens; 20 in the paper.
      most: longest draft, and the first one; 30 in the paper.
      step: tokens added after full acceptance; 10 in the paper.
      decay: weight of the past in the averages; .5 in the paper.
      end_token: id of the token that ends a text; None if there is none.
    """

    least: int = 20
    most: int = 30
    step: int = 10
    decay: float = 0.5
    end_token: int | None = None

    def __post_init__(self):
        if not 1 <= self.least <= self.most or not 0 <= self.decay < 1:
            raise ConfigError(f"{self}: needs 1 <= least <= most and decay in [0, 1)")
        if self.step < 0 or (self.end_token is not None and self.end_token < 0):
            raise ConfigError(f"{self}: step and end_token must not be negative")

    @property
    def past_only(self) -> bool:
        """True."""
        return True

    def init(self, batch: int) -> LengthState:
        """Starts with the longest draft, and averages of 0."""
        return LengthState(  # separate buffers: the state may be donated
            jnp.full(batch, self.most, jnp.int32),
            jnp.zeros(batch, jnp.float32),
            jnp.zeros(batch, jnp.float32),
            jnp.zeros(batch, jnp.int32),
        )

    def keep(
        self, state: LengthState, draft: Draft, ctx: DraftContext
    ) -> tuple[Bool[Array, "B N"], LengthState]:
        """See `Policy.keep`."""
        shape = draft.topology(ctx.tree)
        keep = shape.depths <= state.length[:, None]
        reachable = ancestors_all(shape, draft.valid & keep)
        drafted = jnp.max(jnp.where(reachable, shape.depths, 0), axis=1)
        if self.end_token is not None:  # looked for on the path of first choices
            best = ancestors_all(shape, draft.valid & (shape.ranks == 0))
            end = best & (draft.tokens == self.end_token) & (shape.depths > 0)
            before = jnp.where(end, shape.depths - 1, ctx.tree.depth)
            drafted = jnp.minimum(drafted, jnp.min(before, axis=1))
        return keep, LengthState(state.length, state.generated, state.accepted, drafted)

    def observe(self, state: LengthState, result: RoundResult) -> LengthState:
        """See `Policy.observe`."""

        def average(old, new):
            return self.decay * old + (1 - self.decay) * new.astype(old.dtype)

        generated = average(state.generated, state.drafted)
        accepted = average(state.accepted, result.accepted)
        more = jnp.where(accepted >= generated, self.step, 0)
        length = jnp.floor(generated).astype(jnp.int32) + more
        length = jnp.clip(length, self.least, self.most)
        live = result.counts > 0
        return LengthState(
            jnp.where(live, length, state.length),
            jnp.where(live, generated, state.generated),
            jnp.where(live, accepted, state.accepted),
            state.drafted,
        )
