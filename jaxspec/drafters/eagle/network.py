"""Networks of EAGLE's heads."""

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import EagleConfig
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import INIT, HeadNorm, RMSNorm, SwiGLU, linear
from jaxspec.typing import Array, Bool, Float, Int


class EagleNetwork(nn.Module):
    """One decoder layer over pairs of a feature and the next token's embedding.

    Attributes:
      config: configuration of the drafter.
      vocab_size: vocabulary size `V`.
    """

    config: EagleConfig
    vocab_size: int

    def setup(self):
        """Builds the submodules."""
        c = self.config
        eps, size = c.norm_eps, c.head_size
        # The epsilon of Chameleon's head norms is fixed.
        head_norm = (
            (lambda name: HeadNorm(1e-5, name=name)) if c.qk_layer_norm else None
        )
        self.attention = Attention(
            c.heads,
            c.num_kv_heads,
            size,
            c.qkv_bias,
            head_norm,
            width=c.width,
            name="attention",
        )
        if c.own_embedding:
            shape = (self.vocab_size, c.width)
            self.embedding = self.param("embedding", INIT, shape)
        self.post_norm = RMSNorm(eps)
        self.ffn = SwiGLU(c.ffn_width)
        if c.version == 1:
            self.pair = linear(c.width, "pair", bias=True)
            if c.input_norm:
                self.input_norm = RMSNorm(eps)
        else:
            self.joined = linear(c.width, "joined")
            self.embedding_norm, self.hidden_norm = RMSNorm(eps), RMSNorm(eps)
            self.norm = RMSNorm(eps)
            if c.draft_vocab:
                self.head = self.param("head", INIT, (c.width, c.draft_vocab))
                ids = lambda key, shape: jnp.arange(shape[0], dtype=jnp.int32)  # noqa: E731
                self.ids = self.param("ids", ids, (c.draft_vocab,))

    def join(self, features: Float[Array, "... E"]) -> Float[Array, "... D"]:
        """Projects the concatenated features of several layers to one (EAGLE-3)."""
        return self.joined(features)

    def normed(self, h: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the output norm, before the output head (EAGLE-3)."""
        return self.norm(h)

    def layer(
        self,
        embedding: Float[Array, "R T D"],
        h: Float[Array, "R T D"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array] | None = None,
        starts: Int[Array, "R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[Array, Array] | None]:
        """Predicts the next features.

        Args:
          embedding: [R, T, D], embeddings of the tokens.
          h: [R, T, D], features before the tokens, as the head takes them.
          angles: rotary angles [R, T, F / 2, 2].
          mask: bool [R, T, S], cache slots that each query attends to.
          cache: keys and values of the attention; None without a cache.
          starts: int32 [R], first cache slot that is written.

        Returns:
          Features [R, T, D], and the cache with the new keys and values.
        """
        if self.config.embedding_scale != 1:
            scale = jnp.asarray(self.config.embedding_scale, embedding.dtype)
            embedding = embedding * scale
        if self.config.version == 1:
            h = x = self.pair(jnp.concatenate([embedding, h], axis=-1))
            if self.config.input_norm:
                x = self.input_norm(x)
        else:
            normed = self.hidden_norm(h)
            x = jnp.concatenate([self.embedding_norm(embedding), normed], axis=-1)
            h = normed if self.config.norm_before_residual else h
        out, cache = self.attention(x, angles, mask, cache, starts)
        h = h + out
        return h + self.ffn(self.post_norm(h)), cache

    def __call__(self, features, embedding, angles):
        """Uses every parameter once, for initialization."""
        h = self.join(features) if self.config.version == 3 else embedding
        h, _ = self.layer(embedding, h, angles, jnp.ones((1, 1, 1), bool))
        return self.normed(h) if self.config.version == 3 else h
