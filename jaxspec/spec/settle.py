"""Decisions too close to leave to rounding, taken again by a pass of fixed shape.

A pass over one token and a pass over a tree round differently. Where that could change
a token, both ways of decoding ask the same function the same question instead.
"""

import jax
import jax.numpy as jnp

from jaxspec.spec.sampling import Sampling, apply_cfg, process_logits, rounding_gain
from jaxspec.spec.state import Engine
from jaxspec.spec.together import any_group
from jaxspec.spec.vocabulary import argmax_with_margin
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


def is_near_tie(
    engine: Engine, sampling: Sampling, margin: Float[Array, "B ..."]
) -> Bool[Array, "B ..."]:
    """Decisions too close to leave to rounding, if they can be taken again."""
    if engine.target.rescore is None or engine.tie_margin == 0:
        return jnp.zeros_like(margin, bool)
    close = engine.tie_margin * rounding_gain(sampling)
    return margin < close.reshape(-1, *(1,) * (margin.ndim - 1))


def margin_with_filters(
    margin: Float[Array, "B ..."],
    scores: Float[Array, "B ... V"],
    doubtful: Float[Array, "B ... V"] | None,
    noise: Float[Array, "B ... V"],
) -> Float[Array, "B ..."]:
    """Margins, no larger than the lead over tokens whose filtering is uncertain.

    See `process_logits_with_bounds`.
    """
    if doubtful is None:
        return margin
    lead = jnp.max(scores + noise, axis=-1) - jnp.max(doubtful + noise, axis=-1)
    return jnp.minimum(margin, lead)


def resolve_ties(
    engine: Engine,
    params: Params,
    prompt: PyTree,
    sampling: Sampling,
    noise: Float[Array, "B V"],
    tokens: Int[Array, "B T"],
    index: Int[Array, "B"],
    choice: Int[Array, "B"],
    near: Bool[Array, "B"],
) -> Int[Array, "B"]:
    """Takes near-tied decisions again, each row alone and by a forward of fixed shape.

    Args:
      noise: of the positions in question.
      tokens: generated tokens, of which the first `index` are read.
      index: which generated token is decided.
      choice: what the wide pass chose.
      near: rows to look at again.
    """
    rescore = engine.target.rescore
    if rescore is None or engine.tie_margin == 0:  # then nothing is near, see above
        return choice
    known = jnp.arange(engine.max_new_tokens)[None] < index[:, None]
    known_tokens = jnp.where(known, tokens[:, : engine.max_new_tokens], 0)

    def one(row):
        own, own_prompt, own_sampling, own_noise, own_tokens, own_index, old = row

        def again():
            alone = jax.tree.map(lambda x: x[None], (own_prompt, own_sampling))
            logits = rescore(params, alone[0], own_tokens[None], own_index[None])
            merged = apply_cfg(logits, alone[1], own_index[None])
            scores = process_logits(merged, alone[1], engine.order)
            return argmax_with_margin(scores + own_noise[None])[0][0]

        return jax.lax.cond(
            any_group(own), lambda: jnp.where(own, again(), old), lambda: old
        )

    rows = (near, prompt, sampling, noise, known_tokens, index, choice)
    return jax.lax.cond(
        any_group(jnp.any(near)), lambda: jax.lax.map(one, rows), lambda: choice
    )
