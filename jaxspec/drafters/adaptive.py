"""How much of a draft is worth verifying: policies that mark nodes as not valid.

Shapes stay static, so nothing is recompiled; a node that is not valid is never
accepted. What a policy may look at decides which rules stay exact: see `past_only`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.errors import ConfigError
from jaxspec.spec.draft import (
    Draft,
    DraftContext,
    Drafter,
    InitContext,
    RoundResult,
)
from jaxspec.spec.topology import gather_nodes
from jaxspec.spec.verify.law import ancestors_all
from jaxspec.typing import Array, Bool, Float, Int, Params


class Policy(Protocol):
    """A frozen, hashable way to shorten drafts."""

    @property
    def past_only(self) -> bool:
        """Whether a node's fate is decided before its own token is known.

        If not, rules that rely on drafted tokens being honest samples refuse the draft:
        dropping a token for what it is biases them. `Coupled` takes any policy.
        """
        ...

    def init(self, rows: int) -> Any:
        """State before the first round, a tree of arrays with `rows` rows."""
        ...

    def keep(self, state: Any, draft: Draft, ctx: DraftContext) -> tuple[Array, Any]:
        """Which nodes to verify, bool [B, N]."""
        ...

    def observe(self, state: Any, result: RoundResult) -> Any:
        """Learns what became of the draft."""
        ...


@dataclass(frozen=True)
class Adaptive:
    """A drafter whose drafts are shortened by a policy; itself a drafter."""

    drafter: Drafter
    policy: Policy

    @property
    def extra_rows(self) -> int:
        """Those of the drafter."""
        return getattr(self.drafter, "extra_rows", 0)

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `spec.draft.Drafter`."""
        return self.drafter.init(params, ctx), self.policy.init(ctx.rows)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        draft, own = self.drafter.propose(params, state[0], ctx)
        wanted, policy = self.policy.keep(state[1], draft, ctx)
        return draft.keep(wanted, past=self.policy.past_only), (own, policy)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """See `spec.draft.Drafter`."""
        own = self.drafter.observe(params, state[0], result)
        return own, self.policy.observe(state[1], result)


class _Stateless:
    def init(self, rows: int) -> Any:
        """Nothing to remember."""
        return ()

    def observe(self, state: Any, result: RoundResult) -> Any:
        """Nothing to learn."""
        return state


@dataclass(frozen=True)
class EntropyCutoff(_Stateless):
    """Drafts no further where the drafter does not know how to go on.

    A node whose next-token distribution has more than `most` nats of entropy gets no
    children. Decided from the past: exact under every lossless rule.
    """

    most: float

    def __post_init__(self):
        if not self.most >= 0:
            raise ConfigError(f"most={self.most} nats: an entropy is at least 0")

    @property
    def past_only(self) -> bool:
        """Always."""
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
    """Stops a path where it is unlikely to be accepted as a whole.

    The chance of a path is the product of its tokens' confidences: the drafter's own
    probabilities ("q"), or predicted acceptance ("head", `Draft.confidence`). With
    "head" and `least = 0.7` it is SpecDec++'s rule (arXiv 2405.19715), whose optimal
    policy is such a threshold.

    Attributes:
      least: chance below which a path ends.
      source: see above.
      least_length: depth up to which nodes are kept in any case.
      keep_trigger: keep the token at which the chance fell below `least`, and drop what
        follows. Dropping the token itself decides by what it is: then only `Coupled`
        and rules for given candidates remain exact.
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
        """If the token that triggers the stop is kept."""
        return self.keep_trigger

    def keep(self, state: Any, draft: Draft, ctx: DraftContext) -> tuple[Array, Any]:
        """See `Policy.keep`."""
        shape = draft.topology(ctx.tree)
        line = shape.cumprod_path(self._confidence(shape, draft).at[:, 0].set(1.0))
        seen = shape.gather_parents(line) if self.keep_trigger else line
        return (seen >= self.least) | (shape.depths <= self.least_length), state

    def _confidence(self, shape, draft: Draft) -> Float[Array, "B N"]:
        if self.source == "head":
            if draft.confidence is None:
                raise ConfigError("this drafter predicts no acceptance; use source='q'")
            return draft.confidence
        if draft.log_q is None:
            raise ConfigError("ConfidenceCutoff needs the drafter's Draft.log_q")
        row = jnp.arange(draft.tokens.shape[0])[:, None]
        slot = gather_nodes(shape.slots, shape.parents)
        return jnp.exp(draft.log_q[row, slot, draft.tokens])


@register_dataclass
@dataclass(frozen=True)
class LengthState:
    """What `LengthController` remembers of each row.

    Attributes:
      length: int32 [B], drafted tokens this round.
      generated: float32 [B], moving average of drafted lengths.
      accepted: float32 [B], of accepted lengths.
      drafted: int32 [B], length of the last draft, up to an end token.
    """

    length: Int[Array, "B"]
    generated: Float[Array, "B"]
    accepted: Float[Array, "B"]
    drafted: Int[Array, "B"]


@dataclass(frozen=True)
class LengthController:
    """DiffuSpec's controller (arXiv 2510.02358): lengths follow what was accepted.

    The next draft has `floor(mean drafted) + step` tokens if the mean accepted length
    is not below the mean drafted length, else `floor(mean drafted)`, within bounds. The
    means are moving averages that start at 0. Decided by earlier rounds alone.

    Attributes:
      least: shortest draft; 20 in the paper.
      most: longest, and the first; 30.
      step: 10.
      decay: weight of the past in the averages; .5.
      end_token: a drafted token that ends the text, if there is one.
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
        """Always."""
        return True

    def init(self, rows: int) -> LengthState:
        """The longest draft, and averages of 0."""
        return LengthState(  # no buffer twice: the state may be donated
            jnp.full(rows, self.most, jnp.int32),
            jnp.zeros(rows, jnp.float32),
            jnp.zeros(rows, jnp.float32),
            jnp.zeros(rows, jnp.int32),
        )

    def keep(
        self, state: LengthState, draft: Draft, ctx: DraftContext
    ) -> tuple[Bool[Array, "B N"], LengthState]:
        """See `Policy.keep`."""
        shape = draft.topology(ctx.tree)
        kept = shape.depths <= state.length[:, None]
        alive = ancestors_all(shape, draft.valid & kept)
        drafted = jnp.max(jnp.where(alive, shape.depths, 0), axis=1)
        if self.end_token is not None:
            best = ancestors_all(
                shape, draft.valid & (shape.ranks == 0)
            )  # first choices
            end = best & (draft.tokens == self.end_token) & (shape.depths > 0)
            before = jnp.where(end, shape.depths - 1, ctx.tree.depth)
            drafted = jnp.minimum(drafted, jnp.min(before, axis=1))
        return kept, LengthState(state.length, state.generated, state.accepted, drafted)

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
