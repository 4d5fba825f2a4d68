"""Network of the transformer decoder."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.models.classes import mixed_classes
from jaxspec.models.transformer.embeddings import FactoredEmbed, NextCell
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import (
    INIT,
    ZEROS,
    HeadNorm,
    RMSNorm,
    SwiGLU,
    head_scores,
    linear,
)
from jaxspec.nn.quantize import SCALE
from jaxspec.nn.rope import angles_of


def head_norm(config: TransformerConfig) -> Callable[[str], nn.Module] | None:
    """Constructor, by module name, of the norms of query and key heads, or None."""
    if config.qk_layer_norm:  # the epsilon is fixed
        return lambda name: HeadNorm(1e-5, name=name)
    if config.qk_norm:
        return lambda name: RMSNorm(config.norm_eps, name=name)
    return None


class _Layer(nn.Module):
    config: TransformerConfig
    attention: str

    @nn.compact
    def __call__(self, x, angles, mask, cache, starts, train):
        c = self.config
        attention_norm = RMSNorm(c.norm_eps, name="attention_norm")
        ffn_norm = RMSNorm(c.norm_eps, name="ffn_norm")
        attention = Attention(
            c.heads,
            c.num_kv_heads,
            c.head_size,
            c.qkv_bias,
            head_norm(c),
            over_cache=self.attention,
            name="attention",
        )
        ffn = SwiGLU(c.ffn_size, name="ffn")
        h = x if c.norm_after else attention_norm(x)
        h, cache = attention(h, angles, mask, cache, starts)
        h = attention_norm(h) if c.norm_after else h
        x = x + nn.Dropout(c.residual_dropout)(h, deterministic=not train)
        h = ffn_norm(ffn(x)) if c.norm_after else ffn(ffn_norm(x))
        return x + nn.Dropout(c.ffn_dropout)(h, deterministic=not train), cache


class Decoder(nn.Module):
    """Network from token ids to logits; see `Transformer` for the pure functions.

    Attributes:
      config: sizes and kind of the network.
      attention: implementation of attention over a cache.
    """

    config: TransformerConfig
    attention: str = "xla"

    def setup(self):
        """Makes the parts."""
        c = self.config
        self.token_dropout = nn.Dropout(c.token_dropout)
        ids = c.vocab_size + c.extra_tokens
        if c.factors:
            self.embedding = FactoredEmbed(c.factors, c.width)
        else:
            self.embedding = nn.Embed(ids, c.width, embedding_init=INIT)
        if c.next_cell:
            self.next_cell = NextCell(c)
        if c.condition == "class":
            self.classes = nn.Embed(c.classes + 1, c.width, embedding_init=INIT)
        elif c.condition == "caption":
            shape = (c.caption_length, c.caption_width)
            init = nn.initializers.normal(c.caption_width**-0.5, jnp.float32)
            self.null_caption = self.param("null_caption", init, shape)
            self.caption_in = linear(c.width, "caption_in")
            self.caption_out = linear(c.width, "caption_out")
        self.layers = [
            _Layer(c, self.attention, name=f"layers_{i}") for i in range(c.layers)
        ]
        self.norm = RMSNorm(c.norm_eps)
        if c.factors:
            self.head = tuple(
                self._matrix(f"head_{i}", size) for i, size in enumerate(c.factors)
            )
        elif c.head_width:
            self.head = {
                "in": self.param("head_in", INIT, (c.width, c.head_width)),
                "in_bias": self.param("head_in_bias", ZEROS, (c.head_width,)),
                "out": self.param("head_out", ZEROS, (c.head_width, c.vocab_size)),
                "out_bias": self.param("head_out_bias", ZEROS, (c.vocab_size,)),
            }
        elif not c.tied_head:
            self.head = self._matrix("head", c.vocab_size)

    def _matrix(self, name, size):
        """Output matrix, in the form that `head_scores` takes."""
        kernel = self.param(name, ZEROS, (self.config.width, size))
        if not self.has_variable("params", name + SCALE):
            return kernel
        return {"kernel": kernel, "scale": self.get_variable("params", name + SCALE)}

    def condition(self, prompt, null):
        """Condition embeddings [B, P, D], of the null condition where `null`."""
        c = self.config
        if c.condition == "class":
            table = self.classes.embedding
            return mixed_classes(table, prompt, null, c.classes)[:, None]
        # Padding is zeros as in LlamaGen: a drafter may read the features there.
        zero = jnp.zeros((), prompt.features.dtype)
        features = jnp.where(
            null[:, None, None],
            self.null_caption.astype(prompt.features.dtype),
            jnp.where(prompt.valid[..., None], prompt.features, zero),
        )
        return self.caption_out(nn.gelu(self.caption_in(features), approximate=True))

    def tokens(self, ids):
        """Embeddings of token ids."""
        return self.embedding(ids)

    def body(
        self,
        x,
        positions,
        mask,
        cache,
        feature_layers,
        train,
        at=None,
        following=None,
    ):
        """Logits, features of `feature_layers` and updated cache layers.

        With `at`, only the logits of one position per sequence are computed.
        `following` are the positions of the predicted tokens, by default the next ones.
        """
        c = self.config
        if c.next_cell:
            x = x + self.next_cell(positions + 1 if following is None else following)
        angles = angles_of(c, positions, c.head_size)
        x = self.token_dropout(x, deterministic=not train)
        outputs, layers = {}, []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            starts = None if cache is None else cache.lengths
            x, layer_cache = layer(x, angles, mask, layer_cache, starts, train)
            layers.append(layer_cache)
            if i in feature_layers:
                outputs[i] = x
        features = [outputs[i] for i in feature_layers]
        features = jnp.concatenate(features, axis=-1) if feature_layers else x[..., :0]
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        head = self.embedding.embedding[: c.vocab_size].T if c.tied_head else self.head
        return head_scores(head, self.norm(x)), features, tuple(layers)

    def __call__(self, prompt, ids):
        """Logits of all positions, each of which attends to all."""
        x = self.tokens(ids)
        if self.config.condition != "none":
            null = jnp.zeros(ids.shape[0], bool)
            x = jnp.concatenate([self.condition(prompt, null), x], axis=1)
        length = x.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
        mask = jnp.ones((x.shape[0], length, length), bool)
        return self.body(x, positions, mask, None, (), False)[0]
