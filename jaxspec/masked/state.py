"""Variables and state of a generation by a masked model."""

from dataclasses import dataclass
from typing import ClassVar

from jax.tree_util import register_dataclass

from jaxspec.core.kv_cache import Layers
from jaxspec.core.result import Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params, PyTree


@register_dataclass
@dataclass(frozen=True)
class MaskedVariables:
    """Arrays that all sequences share.

    Attributes:
      params: parameters of the model.
      policy: parameters of the policy; None for one without.
    """

    params: Params
    policy: PyTree = None

    is_replicated: ClassVar[bool] = True


@register_dataclass
@dataclass(frozen=True)
class MaskedState:
    """Everything that one step hands to the next.

    Attributes:
      tokens: int32 [B, T], tokens; the mask's number where one is masked.
      known: bool [B, T], tokens that are not masked.
      log_p: float32 [B, T], log-probability of each known token in the step that
        sampled it.
      steps: int32 [B], number of steps so far.
      prompt: prompts of the sequences.
      keys: typed keys [B].
      sampling: sampling settings of each sequence.
      stopping: stopping criteria of each sequence.
      done: bool [B], sequences that have ended.
      stats: counters.
      finite: bool [B], False once logits were NaN, or all -inf.
      layers: keys and values of all positions, see `ContextCache`; empty without one.
      read: bool [B, T], tokens that were known when these were computed; None without a
        `ContextCache`.
      reach: int32 [B], number of positions that passes read; None without a window.
      length: int32 [B], number of tokens of each text; None without a `LengthControl`.
      changes: int32 [B], number of times that it changed; None without.
    """

    tokens: Int[Array, "B T"]
    known: Bool[Array, "B T"]
    log_p: Float[Array, "B T"]
    steps: Int[Array, "B"]
    prompt: PyTree
    keys: BatchKeys
    sampling: Sampling
    stopping: StoppingCriteria
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    layers: Layers = ()
    read: Bool[Array, "B T"] | None = None
    reach: Int[Array, "B"] | None = None
    length: Int[Array, "B"] | None = None
    changes: Int[Array, "B"] | None = None
