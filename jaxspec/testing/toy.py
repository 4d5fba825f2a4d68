"""A tiny target and deliberately odd drafters, to hold the engine or a rule to."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.spec.cache import init_cache, write
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.target import Prefill, Target
from jaxspec.spec.tree import Tree
from jaxspec.typing import Params

WIDTH = 8


def toy_params(vocab_size: int, positions: int, seed: int = 0) -> Params:
    """Parameters of `toy_target` for streams of up to `positions`."""
    keys = jax.random.split(jax.random.key(seed), 2)
    values = jax.random.normal(keys[0], (vocab_size + 1, positions, WIDTH), jnp.float32)
    head = jax.random.normal(keys[1], (WIDTH, vocab_size), jnp.float32)
    return {"values": values, "head": head}


def toy_target(vocab_size: int, streams: int = 1) -> Target:
    """A target made of plain functions: no module system, a real cache.

    Its prompt is one token, int32 [B], or several, int32 [B, P], with -1 behind shorter
    ones. A token's scores are a random map of the sum, over all positions that it sees,
    of a vector that belongs to that position and its token: so they change when a mask,
    a position, a slot or an order is wrong. The unconditional stream sees `vocab_size`
    in the place of each token of the prompt.
    """
    own = vocab_size, streams
    return Target(*own, _Prefill(*own), _forward, _Rescore(*own))


def _vectors(params, tokens, positions):
    return params["values"][tokens, positions]


def _attend(params, values, mask):
    seen = jnp.where(mask[..., None], values[:, None], 0.0).sum(axis=2)
    return jnp.tanh(seen) @ params["head"], seen


def _forward(params, cache, tokens, positions, mask):
    new = _vectors(params, tokens, positions)[:, None]
    k, v = cache.layers[0]
    layer = (write(k, new, cache.lengths), write(v, new, cache.lengths))
    logits, seen = _attend(params, layer[1][:, 0], mask)
    return logits, seen, replace(cache, layers=(layer,))


@dataclass(frozen=True)
class _Prompted:
    """A function of the toy that reads prompts."""

    vocab_size: int
    streams: int

    def doubled(self, prompt):
        """Tokens [R, P] and lengths [R]."""
        prompt = prompt.reshape(prompt.shape[0], -1)
        length = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        prompt = jnp.maximum(prompt, 0)
        if self.streams == 1:
            return prompt, length
        null = jnp.full_like(prompt, self.vocab_size)
        return jnp.concatenate([prompt, null]), jnp.concatenate([length] * 2)


class _Prefill(_Prompted):
    def __call__(self, params, prompt, extra):
        tokens, length = self.doubled(prompt)
        rows, size = tokens.shape
        cache = init_cache(1, rows, 1, size + extra, WIDTH, jnp.float32)
        place = jnp.arange(size)
        mask = jnp.arange(size + extra)[None] <= place[:, None]
        mask = jnp.broadcast_to(mask, (rows, size, size + extra))
        positions = jnp.broadcast_to(place, tokens.shape)
        logits, seen, cache = _forward(params, cache, tokens, positions, mask)
        cache = replace(cache, lengths=length)
        last = jnp.take_along_axis(logits, length[:, None, None] - 1, axis=1)[:, 0]
        return Prefill(last, seen, cache)


class _Rescore(_Prompted):
    def __call__(self, params, prompt, tokens, index):
        prompt, length = self.doubled(prompt)
        tokens = jnp.concatenate([tokens] * self.streams)
        index = jnp.concatenate([index] * self.streams) + length - 1
        place = jnp.arange(prompt.shape[1] + tokens.shape[1])[None]
        beyond = jnp.clip(place - length[:, None], 0, tokens.shape[1] - 1)
        generated = jnp.take_along_axis(tokens, beyond, axis=1)
        given = jnp.pad(prompt, ((0, 0), (0, tokens.shape[1])))
        stream = jnp.where(place < length[:, None], given, generated)
        values = _vectors(params, stream, place)
        mask = (place <= index[:, None])[:, None]
        return _attend(params, values, mask)[0][:, 0]


@dataclass(frozen=True)
class NoisyOracle:
    """Proposes the target's own future tokens, some of them spoilt.

    Its parameters are a dict: "tokens" int32 [B, T], what plain decoding yields, and
    "spoil", the chance that a node gets a random token instead. The right token of a
    level sits at a random rank. Invalid nodes appear at random, too. With
    `spoil = 1` it is useless; with 0 it is perfect.
    """

    vocab_size: int
    seed: int = 0

    def init(self, params: Params, ctx: InitContext) -> Any:
        """Counts the rounds, so that each draft is different."""
        return jnp.zeros((), jnp.int32)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        tree = ctx.tree
        assert isinstance(tree, Tree)
        rows = ctx.root.shape[0]
        key = jax.random.fold_in(jax.random.key(self.seed), state)
        keys = jax.random.split(key, 4)
        shape = (rows, tree.size)
        future = ctx.index[:, None] - 1 + jnp.asarray(tree.depths)[None]
        last = params["tokens"].shape[1] - 1
        truth = jnp.take_along_axis(params["tokens"], jnp.minimum(future, last), axis=1)
        random = jax.random.randint(keys[0], shape, 0, self.vocab_size)
        lucky = jax.random.randint(keys[1], shape, 0, tree.width)
        spoilt = jax.random.bernoulli(keys[2], params["spoil"], shape)
        right = (lucky == jnp.asarray(tree.ranks)[None]) & ~spoilt
        tokens = jnp.where(right, truth, random).at[:, 0].set(ctx.root)
        valid = jax.random.bernoulli(keys[3], 0.95, shape).at[:, 0].set(True)
        return Draft(tokens, valid), state + 1

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Learns nothing."""
        return state
