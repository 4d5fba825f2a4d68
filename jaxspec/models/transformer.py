"""The autoregressive decoder: LlamaGen, and by configuration its relatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.nn.attention import OVER_CACHE, Attention
from jaxspec.nn.kernels.cached_attention import kernel_gather_path, padded_capacity
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
from jaxspec.spec.cache import KVCache, Layers, gather_path
from jaxspec.typing import Array, Bool, Float, Int, Mask, Params, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Caption:
    """A text prompt.

    Attributes:
      features: float [B, P, E], outputs of the text encoder, left padded.
      valid: bool [B, P], False at padding.
    """

    features: Float[Array, "B P E"]
    valid: Bool[Array, "B P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPrompt:
    """A prompt of tokens for guidance: one for each stream.

    Attributes:
      given: int32 [B, P], with -1 behind shorter ones.
      null: int32 [B, Q], what the unconditional stream reads instead, likewise; it may
        be of another length.
    """

    given: Int[Array, "B P"]
    null: Int[Array, "B Q"]


def head_norm(config: TransformerConfig) -> Callable[[str], nn.Module] | None:
    """What norms the heads of queries and keys, by name; None for nothing."""
    if config.qk_layer_norm:  # its epsilon is fixed
        return lambda name: HeadNorm(1e-5, name=name)
    if config.qk_norm:
        return lambda name: RMSNorm(config.norm_eps, name=name)
    return None


CaptionPadding = Literal["self", "published"]
# What padded positions of a caption attend to. Nothing attends to them, so it changes
# features at padded positions alone, which a drafter may read.
#   self        themselves, as LlamaGen does
#   published   as in LANTERN's target, see `lantern_padding_mask`


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


class _Decoder(nn.Module):
    """Everything between ids and logits; see `Transformer` for the pure functions."""

    config: TransformerConfig
    attention: str = "xla"

    def setup(self):
        c = self.config
        self.token_dropout = nn.Dropout(c.token_dropout)
        ids = c.vocab_size + c.extra_tokens
        self.embedding = nn.Embed(ids, c.width, embedding_init=INIT)
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
        if c.head_width:
            self.head = {
                "in": self.param("head_in", INIT, (c.width, c.head_width)),
                "in_bias": self.param("head_in_bias", ZEROS, (c.head_width,)),
                "out": self.param("head_out", ZEROS, (c.head_width, c.vocab_size)),
                "out_bias": self.param("head_out_bias", ZEROS, (c.vocab_size,)),
            }
        elif not c.tied_head:
            self.head = self.param("head", ZEROS, (c.width, c.vocab_size))
            if self.has_variable("params", "head" + SCALE):
                scale = self.get_variable("params", "head" + SCALE)
                self.head = {"kernel": self.head, "scale": scale}

    def condition(self, prompt, null):
        """Prefix embeddings [B, P, D]; rows where `null` have the null condition."""
        c = self.config
        if c.condition == "class":
            ids = jnp.where(null, c.classes, prompt)
            return self.classes(ids)[:, None]
        # Padding is zeros, as in LlamaGen: a drafter may read what becomes of it.
        zero = jnp.zeros((), prompt.features.dtype)
        features = jnp.where(
            null[:, None, None],
            self.null_caption.astype(prompt.features.dtype),
            jnp.where(prompt.valid[..., None], prompt.features, zero),
        )
        return self.caption_out(nn.gelu(self.caption_in(features), approximate=True))

    def tokens(self, ids):
        return self.embedding(ids)

    def body(self, x, positions, mask, cache, feature_layers, train, at=None):
        """Logits (at one place of each row), tapped features, updated cache layers."""
        c = self.config
        angles = angles_of(c, positions, c.head_size)
        x = self.token_dropout(x, deterministic=not train)
        tapped, layers = {}, []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            starts = None if cache is None else cache.lengths
            x, layer_cache = layer(x, angles, mask, layer_cache, starts, train)
            layers.append(layer_cache)
            if i in feature_layers:
                tapped[i] = x
        features = [tapped[i] for i in feature_layers]
        features = jnp.concatenate(features, axis=-1) if feature_layers else x[..., :0]
        if at is not None:
            x = jnp.take_along_axis(x, at[:, None, None], axis=1)
        tied = self.embedding.embedding[: c.vocab_size].T
        head = tied if c.tied_head else self.head
        return head_scores(head, self.norm(x)), features, tuple(layers)

    def __call__(self, prompt, ids):
        x = self.tokens(ids)
        if self.config.condition != "none":
            null = jnp.zeros(ids.shape[0], bool)
            x = jnp.concatenate([self.condition(prompt, null), x], axis=1)
        length = x.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
        mask = jnp.ones((x.shape[0], length, length), bool)
        return self.body(x, positions, mask, None, (), False)[0]


@dataclass(frozen=True)
class Transformer:
    """Pure functions of a decoder; static and hashable.

    A stream is `P` condition positions (a class, a caption, or none) followed by
    tokens. Source: LlamaGen (arXiv 2406.06525).

    Attributes:
      config: sizes and kind.
      attention: how passes of a few tokens attend over a cache: "xla", "pallas" (a
        kernel that reads what is filled; its caches hold whole blocks, see
        `cache_slots`), or "cudnn" (NVIDIA, bfloat16).
    """

    config: TransformerConfig
    attention: str = "xla"

    def __post_init__(self):
        if self.attention not in OVER_CACHE:
            known = ", ".join(OVER_CACHE)
            raise ConfigError(f"attention={self.attention!r}; choose one of {known}")

    def cache_slots(self, slots: int) -> int:
        """Capacity, at least `slots`, of a cache for this way to attend."""
        return padded_capacity(slots) if self.attention == "pallas" else slots

    @property
    def move(self) -> Callable[..., Layers]:
        """How a path is committed in its caches, see `spec.cache.gather_path`."""
        return kernel_gather_path if self.attention == "pallas" else gather_path

    def init(self, key: Array) -> Params:
        """Random float32 parameters; `key` is consumed. The head starts at zero."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return _Decoder(self.config).init(key, self.blank_prompt(1), ids)["params"]

    def blank_prompt(self, rows: int) -> PyTree:
        """A prompt of zeros, for shapes; None when there is no condition."""
        c = self.config
        if c.condition == "class":
            return jnp.zeros(rows, jnp.int32)
        if c.condition == "caption":
            return Caption(
                jnp.zeros((rows, c.caption_length, c.caption_width), jnp.float32),
                jnp.ones((rows, c.caption_length), bool),
            )
        return None

    def score(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        *,
        null: Bool[Array, "B"] | None = None,
        at: Int[Array, "B"] | None = None,
        feature_layers: tuple[int, ...] = (),
        dropout_key: Array | None = None,
        causal: bool | Bool[Array, "U U"] | Bool[Array, "B U U"] = True,
        positions: Int[Array, "U"] | None = None,
    ) -> tuple[Float[Array, "B U V"], Float[Array, "B U E"]]:
        """Scores a whole stream at once, without a cache.

        Args:
          params: parameters.
          prompt: class ids int32 [B], a `Caption`, or None.
          tokens: the tokens after the condition.
          null: rows that get the null condition instead.
          at: the one position of each row whose logits are wanted.
          feature_layers: layers whose outputs are returned.
          dropout_key: turns dropout on; consumed.
          causal: a position sees itself and what stands before; False: everything; or
            a table of who sees whom, of all rows or of each.
          positions: of everything, the condition included; by default in order.

        Returns:
          Logits float32 for all `U = P + T` positions (position `P - 1 + t` scores
          token `t`), or for those `take_prob`, `[B, 1, V]`; and the tapped layers'
          outputs side by side.
        """
        rows, length = tokens.shape
        null = jnp.zeros(rows, bool) if null is None else null
        decoder = _Decoder(self.config)
        bound = decoder.bind(
            {"params": params},
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        x = bound.tokens(tokens)
        if self.config.condition != "none":
            x = jnp.concatenate([bound.condition(prompt, null), x], axis=1)
        total = self.config.prefix_length + length
        places = jnp.arange(total) if positions is None else positions
        places = jnp.broadcast_to(places, (rows, total))
        mask = jnp.ones((total, total), bool)
        if not isinstance(causal, bool):
            mask = causal
        elif causal:
            mask = jnp.tril(mask)
        mask = jnp.broadcast_to(mask, (rows, total, total))
        if isinstance(prompt, Caption):
            own = jnp.eye(total, dtype=bool)
            mask &= _caption_columns(prompt, total)[:, None, :] | own[None]
        logits, features, _ = bound.body(
            x, places, mask, None, feature_layers, dropout_key is not None, at
        )
        return logits, features

    def read_prompt(
        self,
        params: Params,
        prompt: PyTree,
        null: Bool[Array, "R"],
        cache: KVCache,
        feature_layers: tuple[int, ...] = (),
        padding: CaptionPadding = "self",
    ) -> tuple[Float[Array, "R P V"], Float[Array, "R P E"], KVCache]:
        """Reads the condition into an empty cache.

        Args:
          params: parameters.
          prompt: class ids int32 [R], or a `Caption`.
          null: rows that get the null condition instead.
          cache: empty.
          feature_layers: layers whose outputs are returned.
          padding: what a caption's padded positions attend to, see `CaptionPadding`.

        Returns:
          Logits and features of the `P` condition positions, and the cache with their
          keys and values committed; a caption's padding is not visible in it.
        """
        length = self.config.prefix_length
        bound = _Decoder(self.config, self.attention).bind({"params": params})
        x = bound.condition(prompt, null)
        rows = x.shape[0]
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        columns = jnp.ones((rows, cache.capacity), bool)
        if isinstance(prompt, Caption):
            columns = _caption_columns(prompt, cache.capacity)
        causal = jnp.tril(jnp.ones((length, cache.capacity), bool))
        mask = columns[:, None, :] & causal[None]
        mask |= jnp.eye(length, cache.capacity, dtype=bool)[None]
        if padding == "published" and isinstance(prompt, Caption):
            seen = lantern_padding_mask(prompt.valid, x.dtype)
            beyond = ((0, 0), (0, 0), (0, cache.capacity - length))
            mask |= jnp.pad(seen, beyond)
        logits, features, layers = bound.body(
            x, positions, mask, cache, feature_layers, False
        )
        lengths = jnp.full(rows, length, jnp.int32)
        return logits, features, KVCache(layers, lengths, columns)

    def extend(
        self,
        params: Params,
        cache: KVCache,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        mask: Mask,
        feature_layers: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "R T V"], Float[Array, "R T E"], KVCache]:
        """Reads tokens at any positions on top of a cache.

        Their keys and values are written at slots `cache.lengths ..` and are not
        committed: the lengths stay. `mask[r, t]` names the slots that `t` sees.
        """
        bound = _Decoder(self.config, self.attention).bind({"params": params})
        x = bound.tokens(tokens)
        logits, features, layers = bound.body(
            x, positions, mask, cache, feature_layers, False
        )
        return logits, features, KVCache(layers, cache.lengths, cache.visible)


