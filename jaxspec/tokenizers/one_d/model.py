"""One-dimensional tokenizer: a row of tokens, each about the whole image (TiTok)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config.one_d import OneDTokenizerConfig, ViTConfig
from jaxspec.errors import DataError
from jaxspec.nn.vq import look_up, nearest_codes
from jaxspec.tokenizers.checks import check_images
from jaxspec.tokenizers.maskgit.networks import MaskGITNetworks
from jaxspec.tokenizers.one_d.networks import OneDNetworks, mixed_pixels
from jaxspec.typing import Array, Float, Int, Params

_S, _B, _L = ViTConfig(8, 512, 8), ViTConfig(12, 768, 12), ViTConfig(24, 1024, 16)
PRESETS = {
    "titok-l-32": OneDTokenizerConfig(),
    "titok-b-64": OneDTokenizerConfig(length=64, encoder=_B, decoder=_B),
    "titok-s-128": OneDTokenizerConfig(length=128, encoder=_S, decoder=_S),
    **{
        f"one-d-piece-{name}": OneDTokenizerConfig(
            length=256, encoder=vit, decoder=vit, prefixes=True
        )
        for name, vit in (("s", _S), ("b", _B), ("l", _L))
    },
    # Decoders of the large size read the states of 77 tokens of CLIP.
    **{
        f"ta-titok-bl-{length}": OneDTokenizerConfig(
            length=length,
            codebook_size=8192,
            code_dim=64,
            normalized=False,
            encoder=_B,
            decoder=_L,
            pixels=None,
            mixed_order=False,
            text_length=77,
            text_width=768,
        )
        for length in (32, 64, 128)
    },
}


@dataclass(frozen=True)
class OneDTokenizer:
    """Pure functions of a one-dimensional tokenizer; static and hashable.

    Sources: TiTok (arXiv 2406.07550); One-D-Piece (arXiv 2501.10064), each prefix of
    whose tokens is an image; TA-TiTok (arXiv 2501.07730), whose decoder reads a text.

    Attributes:
      config: sizes of the networks.
    """

    config: OneDTokenizerConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c = self.config
        keys = jax.random.split(key, 4)
        image = jnp.zeros((1, c.image_size, c.image_size, 3))
        networks = OneDNetworks(c).init(keys[0], image)["params"]
        shape = (c.codebook_size, c.code_dim)
        params = {
            **networks,
            "codebook": jax.random.normal(keys[1], shape, jnp.float32),
        }
        if c.pixels is None:
            return params
        shape = (c.pixels.codebook_size, c.pixels.code_dim)
        decoder = MaskGITNetworks(c.pixels).init(keys[2], image)["params"]["decoder"]
        book = jax.random.normal(keys[3], shape, jnp.float32)
        return {**params, "pixel_tokenizer": {"decoder": decoder, "codebook": book}}

    def _bound(self, params: Params) -> Any:
        return OneDNetworks(self.config).bind({"params": params})

    def embed(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Float[Array, "B T C"]:
        """Maps images in [-1, 1] to continuous vectors, before quantization.

        Raises:
          DataError: the images have the wrong size.
        """
        check_images(images, self.config.image_size)
        return self._bound(params).encode(images)

    def encode(
        self, params: Params, images: Float[Array, "B h w 3"]
    ) -> Int[Array, "B T"]:
        """Maps images in [-1, 1] to codes, int32.

        Raises:
          DataError: the images have the wrong size.
        """
        return nearest_codes(
            params["codebook"],
            self.embed(params, images),
            normalized=self.config.normalized,
        )

    def decode_vectors(
        self,
        params: Params,
        vectors: Float[Array, "B n C"],
        seen: Array | None = None,
        text: Float[Array, "B P E"] | None = None,
    ) -> Float[Array, "B h w 3"]:
        """Maps codebook entries to images, nominally in [-1, 1].

        Args:
          params: parameters.
          vectors: entries of the first `n` tokens.
          seen: tokens that are read, bool [B, n]; None for all.
          text: vectors of a text; None for a decoder that reads none.

        Raises:
          DataError: the text is missing, needless or of the wrong shape.
        """
        self._check_text(text, len(vectors))
        out = self._bound(params).decode(vectors, seen, text)
        if self.config.pixels is None:
            return out
        return mixed_pixels(self.config, params["pixel_tokenizer"], out)

    def _check_text(self, text: Array | None, rows: int) -> None:
        c = self.config
        found = None if text is None else tuple(text.shape)
        right = (rows, c.text_length, c.text_width) if c.text_length else None
        if found != right:
            wanted = f"a text of shape {right}" if right else "no text"
            raise DataError(f"this tokenizer decodes with {wanted}, not {found}")

    def decode(
        self,
        params: Params,
        codes: Int[Array, "B n"],
        text: Float[Array, "B P E"] | None = None,
    ) -> Float[Array, "B h w 3"]:
        """Maps codes, or the first ones, to images, nominally in [-1, 1].

        Args:
          params: parameters.
          codes: codes; the last ones may be left out where `prefixes` is set.
          text: vectors of a text; None for a decoder that reads none.

        Raises:
          DataError: there are too few or too many codes, or the text is missing,
            needless or of the wrong shape.
        """
        c = self.config
        least = 1 if c.prefixes else c.length
        if codes.ndim != 2 or not least <= codes.shape[1] <= c.length:
            numbers = f"1 to {c.length}" if c.prefixes else f"{c.length}"
            raise DataError(
                f"codes have shape {tuple(codes.shape)}; this tokenizer takes "
                f"[B, {numbers}]"
            )
        vectors = look_up(params["codebook"], codes, normalized=c.normalized)
        return self.decode_vectors(params, vectors, text=text)

    def decode_partial(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        text: Float[Array, "B P E"] | None = None,
    ) -> Float[Array, "B h w 3"]:
        """Decodes images of which only some tokens exist.

        Args:
          params: parameters.
          tokens: tokens, -1 for those that do not exist yet.
          text: vectors of a text; None for a decoder that reads none.

        Returns:
          Images in [-1, 1] of the tokens that exist; gray without any. Of a tokenizer
          that was not trained on prefixes they may be poor.
        """
        known = tokens >= 0
        vectors = look_up(
            params["codebook"],
            jnp.maximum(tokens, 0),
            normalized=self.config.normalized,
        )
        images = self.decode_vectors(params, vectors, known, text)
        some = jnp.any(known, axis=1).reshape(-1, 1, 1, 1)
        return jnp.where(some, images, 0.0)
