"""Variables and state of a next-scale generation."""

from dataclasses import dataclass
from typing import ClassVar

from jax.tree_util import register_dataclass

from jaxspec.core.kv_cache import Layers
from jaxspec.core.result import Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class NextScaleVariables:
    """Arrays that all sequences of a next-scale generation share.

    Attributes:
      models: parameters of each model.
      quantizer: codebook and residual convolutions of the tokenizer, see `Scales`.
    """

    models: tuple[Params, ...]
    quantizer: Params

    is_replicated: ClassVar[bool] = True


@register_dataclass
@dataclass(frozen=True)
class NextScaleState:
    """Everything that one scale hands to the next.

    Attributes:
      tokens: int32 [B, T], tokens of all scales; -1 where there is none yet.
      given: int32 [B, P], first tokens that are not sampled.
      scale: int32 [B], scale that comes next.
      features: float32 [B, grid, grid, C], what the maps so far add up to.
      inputs: float32 [B, T, C], inputs of the models so far, see `Scales.inputs`.
      caches: keys and values of each model.
      outputs: additions of the layers at the last complete map, of each model; empty
        without `TokenSkipping`.
      conditions: embedding [R, D] of the conditions, for each model.
      keys: typed keys [B].
      sampling: sampling settings of each sequence.
      stopping: stopping criteria of each sequence.
      lengths: int32 [B], number of new tokens.
      done: bool [B], sequences that have ended.
      stats: counters; a call is a pass of any model.
      finite: bool [B], False once logits were NaN, or all -inf.
      log_probs: float32 [B, T], log-probability of each token; None unless recorded.
    """

    tokens: Int[Array, "B T"]
    given: Int[Array, "B P"]
    scale: Int[Array, "B"]
    features: Float[Array, "B grid grid C"]
    inputs: Float[Array, "B T C"]
    caches: tuple[Layers, ...]
    outputs: tuple[Layers, ...]
    conditions: tuple[Float[Array, "R D"], ...]
    keys: BatchKeys
    sampling: Sampling
    stopping: StoppingCriteria
    lengths: Int[Array, "B"]
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    log_probs: Float[Array, "B T"] | None
