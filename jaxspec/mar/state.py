"""Variables and state of a generation of continuous tokens."""

from dataclasses import dataclass
from typing import ClassVar

from jax.tree_util import register_dataclass

from jaxspec.core.result import Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class MARVariables:
    """Arrays that all sequences share.

    Attributes:
      params: parameters of the model; of the target, if another model drafts.
      drafter: parameters of the model that drafts; None without one.
    """

    params: Params
    drafter: Params | None = None

    is_replicated: ClassVar[bool] = True


@register_dataclass
@dataclass(frozen=True)
class MARState:
    """Everything that one step hands to the next.

    Attributes:
      latents: float32 [B, T, C], tokens; 0 where there is none yet.
      order: int32 [B, T], permutation of the tokens, of which the last become known
        first.
      steps: int32 [B], number of steps so far.
      condition: embedding [R, D] of the conditions.
      keys: typed keys [B].
      sampling: sampling settings of each sequence.
      stopping: stopping criteria of each sequence.
      done: bool [B], sequences that have ended.
      stats: counters; a call is a pass of encoder and decoder.
      finite: bool [B], False once a token was NaN or infinite.
      drafter_condition: embedding [R, E] of the conditions by the model that drafts;
        None without one.
    """

    latents: Float[Array, "B T C"]
    order: Int[Array, "B T"]
    steps: Int[Array, "B"]
    condition: Float[Array, "R D"]
    keys: BatchKeys
    sampling: Sampling
    stopping: StoppingCriteria
    done: Bool[Array, "B"]
    stats: Stats
    finite: Bool[Array, "B"]
    drafter_condition: Float[Array, "R E"] | None = None
