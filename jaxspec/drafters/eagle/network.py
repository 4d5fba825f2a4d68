"""Networks of EAGLE's heads."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import RopeScaling
from jaxspec.config.checks import (
    even_head_sizes,
    grouped_heads,
    number,
    positive,
    require,
)
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import INIT, HeadNorm, RMSNorm, SwiGLU, linear
from jaxspec.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class EagleConfig:
    """A one-layer drafter on target features (EAGLE).

    Attributes:
      version: 1 (EAGLE-1, arXiv 2401.15077: features after the target's final norm, no
        norm before the attention) or 3 (EAGLE-3, arXiv 2503.01840: features of several
        layers, norms before the attention, its own output norm).
      width: `D`, equal to the target's, whose embedding is shared. Version 3 may have
        another width if it has its own embedding and a `draft_vocab`.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output); for version 1 the last one. The configurations of EAGLE-3's released
        heads count layer inputs, so their numbers are one higher.
      draft_vocab: tokens of the drafter's own output head (version 3); 0 to share the
        target's head.
      norm_before_residual: whether the residual of version 3 is the normed feature.
      qkv_bias: biases in the query, key and value maps (Qwen2's heads).
      rope_base: base of the drafter's own 1-D rotary frequencies; None to use the
        target's rotary embedding.
      rope_scaling: scaling of the drafter's own rotary frequencies; None for none.
      own_embedding: whether the drafter has its own token embedding `[V, D]`; otherwise
        it shares the target's.
      input_norm: whether version 1 has an RMSNorm before its attention (LANTERN's heads
        for Anole and Lumina-mGPT).
      qk_layer_norm: LayerNorm over the heads of queries and keys, as in Chameleon.
      embedding_scale: factor of the token embeddings (Lumina-mGPT).
      caption_padding: attention of padded caption positions in the target that this
        drafter was trained on; see `Transformer.as_target`.
    """

    version: Literal[1, 3] = 1
    width: int = 1280
    heads: int = 20
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_width: int = 3584
    norm_eps: float = 1e-6
    feature_layers: tuple[int, ...] = (35,)
    draft_vocab: int = 0
    norm_before_residual: bool = False
    qkv_bias: bool = False
    rope_base: float | None = None
    rope_scaling: RopeScaling | None = None
    own_embedding: bool = False
    input_norm: bool = False
    qk_layer_norm: bool = False
    embedding_scale: float = 1.0
    caption_padding: Literal["self", "published"] = "self"

    def __post_init__(self):
        positive(self, "width", "heads", "num_kv_heads", "ffn_width")
        number(self, "above 0", lambda x: x > 0, "embedding_scale")
        require(
            self.version == 1 or not self.input_norm,
            "input_norm is for version 1; version 3 has its own norms",
        )
        require(
            self.caption_padding in ("self", "published"),
            f"caption_padding={self.caption_padding!r}; use 'self' or 'published'",
        )
        require(self.draft_vocab >= 0, "draft_vocab must not be negative")
        require(
            self.version == 3 or not self.draft_vocab,
            "version 1 shares the target's head; draft_vocab is for version 3",
        )
        grouped_heads(self.heads, self.num_kv_heads)
        require(
            len(self.feature_layers) >= 1,
            "feature_layers must name at least one target layer",
        )
        even_head_sizes(self.heads, self.width, self.head_dim)

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.head_dim or self.width // self.heads


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
