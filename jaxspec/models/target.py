"""A transformer as a `Target` of the engine."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.models.transformer import TokenPrompt, Transformer, activation_dtype
from jaxspec.spec.cache import init_cache, tree_mask
from jaxspec.spec.target import Prefill, Target


@lru_cache(maxsize=64)
def make_target(
    model: Transformer, *, guided: bool = True, taps: tuple[int, ...] = ()
) -> Target:
    """Wraps a model; equal arguments give the same (hashable) record.

    Args:
      model: a transformer. Without a condition its prompts are tokens, int32 [B, P],
        at least one a row, with -1 behind shorter ones; with guidance a `TokenPrompt`.
      guided: run an unconditional stream beside each row (classifier-free guidance).
      taps: layers whose outputs the drafter reads.
    """
    config = model.config
    if config.condition == "none":
        return _prompted(model, 2 if guided else 1, taps)
    streams = 2 if guided else 1

    def doubled(prompt):
        rows = jax.tree.leaves(prompt)[0].shape[0]
        null = jnp.repeat(jnp.arange(streams) > 0, rows)
        repeated = jax.tree.map(lambda x: jnp.concatenate([x] * streams), prompt)
        return repeated, null

    def prefill(params, prompt, extra):
        repeated, null = doubled(prompt)
        dtype = activation_dtype(params)
        cache = init_cache(
            config.layers,
            null.shape[0],
            config.num_kv_heads,
            model.cache_slots(config.prefix_length + extra),
            config.head_size,
            dtype,
        )
        logits, features, cache = model.read_prompt(params, repeated, null, cache, taps)
        return Prefill(logits[:, -1], features, cache)

    def forward(params, cache, tokens, positions, mask):
        return model.extend(params, cache, tokens, positions, mask, taps)

    def rescore(params, prompt, tokens, index):
        repeated, null = doubled(prompt)
        tokens = jnp.concatenate([tokens] * streams)
        place = jnp.concatenate([index] * streams) + config.prefix_length - 1
        return model.score(params, repeated, tokens, null=null, at=place)[0][:, 0]

    return Target(config.vocab_size, streams, prefill, forward, rescore, model.move)


def _prompted(model: Transformer, streams: int, taps: tuple[int, ...]) -> Target:
    """A model of bare sequences, which goes on from prompts."""
    config = model.config

    def both(prompt):
        """Prompts of all streams, [R, P]."""
        if streams == 1:
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

    def prefill(params, prompt, extra):
        prompt = both(prompt)
        rows, size = prompt.shape
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        dtype = activation_dtype(params)
        cache = init_cache(
            config.layers,
            rows,
            config.num_kv_heads,
            model.cache_slots(size + extra),
            config.head_size,
            dtype,
        )
        positions = jnp.broadcast_to(jnp.arange(size), (rows, size))
        mask = tree_mask(cache, jnp.tril(jnp.ones((size, size), bool)))
        logits, features, cache = model.extend(
            params, cache, jnp.maximum(prompt, 0), positions, mask, taps
        )
        last = jnp.maximum(lengths - 1, 0)
        logits = jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]
        return Prefill(logits, features, replace(cache, lengths=lengths))

    def forward(params, cache, tokens, positions, mask):
        return model.extend(params, cache, tokens, positions, mask, taps)

    def rescore(params, prompt, tokens, index):
        prompt = both(prompt)
        tokens, index = (jnp.concatenate([x] * streams) for x in (tokens, index))
        lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        total = prompt.shape[1] + tokens.shape[1]
        behind = jnp.arange(total) - lengths[:, None]
        given = jnp.pad(prompt, ((0, 0), (0, tokens.shape[1])))
        place = jnp.clip(behind, 0, tokens.shape[1] - 1)
        drawn = jnp.take_along_axis(tokens, place, axis=1)
        stream = jnp.where(behind < 0, given, drawn)
        return model.score(params, None, stream, at=lengths + index - 1)[0][:, 0]

    return Target(config.vocab_size, streams, prefill, forward, rescore, model.move)
