"""Vector quantisation with l2-normalised codes (LlamaGen, arXiv 2406.06525)."""

import jax.numpy as jnp

from jaxspec.typing import Array, Float, Int


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales the last axis to unit length, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_codes(
    codebook: Float[Array, "V d"], vectors: Float[Array, "... d"]
) -> Int[Array, "..."]:
    """Index of the code nearest to each vector, both l2-normalised, in float32.

    The least distance between unit vectors is the largest cosine.
    """
    return jnp.argmax(l2_normalize(vectors) @ l2_normalize(codebook).T, axis=-1)


def look_up(
    codebook: Float[Array, "V d"], codes: Int[Array, "..."]
) -> Float[Array, "... d"]:
    """The l2-normalised code vectors that the decoder sees."""
    return l2_normalize(codebook)[codes]
