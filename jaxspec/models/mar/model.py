"""Masked encoder and decoder over continuous tokens (MAR)."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.mar import MARConfig
from jaxspec.models.classes import mixed_classes
from jaxspec.models.mar.head import DiffusionHead
from jaxspec.nn.layers import INIT, add_bias, linear
from jaxspec.nn.norms import LayerNorm
from jaxspec.nn.vit import ViTLayer
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree


class _Network(nn.Module):
    """Network from known tokens to conditions of the head; see `MAR`."""

    config: MARConfig

    def setup(self):
        c = self.config
        total = c.buffer + c.sequence_length
        self.classes = nn.Embed(c.classes + 1, c.width, embedding_init=INIT)
        self.tokens_in = linear(c.width, "tokens_in", bias=True)
        self.norm_in = LayerNorm(c.norm_eps)
        self.encoder_positions = self.param("encoder_positions", INIT, (total, c.width))
        self.encoder = [
            ViTLayer(c.heads, c.ffn_size, c.norm_eps, name=f"encoder_{i}")
            for i in range(c.encoder_layers)
        ]
        self.encoder_norm = LayerNorm(c.norm_eps)
        self.decoder_in = linear(c.width, "decoder_in", bias=True)
        self.mask = self.param("mask", INIT, (c.width,))
        self.decoder_positions = self.param("decoder_positions", INIT, (total, c.width))
        self.decoder = [
            ViTLayer(c.heads, c.ffn_size, c.norm_eps, name=f"decoder_{i}")
            for i in range(c.decoder_layers)
        ]
        self.decoder_norm = LayerNorm(c.norm_eps)
        shape = (c.sequence_length, c.width)
        self.head_positions = self.param("head_positions", INIT, shape)
        self.head = DiffusionHead(c)

    def condition(self, classes, null):
        """Class embeddings [R, D], of the null class where `null`."""
        return mixed_classes(self.classes.embedding, classes, null, self.config.classes)

    def token_conditions(self, condition, latents, order, masked, capacity):
        """Conditions [R, T, D] of the head; see `MAR.token_conditions`."""
        c, rows = self.config, len(condition)
        places = order[:, c.sequence_length - capacity :]
        index = jnp.arange(c.sequence_length - capacity, c.sequence_length)
        known = index[None] >= masked[:, None]
        tokens = jnp.take_along_axis(latents, places[..., None], axis=1)
        tokens = jnp.where(known[..., None], tokens, 0)  # even if they are not finite
        tokens = self.tokens_in(tokens.astype(condition.dtype))
        buffer = jnp.broadcast_to(condition[:, None], (rows, c.buffer, c.width))
        everywhere = jnp.arange(c.buffer, dtype=places.dtype)
        everywhere = jnp.broadcast_to(everywhere[None], (rows, c.buffer))
        slots = jnp.concatenate([everywhere, places + c.buffer], axis=1)
        x = jnp.concatenate([buffer, tokens], axis=1)
        x = self.norm_in(x + self.encoder_positions[slots].astype(x.dtype))
        seen = jnp.pad(known, ((0, 0), (c.buffer, 0)), constant_values=True)
        for layer in self.encoder:
            x = layer(x, seen)
        x = self.decoder_in(self.encoder_norm(x))
        mask = self.mask.astype(x.dtype).reshape(1, 1, -1)
        x = jnp.where(seen[..., None], x, mask)
        total = c.buffer + c.sequence_length
        whole = jnp.broadcast_to(mask, (rows, total, c.width))
        x = whole.at[jnp.arange(rows)[:, None], slots].set(x)
        x = add_bias(x, self.decoder_positions.astype(x.dtype))
        for layer in self.decoder:
            x = layer(x)
        x = self.decoder_norm(x)[:, c.buffer :]
        return add_bias(x, self.head_positions.astype(x.dtype))

    def __call__(self, latents, order):
        """Touches every parameter."""
        rows = len(latents)
        ids = jnp.zeros(rows, jnp.int32)
        condition = self.condition(ids, ids > 0)
        x = self.token_conditions(condition, latents, order, ids, latents.shape[1])
        return self.head(latents, jnp.zeros(latents.shape[:2], jnp.int32), x)


@dataclass(frozen=True)
class MAR:
    """Pure functions of a masked model over continuous tokens; static and hashable.

    Source: MAR (arXiv 2406.11838). The order in which tokens become known and the chain
    of the diffusion are elsewhere.

    Attributes:
      config: sizes of the networks.
    """

    config: MARConfig

    def init(self, key: Array) -> Params:
        """Random float32 parameters, whose predictions are 0; consumes `key`."""
        c = self.config
        latents = jnp.zeros((1, c.sequence_length, c.channels), jnp.float32)
        order = jnp.arange(c.sequence_length, dtype=jnp.int32)[None]
        return _Network(c).init(key, latents, order)["params"]

    def condition(
        self, params: Params, classes: PyTree, null: Bool[Array, "R"]
    ) -> Float[Array, "R D"]:
        """Embeddings of classes, int32 [R], or of weights of them, [R, classes].

        Args:
          params: parameters.
          classes: class ids, or weights by which embeddings are mixed.
          null: rows that get the null class instead.
        """
        return self._bound(params).condition(classes, null)

    def token_conditions(
        self,
        params: Params,
        condition: Float[Array, "R D"],
        latents: Float[Array, "R T C"],
        order: Int[Array, "R T"],
        masked: Int[Array, "R"],
        capacity: int | None = None,
    ) -> Float[Array, "R T D"]:
        """Condition of the diffusion head at every token, given the known tokens.

        The encoder reads `capacity` tokens, of which those that are masked are hidden:
        the result is that of dropping them, with static shapes.

        Args:
          params: parameters.
          condition: embeddings of the classes, see `condition`.
          latents: tokens; masked ones are not read.
          order: tokens, of which the first ones are masked: a permutation of `0..T-1`.
          masked: number of masked tokens of each row.
          capacity: largest number of known tokens, static; None for all.
        """
        capacity = self.config.sequence_length if capacity is None else capacity
        return self._bound(params).token_conditions(
            condition, latents, order, masked, capacity
        )

    def predict_noise(
        self,
        params: Params,
        state: Float[Array, "... C"],
        time: Int[Array, "..."],
        conditions: Float[Array, "... D"],
    ) -> Float[Array, "... E"]:
        """Noise and interpolation of the variance, float32 [..., 2 C], of noisy tokens.

        Args:
          params: parameters.
          state: noised tokens.
          time: steps of the trained diffusion that they are at.
          conditions: their conditions, see `token_conditions`.
        """
        return self._bound(params).head(state, time, conditions)

    def _bound(self, params):
        return _Network(self.config).bind({"params": params})
