"""Target model of the engine, made from a transformer."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.kv_cache import KVCache, init_cache, tree_mask
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.models.transformer.prompts import (
    CaptionPadding,
    TokenPrompt,
    known_classes,
)
from jaxspec.speculative.target import Prefill, Target
from jaxspec.typing import Array, Bool, Float, Int, Mask, Params, PyTree


def transformer_target(
    model: Any,
    *,
    cfg: bool,
    feature_layers: tuple[int, ...],
    caption_padding: CaptionPadding,
) -> Target:
    """Wraps a transformer as a `Target`, see `Transformer.as_target`.

    Raises:
      ConfigError: `caption_padding` is "published" and the `rope` of the model is not
        "grid".
    """
    config = model.config
    if caption_padding == "published" and config.rope != "grid":
        raise ConfigError(
            "caption_padding='published' needs a model with rope='grid', such as "
            "LlamaGen; use 'self'"
        )
    fields = model, 2 if cfg else 1, tuple(feature_layers)
    if config.condition == "none":
        prefill, rescore = _PrefillTokens(*fields), _RescoreTokens(*fields)
    else:
        prefill = _PrefillCondition(*fields, caption_padding)
        rescore = _RescoreCondition(*fields)
    return Target(
        config.vocab_size,
        fields[1],
        prefill,
        _Forward(*fields),
        rescore,
        model.move,
        config.extra_tokens,
        _ForDrafter(model, cfg, tuple(feature_layers), caption_padding),
    )


@dataclass(frozen=True)
class _ForDrafter:
    """`Target.for_drafter`; equal where its fields are equal.

    Attributes:
      model: transformer.
      cfg: whether there is an unconditional branch.
      feature_layers: layers for a drafter that does not name its own.
      caption_padding: setting for a drafter that has none of its own.
    """

    model: Any
    cfg: bool
    feature_layers: tuple[int, ...]
    caption_padding: CaptionPadding

    def __call__(self, drafter: Any) -> Target:
        return transformer_target(
            self.model,
            cfg=self.cfg,
            feature_layers=getattr(drafter, "feature_layers", self.feature_layers),
            caption_padding=getattr(drafter, "caption_padding", self.caption_padding),
        )


@dataclass(frozen=True)
class _Function:
    """Base of the functions of a target; functions with equal fields are equal.

    Attributes:
      model: transformer, see `Transformer`.
      branches: number of CFG branches, 1 or 2.
      feature_layers: layers whose outputs are returned.
    """

    model: Any
    branches: int
    feature_layers: tuple[int, ...]

    def for_branches(self, x: Array) -> Array:
        """The array repeated for each CFG branch, `[B, ...]` to `[R, ...]`."""
        return jnp.concatenate([x] * self.branches)

    def empty_cache(self, params: Params, batch: int, slots: int) -> KVCache:
        """Empty cache with at least `slots` slots."""
        config = self.model.config
        return init_cache(
            config.layers,
            batch,
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
    """Base of the functions of a model that is conditioned on a class or caption."""

    def branch_prompts(self, prompt: PyTree) -> tuple[PyTree, Bool[Array, "R"]]:
        """Prompts of all branches, and a mask of those with the null condition."""
        batch = jax.tree.leaves(prompt)[0].shape[0]
        null = jnp.repeat(jnp.arange(self.branches) > 0, batch)
        return jax.tree.map(self.for_branches, prompt), null


@dataclass(frozen=True)
class _PrefillCondition(_Conditioned):
    caption_padding: CaptionPadding = "self"

    def __call__(self, params: Params, prompt: PyTree, extra: int) -> Prefill:
        if self.model.config.condition == "class":
            prompt = known_classes(prompt, self.model.config.classes)
        prompts, null = self.branch_prompts(prompt)
        slots = self.model.config.prefix_length + extra
        cache = self.empty_cache(params, len(null), slots)
        logits, features, cache = self.model.read_prompt(
            params, prompts, null, cache, self.feature_layers, self.caption_padding
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
        prompts, null = self.branch_prompts(prompt)
        position = self.for_branches(index) + self.model.config.prefix_length - 1
        return self.model.score(
            params, prompts, self.for_branches(tokens), null=null, at=position
        )[0][:, 0]


class _Prompted(_Function):
    """Base of the functions of a model without a condition, which continues prompts."""

    def branch_prompts(self, prompt: TokenPrompt | Array) -> Int[Array, "R P"]:
        """Prompts of all branches, with -1 after shorter ones.

        Raises:
          ConfigError: the prompt is a `TokenPrompt` without guidance, or is not one
            with guidance.
        """
        if self.branches == 1:
            if isinstance(prompt, TokenPrompt):
                raise ConfigError("a TokenPrompt needs a target with cfg=True")
            return prompt
        if not isinstance(prompt, TokenPrompt):
            raise ConfigError(
                "guidance of a model without a condition needs TokenPrompt(given, null)"
            )
        size = max(prompt.given.shape[1], prompt.null.shape[1])
        return jnp.concatenate(
            [
                jnp.pad(x, ((0, 0), (0, size - x.shape[1])), constant_values=-1)
                for x in (prompt.given, prompt.null)
            ]
        )


class _PrefillTokens(_Prompted):
    def __call__(
        self, params: Params, prompt: TokenPrompt | Array, extra: int
    ) -> Prefill:
        prompt = self.branch_prompts(prompt)
        batch, size = prompt.shape
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        cache = self.empty_cache(params, batch, size + extra)
        positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
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
        prompt = self.branch_prompts(prompt)
        tokens, index = self.for_branches(tokens), self.for_branches(index)
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        # Prompts differ in length; each is followed directly by its tokens.
        total = prompt.shape[1] + tokens.shape[1]
        token_index = jnp.arange(total)[None] - lengths[:, None]
        padded = jnp.pad(prompt, ((0, 0), (0, tokens.shape[1])))
        clipped = jnp.clip(token_index, 0, tokens.shape[1] - 1)
        generated = jnp.take_along_axis(tokens, clipped, axis=1)
        ids = jnp.where(token_index < 0, padded, generated)
        return self.model.score(params, None, ids, at=lengths + index - 1)[0][:, 0]
