"""Variables, state and result of a generation."""

from dataclasses import dataclass

from jax.tree_util import register_dataclass

from jaxspec.spec.cache import KVCache
from jaxspec.spec.sampling import Sampling
from jaxspec.spec.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class Variables:
    """All arrays that the sequences of a batch share; `Engine.variables` makes them.

    Attributes:
      target: parameters of the target.
      drafter: parameters of the drafter, together with those of the target that it
        reads; None without a drafter.
      verifier: arrays that the verifier reads; None if it reads none.
      related_tokens: int32 [V, M], tokens whose log-probabilities are recorded beside
        that of each emitted token; None for none. See `EngineConfig.log_probs`.
    """

    target: Params
    drafter: Params = None
    verifier: Params = None
    related_tokens: Int[Array, "V M"] | None = None


@register_dataclass
@dataclass(frozen=True)
class Stats:
    """Counters, kept on the device.

    Attributes:
      calls: int32 [B], target calls of each sequence: its prefill, and each round in
        which it was not finished.
      rounds: int32 [], rounds of the whole batch.
      proposed: int32 [B], drafted tokens that were verified: valid nodes of trees.
      rescored: int32 [B], near-ties that were resolved by `Target.rescore`.
      accepted: int32 [B, A], number of rounds by number of accepted tokens.
      hits: int32 [B, A - 1, W], accepted drafted tokens by depth and rank.
    """

    calls: Int[Array, "B"]
    rounds: Int[Array, ""]
    proposed: Int[Array, "B"]
    rescored: Int[Array, "B"]
    accepted: Int[Array, "B A"]
    hits: Int[Array, "B A-1 W"]


@register_dataclass
@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of generated tokens under the target.

    Attributes:
      tokens: float32 [B, T], of each generated token.
      related: float32 [B, T, M], of the tokens that `Variables.related_tokens` lists
        for it; None without.
    """

    tokens: Float[Array, "B T"]
    related: Float[Array, "B T M"] | None = None


@register_dataclass
@dataclass(frozen=True)
class SpecState:
    """State between two rounds.

    Attributes:
      prompt: prompts of the sequences, as `Target.prefill` takes them.
      sampling: sampling settings of the sequences.
      tokens: int32 [B, max_new_tokens + A], generated tokens; arbitrary beyond
        `length`.
      length: int32 [B], number of generated tokens.
      start: int32 [B], absolute position of the first generated token.
      cache: KV cache of the target; the last draft lies behind the committed slots.
      path: int32 [B, A], accepted nodes of the last draft tree.
      counts: int32 [B], number of them that the next round commits to the cache.
      drafter: state of the drafter.
      keys: typed keys [B].
      stopping: stopping criteria of the sequences.
      done: bool [B], sequences that have ended.
      stats: counters.
      finite: bool [B], False once the target gave NaN, or only -inf.
      log_probs: log-probabilities, `T = max_new_tokens + A`; None unless they are
        recorded.
    """

    prompt: PyTree
    sampling: Sampling
    tokens: Int[Array, "B T"]
    length: Int[Array, "B"]
    start: Int[Array, "B"]
    cache: KVCache
    path: Int[Array, "B A"]
    counts: Int[Array, "B"]
    drafter: PyTree
    keys: BatchKeys
    stopping: StoppingCriteria
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    log_probs: LogProbs | None = None


@register_dataclass
@dataclass(frozen=True)
class Generation:
    """Result of a generation.

    Attributes:
      tokens: int32 [B, max_new_tokens]; -1 beyond the length of a sequence.
      lengths: int32 [B], number of tokens of each sequence, a stop token included.
      stats: counters.
      finite: bool [B], False if the target ever gave a sequence NaN, or only -inf; its
        tokens are arbitrary then.
      log_probs: log-probabilities, `T = max_new_tokens`, 0 beyond the length of a
        sequence; None unless they were recorded.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    log_probs: LogProbs | None = None
