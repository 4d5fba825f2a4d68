"""Reconstruction quality of a tokenizer, and usage of its codebook."""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.data.batches import evenly_spaced
from jaxspec.io.images import to_unit
from jaxspec.tokenizers.flow.model import FlowTokenizer
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.one_d.model import OneDTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Params

AnyTokenizer = (
    Tokenizer | MultiScaleTokenizer | KLTokenizer | OneDTokenizer | FlowTokenizer
)


class Images(Protocol):
    """Random access to images."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def take(self, indices: Any) -> np.ndarray:
        """Some of the images, uint8 [n, h, w, 3]."""
        ...


def reconstruction_metrics(
    tokenizer: AnyTokenizer,
    params: Params,
    source: Images,
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
      that occurs; and "perplexity", exp of the entropy of the histogram of codes. For
      continuous latents, "psnr" of their means, and "deviation", the standard deviation
      of all numbers of the tokens.
    """
    if isinstance(tokenizer, KLTokenizer):
        return _continuous_metrics(tokenizer, params, source, batch)
    size = tokenizer.config.codebook_size
    counts, psnr = np.zeros(size), []
    for codes, values in _measured(tokenizer, params, source, batch):
        counts += np.bincount(codes.ravel(), minlength=size)
        psnr.append(values)
    share = counts / counts.sum()
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    return {
        "psnr": float(np.concatenate(psnr).mean()),
        "codes_used": float((counts > 0).mean()),
        "perplexity": float(np.exp(entropy)),
    }


def _continuous_metrics(tokenizer, params, source, batch):
    sums, psnr = np.zeros(3), []
    for tokens, values in _measured(tokenizer, params, source, batch):
        tokens = tokens.astype(np.float64)
        sums += tokens.size, tokens.sum(), (tokens**2).sum()
        psnr.append(values)
    count, total, squares = sums
    deviation = (squares / count - (total / count) ** 2) ** 0.5
    return {
        "psnr": float(np.concatenate(psnr).mean()),
        "deviation": float(deviation),
    }


def _measured(tokenizer, params, source, batch):
    """Tokens and signal-to-noise ratios, batch by batch."""
    for start in tqdm(range(0, len(source), batch), desc="measuring", leave=False):
        images = source.take(range(start, min(start + batch, len(source))))
        yield map(np.asarray, _measure(tokenizer, params, to_unit(images)))


@partial(jax.jit, static_argnums=0)
def _measure(tokenizer, params, images):
    codes = tokenizer.encode(params, images)
    out = jnp.clip(tokenizer.decode(params, codes), -1.0, 1.0)
    mse = jnp.mean((out - images) ** 2, axis=(1, 2, 3))
    return codes, 10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def prefix_metrics(
    tokenizer: AnyTokenizer,
    params: Params,
    source: Images,
    *,
    count: int = 200,
    batch: int = 50,
) -> dict[str, float]:
    """Measures images of the first tokens alone.

    Numbers of tokens are those of the first scales, or powers of two.

    Args:
      tokenizer: static functions of the tokenizer.
      params: parameters of the tokenizer.
      source: images.
      count: number of images, evenly spaced.
      batch: images per forward pass.

    Returns:
      A dict with "psnr_S" and "codes_S" for the map of each side S, or for the first
      S tokens: the mean peak signal-to-noise ratio in dB of images of these tokens, and
      the number of codes that occur in the last map of them, or in all. Empty for
      tokenizers whose first tokens are no image.
    """
    length = tokenizer.config.length
    if isinstance(tokenizer, MultiScaleTokenizer):
        names, ends = tokenizer.config.scales, tokenizer.scales.ends
        starts = (0, *ends)
    elif not getattr(tokenizer.config, "prefixes", False):
        return {}
    else:
        ends = (
            *(1 << i for i in range(length.bit_length()) if 1 << i < length),
            length,
        )
        names, starts = ends, (0,) * len(ends)
    indices = evenly_spaced(len(source), min(count, len(source)))
    padded = np.resize(indices, -(-len(indices) // batch) * batch).reshape(-1, batch)
    codes, psnr = [], []
    for part in padded:
        images = to_unit(source.take(part))
        found, values = _measure_prefixes(tokenizer, params, images, ends)
        codes.append(np.asarray(found))
        psnr.append(np.asarray(values))
    assert codes[0].shape[1] == length
    codes = np.concatenate(codes)[: len(indices)]
    psnr = np.concatenate(psnr, axis=1)[:, : len(indices)].mean(axis=1)
    result = {}
    for name, start, end, value in zip(names, starts, ends, psnr, strict=False):
        result[f"psnr_{name}"] = float(value)
        result[f"codes_{name}"] = float(len(np.unique(codes[:, start:end])))
    return result


@partial(jax.jit, static_argnums=(0, 3))
def _measure_prefixes(tokenizer, params, images, ends):
    codes = tokenizer.encode(params, images)
    values = []
    for end in ends:
        out = jnp.clip(tokenizer.decode(params, codes[:, :end]), -1.0, 1.0)
        mse = jnp.mean((out - images) ** 2, axis=(1, 2, 3))
        values.append(10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10)))
    return codes, jnp.stack(values)
