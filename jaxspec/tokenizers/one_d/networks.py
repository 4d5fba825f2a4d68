"""Vision transformers between images and a row of vectors (TiTok)."""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config.one_d import OneDTokenizerConfig, ViTConfig
from jaxspec.nn.layers import add_bias, linear
from jaxspec.nn.norms import LayerNorm
from jaxspec.nn.vit import ViTLayer
from jaxspec.tokenizers.maskgit.networks import MaskGITNetworks
from jaxspec.typing import Array, Bool, Float, Params

_EPS = 1e-5


class _Layers(nn.Module):
    """Layers between two norms."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x, seen=None):
        c = self.config
        x = LayerNorm(_EPS, name="norm_in")(x)
        for i in range(c.layers):
            x = ViTLayer(c.heads, 4 * c.width, _EPS, name=f"layers_{i}")(x, seen)
        return x


def _position(module, name, *shape):
    init = nn.initializers.normal(shape[-1] ** -0.5, jnp.float32)
    return module.param(name, init, shape)


class _Encoder(nn.Module):
    config: OneDTokenizerConfig

    @nn.compact
    def __call__(self, images):
        c, width = self.config, self.config.encoder.width
        p, rows = c.patch_size, len(images)
        x = einops.rearrange(
            (images + 1) / 2, "b (h i) (w j) c -> b (h w) (i j c)", i=p, j=p
        )
        x = linear(width, "patches_in", bias=True)(x)
        first = _position(self, "first", 1, width)
        x = jnp.concatenate([_repeated(first, x, rows), x], axis=1)
        places = _position(self, "positions", c.patches**2 + 1, width)
        x = add_bias(x, places.astype(x.dtype))
        queries = _position(self, "queries", c.length, width)
        queries += _position(self, "query_positions", c.length, width)
        x = jnp.concatenate([x, _repeated(queries, x, rows)], axis=1)
        x = _Layers(c.encoder, name="body")(x)[:, -c.length :]
        x = LayerNorm(_EPS, name="norm_out")(x)
        if c.mixed_order:
            x = x.reshape(rows, width, c.length).swapaxes(1, 2)
        return linear(c.code_dim, "out", bias=True)(x)


class _Decoder(nn.Module):
    config: OneDTokenizerConfig

    @nn.compact
    def __call__(self, vectors, seen, text=None):
        c, width = self.config, self.config.decoder.width
        rows, count = vectors.shape[:2]
        x = linear(width, "vectors_in", bias=True)(vectors)
        places = _position(self, "query_positions", c.length, width)[:count]
        x = add_bias(x, places.astype(x.dtype))
        mask = _position(self, "mask", 1, width)
        cells = jnp.concatenate(
            [_position(self, "first", 1, width)] + [mask] * c.patches**2
        )
        cells += _position(self, "positions", c.patches**2 + 1, width)
        x = jnp.concatenate([_repeated(cells, x, rows), x], axis=1)
        if text is not None:
            states = linear(width, "text_in", bias=True)(text.astype(x.dtype))
            places = _position(self, "text_positions", c.text_length, width)
            states = add_bias(states, places.astype(x.dtype))
            x = jnp.concatenate([x, states], axis=1)
        if seen is not None:
            always = ((0, 0), (len(cells), c.text_length))
            seen = jnp.pad(seen, always, constant_values=True)
        x = _Layers(c.decoder, name="body")(x, seen)[:, 1 : len(cells)]
        return LayerNorm(_EPS, name="norm_out")(x)


class _Codes(nn.Module):
    """Logits of the codes of another tokenizer, one a patch."""

    config: OneDTokenizerConfig
    size: int

    @nn.compact
    def __call__(self, x):
        h = linear(2 * x.shape[-1], "change", bias=True)(x)
        return linear(self.size, "down", bias=True)(jnp.tanh(h))


class _Pixels(nn.Module):
    """Pixels of patches, smoothed by a convolution."""

    config: OneDTokenizerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        x = linear(3 * c.patch_size**2, "change", bias=True)(x)
        x = einops.rearrange(
            x,
            "b (h w) (i j c) -> b (h i) (w j) c",
            h=c.patches,
            i=c.patch_size,
            j=c.patch_size,
        )
        return nn.Conv(3, (3, 3), name="conv")(x)


class OneDNetworks(nn.Module):
    """Encoder and decoder of a one-dimensional tokenizer.

    Networks see pixels in [0, 1].

    Attributes:
      config: sizes of the networks.
    """

    config: OneDTokenizerConfig

    def setup(self):
        """Makes the parts."""
        c = self.config
        self.encoder = _Encoder(c)
        self.decoder = _Decoder(c)
        if c.pixels is None:
            self.pixels = _Pixels(c)
        else:
            self.codes = _Codes(c, c.pixels.codebook_size)

    def encode(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B T C"]:
        """Maps images in [-1, 1] to continuous vectors, before quantization."""
        return self.encoder(images)

    def decode(
        self,
        vectors: Float[Array, "B n C"],
        seen: Bool[Array, "B n"] | None = None,
        text: Float[Array, "B P E"] | None = None,
    ) -> Float[Array, "B ..."]:
        """Maps vectors to images, or to logits [B, patches, codes] of other tokens.

        Args:
          vectors: vectors, quantized or not, of the first `n` tokens.
          seen: tokens that are read; None for all.
          text: vectors of a text, of a decoder that reads them.
        """
        x = self.decoder(vectors, seen, text)
        if self.config.pixels is not None:
            return self.codes(x)
        return 2 * self.pixels(x) - 1

    def __call__(self, images: Float[Array, "B h w 3"]) -> Float[Array, "B ..."]:
        """Images, or logits, as they are without quantization, of a text of zeros."""
        c, text = self.config, None
        if c.text_length:
            text = jnp.zeros((len(images), c.text_length, c.text_width))
        return self.decode(self.encode(images), text=text)


def mixed_pixels(
    config: OneDTokenizerConfig, params: Params, logits: Float[Array, "B N V"]
) -> Float[Array, "B h w 3"]:
    """Images of mixtures of the codes of another tokenizer.

    Args:
      config: sizes of the networks.
      params: parameters of that tokenizer, its codebook among them.
      logits: logits of its codes, one row a patch.
    """
    assert config.pixels is not None
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    vectors = weights @ params["codebook"].astype(jnp.float32)
    side = config.patches
    vectors = vectors.reshape(len(logits), side, side, -1)
    network = MaskGITNetworks(config.pixels).bind({"params": params})
    return network.decode(vectors)


def _repeated(x, like, rows):
    """A row of tokens for each image."""
    return jnp.broadcast_to(x.astype(like.dtype)[None], (rows, *x.shape))
