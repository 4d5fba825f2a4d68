"""Reconstruction quality and codebook usage of a tokenizer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.data.batches import evenly_spaced
from jaxspec.data.source import ImageSource
from jaxspec.io.images import to_unit
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Params


def reconstruction_metrics(
    tokenizer: Tokenizer | MultiScaleTokenizer,
    params: Params,
    source: ImageSource,
    batch: int = 100,
) -> dict[str, float]:
    """Measures a tokenizer on all images of a source.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters of the tokenizer.
      source: images.
      batch: images per forward pass.

    Returns:
      A dict with "psnr", the mean over images of the peak signal-to-noise ratio in dB,
      with decoded values clipped to [-1, 1]; "codes_used", the share of the codebook
      that occurs; and "perplexity", exp of the entropy of the histogram of codes.
    """

    size = tokenizer.config.codebook_size
    counts, psnr = np.zeros(size), []
    for start in tqdm(range(0, len(source), batch), desc="measuring", leave=False):
        images = source.take(range(start, min(start + batch, len(source))))
        codes, values = _measure(tokenizer, params, to_unit(images))
        counts += np.bincount(np.asarray(codes).ravel(), minlength=size)
        psnr.append(np.asarray(values))
    share = counts / counts.sum()
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return {
        "psnr": float(np.concatenate(psnr).mean()),
        "codes_used": float((counts > 0).mean()),
        "perplexity": float(np.exp(entropy)),
    }


@partial(jax.jit, static_argnums=0)
def _measure(tokenizer, params, images):
    codes = tokenizer.encode(params, images)
    out = jnp.clip(tokenizer.decode(params, codes), -1.0, 1.0)
    mse = jnp.mean((out - images) ** 2, axis=(1, 2, 3))
    return codes, 10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def scale_metrics(
    tokenizer: MultiScaleTokenizer,
    params: Params,
    source: ImageSource,
    *,
    count: int = 200,
    batch: int = 50,
) -> dict[str, float]:
    """Measures every number of scales on images of a source.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters of the tokenizer.
      source: images.
      count: number of images, evenly spaced.
      batch: images per forward pass.

    Returns:
      A dict with "psnr_S" and "codes_S" for the map of each side S: the mean peak
      signal-to-noise ratio in dB of images of the maps up to it, and the number of
      codes that occur in it.
    """
    sides, length = tokenizer.config.scales, tokenizer.config.length
    indices = evenly_spaced(len(source), min(count, len(source)))
    padded = np.resize(indices, -(-len(indices) // batch) * batch).reshape(-1, batch)
    codes, psnr = [], []
    for part in padded:
        found, values = _measure_scales(tokenizer, params, to_unit(source.take(part)))
        codes.append(np.asarray(found))
        psnr.append(np.asarray(values))
    assert codes[0].shape[1] == length
    codes = np.concatenate(codes)[: len(indices)]
    psnr = np.concatenate(psnr, axis=1)[:, : len(indices)].mean(axis=1)
    result = {}
    for k, side in enumerate(sides):
        here = tokenizer.scales.tokens_of(k)
        result[f"psnr_{side}"] = float(psnr[k])
        result[f"codes_{side}"] = float(len(np.unique(codes[:, here])))
    return result


@partial(jax.jit, static_argnums=0)
def _measure_scales(tokenizer, params, images):
    codes = tokenizer.encode(params, images)
    values = []
    for end in tokenizer.scales.ends:
        out = jnp.clip(tokenizer.decode(params, codes[:, :end]), -1.0, 1.0)
        mse = jnp.mean((out - images) ** 2, axis=(1, 2, 3))
        values.append(10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10)))
    return codes, jnp.stack(values)
