"""The network of the block drafter: target features enter as keys and values."""

from collections.abc import Callable

import einops
import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import DFlashConfig
from jaxspec.drafters.row_above import COLUMNS
from jaxspec.nn.attention import attend
from jaxspec.nn.layers import INIT, RMSNorm, SwiGLU, linear
from jaxspec.nn.rope import rotate
from jaxspec.typing import Array, Bool, Float, Int

KeysValues = tuple[Float[Array, "R K S F"], Float[Array, "R K S F"]]


def append_to(past: KeysValues) -> Callable[[KeysValues], KeysValues]:
    """A join that puts a block's keys and values behind the given ones."""

    def join(own: KeysValues) -> KeysValues:
        k = jnp.concatenate([past[0], own[0]], axis=2)
        return k, jnp.concatenate([past[1], own[1]], axis=2)

    return join


class BlockLayer(nn.Module):
    """One layer: block rows attend to injected context and to one another.

    The context stream makes keys and values only. It skips the input norm, the queries,
    the output map and the SwiGLU (DFlash, arXiv 2602.06036).
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
        """Keys and values `[R, K, T, F]` of the context or of normed block rows."""
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
        """`join` puts the block's own keys and values behind the context's."""
        x = self.input_norm(h)
        q = einops.rearrange(self.query(x), "r t g k f -> r t (k g) f")
        q = rotate(self.q_norm(q), angles)
        k, v = join(self.keys_values(x, angles))
        h = h + self.out(attend(q, k, v, mask))
        return h + self.ffn(self.post_norm(h))


class DFlashNetwork(nn.Module):
    """Projection of the features, the layers, the mask rows and the Markov head."""

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
        self, features: Float[Array, "R C E"], angles: Float[Array, "R C f 2"]
    ) -> list[KeysValues]:
        """Keys and values of committed positions, for each layer."""
        c = self.context_norm(self.project(features))
        return [layer.keys_values(c, angles) for layer in self.layers]

    def block_input(
        self,
        anchor: Float[Array, "... D"],
        path: Float[Array, "... P D"] | None = None,
        above: Float[Array, "... G E"] | None = None,
    ) -> Float[Array, "... G D"]:
        """The anchor's embedding, then the mask rows.

        Args:
          anchor: its embedding.
          path: embeddings of the tokens behind the anchor, one for each mask row, if
            they are guessed or known; 0 where not.
          above: embeddings of the tokens above what each row predicts, side by side.
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
        """Normed outputs of block rows, ready for the target's head."""
        for layer, join in zip(self.layers, joins, strict=True):
            h = layer(h, angles, mask, join)
        return self.norm(h)

    def markov(self, tokens: Array) -> Float[Array, "... V"]:
        """Bias that a token puts on the logits of the next one."""
        return jnp.matmul(
            self.markov_in[tokens],
            self.markov_out,
            preferred_element_type=jnp.float32,
        )

    def confidence(
        self, h: Float[Array, "... D"], tokens: Int[Array, "..."]
    ) -> Float[Array, "..."]:
        """Logit of the chance that a row's guess is accepted.

        Args:
          h: outputs of the rows that guess.
          tokens: before each guess.
        """
        if self.config.markov_rank:
            h = jnp.concatenate([h, self.markov_in[tokens]], axis=-1)
        return self.confidence_out(h)[..., 0].astype(jnp.float32)

    def __call__(self, features, angles, anchor):
        """Touches every parameter once; for initialization."""
        contexts = self.context(features, angles)
        above = None
        if self.config.above:
            shape = (*anchor.shape[:-1], self.config.block_size)
            above = jnp.zeros((*shape, len(COLUMNS) * self.config.width))
        h = self.block_input(anchor, above=above)
        rows, length = h.shape[:2]
        block_angles = jnp.zeros((rows, length, *angles.shape[2:]))
        mask = jnp.ones((rows, length, features.shape[1] + length), bool)
        joins = [append_to(past) for past in contexts]
        h = self.block(h, block_angles, mask, joins)
        if self.config.markov_rank:
            self.markov(jnp.zeros(rows, jnp.int32))
        if self.config.confidence:
            self.confidence(h, jnp.zeros(h.shape[:-1], jnp.int32))
        return h
