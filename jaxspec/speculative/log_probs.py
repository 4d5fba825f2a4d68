"""Log-probabilities of emitted tokens, recorded while they are generated."""

import jax
import jax.numpy as jnp

from jaxspec.core.result import LogProbs
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.state import Variables
from jaxspec.typing import Array, Float, Int


def token_log_probs(
    engine: EngineConfig,
    variables: Variables,
    logits: Float[Array, "B T V"],
    scores: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
) -> LogProbs | None:
    """Log-probabilities of emitted tokens; None unless they are recorded.

    Args:
      engine: static settings; `log_probs` chooses the distribution.
      variables: arrays of the batch; `related_tokens` is read.
      logits: logits of the target before each token, after guidance.
      scores: the same after temperature and filters.
      tokens: emitted tokens.
    """
    if engine.log_probs is None:
        return None
    chosen = logits if engine.log_probs == "model" else scores
    log_probs = jax.nn.log_softmax(chosen, axis=-1)

    def take(tokens):
        return jnp.take_along_axis(log_probs, tokens, axis=-1)

    related = variables.related_tokens
    return LogProbs(
        take(tokens[..., None])[..., 0],
        None if related is None else take(related[tokens]),
    )


def no_log_probs(
    engine: EngineConfig, variables: Variables, tokens: Int[Array, "B T"]
) -> LogProbs | None:
    """Zeros for tokens that were given, or None unless anything is recorded."""
    if engine.log_probs is None:
        return None
    related = variables.related_tokens
    return LogProbs(
        jnp.zeros(tokens.shape, jnp.float32),
        None if related is None else jnp.zeros(related[tokens].shape, jnp.float32),
    )
