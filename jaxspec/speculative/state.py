"""Variables and state of speculative generation."""

from dataclasses import dataclass
from typing import ClassVar

from jax.tree_util import register_dataclass

from jaxspec.core.kv_cache import KVCache
from jaxspec.core.result import LogProbs, Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.speculative.prefix import prefix_length
from jaxspec.typing import Array, BatchKeys, Bool, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class Variables:
    """Arrays that all sequences of a batch share; make them with `Engine.variables`.

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

    is_replicated: ClassVar[bool] = True  # see `sharding.over_batch`


@register_dataclass
@dataclass(frozen=True)
class SpecState:
    """State between two rounds.

    Attributes:
      prompt: prompts of the sequences, as `Target.prefill` takes them, or a `Prefixed`
        with the first tokens of each sequence.
      sampling: sampling settings of the sequences.
      tokens: int32 [B, prefix_length + max_new_tokens + A], given tokens and then
        generated ones; arbitrary beyond `length`.
      length: int32 [B], number of these tokens.
      start: int32 [B], absolute position of the first of these tokens.
      cache: KV cache of the target; the last draft is after the committed slots.
      path: int32 [B, A], accepted nodes of the last draft tree.
      counts: int32 [B], number of nodes of the path that the next round commits.
      drafter: state of the drafter.
      keys: typed keys [B].
      stopping: stopping criteria of the sequences.
      done: bool [B], sequences that have ended.
      stats: counters.
      finite: bool [B], False once logits of the target were NaN, or all -inf.
      log_probs: log-probabilities of `tokens`, 0 for given ones; None unless they are
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

    @property
    def prefix_length(self) -> int:
        """Number of given tokens of each sequence; static."""
        return prefix_length(self.prompt)

    @property
    def new_length(self) -> Int[Array, "B"]:
        """Number of generated tokens of each sequence."""
        return self.length - self.prefix_length
