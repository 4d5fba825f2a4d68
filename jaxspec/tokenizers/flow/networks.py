"""Networks between images, a row of vectors and a flow (FlexTok)."""

import math

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.nn.layers import ZEROS, Linear, SwiGLU, linear
from jaxspec.nn.norms import layer_norm
from jaxspec.typing import Array, Bool, Float

_EPS = 1e-5
# Sinusoids of the time, half of them cosines, and their longest period.
_SINUSOIDS, _PERIOD = 256, 256.0
# Products of queries and keys are divided by an eighth of the size of a head.
_ATTENTION = 8.0


def grid_positions(side: int, width: int) -> np.ndarray:
    """Sinusoids of rows, then of columns, float32 [side ** 2, width]."""
    pace = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * pace
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(waves, side, axis=0), np.tile(waves, (side, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32)


class _Layer(nn.Module):
    """Attention with normalized queries and keys, and a gated MLP.

    With a condition, shifts, scales and gates come from it (adaLN): the same for all
    places, or others for the first `apart` and for the rest.
    """

    heads: int
    apart: int = 0

    @nn.compact
    def __call__(self, x, mask, condition=None):
        width = x.shape[-1]
        size = width // self.heads
        gates, shifts, scales = [1.0] * 2, [0.0] * 2, [0.0] * 2
        if condition is not None:
            kinds = 2 if self.apart else 1
            modulation = Linear((kinds * 6 * width,), True, ZEROS, name="modulation")
            both = modulation(nn.silu(condition)).reshape(len(x), kinds, 6 * width)
            if self.apart:
                second = np.arange(x.shape[1]) >= self.apart
                both = both[:, second.astype(int)]
            parts = jnp.split(both, 6, axis=-1)
            gates, shifts, scales = parts[:2], parts[2::2], parts[3::2]
        h = layer_norm(x, _EPS) * (1 + scales[0]) + shifts[0]
        q, k, v = (linear((self.heads, size), name)(h) for name in ("q", "k", "v"))
        q, k = layer_norm(q, _EPS), layer_norm(k, _EPS)
        scores = jnp.einsum("rthf,rshf->rhts", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None], scores * (_ATTENTION / size), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        h = jnp.einsum("rhts,rshf->rthf", weights, v).reshape(x.shape)
        x = x + gates[0] * linear(width, "out")(h)
        h = layer_norm(x, _EPS) * (1 + scales[1]) + shifts[1]
        return x + gates[1] * SwiGLU(2 * 4 * width // 3, name="mlp")(h)


class _Encoder(nn.Module):
    config: FlowTokenizerConfig

    @nn.compact
    def __call__(self, grid):
        c, vit = self.config, self.config.encoder
        x = linear(vit.width, "patches_in", bias=True)(_patches(c, grid))
        x = x + jnp.asarray(grid_positions(c.patches, vit.width), x.dtype)[None]
        init = nn.initializers.normal(0.02, jnp.float32)
        queries = self.param("queries", init, (c.length, vit.width))
        queries = jnp.broadcast_to(
            queries.astype(x.dtype)[None], (len(x), *queries.shape)
        )
        cells = x.shape[1]
        x = jnp.concatenate([x, queries], axis=1)
        # Patches see each other; a query sees them, itself and earlier queries.
        total = cells + c.length
        mask = np.tril(np.ones((total, total), bool)) | (np.arange(total) < cells)
        mask = jnp.broadcast_to(jnp.asarray(mask)[None], (len(x), total, total))
        for i in range(vit.layers):
            x = _Layer(vit.heads, name=f"layers_{i}")(x, mask)
        return linear(c.code_dim, "out", bias=True)(layer_norm(x[:, cells:], _EPS))


class _Flow(nn.Module):
    config: FlowTokenizerConfig

    @nn.compact
    def __call__(self, grid, time, vectors, seen, null):
        c, vit = self.config, self.config.decoder
        width = vit.width
        init = nn.initializers.normal(0.02, jnp.float32)
        x = linear(width, "patches_in", bias=True)(_patches(c, grid))
        x = x + jnp.asarray(grid_positions(c.patches, width), x.dtype)[None]
        tokens = linear(width, "vectors_in", bias=True)(vectors.astype(x.dtype))
        hidden = self.param("hidden", init, (width,)).astype(x.dtype)
        without = self.param("null", init, (width,)).astype(x.dtype)
        places = self.param("positions", init, (c.length, width)).astype(x.dtype)
        tokens = tokens + places[None]
        tokens = jnp.where(seen[..., None], tokens, hidden.reshape(1, 1, -1))
        tokens = jnp.where(null[:, None, None], without.reshape(1, 1, -1), tokens)
        cells = x.shape[1]
        x = jnp.concatenate([x, tokens], axis=1)
        condition = self._time(time, width).astype(x.dtype)
        mask = jnp.ones((len(x), x.shape[1], x.shape[1]), bool)
        apart = cells if c.token_modulation else 0
        for i in range(vit.layers):
            x = _Layer(vit.heads, apart, name=f"layers_{i}")(x, mask, condition)
        modulation = Linear((2 * width,), True, ZEROS, name="modulation")
        shift, scale = jnp.split(modulation(nn.silu(condition))[:, None], 2, axis=-1)
        x = layer_norm(x[:, :cells], _EPS) * (1 + scale) + shift
        out = Linear((c.channels * c.patch_size**2,), True, ZEROS, name="out")(x)
        return einops.rearrange(
            out.astype(jnp.float32),
            "b (h w) (i j c) -> b (h i) (w j) c",
            h=c.patches,
            i=c.patch_size,
            j=c.patch_size,
        )

    def _time(self, time, width):
        """Embedding of times from 0 to 1."""
        half = _SINUSOIDS // 2
        pace = jnp.exp(-math.log(_PERIOD) / half * jnp.arange(half, dtype=jnp.float32))
        angles = self.config.time_scale * time[:, None] * pace[None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        h = nn.silu(linear(width, "time_in", bias=True)(waves))
        return linear(width, "time_out", bias=True)(h)


class FlowNetworks(nn.Module):
    """Encoder and flow of a tokenizer; both see pixels in [-1, 1], or latents.

    Attributes:
      config: sizes of the networks.
    """

    config: FlowTokenizerConfig

    def setup(self):
        """Makes the parts."""
        self.encoder = _Encoder(self.config)
        self.flow = _Flow(self.config)

    def encode(self, grid: Float[Array, "B h w C"]) -> Float[Array, "B T E"]:
        """Maps pixels or latents to a row of vectors, before quantization."""
        return self.encoder(grid)

    def velocity(
        self,
        grid: Float[Array, "B h w C"],
        time: Float[Array, "B"],
        vectors: Float[Array, "B T E"],
        seen: Bool[Array, "B T"],
        null: Bool[Array, "B"],
    ) -> Float[Array, "B h w C"]:
        """Noise minus image, float32, as predicted from a mixture of both.

        Args:
          grid: mixture, a share `time` of it noise.
          time: times, 1 for noise alone.
          vectors: quantized vectors.
          seen: tokens that are read.
          null: sequences of which no token is read.
        """
        return self.flow(grid, time, vectors, seen, null)

    def __call__(self, grid):
        """Velocity of a grid at time 0, of its own vectors without quantization."""
        vectors = self.encode(grid)
        rows = len(grid)
        seen = jnp.ones(vectors.shape[:2], bool)
        return self.velocity(
            grid, jnp.zeros(rows), vectors, seen, jnp.zeros(rows, bool)
        )


def _patches(config, grid):
    p = config.patch_size
    return einops.rearrange(grid, "b (h i) (w j) c -> b (h w) (i j c)", i=p, j=p)