def lantern_padding_mask(
    valid: Bool[Array, "B P"], dtype: jnp.dtype
) -> Bool[Array, "B P P"]:
    """What LANTERN's target attends to from padded positions before a caption.

    Its mask adds the lowest float32 for what lies ahead and the lowest number of the
    activations' dtype for padding. Both together are -inf; of what has one, the higher
    number is attended to, and evenly, as queries of a condition are zeros. In float32
    that is the padding up to the position and all of the caption; in bfloat16 and
    float16, whose lowest numbers are higher, the padding alone.

    Args:
      valid: False at padding.
      dtype: of the activations.
    """
    size = valid.shape[1]
    seen = jnp.broadcast_to(
        jnp.tril(jnp.ones((size, size), bool)), (len(valid), size, size)
    )
    if dtype == jnp.float32:
        seen = seen | valid[:, None, :]
    return seen & ~valid[:, :, None]


def _caption_columns(prompt: Caption, total: int) -> Bool[Array, "B S"]:
    """Slots that may be attended to: all but the caption's padding."""
    padding = ((0, 0), (0, total - prompt.valid.shape[1]))
    return jnp.pad(prompt.valid, padding, constant_values=True)


def head_of(config: TransformerConfig, params: Params) -> Params:
    """The output head as `head_scores` takes it."""
    if config.head_width:
        return {k: params[f"head_{k}"] for k in ("in", "in_bias", "out", "out_bias")}
    if config.tied_head:
        return params["embedding"]["embedding"][: config.vocab_size].T
    if "head" + SCALE in params:
        return {"kernel": params["head"], "scale": params["head" + SCALE]}
    return params["head"]


def activation_dtype(params: Params) -> jnp.dtype:
    """The dtype that activations and caches have: that of the embedding."""
    return params["embedding"]["embedding"].dtype


def parameter_count(config: TransformerConfig) -> int:
    """Number of parameters, without allocating them."""
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))
