"""Vector quantization with a codebook."""

import jax
import jax.numpy as jnp

from jaxspec.core.precision import full_precision
from jaxspec.nn.layers import add_bias
from jaxspec.typing import Array, Float, Int


def l2_normalize(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Scales the last axis to unit length, in float32; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@full_precision
def nearest_codes(
    codebook: Float[Array, "V C"],
    vectors: Float[Array, "... C"],
    *,
    normalized: bool = True,
) -> Int[Array, "..."]:
    """Index of the codebook entry nearest to each vector, int32, computed in float32.

    Args:
      codebook: entries.
      vectors: vectors to quantize.
      normalized: whether entries and vectors are l2-normalized first, as in LlamaGen
        (arXiv 2406.06525).
    """
    if normalized:  # the nearest of unit vectors has the largest cosine
        similarity = l2_normalize(vectors) @ l2_normalize(codebook).T
    else:
        book, vectors = codebook.astype(jnp.float32), vectors.astype(jnp.float32)
        similarity = add_bias(vectors @ book.T, -0.5 * jnp.sum(book * book, axis=-1))
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)


def look_up(
    codebook: Float[Array, "V C"], codes: Int[Array, "..."], *, normalized: bool = True
) -> Float[Array, "... C"]:
    """Codebook entries of codes, float32, as the decoder takes them.

    Args:
      codebook: entries.
      codes: indices of entries.
      normalized: whether the entries are l2-normalized.
    """
    book = l2_normalize(codebook) if normalized else codebook.astype(jnp.float32)
    return book[codes]


def kmeans(
    key: Array,
    vectors: Float[Array, "n C"],
    size: int,
    *,
    weights: Float[Array, "n"] | None = None,
    iterations: int = 10,
) -> Float[Array, "V C"]:
    """Centers of clusters by Lloyd's algorithm, float32.

    Args:
      key: random key of the first centers, which are vectors; consumed.
      vectors: vectors to cluster.
      size: number of centers, `V`.
      weights: weight of each vector; None for equal ones.
      iterations: number of iterations. A center without vectors stays.
    """
    vectors = vectors.astype(jnp.float32)
    n = len(vectors)
    weights = jnp.ones(n, jnp.float32) if weights is None else weights
    chance = weights / jnp.sum(weights)
    first = jax.random.choice(key, n, (size,), replace=size > n, p=chance)

    def iterate(_, centers):
        nearest = nearest_codes(centers, vectors, normalized=False)
        total = jax.ops.segment_sum(vectors * weights[:, None], nearest, size)
        count = jax.ops.segment_sum(weights, nearest, size)[:, None]
        return jnp.where(count > 0, total / jnp.maximum(count, 1e-12), centers)

    return jax.lax.fori_loop(0, iterations, iterate, vectors[first])
