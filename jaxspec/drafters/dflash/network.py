"""Network of DFlash, which reads target features as keys and values."""

from collections.abc import Callable
from dataclasses import dataclass

import einops
import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config.checks import even_head_sizes, grouped_heads, positive, require
from jaxspec.drafters.dflash.grid_context import COLUMNS
from jaxspec.nn.attention import attend
from jaxspec.nn.layers import INIT, RMSNorm, SwiGLU, linear
from jaxspec.nn.rope import rotate
from jaxspec.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class DFlashConfig:
    """A block-diffusion drafter on target features (DFlash, arXiv 2602.06036).

    Attributes:
      block_size: queries of a block, `G`: one anchor and `G - 1` masks. Query `i`
        predicts the token `i + 1` positions after the anchor (as in DSpark, arXiv
        2607.05147), so a block drafts `G` tokens.
      layers: layers of the drafter.
      width: `D`, equal to the target's, whose embedding and head are shared.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output).
      causal: whether a block's queries attend only to earlier ones (JetSpec, arXiv
        2606.18394); otherwise they all attend to each other (DFlash).
      markov_rank: rank of the bias that a token adds to the logits of the next token
        (DSpark); 0 for none.
      refinements: additional passes in which the queries also read the tokens that the
        pass before drafted with the noise of their positions; 0 for none. Not in the
        papers; needs `causal`.
      confidence: whether a head predicts the acceptance of a drafted token, from its
        query and the token before (DSpark); `ConfidenceCutoff(source="head")` reads it.
      window: most committed positions that a query attends to; 0 for all.
      same_place: whether query `i` predicts the token at its own position, `i` after
        the anchor, so a block drafts `G - 1` tokens and the anchor's query none (DFlash
        as released); otherwise it predicts the next one.
      above: whether a query also reads the three tokens of the image row above that
        are nearest to the token it predicts. Not in the papers; for images.
    """

    block_size: int = 8
    layers: int = 3
    width: int = 768
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_width: int = 2048
    norm_eps: float = 1e-6
    feature_layers: tuple[int, ...] = (1, 5, 9)
    causal: bool = True
    markov_rank: int = 256
    refinements: int = 0
    confidence: bool = False
    window: int = 0
    same_place: bool = False
    above: bool = False

    def __post_init__(self):
        positive(self, "block_size", "layers", "width", "heads", "num_kv_heads")
        positive(self, "ffn_width")
        require(
            self.refinements == 0 or (self.refinements > 0 and self.causal),
            f"refinements={self.refinements} must be 0, or at least 1 with causal=True",
        )
        require(self.markov_rank >= 0, "markov_rank must not be negative")
        require(self.window >= 0, "window must not be negative")
        require(
            not self.same_place
            or (self.block_size > 1 and not self.refinements and not self.above),
            "same_place needs block_size >= 2, no refinements and above=False",
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


KeysValues = tuple[Float[Array, "R K S F"], Float[Array, "R K S F"]]


def append_to(past: KeysValues) -> Callable[[KeysValues], KeysValues]:
    """Makes a function that appends a block's keys and values to `past`."""

    def join(block: tuple[Array, Array]) -> KeysValues:
        k = jnp.concatenate([past[0], block[0]], axis=2)
        return k, jnp.concatenate([past[1], block[1]], axis=2)

    return join


class BlockLayer(nn.Module):
    """Decoder layer whose queries attend to injected context and to each other.

    The context is used for keys and values only. It skips the input norm, the queries,
    the output map and the SwiGLU (DFlash, arXiv 2602.06036).

    Attributes:
      config: configuration of the network.
    """

    config: DFlashConfig

    def setup(self):
        """Builds the submodules."""
        c = self.config
        size, eps = c.head_size, c.norm_eps
        self.input_norm = RMSNorm(eps)
        kv = c.num_kv_heads
        self.query = linear((c.heads // kv, kv, size), "query")
        self.key = linear((1, kv, size), "key")
        self.value = linear((1, kv, size), "value")
        self.q_norm = RMSNorm(eps)
        self.k_norm = RMSNorm(eps)
        self.out = linear(c.width, "out")
        self.post_norm = RMSNorm(eps)
        self.ffn = SwiGLU(c.ffn_width)

    def keys_values(
        self, x: Float[Array, "R T D"], angles: Float[Array, "R T f 2"]
    ) -> KeysValues:
        """Keys and values `[R, K, T, F]` of the context or of normed block inputs."""
        k = rotate(self.k_norm(self.key(x)[:, :, 0]), angles)
        k, v = (
            einops.rearrange(t, "r t k f -> r k t f")
            for t in (k, self.value(x)[:, :, 0])
        )
        return k, v

    def __call__(
        self,
        h: Float[Array, "R T D"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        join: Callable[[KeysValues], KeysValues],
    ) -> Float[Array, "R T D"]:
        """Applies the layer to a block.

        Args:
          h: [R, T, D], inputs of the block's queries.
          angles: rotary angles [R, T, F / 2, 2].
          mask: bool [R, T, S], context and block positions each query attends to.
          join: function that appends the block's keys and values to the context's.
        """
        x = self.input_norm(h)
        q = einops.rearrange(self.query(x), "r t g k f -> r t (k g) f")
        q = rotate(self.q_norm(q), angles)
        k, v = join(self.keys_values(x, angles))
        h = h + self.out(attend(q, k, v, mask))
        return h + self.ffn(self.post_norm(h))


class DFlashNetwork(nn.Module):
    """Feature projection, layers, mask embeddings and Markov head of DFlash.

    Attributes:
      config: configuration of the network.
      vocab_size: vocabulary size `V`.
    """

    config: DFlashConfig
    vocab_size: int

    def setup(self):
        """Builds the submodules."""
        c = self.config
        self.project = linear(c.width, "project")
        self.context_norm = RMSNorm(c.norm_eps)
        self.layers = [BlockLayer(c, name=f"layers_{i}") for i in range(c.layers)]
        self.norm = RMSNorm(c.norm_eps)
        self.mask_rows = self.param("mask_rows", INIT, (c.block_size - 1, c.width))
        if c.confidence:
            self.confidence_out = linear(1, "confidence_out", bias=True)
        if c.above:
            self.above = linear(c.width, "above")
        if c.markov_rank:
            shape = (self.vocab_size, c.markov_rank)
            self.markov_in = self.param("markov_in", INIT, shape)
            self.markov_out = self.param("markov_out", INIT, shape[::-1])

    def context(
        self, features: Float[Array, "R T E"], angles: Float[Array, "R T f 2"]
    ) -> list[KeysValues]:
        """Keys and values of committed positions, for each layer."""
        context = self.context_norm(self.project(features))
        return [layer.keys_values(context, angles) for layer in self.layers]

    def block_input(
        self,
        anchor: Float[Array, "... D"],
        path: Float[Array, "... M D"] | None = None,
        above: Float[Array, "... G M"] | None = None,
    ) -> Float[Array, "... G D"]:
        """Inputs of a block: the anchor's embedding, then mask embeddings.

        Args:
          anchor: [..., D], embedding of the anchor.
          path: [..., G - 1, D], embeddings of the tokens behind the anchor, added to
            the mask embeddings; 0 where they are unknown.
          above: [..., G, 3 D], concatenated embeddings of the image row above each
            predicted position.
        """
        masks = jnp.broadcast_to(
            self.mask_rows.astype(anchor.dtype),
            (*anchor.shape[:-1], *self.mask_rows.shape),
        )
        if path is not None:
            masks = masks + path
        h = jnp.concatenate([anchor[..., None, :], masks], axis=-2)
        return h if above is None else h + self.above(above)

    def block(
        self,
        h: Float[Array, "R T D"],
        angles: Float[Array, "R T f 2"],
        mask: Bool[Array, "R T S"],
        joins: list[Callable[[KeysValues], KeysValues]],
    ) -> Float[Array, "R T D"]:
        """Applies all layers and the final norm to a block, before the target's head.

        Args:
          h: [R, T, D], inputs of the block's queries.
          angles: rotary angles [R, T, F / 2, 2].
          mask: bool [R, T, S], context and block positions each query attends to.
          joins: function of each layer that appends the block's keys and values.
        """
        for layer, join in zip(self.layers, joins, strict=True):
            h = layer(h, angles, mask, join)
        return self.norm(h)

    def markov(self, tokens: Array) -> Float[Array, "... V"]:
        """Bias of the next token's logits given the token before (Markov head)."""
        return jnp.matmul(
            self.markov_in[tokens],
            self.markov_out,
            preferred_element_type=jnp.float32,
        )

    def confidence(
        self, h: Float[Array, "... D"], tokens: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """Logit of the probability that a predicted token is accepted.

        Args:
          h: [..., D], outputs of the queries that predict.
          tokens: int32 [...], token before each predicted one.
        """
        if self.config.markov_rank:
            h = jnp.concatenate([h, self.markov_in[tokens]], axis=-1)
        return self.confidence_out(h)[..., 0].astype(jnp.float32)

    def __call__(self, features, angles, anchor):
        """Uses every parameter once, for initialization."""
        contexts = self.context(features, angles)
        above = None
        if self.config.above:
            shape = (*anchor.shape[:-1], self.config.block_size)
            above = jnp.zeros((*shape, len(COLUMNS) * self.config.width))
        h = self.block_input(anchor, above=above)
        sequences, length = h.shape[:2]
        block_angles = jnp.zeros((sequences, length, *angles.shape[2:]))
        mask = jnp.ones((sequences, length, features.shape[1] + length), bool)
        joins = [append_to(past) for past in contexts]
        h = self.block(h, block_angles, mask, joins)
        if self.config.markov_rank:
            self.markov(jnp.zeros(sequences, jnp.int32))
        if self.config.confidence:
            self.confidence(h, jnp.zeros(h.shape[:-1], jnp.int32))
        return h
