"""The tokens that stand before the root, prompt and all, as one array."""

import jax
import jax.numpy as jnp

from jaxspec.models.transformer import TokenPrompt
from jaxspec.spec.draft import DraftContext, InitContext
from jaxspec.typing import Array, Int


def prompt_ids(ctx: InitContext) -> Int[Array, "B P"]:
    """The prompt, if it is tokens `[B, P]` with -1 behind shorter ones; else nothing.

    A class or a caption is no history: its ids are not of the vocabulary. With guidance
    it is that of the conditional stream.
    """
    prompt = ctx.prompt
    if isinstance(prompt, TokenPrompt):
        prompt = prompt.given
    if isinstance(prompt, jax.Array) and prompt.ndim == 2:
        if jnp.issubdtype(prompt.dtype, jnp.integer):
            return prompt.astype(jnp.int32)
    return jnp.full((ctx.rows, 0), -1, jnp.int32)


def following_tokens(ctx: InitContext) -> Int[Array, "R P"]:
    """The token after each position of the prompt, in every stream.

    Conditions have no tokens, and behind the last one nothing is known: there it is
    token 0, whose embedding is LANTERN's filler.
    """
    streams, length, _ = ctx.features.shape
    prompt = ctx.prompt
    parts = [prompt_ids(ctx)] * (streams // ctx.rows)
    if isinstance(prompt, TokenPrompt):  # the other stream reads its own
        parts = [prompt.given, prompt.null]
    size = ((0, 0), (0, length + 1))
    tokens = [jnp.pad(x, size, constant_values=-1)[:, 1 : length + 1] for x in parts]
    return jnp.maximum(jnp.concatenate(tokens), 0).astype(jnp.int32)


def history(
    prompt: Int[Array, "B P"], ctx: DraftContext
) -> tuple[Int[Array, "B H"], Int[Array, "B"]]:
    """All tokens up to the root, and how many there are; -1 behind them."""
    lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
    generated = jnp.arange(ctx.tokens.shape[1])[None] < ctx.index[:, None]
    generated = jnp.where(generated, ctx.tokens, -1)
    room = jnp.pad(prompt, ((0, 0), (0, generated.shape[1])), constant_values=-1)
    write = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))
    return write(room, generated, lengths), lengths + ctx.index
