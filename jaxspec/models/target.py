"""A transformer as a `Target` of the engine."""

from functools import lru_cache

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.models.transformer import Transformer
from jaxspec.spec.cache import init_cache
from jaxspec.spec.target import Prefill, Target


@lru_cache(maxsize=64)
def make_target(
    model: Transformer, *, guided: bool = True, taps: tuple[int, ...] = ()
) -> Target:
    """Wraps a model; equal arguments give the same (hashable) record.

    Args:
      model: a conditional transformer.
      guided: run an unconditional stream beside each row (classifier-free guidance).
      taps: layers whose outputs the drafter reads.

    Raises:
      ConfigError: the model has no condition to start from.
    """
    config = model.config
    if config.condition == "none":
        raise ConfigError("a target needs a condition: 'class' or 'caption'")
    streams = 2 if guided else 1

    def doubled(prompt):
        rows = jax.tree.leaves(prompt)[0].shape[0]
        null = jnp.repeat(jnp.arange(streams) > 0, rows)
        repeated = jax.tree.map(lambda x: jnp.concatenate([x] * streams), prompt)
        return repeated, null

    def prefill(params, prompt, extra):
        repeated, null = doubled(prompt)
        dtype = jax.tree.leaves(params)[0].dtype
        cache = init_cache(
            config.layers,
            null.shape[0],
            config.num_kv_heads,
            config.prefix_length + extra,
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

    return Target(config.vocab_size, streams, prefill, forward, rescore)
