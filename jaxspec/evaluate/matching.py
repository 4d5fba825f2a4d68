"""Share of images whose own caption scores highest among others."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.errors import DataError
from jaxspec.io.images import to_unit
from jaxspec.models.matcher.model import Matcher
from jaxspec.typing import Float, Int, Params

_BATCH = 100


def first_share(
    model: Matcher,
    params: Params,
    images: np.ndarray,
    captions: Int[np.ndarray, "n P"],
    *,
    among: int = 100,
    seed: int = 0,
) -> float:
    """Share of images whose caption a matcher ranks first.

    Args:
      model: static functions of the matcher.
      params: parameters of the matcher.
      images: images, uint8 [n, h, w, 3].
      captions: their captions, with -1 after shorter ones.
      among: number of captions that are ranked, the right one among them; the others
        are random ones of other images. All, if there are fewer.
      seed: seed of their choice.

    Raises:
      DataError: all captions are equal.
    """
    embed_images, embed_captions = _programs(model)
    image_features = _in_batches(lambda x: embed_images(params, to_unit(x)), images)
    unique, own = np.unique(captions, axis=0, return_inverse=True)
    own = own.reshape(-1)
    if len(unique) < 2:
        raise DataError("the images have one caption; a rank needs others")
    among = min(among, len(unique))
    text_features = _in_batches(lambda x: embed_captions(params, x), unique)
    return float(
        np.mean(ranked_first(image_features @ text_features.T, own, among, seed))
    )


def ranked_first(
    scores: Float[np.ndarray, "n M"], own: Int[np.ndarray, "n"], among: int, seed: int
) -> np.ndarray:
    """Whether each row's own column scores above `among - 1` random others, bool [n].

    Args:
      scores: score of each row with each of `M` columns.
      own: column of each row.
      among: number of columns that are compared, at most `M`.
      seed: seed of the choice of others.
    """
    rng = np.random.default_rng(seed)
    first = np.empty(len(scores), bool)
    for i, (row, column) in enumerate(zip(scores, own, strict=True)):
        others = np.delete(np.arange(len(row)), column)
        others = rng.choice(others, among - 1, replace=False)
        first[i] = row[column] > row[others].max(initial=-np.inf)
    return first


def _in_batches(function, values: np.ndarray) -> np.ndarray:
    """Applies a compiled function to batches of one size."""
    parts = []
    for start in range(0, len(values), _BATCH):
        part = values[start : start + _BATCH]
        full = np.resize(part, (_BATCH, *part.shape[1:]))
        parts.append(np.asarray(function(jnp.asarray(full)))[: len(part)])
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def _programs(model: Matcher):
    return jax.jit(model.embed_images), jax.jit(model.embed_captions)
