"""A transformer as a `Target` of the engine."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.models.transformer import (
    CaptionPadding,
    TokenPrompt,
    Transformer,
    activation_dtype,
)
from jaxspec.spec.cache import KVCache, init_cache, tree_mask
from jaxspec.spec.target import Prefill, Target
from jaxspec.typing import Array, Bool, Float, Int, Mask, Params, PyTree


def make_target(
    model: Transformer,
    *,
    guided: bool = True,
    feature_layers: tuple[int, ...] = (),
    caption_padding: CaptionPadding = "self",
) -> Target:
    """Wraps a model; equal arguments give equal (hashable, picklable) records.

    Args:
      model: a transformer. Without a condition its prompts are tokens, int32 [B, P],
        at least one a row, with -1 behind shorter ones; with guidance a `TokenPrompt`.
      guided: run an unconditional stream beside each row (classifier-free guidance).
      feature_layers: layers whose outputs the drafter reads.
      caption_padding: what padded positions of a caption attend to. Tokens are the same
        either way; a drafter that reads features of such positions names what it was
        trained on (`Eagle.caption_padding`).

    Raises:
      ConfigError: "published" padding of a model whose `rope` is not "grid".
    """
    config = model.config
    if caption_padding == "published" and config.rope != "grid":
        raise ConfigError(
            "caption_padding='published' is that of LlamaGen in LANTERN; a model of "
            "sequences has none"
        )
    own = model, 2 if guided else 1, tuple(feature_layers)
    if config.condition == "none":
        prefill, rescore = _PrefillTokens(*own), _RescoreTokens(*own)
    else:
        prefill = _PrefillCondition(*own, caption_padding)
        rescore = _RescoreCondition(*own)
    return Target(
        config.vocab_size,
        own[1],
        prefill,
        _Forward(*own),
        rescore,
        model.move,
        config.extra_tokens,
    )


@dataclass(frozen=True)
class _Function:
    """A function of a target, by structure: equal fields make equal functions."""

    model: Transformer
    streams: int
    feature_layers: tuple[int, ...]

    def doubled(self, tokens: Array) -> Array:
        """Rows repeated for each guidance stream."""
        return jnp.concatenate([tokens] * self.streams)

    def empty_cache(self, params: Params, rows: int, slots: int) -> KVCache:
        """A cache of at least `slots` slots."""
        config = self.model.config
        return init_cache(
            config.layers,
            rows,
            config.num_kv_heads,
            self.model.cache_slots(slots),
            config.head_size,
            activation_dtype(params),
        )


class _Forward(_Function):
    """`Target.forward` of any transformer."""

    def __call__(
        self,
        params: Params,
        cache: KVCache,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        mask: Mask,
    ) -> tuple[Float[Array, "R T V"], Float[Array, "R T E"], KVCache]:
        return self.model.extend(
            params, cache, tokens, positions, mask, self.feature_layers
        )


class _Conditioned(_Function):
    """A function of a model that draws from a class or a caption."""

    def rows_of(self, prompt: PyTree) -> tuple[PyTree, Bool[Array, "R"]]:
        """Prompts of all streams, and which rows get the null condition instead."""
        rows = jax.tree.leaves(prompt)[0].shape[0]
        null = jnp.repeat(jnp.arange(self.streams) > 0, rows)
        return jax.tree.map(self.doubled, prompt), null


@dataclass(frozen=True)
class _PrefillCondition(_Conditioned):
    caption_padding: CaptionPadding = "self"

    def __call__(self, params: Params, prompt: PyTree, extra: int) -> Prefill:
        repeated, null = self.rows_of(prompt)
        slots = self.model.config.prefix_length + extra
        cache = self.empty_cache(params, len(null), slots)
        logits, features, cache = self.model.read_prompt(
            params, repeated, null, cache, self.feature_layers, self.caption_padding
        )
        return Prefill(logits[:, -1], features, cache)


class _RescoreCondition(_Conditioned):
    def __call__(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        index: Int[Array, "B"],
    ) -> Float[Array, "R V"]:
        repeated, null = self.rows_of(prompt)
        place = self.doubled(index) + self.model.config.prefix_length - 1
        return self.model.score(
            params, repeated, self.doubled(tokens), null=null, at=place
        )[0][:, 0]


class _Prompted(_Function):
    """A function of a model of bare sequences, which goes on from prompts."""

    def rows_of(self, prompt: TokenPrompt | Array) -> Int[Array, "R P"]:
        """Prompts of all streams.

        Raises:
          ConfigError: guidance without a `TokenPrompt`, or one without guidance.
        """
        if self.streams == 1:
            if isinstance(prompt, TokenPrompt):
                raise ConfigError("a TokenPrompt is for guidance: guided=True")
            return prompt
        if not isinstance(prompt, TokenPrompt):
            raise ConfigError(
                "guidance of a model without a condition needs TokenPrompt(given, null)"
            )
        size = max(prompt.given.shape[1], prompt.null.shape[1])
        parts = (prompt.given, prompt.null)
        return jnp.concatenate(
            [
                jnp.pad(x, ((0, 0), (0, size - x.shape[1])), constant_values=-1)
                for x in parts
            ]
        )


class _PrefillTokens(_Prompted):
    def __call__(
        self, params: Params, prompt: TokenPrompt | Array, extra: int
    ) -> Prefill:
        prompt = self.rows_of(prompt)
        rows, size = prompt.shape
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        cache = self.empty_cache(params, rows, size + extra)
        positions = jnp.broadcast_to(jnp.arange(size), (rows, size))
        mask = tree_mask(cache, jnp.tril(jnp.ones((size, size), bool)))
        logits, features, cache = self.model.extend(
            params, cache, jnp.maximum(prompt, 0), positions, mask, self.feature_layers
        )
        last = jnp.maximum(lengths - 1, 0)
        logits = jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]
        return Prefill(logits, features, replace(cache, lengths=lengths))


class _RescoreTokens(_Prompted):
    def __call__(
        self,
        params: Params,
        prompt: TokenPrompt | Array,
        tokens: Int[Array, "B T"],
        index: Int[Array, "B"],
    ) -> Float[Array, "R V"]:
        prompt = self.rows_of(prompt)
        tokens, index = self.doubled(tokens), self.doubled(index)
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        total = prompt.shape[1] + tokens.shape[1]
        behind = jnp.arange(total)[None] - lengths[:, None]
        given = jnp.pad(prompt, ((0, 0), (0, tokens.shape[1])))
        place = jnp.clip(behind, 0, tokens.shape[1] - 1)
        drawn = jnp.take_along_axis(tokens, place, axis=1)
        stream = jnp.where(behind < 0, given, drawn)
        return self.model.score(params, None, stream, at=lengths + index - 1)[0][:, 0]
