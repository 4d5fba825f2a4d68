"""Tiny target, and drafter of adjustable quality, for tests of the engine."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.kv_cache import init_cache, write
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.target import Prefill, Target
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params

WIDTH = 8


def toy_params(vocab_size: int, positions: int, seed: int = 0) -> Params:
    """Random parameters of `toy_target`.

    Args:
      vocab_size: size of the vocabulary, `V`.
      positions: largest number of positions of a sequence.
      seed: seed of the parameters.
    """
    keys = jax.random.split(jax.random.key(seed), 2)
    values = jax.random.normal(keys[0], (vocab_size + 1, positions, WIDTH), jnp.float32)
    head = jax.random.normal(keys[1], (WIDTH, vocab_size), jnp.float32)
    return {"values": values, "head": head}


def toy_target(vocab_size: int, branches: int = 1) -> Target:
    """Target made of plain functions, with a real KV cache.

    The logits at a position are a random function of a sum over all positions that it
    attends to. Each summand is a random vector that belongs to the position and its
    token. The logits therefore change if a mask, a position, a slot or an order is
    wrong. The unconditional branch reads `vocab_size` instead of each prompt token.

    Prompts are one token, int32 [B], or several, int32 [B, P], with -1 after shorter
    ones.

    Args:
      vocab_size: size of the vocabulary, `V`.
      branches: number of CFG branches, 1 or 2.
    """
    fields = vocab_size, branches
    return Target(*fields, _Prefill(*fields), _forward, _Rescore(*fields))


def _vectors(params, tokens, positions):
    return params["values"][tokens, positions]


def _attend(params, values, mask):
    features = jnp.where(mask[..., None], values[:, None], 0.0).sum(axis=2)
    return jnp.tanh(features) @ params["head"], features


def _forward(params, cache, tokens, positions, mask):
    new = _vectors(params, tokens, positions)[:, None]
    k, v = cache.layers[0]
    layer = (write(k, new, cache.lengths), write(v, new, cache.lengths))
    logits, features = _attend(params, layer[1][:, 0], mask)
    return logits, features, replace(cache, layers=(layer,))


@dataclass(frozen=True)
class _Prompted:
    """Base of the functions of the target that read prompts.

    Attributes:
      vocab_size: size of the vocabulary, `V`.
      branches: number of CFG branches, 1 or 2.
    """

    vocab_size: int
    branches: int

    def branch_prompts(self, prompt):
        """Prompts of all branches, [R, P], and their lengths, [R]."""
        prompt = prompt.reshape(prompt.shape[0], -1)
        length = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)
        prompt = jnp.maximum(prompt, 0)
        if self.branches == 1:
            return prompt, length
        null = jnp.full_like(prompt, self.vocab_size)
        return jnp.concatenate([prompt, null]), jnp.concatenate([length] * 2)


class _Prefill(_Prompted):
    def __call__(self, params, prompt, extra):
        tokens, length = self.branch_prompts(prompt)
        batch, size = tokens.shape
        cache = init_cache(1, batch, 1, size + extra, WIDTH, jnp.float32)
        position = jnp.arange(size)
        mask = jnp.arange(size + extra)[None] <= position[:, None]
        mask = jnp.broadcast_to(mask, (batch, size, size + extra))
        positions = jnp.broadcast_to(position, tokens.shape)
        logits, features, cache = _forward(params, cache, tokens, positions, mask)
        cache = replace(cache, lengths=length)
        last = jnp.take_along_axis(logits, length[:, None, None] - 1, axis=1)[:, 0]
        return Prefill(last, features, cache)


class _Rescore(_Prompted):
    def __call__(self, params, prompt, tokens, index):
        prompt, length = self.branch_prompts(prompt)
        tokens = jnp.concatenate([tokens] * self.branches)
        last = jnp.concatenate([index] * self.branches) + length - 1
        position = jnp.arange(prompt.shape[1] + tokens.shape[1])[None]
        token_index = jnp.clip(position - length[:, None], 0, tokens.shape[1] - 1)
        generated = jnp.take_along_axis(tokens, token_index, axis=1)
        padded = jnp.pad(prompt, ((0, 0), (0, tokens.shape[1])))
        ids = jnp.where(position < length[:, None], padded, generated)
        values = _vectors(params, ids, position)
        mask = (position <= last[:, None])[:, None]
        return _attend(params, values, mask)[0][:, 0]


@dataclass(frozen=True)
class NoisyOracle:
    """Drafter that proposes the future tokens of the target, some replaced at random.

    Its parameters are a dict: "tokens", int32 [B, T], the tokens of plain decoding; and
    "spoil", the probability that a node gets a random token instead, 0 for a perfect
    drafter and 1 for a useless one. At each depth the correct token has a random rank.
    Some nodes are invalid, also at random.

    Attributes:
      vocab_size: size of the vocabulary, `V`.
      seed: seed of the random choices.
    """

    vocab_size: int
    seed: int = 0

    def init(self, params: Params, ctx: InitContext) -> Any:
        """Counter of rounds, which makes each draft different."""
        return jnp.zeros((), jnp.int32)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Proposes a draft, see `speculative.draft.Drafter`."""
        tree = ctx.tree
        assert isinstance(tree, Tree)
        key = jax.random.fold_in(jax.random.key(self.seed), state)
        keys = jax.random.split(key, 4)
        shape = (ctx.root.shape[0], tree.size)
        future = ctx.index[:, None] - 1 + jnp.asarray(tree.depths)[None]
        last = params["tokens"].shape[1] - 1
        truth = jnp.take_along_axis(params["tokens"], jnp.minimum(future, last), axis=1)
        random = jax.random.randint(keys[0], shape, 0, self.vocab_size)
        rank = jax.random.randint(keys[1], shape, 0, tree.width)
        replaced = jax.random.bernoulli(keys[2], params["spoil"], shape)
        correct = (rank == jnp.asarray(tree.ranks)[None]) & ~replaced
        tokens = jnp.where(correct, truth, random).at[:, 0].set(ctx.root)
        valid = jax.random.bernoulli(keys[3], 0.95, shape).at[:, 0].set(True)
        return Draft(tokens, valid), state + 1

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Returns the state unchanged."""
        return state
