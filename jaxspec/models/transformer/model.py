"""Autoregressive transformer decoder: LlamaGen and related architectures."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.core.kv_cache import KVCache, Layers, gather_path
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.network import Decoder
from jaxspec.models.transformer.prompts import Caption, CaptionPadding
from jaxspec.models.transformer.target import transformer_target
from jaxspec.nn.attention import OVER_CACHE
from jaxspec.nn.kernels.cached_attention import kernel_gather_path, padded_capacity
from jaxspec.speculative.target import Target
from jaxspec.typing import Array, Bool, Float, Int, Mask, Params, PyTree


@dataclass(frozen=True)
class Transformer:
    """Pure functions of a decoder; static and hashable.

    An input is `P` condition positions (a class, a caption, or none) followed by
    tokens. Source: LlamaGen (arXiv 2406.06525).

    Attributes:
      config: sizes and kind of the network.
      attention: implementation of attention over a KV cache for passes of few tokens:
        "xla", "pallas" (kernels that read only the visible part of a cache, whose
        capacity must be a multiple of a block, see `cache_slots`), or "cudnn" (bfloat16
        and float16 on NVIDIA GPUs).

    Raises:
      ConfigError: `attention` is unknown.
    """

    config: TransformerConfig
    attention: str = "xla"

    def __post_init__(self):
        if self.attention not in OVER_CACHE:
            known = ", ".join(OVER_CACHE)
            raise ConfigError(f"attention={self.attention!r}; choose one of {known}")

    def cache_slots(self, slots: int) -> int:
        """Cache capacity, at least `slots`, that `attention` supports."""
        return padded_capacity(slots) if self.attention == "pallas" else slots

    @property
    def move(self) -> Callable[..., Layers]:
        """Function that commits a path to a cache, see `core.kv_cache.gather_path`."""
        return kernel_gather_path if self.attention == "pallas" else gather_path

    def as_target(
        self,
        *,
        cfg: bool = True,
        feature_layers: tuple[int, ...] = (),
        caption_padding: CaptionPadding = "self",
    ) -> Target:
        """The model as the target of an engine.

        Targets made from equal arguments are equal, hashable and picklable. An `Engine`
        replaces `feature_layers` and `caption_padding` by those of its drafter.

        Args:
          cfg: whether an unconditional branch is computed for each sequence, for
            classifier-free guidance. Prompts are class ids or weights or a `Caption`,
            see `score`. Without a condition, prompts are tokens, int32
            [B, P], at least one a sequence, with -1 after shorter ones; with guidance a
            `TokenPrompt`.
          feature_layers: layers whose outputs a drafter reads.
          caption_padding: positions that padded positions of a caption attend to. The
            logits do not depend on it.

        Raises:
          ConfigError: `caption_padding` is "published" and the model's `rope` is not
            "grid".
        """
        return transformer_target(
            self,
            cfg=cfg,
            feature_layers=feature_layers,
            caption_padding=caption_padding,
        )

    def init(self, key: Array) -> Params:
        """Random float32 parameters, with a head of zeros; consumes `key`."""
        ids = jnp.zeros((1, 1), jnp.int32)
        return Decoder(self.config).init(key, self.blank_prompt(1), ids)["params"]

    def blank_prompt(self, batch: int) -> PyTree:
        """Prompt of zeros for `batch` sequences; None if there is no condition."""
        c = self.config
        if c.condition == "class":
            return jnp.zeros(batch, jnp.int32)
        if c.condition == "caption":
            return Caption(
                jnp.zeros((batch, c.caption_length, c.caption_width), jnp.float32),
                jnp.ones((batch, c.caption_length), bool),
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
        causal: bool | Bool[Array, "Y Y"] | Bool[Array, "B Y Y"] = True,
        positions: Int[Array, "Y"] | Int[Array, "B Y"] | None = None,
        following: Int[Array, "B Y"] | None = None,
    ) -> tuple[Float[Array, "B 1 V"] | Float[Array, "B Y V"], Float[Array, "B Y E"]]:
        """Logits of whole sequences in one pass, without a cache.

        Args:
          params: parameters.
          prompt: class ids int32 [B], or weights of the classes, float [B, classes], by
            which their embeddings are mixed; a `Caption`; or None.
          tokens: tokens after the condition, int32.
          null: sequences that get the null condition instead of `prompt`.
          at: one position per sequence, int32; logits are computed only there.
          feature_layers: layers whose outputs are returned.
          dropout_key: random key that enables dropout; consumed.
          causal: True if a position attends to itself and earlier ones, False if to
            all; or a mask, True where a position attends to another, shared by all
            sequences or one for each.
          positions: rotary positions of condition and tokens, int32, for all sequences
            or for each; by default their indices.
          following: positions of the tokens that are predicted, int32, for models with
            `next_cell`; by default `positions + 1`.

        Returns:
          Float32 logits of all positions (position `P - 1 + t` scores token `t`), or
          `[B, 1, V]` with `at`; and the concatenated outputs of `feature_layers`.
        """
        batch, length = tokens.shape
        null = jnp.zeros(batch, bool) if null is None else null
        decoder = Decoder(self.config)
        bound = decoder.bind(
            {"params": params},
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        x = bound.tokens(tokens)
        if self.config.condition != "none":
            x = jnp.concatenate([bound.condition(prompt, null), x], axis=1)
        total = self.config.prefix_length + length
        positions = jnp.arange(total) if positions is None else positions
        positions = jnp.broadcast_to(positions, (batch, total))
        mask = jnp.ones((total, total), bool)
        if not isinstance(causal, bool):
            mask = causal
        elif causal:
            mask = jnp.tril(mask)
        mask = jnp.broadcast_to(mask, (batch, total, total))
        if isinstance(prompt, Caption):
            itself = jnp.eye(total, dtype=bool)
            mask &= _visible_slots(prompt, total)[:, None, :] | itself[None]
        logits, features, _ = bound.body(
            x,
            positions,
            mask,
            None,
            feature_layers,
            dropout_key is not None,
            at,
            following,
        )
        return logits, features

    def embed(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "R T"],
        null: Bool[Array, "R"],
    ) -> Float[Array, "R Y D"]:
        """Embeddings of the condition, if there is one, and of tokens after it.

        Args:
          params: parameters.
          prompt: prompts, see `score`.
          tokens: token ids, int32.
          null: sequences that get the null condition instead of `prompt`.
        """
        bound = Decoder(self.config).bind({"params": params})
        x = bound.tokens(tokens)
        if self.config.condition == "none":
            return x
        return jnp.concatenate([bound.condition(prompt, null), x], axis=1)

    def pass_over(
        self,
        params: Params,
        x: Float[Array, "R n D"],
        positions: Int[Array, "R n"],
        mask: Mask,
        cache: KVCache,
    ) -> tuple[Float[Array, "R n V"], Layers]:
        """Logits of embeddings at any positions, float32, and the layers of the cache.

        Args:
          params: parameters.
          x: embeddings, see `embed`.
          positions: rotary positions, int32.
          mask: True where a position may attend to a slot.
          cache: cache, to whose slots from `lengths` on keys and values are written.
        """
        bound = Decoder(self.config, self.attention).bind({"params": params})
        logits, _, layers = bound.body(x, positions, mask, cache, (), False)
        return logits, layers

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
          prompt: class ids int32 [R] or class weights, or a `Caption`, see `score`.
          null: sequences that get the null condition instead of `prompt`.
          cache: empty cache.
          feature_layers: layers whose outputs are returned.
          padding: positions that padded positions of a caption attend to, see
            `CaptionPadding`.

        Returns:
          Logits and features of the `P` condition positions, and the cache with their
          keys and values committed. The padding of a caption is not visible in it.
        """
        length = self.config.prefix_length
        bound = Decoder(self.config, self.attention).bind({"params": params})
        x = bound.condition(prompt, null)
        batch = x.shape[0]
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        visible = jnp.ones((batch, cache.capacity), bool)
        if isinstance(prompt, Caption):
            visible = _visible_slots(prompt, cache.capacity)
        causal = jnp.tril(jnp.ones((length, cache.capacity), bool))
        mask = visible[:, None, :] & causal[None]
        mask |= jnp.eye(length, cache.capacity, dtype=bool)[None]
        if padding == "published" and isinstance(prompt, Caption):
            padding_mask = lantern_padding_mask(prompt.valid, x.dtype)
            widths = ((0, 0), (0, 0), (0, cache.capacity - length))
            mask |= jnp.pad(padding_mask, widths)
        logits, features, layers = bound.body(
            x, positions, mask, cache, feature_layers, False
        )
        lengths = jnp.full(batch, length, jnp.int32)
        return logits, features, KVCache(layers, lengths, visible)

    def extend(
        self,
        params: Params,
        cache: KVCache,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        mask: Mask,
        feature_layers: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "R T V"], Float[Array, "R T E"], KVCache]:
        """Forward pass over tokens at any positions, with a cache.

        Writes the keys and values of the tokens to slots `cache.lengths ..` without
        committing them: the lengths do not change.

        Args:
          params: parameters.
          cache: cache with at least `T` free slots.
          tokens: token ids, int32.
          positions: rotary positions, int32.
          mask: True where a token may attend to a slot.
          feature_layers: layers whose outputs are returned.

        Returns:
          Float32 logits, the concatenated outputs of `feature_layers`, and the cache.
        """
        bound = Decoder(self.config, self.attention).bind({"params": params})
        x = bound.tokens(tokens)
        logits, features, layers = bound.body(
            x, positions, mask, cache, feature_layers, False
        )
        return logits, features, KVCache(layers, cache.lengths, cache.visible)


