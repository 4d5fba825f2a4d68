"""Target whose passes round differently, by as much as a test chooses."""

from dataclasses import replace

import jax.numpy as jnp


def drifting(target, size):
    """Target whose logits change by up to `size` in passes with more than one node."""

    def forward(params, cache, tokens, positions, mask):
        logits, features, cache = target.forward(params, cache, tokens, positions, mask)
        if tokens.shape[1] > 1:
            drift = jnp.sin(1e4 * logits + tokens[..., None])
            logits = logits + size * drift
        return logits, features, cache

    return replace(target, forward=forward)
