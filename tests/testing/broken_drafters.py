"""A small correct drafter with a state, and the same with one fault each."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

import jaxspec
from jaxspec.drafters.tree_drafting import grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.typing import Params

VOCAB, WIDTH = 7, 6


def params(seed=0):
    """Vectors of tokens and positions, and a head."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "tokens": jax.random.normal(keys[0], (VOCAB, WIDTH), jnp.float32),
        "positions": jax.random.normal(keys[1], (64, WIDTH), jnp.float32),
        "head": jax.random.normal(keys[2], (WIDTH, VOCAB), jnp.float32),
    }


@dataclass(frozen=True)
class SumDrafter:
    """Logits from a sum over the vectors of all generated tokens.

    Attributes:
      fault: fault of the drafter; "" for none.
    """

    fault: str = ""

    def init(self, params: Params, ctx: Any) -> Any:
        batch = ctx.batch + (self.fault == "one state more")
        state = jnp.zeros((batch, WIDTH), jnp.float32), jnp.zeros(batch, jnp.int32)
        return state

    def propose(self, params: Params, state: Any, ctx: Any) -> Any:
        fault, (total, count) = self.fault, state
        if fault == "propose raises":
            raise ValueError("no such round")
        if fault in ("one key", "no key"):
            key = jax.random.key(0) if fault == "no key" else ctx.keys[0]
            ctx = replace(ctx, keys=jnp.broadcast_to(key, ctx.keys.shape))
        if fault == "mean of the batch":
            total = total + total.mean(axis=0)
        if fault == "reads ahead":
            at = jnp.minimum(ctx.index, ctx.tokens.shape[1] - 1)
            ahead = jnp.take_along_axis(ctx.tokens, at[:, None], axis=1)
            total = total + params["tokens"][ahead[:, 0]]

        def step(depth, tokens, before, carry):
            position = count[:, None] + depth
            place = params["positions"][position % 64]
            h = before + params["tokens"][tokens] * place
            if fault == "reads ahead below the root" and depth:
                at = jnp.minimum(ctx.index, ctx.tokens.shape[1] - 1)
                ahead = jnp.take_along_axis(ctx.tokens, at[:, None], axis=1)
                h = h + 1e-2 * params["tokens"][ahead]
            return jnp.tanh(h) @ params["head"], h, carry

        declared = ctx.selection
        sampled = ctx.selection.startswith("with")
        if fault in ("takes the top", "shared noise") and sampled:
            taken = "top" if fault == "takes the top" else "coupled"
            ctx = replace(ctx, selection=taken)
        if fault in ("samples", "no shared noise"):
            taken = "without_replacement" if fault == "samples" else "top"
            ctx = replace(ctx, selection=taken)
        if fault == "with replacement" and sampled:
            ctx = replace(ctx, selection="with_replacement")
        draft, _ = grow(ctx, step, total[:, None])
        draft = replace(draft, selection=declared)
        return self.spoiled(draft, ctx), self.spoiled_state(state)

    def spoiled(self, draft: Draft, ctx: Any) -> Draft:
        fault, log_q = self.fault, draft.log_q
        nodes = ctx.tree.size
        if fault == "no probabilities":
            return replace(draft, log_q=None)
        if fault == "logits":
            return replace(draft, log_q=log_q + 1.0)
        if fault == "reversed":
            return replace(draft, log_q=log_q[:, ::-1])
        if fault == "late":
            return replace(draft, log_q=jnp.roll(log_q, 1, axis=1))
        if fault == "unknown tokens":
            return replace(draft, tokens=draft.tokens.at[:, 1].set(VOCAB))
        if fault == "other sizes":
            return replace(draft, valid=draft.valid[:, 1:])
        if fault == "half":
            return replace(draft, log_q=log_q.astype(jnp.bfloat16))
        if fault == "prunes by token":
            return replace(draft, valid=draft.valid & (draft.tokens % 2 == 0))
        if fault in ("parents behind", "a long path", "many children"):
            parents = jnp.zeros((len(draft.tokens), nodes), jnp.int32)
            if fault == "parents behind":
                parents = parents.at[:, 1].set(nodes - 1)
            if fault == "a long path":
                parents = jnp.broadcast_to(jnp.arange(nodes) - 1, parents.shape)
            return replace(draft, log_q=None, parents=parents, selection="guess")
        return draft

    def spoiled_state(self, state: Any) -> Any:
        total, count = state
        if self.fault == "grows":
            return jnp.concatenate([total, total], axis=1), count
        return (total, count.astype(jnp.float32)) if self.fault == "float" else state

    def observe(self, params: Params, state: Any, result: Any) -> Any:
        fault, (total, count) = self.fault, state
        if fault == "observe raises":
            raise ValueError("no such path")
        nodes = result.on_path(result.draft.tokens)  # the root and what is accepted
        if fault == "first nodes":
            nodes = result.draft.tokens[:, : nodes.shape[1]]
        index = jnp.arange(nodes.shape[1])[None]
        kept = index < result.counts[:, None]
        if fault == "all nodes":
            kept = index < result.path.shape[1]
        if fault == "not the root":
            kept &= index > 0
        if fault == "not if nothing is accepted":
            kept &= result.accepted[:, None] > 0
        place = params["positions"][(count[:, None] + index) % 64]
        new = jnp.where(kept[..., None], params["tokens"][nodes] * place, 0.0)
        if fault == "stale position":
            return total + new.sum(axis=1), count
        return total + new.sum(axis=1), count + result.counts


class Mutable(SumDrafter):
    """A drafter that is not hashable."""

    __hash__ = None  # type: ignore


@dataclass(frozen=True)
class Shallow(SumDrafter):
    """A drafter of chains of up to two tokens that claims three."""

    max_depth: int = 3

    def init(self, params: Params, ctx: Any) -> Any:
        self.check_tree(ctx.tree)
        return super().init(params, ctx)

    def check_tree(self, tree: Any) -> None:
        if tree.depth > 2:
            raise ConfigError("two tokens at most")


@dataclass(frozen=True)
class Modest(SumDrafter):
    """A drafter of chains of any length that claims two."""

    max_depth: int = 2

    def check_tree(self, tree: Any) -> None:
        pass


class Incomplete:
    """A drafter without `observe`."""

    init, propose = SumDrafter.init, SumDrafter.propose


TREE = jaxspec.Tree.named("0,1,00,10,000")
