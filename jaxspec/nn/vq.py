"""Vector quantisation: vectors to their nearest codes, and codes to vectors."""

import jax.numpy as jnp

from jaxspec.typing import Array, Float, Int


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Scales the last axis to unit length, in float32; zero stays zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_codes(
    codebook: Float[Array, "V d"],
    vectors: Float[Array, "... d"],
    *,
    normalised: bool = True,
) -> Int[Array, "..."]:
    """Index of the code nearest to each vector, in float32.

    `normalised`: both are l2-normalised first (LlamaGen, arXiv 2406.06525).
    """
    if normalised:  # the least distance between unit vectors is the largest cosine
        return jnp.argmax(l2_normalize(vectors) @ l2_normalize(codebook).T, axis=-1)
    book, vectors = codebook.astype(jnp.float32), vectors.astype(jnp.float32)
    return jnp.argmax(vectors @ book.T - 0.5 * jnp.sum(book * book, axis=-1), axis=-1)


def look_up(
    codebook: Float[Array, "V d"], codes: Int[Array, "..."], *, normalised: bool = True
) -> Float[Array, "... d"]:
    """The code vectors that the decoder sees, l2-normalised or as they are."""
    book = l2_normalize(codebook) if normalised else codebook.astype(jnp.float32)
    return book[codes]
