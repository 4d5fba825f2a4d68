"""Prompt and generated tokens of each sequence as one array."""

import jax
import jax.numpy as jnp

from jaxspec.core.branches import repeat_branches
from jaxspec.core.slices import write_at
from jaxspec.models.transformer.prompts import TokenPrompt
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.prefix import prefix_length, prefix_of, without_prefix
from jaxspec.typing import Array, Int


def prompt_ids(ctx: InitContext) -> Int[Array, "B P"]:
    """Returns the tokens of the prompts, -1 behind shorter ones.

    A class or a caption has no tokens of the vocabulary: then `P` is 0. With guidance
    the prompt of the conditional branch is returned. Given tokens of a `Prefixed` are
    not part of it: `DraftContext.tokens` begins with them.
    """
    prompt = without_prefix(ctx.prompt)
    if isinstance(prompt, TokenPrompt):
        prompt = prompt.given
    if isinstance(prompt, jax.Array) and prompt.ndim == 2:
        if jnp.issubdtype(prompt.dtype, jnp.integer):
            return prompt.astype(jnp.int32)
    return jnp.full((ctx.batch, 0), -1, jnp.int32)


def following_tokens(ctx: InitContext) -> Int[Array, "R P"]:
    """Returns the token after each position of prompt and given tokens, in each branch.

    Where there is no such token (class and caption positions, and behind the last one)
    it is token 0, whose embedding LANTERN uses as filler.
    """
    sequences, length, _ = ctx.features.shape
    branches = sequences // ctx.batch
    prompt = without_prefix(ctx.prompt)
    parts = [prompt_ids(ctx)] * branches
    if isinstance(prompt, TokenPrompt):  # each branch has its own prompt
        parts = [prompt.given, prompt.null]
    size = ((0, 0), (0, length + 1))
    parts = [jnp.pad(x, size, constant_values=-1)[:, : length + 1] for x in parts]
    tokens = jnp.concatenate(parts).astype(jnp.int32)
    if count := prefix_length(ctx.prompt):  # the last one is the first root
        prefix = repeat_branches(prefix_of(ctx.prompt, ctx.batch), branches)
        tokens = write_at(tokens, prefix, ctx.lengths - (count - 1))
    return jnp.maximum(tokens[:, 1:], 0)


def history(
    prompt: Int[Array, "B P"], ctx: DraftContext
) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
    """Joins prompts and generated tokens.

    Returns:
      All tokens up to the root, -1 behind them, and how many there are.
    """
    lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
    generated = jnp.arange(ctx.tokens.shape[1])[None] < ctx.index[:, None]
    generated = jnp.where(generated, ctx.tokens, -1)
    padded = jnp.pad(prompt, ((0, 0), (0, generated.shape[1])), constant_values=-1)
    return write_at(padded, generated, lengths), lengths + ctx.index
