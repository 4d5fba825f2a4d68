"""Vector quantization: vectors to their nearest codes, and codes to vectors."""

import jax.numpy as jnp

from jaxspec.nn.layers import shifted
from jaxspec.typing import Array, Float, Int


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales the last axis to unit length, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_codes(
    codebook: Float[Array, "V d"],
    vectors: Float[Array, "... d"],
    *,
    normalized: bool = True,
) -> Int[Array, "..."]:
    """Index (int32) of the code nearest to each vector, in float32.

    `normalized`: both are l2-normalized first (LlamaGen, arXiv 2406.06525).
    """
    if normalized:  # the least distance between unit vectors is the largest cosine
        near = l2_normalize(vectors) @ l2_normalize(codebook).T
    else:
        book, vectors = codebook.astype(jnp.float32), vectors.astype(jnp.float32)
        near = shifted(vectors @ book.T, -0.5 * jnp.sum(book * book, axis=-1))
    return jnp.argmax(near, axis=-1).astype(jnp.int32)


def look_up(
    codebook: Float[Array, "V d"], codes: Int[Array, "..."], *, normalized: bool = True
) -> Float[Array, "... d"]:
    """The code vectors that the decoder sees, l2-normalized or as they are."""
    book = l2_normalize(codebook) if normalized else codebook.astype(jnp.float32)
    return book[codes]
