"""Cached context: passes that compute some tokens and take the others from a cache."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.core.logits import apply_cfg
from jaxspec.core.mesh_sync import group_max
from jaxspec.core.numbers import whole
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.masked_lm.partial import partial_pass
from jaxspec.typing import Array, Bool, Float, Int

if TYPE_CHECKING:
    from jaxspec.masked.generator import MaskedGenerator
    from jaxspec.masked.state import MaskedState, MaskedVariables

Kept = Literal["known", "left"]


@dataclass(frozen=True)
class ContextCache:
    """Tokens whose keys and values stay from one pass to the next; static. Lossy.

    Every few passes all tokens are computed; the passes between compute the tokens that
    are masked or were revealed last, and the others keep their keys and values,
    although what they attend to has changed (ReCAP, arXiv 2505.19089). With
    `kept="left"` the kept ones are all blocks of known tokens before the first masked
    one (FreeCache, arXiv 2505.21467). In a network of one layer keys and values do not
    depend on other tokens, and the result is that of plain passes.

    Attributes:
      every: passes from one that computes all tokens to the next; 1 computes all in
        each, None in the first alone.
      kept: tokens that passes between keep.
      block: tokens of a block, for `kept="left"`.
      active: number of masked tokens, from the left, that passes between compute; None
        for all. With `outer` these are the windows of Window-Diffusion (arXiv
        2601.20332), and the policy is a `Window`.
      outer: number of masked tokens, from the left, up to which a pass reads anything;
        what follows is left out until the next pass that computes all. None for all.
      stages: number of sizes of a pass, each a branch of one program; the smallest that
        holds all of a batch is taken.

    Raises:
      ConfigError: a number or a name is impossible.
    """

    every: int | None = 4
    kept: Kept = "known"
    block: int = 32
    stages: int = 8
    active: int | None = None
    outer: int | None = None

    def __post_init__(self):
        for name in ("every", "block", "stages", "active", "outer"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(whole(name, getattr(self, name))))
        if self.kept not in get_args(Kept):
            known = ", ".join(get_args(Kept))
            raise ConfigError(f"kept={self.kept!r}; choose one of {known}")
        if (self.active is None) != (self.outer is None):
            raise ConfigError("active and outer belong together")
        if self.active is not None and self.outer is not None:
            if self.active > self.outer:
                raise ConfigError(f"active={self.active} is above outer={self.outer}")

    def window(
        self, known: Bool[Array, "B T"], steps: Array, reach: Array
    ) -> tuple[Bool[Array, "B"], Int[Array, "B"]]:
        """Sequences whose pass computes all that it reads, and what passes read.

        Args:
          known: tokens that are known before the pass.
          steps: number of passes so far, int32 [B].
          reach: number of positions that the last pass read, int32 [B].

        Returns:
          A mask, and the number of positions that this pass reads.
        """
        whole_pass = steps == 0
        if self.every is not None:
            whole_pass = steps % self.every == 0
        length = known.shape[1]
        if self.active is None or self.outer is None:
            return whole_pass, jnp.full_like(reach, length)
        masked = ~known
        inside = masked & (jnp.arange(length)[None] < reach[:, None])
        total = jnp.sum(masked, axis=1)
        whole_pass |= jnp.sum(inside, axis=1) < jnp.minimum(self.active, total)
        new = jnp.sum(jnp.cumsum(masked, axis=1) <= self.outer, axis=1, dtype=jnp.int32)
        return whole_pass, jnp.where(whole_pass, new, reach)

    def computed(
        self,
        known: Bool[Array, "B T"],
        read: Bool[Array, "B T"],
        whole_pass: Bool[Array, "B"],
    ) -> Bool[Array, "B T"]:
        """Tokens that a pass computes.

        Args:
          known: tokens that are known before the pass.
          read: tokens that were known when their keys and values were computed.
          whole_pass: sequences of which all are computed.
        """
        finished = known & read
        if self.kept == "left":
            before = jnp.cumprod(finished.astype(jnp.int32), axis=1).sum(1)
            place = jnp.arange(known.shape[1])[None]
            finished = place < (before // self.block * self.block)[:, None]
        if self.active is not None:
            finished |= ~known & (jnp.cumsum(~known, axis=1) > self.active)
        return ~finished | whole_pass[:, None]


def cached_logits(
    generator: "MaskedGenerator",
    variables: "MaskedVariables",
    state: "MaskedState",
    sampling: Sampling,
) -> tuple[Float[Array, "B T V"], "MaskedState"]:
    """Logits of the tokens that are computed, after guidance, and the next cache.

    Args:
      generator: generator with a `ContextCache`.
      variables: arrays that all sequences share.
      state: sequences.
      sampling: settings with the scale of guidance of this pass.
    """
    assert generator.context is not None and state.read is not None
    assert state.reach is not None
    model, batch = generator.model.model, len(state.tokens)
    branches = 2 if generator.cfg and model.config.condition != "none" else 1
    tokens, prompt, prefix, positions, exists = _inputs(model, state)
    whole_pass, reach = generator.context.window(state.known, state.steps, state.reach)
    # The last step makes all tokens known, also those behind a window.
    last = state.steps + 1 >= generator.schedule.steps
    whole_pass, reach = whole_pass | last, jnp.where(last, state.known.shape[1], reach)
    computed = generator.context.computed(state.known, state.read, whole_pass)
    computed &= ~state.done[:, None]
    near = jnp.arange(state.known.shape[1])[None] < reach[:, None]
    computed &= near
    exists &= jnp.pad(near, ((0, 0), (prefix, 0)), constant_values=True)
    # The condition or the prompt is computed with all tokens.
    first = (whole_pass & ~state.done)[:, None]
    computed = jnp.pad(computed, ((0, 0), (prefix, 0)))
    computed |= first & (jnp.arange(computed.shape[1]) < prefix)[None]

    def doubled(tree):
        return jax.tree.map(lambda x: jnp.concatenate([x] * branches), tree)

    null = jnp.arange(branches * batch) >= batch
    x = model.embed(variables.params, doubled(prompt), doubled(tokens), null)
    length = x.shape[1]
    most = group_max(jnp.max(jnp.sum(computed & exists, axis=1, dtype=jnp.int32)))
    stages = min(generator.context.stages, length)
    sizes = [-(-length * (i + 1) // stages) for i in range(stages)]
    passes = [
        partial(partial_pass, model, variables.params, capacity=size) for size in sizes
    ]
    stage = jnp.searchsorted(jnp.asarray(sizes), most).astype(jnp.int32)
    arguments = x, doubled(positions), doubled(exists), state.layers, doubled(computed)
    logits, layers = jax.lax.switch(stage, passes, *arguments)
    logits = logits[:, prefix:]
    if branches == 2:
        where = jnp.broadcast_to(jnp.arange(logits.shape[1]), state.tokens.shape)
        logits = apply_cfg(logits, sampling, where)
    read = jnp.where(computed[:, prefix:], state.known, state.read)
    return logits, replace(state, layers=layers, read=read, reach=reach)


def _inputs(model, state):
    """Token ids, prompts of the condition, and the positions before the tokens."""
    batch, length = state.tokens.shape
    if model.config.condition != "none" or state.prompt is None:
        prefix = model.config.prefix_length
        total = prefix + length
        positions = jnp.broadcast_to(jnp.arange(total), (batch, total))
        exists = jnp.ones((batch, total), bool)
        return state.tokens, state.prompt, prefix, positions, exists
    prompt, prefix = state.prompt, state.prompt.shape[1]
    given = prompt >= 0
    lengths = jnp.sum(given, axis=1, dtype=jnp.int32)[:, None]
    place = jnp.broadcast_to(jnp.arange(prefix), prompt.shape)
    positions = jnp.concatenate([place, lengths + jnp.arange(length)[None]], axis=1)
    exists = jnp.concatenate([given, jnp.ones_like(state.known)], axis=1)
    tokens = jnp.concatenate([jnp.maximum(prompt, 0), state.tokens], axis=1)
    return tokens, None, prefix, positions, exists