def lantern_padding_mask(
    valid: Bool[Array, "B P"], dtype: jnp.dtype
) -> Bool[Array, "B P P"]:
    """Attention mask of the padded positions before a caption in LANTERN's target.

    LANTERN adds the lowest float32 number to the scores of later positions, and the
    lowest number of the activation dtype to those of padding. Positions with both get
    -inf. Of those with one, softmax keeps the larger, with equal weights because the
    queries of a condition are zero. In float32 these are the padding up to the position
    and the whole caption; in bfloat16 and float16, whose lowest numbers are larger,
    only the padding.

    Args:
      valid: False at padding.
      dtype: dtype of the activations.

    Returns:
      Mask that is True where a padded position attends to another position.
    """
    size = valid.shape[1]
    mask = jnp.broadcast_to(
        jnp.tril(jnp.ones((size, size), bool)), (len(valid), size, size)
    )
    if dtype == jnp.float32:
        mask = mask | valid[:, None, :]
    return mask & ~valid[:, :, None]


def _visible_slots(prompt: Caption, slots: int) -> Bool[Array, "B S"]:
    """Slots that may be attended to: all but the padding of the caption."""
    widths = ((0, 0), (0, slots - prompt.valid.shape[1]))
    return jnp.pad(prompt.valid, widths, constant_values=True)
