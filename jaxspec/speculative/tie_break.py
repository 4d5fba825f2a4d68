"""Resolution of near-ties by a pass of fixed shape.

A pass over one token and a pass over a draft tree round differently. A decision that
this could change is repeated with the logits of `Target.rescore`, whose shape does not
depend on the tree: plain and speculative decoding then emit the same token.
"""

import jax
import jax.numpy as jnp

from jaxspec.core.logit_bounds import rounding_gain
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.mesh_sync import any_group
from jaxspec.core.sampling import Sampling
from jaxspec.core.vocab_parallel import argmax_with_margin
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.prefix import prefix_length, without_prefix
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


def resolves_ties(engine: EngineConfig) -> bool:
    """Whether an engine resolves near-ties."""
    return engine.target.rescore is not None and engine.tie_margin > 0


def is_near_tie(
    engine: EngineConfig, sampling: Sampling, margin: Float[Array, "B ..."]
) -> Bool[Array, "B ..."]:
    """Mask of decisions that rounding could change and that the engine can repeat.

    Args:
      engine: static settings.
      sampling: sampling settings of the sequences.
      margin: lead of the chosen token over the second best.
    """
    if not resolves_ties(engine):
        return jnp.zeros_like(margin, bool)
    close = engine.tie_margin * rounding_gain(sampling)
    return margin < close.reshape(-1, *(1,) * (margin.ndim - 1))


def margin_with_filters(
    margin: Float[Array, "B ..."],
    scores: Float[Array, "B ... V"],
    uncertain: Float[Array, "B ... V"] | None,
    noise: Float[Array, "B ... V"],
) -> Float[Array, "B ..."]:
    """Margins, limited to the lead over tokens whose filtering is uncertain.

    Args:
      margin: lead of the chosen token over the second best.
      scores: processed logits.
      uncertain: scores of uncertain tokens, -inf for all others, see
        `core.logit_bounds`; None without filters.
      noise: Gumbel noise of the positions.
    """
    if uncertain is None:
        return margin
    lead = jnp.max(scores + noise, axis=-1) - jnp.max(uncertain + noise, axis=-1)
    return jnp.minimum(margin, lead)


def resolve_ties(
    engine: EngineConfig,
    params: Params,
    prompt: PyTree,
    sampling: Sampling,
    noise: Float[Array, "B V"],
    tokens: Int[Array, "B T"],
    index: Int[Array, "B"],
    choice: Int[Array, "B"],
    near: Bool[Array, "B"],
) -> Int[Array, "B"]:
    """Repeats near-tied decisions with the logits of `Target.rescore`.

    Sequences are processed one at a time, so that the shape does not depend on the
    batch.

    Args:
      engine: static settings.
      params: parameters of the target.
      prompt: prompts of the sequences, with or without given tokens.
      sampling: sampling settings of the sequences.
      noise: Gumbel noise of the next position of each sequence.
      tokens: given and generated tokens, of which the first `index` are read.
      index: index of the token to choose.
      choice: token chosen by the pass over the tree.
      near: mask of the sequences whose decision is repeated.

    Returns:
      The tokens, int32 [B].
    """
    rescore = engine.target.rescore
    if rescore is None or not resolves_ties(engine):
        return choice
    total = prefix_length(prompt) + engine.max_new_tokens
    prompt = without_prefix(prompt)
    known = jnp.arange(total)[None] < index[:, None]
    known_tokens = jnp.where(known, tokens[:, :total], 0)

    def resolve_one(sequence):
        near, prompt, sampling, noise, tokens, index, choice = sequence

        def decide():
            one = jax.tree.map(lambda x: x[None], (prompt, sampling))
            logits = rescore(params, one[0], tokens[None], index[None])
            merged = apply_cfg(logits, one[1], index[None])
            scores = process_logits(merged, one[1], engine.order)
            return argmax_with_margin(scores + noise[None])[0][0]

        return jax.lax.cond(
            any_group(near),
            lambda: jnp.where(near, decide(), choice),
            lambda: choice,
        )

    sequences = (near, prompt, sampling, noise, known_tokens, index, choice)
    return jax.lax.cond(
        any_group(jnp.any(near)),
        lambda: jax.lax.map(resolve_one, sequences),
        lambda: choice,
    )
