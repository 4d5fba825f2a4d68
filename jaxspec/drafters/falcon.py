"""Falcon: a feature drafter that guesses a block of places in one pass."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import FalconConfig, TransformerConfig
from jaxspec.drafters.grow import expansions, grow
from jaxspec.drafters.history import following_tokens
from jaxspec.drafters.shared import shared_target_params, target_norm
from jaxspec.errors import ConfigError
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import RMSNorm, SwiGLU, head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.spec.cache import KVCache, init_cache, tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.envelopes import BestFirst, DynamicTree
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


class FalconNetwork(nn.Module):
    """Two LSTM layers over the last pairs, and a decoder layer over all of them."""

    config: FalconConfig

    def setup(self):
        """Builds the submodules."""
        c = self.config
        self.cells = [nn.OptimizedLSTMCell(c.width, name=f"lstm_{i}") for i in (0, 1)]
        self.attention = Attention(c.heads, c.heads, c.head_size, name="attention")
        self.post_norm = RMSNorm(c.norm_eps)
        self.ffn = SwiGLU(c.ffn_width)

    def read(self, windows: Float[Array, "R T G P"]) -> Float[Array, "R T D"]:
        """What the LSTM makes of each row's window of `G` pairs, its own the last."""
        x = [windows[..., i, :] for i in range(windows.shape[-2])]
        for cell in self.cells:
            zeros = jnp.zeros((*x[0].shape[:-1], self.config.width), x[0].dtype)
            carry = (zeros, zeros)
            out = []
            for part in x:
                carry, h = cell(carry, part)
                out.append(h)
            x = out
        return x[-1]

    def layer(self, u, angles, mask, cache=None, starts=None):
        """Predicted features, and the cache; no norm before the attention."""
        out, cache = self.attention(u, angles, mask, cache, starts)
        h = u + out
        return h + self.ffn(self.post_norm(h)), cache

    def __call__(self, windows, angles):
        """Touches every parameter once; for initialization."""
        return self.layer(self.read(windows), angles, jnp.ones((1, 1, 1), bool))[0]


def windows_of(pairs: Float[Array, "R T P"], size: int) -> Float[Array, "R U G P"]:
    """Every run of `size` neighbors, `U = T - size + 1`."""
    count = pairs.shape[1] - size + 1
    return jnp.stack([pairs[:, i : i + count] for i in range(size)], axis=2)


@register_dataclass
@dataclass(frozen=True)
class FalconState:
    """What the drafter carries between rounds; `H = 2 (G - 1)` pairs before the new.

    Attributes:
      cache: keys and values of all pairs that were read.
      features: [R, H + A, E], the target's, of the `H` pairs read last and then of
        committed positions that were not read.
      tokens: int32 [B, H + A], the token after each; the root is the last.
      counts: int32 [B], how many new ones are real.
    """

    cache: KVCache
    features: Float[Array, "R T E"]
    tokens: Int[Array, "B T"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class Falcon:
    """Continues features and tokens by `G` places a pass (arXiv 2412.12639).

    A pair is a feature and the token after it. The last `G` pairs of a path see one
    another and what stands before; they predict the next `G` features, and so, with
    the target's head, `G` levels of the tree, the later ones without knowing the
    earlier ones' tokens. An LSTM over each pair and the `G - 1` before it makes the
    rows. (The release runs it over whole sequences in an order that cannot be told;
    a window needs no alignment, so the cache is exact wherever a round ends.)

    Parameters are a dict, see `with_target_params`: "own", and of the target
    "embedding" [V, D], "head" [D, V] and "norm" [D].
    """

    config: FalconConfig
    target: TransformerConfig

    def __post_init__(self):
        if self.config.width != self.target.width:
            raise ConfigError(
                f"the drafter's width {self.config.width} is not the target's "
                f"{self.target.width}; they share the embedding"
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The last layer."""
        return (self.target.layers - 1,)

    @property
    def max_depth(self) -> int:
        """Any depth: block after block."""
        return sys.maxsize

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that are not made level by level.

        Raises:
          ConfigError: the tree grows node by node.
        """
        if isinstance(tree, BestFirst):
            raise ConfigError("Falcon drafts whole levels; use a static tree or a Beam")

    @property
    def network(self) -> FalconNetwork:
        """The Linen module."""
        return FalconNetwork(self.config)

    def init_params(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c = self.config
        windows = jnp.zeros((1, 1, c.block, 2 * c.width))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        return self.network.init(key, windows, angles)["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with what it shares with the target."""
        return {
            "own": own,
            **shared_target_params(self.target, target_params, norm=True),
        }

    def pairs(
        self, params: Params, features: Float[Array, "R T E"], tokens: Int[Array, "R T"]
    ) -> Float[Array, "R T P"]:
        """The LSTM's inputs; pairs without a token (-1) are 0."""
        f = target_norm(self.target, params, features)
        both = jnp.concatenate([params["embedding"][tokens], f], axis=-1)
        return jnp.where(tokens[..., None] >= 0, both, 0.0)

    def layer(
        self,
        params: Params,
        windows: Float[Array, "R T G P"],
        positions: Int[Array, "R T"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array],
        starts: Int[Array, "R"],
    ) -> tuple[Float[Array, "R T D"], Any]:
        """Predicted features of rows at `positions`, and the cache with them in it."""
        network = self.network.bind({"params": params["own"]})
        places = jnp.maximum(positions, 0)
        angles = angles_of(self.target, places, self.config.head_size)
        return network.layer(network.read(windows), angles, mask, cache, starts)

    def scores(self, params: Params, h: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits float32 of predicted features."""
        return head_scores(params["head"], h)

    def init(self, params: Params, ctx: InitContext) -> FalconState:
        """See `spec.draft.Drafter`; reads all pairs of the prompt but the last."""
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        streams, length, _ = ctx.features.shape
        before = 2 * (c.block - 1)
        room = ctx.extra + path + c.block * (1 + expansions(ctx.tree)[0])
        dtype = ctx.features.dtype
        cache = init_cache(1, streams, c.heads, length + room, c.head_size, dtype)
        tokens = following_tokens(ctx)
        pad = ((0, 0), (before, 0))
        features = jnp.pad(ctx.features, (*pad, (0, 0)))
        tokens = jnp.pad(tokens, pad, constant_values=-1)
        cache = self._commit(params, cache, features, tokens)
        last = jnp.maximum(ctx.lengths - 1, 0)
        cache = replace(cache, lengths=cache.lengths + last)
        near = last[:, None] + jnp.arange(before + 1)[None]
        features = jnp.take_along_axis(features, near[..., None], axis=1)
        tokens = jnp.take_along_axis(tokens[: ctx.rows], near[: ctx.rows], axis=1)
        pad = ((0, 0), (0, path - 1))
        return FalconState(
            cache,
            jnp.pad(features, (*pad, (0, 0))),
            jnp.pad(tokens, pad),
            jnp.ones(ctx.rows, jnp.int32),
        )

    def propose(
        self, params: Params, state: FalconState, ctx: DraftContext
    ) -> tuple[Draft, FalconState]:
        """See `spec.draft.Drafter`."""
        size, rows = self.config.block, len(ctx.root)
        before = 2 * (size - 1)
        streams = state.features.shape[0] // rows

        def both(x):
            return jnp.concatenate([x] * streams)

        def by_row(x):  # [R, M, ...] to [B, M, streams, ...]
            return jnp.moveaxis(x.reshape(streams, rows, *x.shape[1:]), 0, 2)

        def by_stream(x):
            x = jnp.moveaxis(x, 2, 0)
            return x.reshape(streams * rows, *x.shape[2:])

        fresh = jnp.maximum(state.counts, 1)
        here = jnp.arange(state.tokens.shape[1])[None] == before + fresh[:, None] - 1
        tokens = jnp.where(here, ctx.root[:, None], state.tokens)
        cache = self._commit(params, state.cache, state.features, both(tokens))
        lengths = cache.lengths + both(state.counts)

        # The last `size` pairs, once more, now that all of them are there to be seen.
        pairs = self.pairs(params, state.features, both(tokens))
        place = both(fresh)[:, None] - 1 + jnp.arange(2 * size - 1)[None]
        near = jnp.take_along_axis(pairs, place[..., None], axis=1)
        seen = jnp.arange(cache.capacity)[None] < lengths[:, None]
        seen &= cache.visible
        begin = lengths[:, None] - size
        first, layer = self.layer(
            params,
            windows_of(near, size),
            begin + jnp.arange(size)[None],
            jnp.broadcast_to(seen[:, None], (len(seen), size, cache.capacity)),
            cache.layers[0],
            lengths,
        )
        slots = size * expansions(ctx.tree)[0]

        def step(depth, ids, own, shared):
            visible, last, h, since = own
            layer, used = shared
            count = ids.shape[1]
            if depth:  # a node's token goes with the feature that was guessed for it
                words = by_row(params["embedding"][both(ids)])
                since = since.at[:, :, :, (depth - 1) % size].set(words)
            if depth and depth % size == 0:
                block = jnp.concatenate([since, h], axis=-1)
                run = jnp.concatenate([last, block], axis=-2)[..., 1:, :]
                run = by_stream(run).reshape(streams * rows * count, -1, run.shape[-1])
                windows = windows_of(run, size)
                windows = windows.reshape(streams * rows, count * size, size, -1)
                block_of = used // size + jnp.arange(count)
                visible |= (jnp.arange(slots)[None] // size == block_of[:, None])[None]
                behind = replace(cache, layers=(layer,), lengths=lengths)
                mask = tree_mask(behind, both(jnp.repeat(visible, size, axis=1)))
                offset = depth - size + jnp.tile(jnp.arange(size), count)[None]
                out, layer = self.layer(
                    params,
                    windows,
                    lengths[:, None] + offset,
                    mask,
                    layer,
                    lengths + used,
                )
                h = by_row(out.reshape(streams * rows, count, size, -1))
                last, used = block, used + count * size
            guess = by_stream(h[:, :, :, depth % size])
            index = ctx.index[:, None] + depth
            logits = apply_cfg(self.scores(params, guess), ctx.sampling, index)
            return logits, (visible, last, h, since), (layer, used)

        nothing = jnp.zeros((rows, 1, slots), bool)
        h = by_row(first[:, None])
        own = nothing, by_row(near[:, None, size - 1 :]), h, jnp.zeros_like(h)
        draft, (layer, _) = grow(ctx, step, own, (layer, 0))
        cache = replace(cache, layers=(layer,), lengths=lengths)
        keep = fresh[:, None] + jnp.arange(before)[None]
        old = jnp.take_along_axis(state.features, both(keep)[..., None], axis=1)
        words = jnp.take_along_axis(tokens, keep, axis=1)
        return draft, FalconState(
            cache,
            state.features.at[:, :before].set(old),
            tokens.at[:, :before].set(words),
            jnp.zeros_like(state.counts),
        )

    def observe(
        self, params: Params, state: FalconState, result: RoundResult
    ) -> FalconState:
        """See `spec.draft.Drafter`; the pairs are read by the next `propose`."""
        before = 2 * (self.config.block - 1)
        return FalconState(
            state.cache,
            state.features.at[:, before:].set(result.on_path(result.features)),
            state.tokens.at[:, before:].set(result.tokens),
            result.counts,
        )

    def _commit(self, params, cache, features, tokens) -> KVCache:
        """Writes the pairs behind the first `H` at the cache's end; lengths stay."""
        size = self.config.block
        pairs = self.pairs(params, features, tokens)
        windows = windows_of(pairs[:, size - 1 :], size)
        count = windows.shape[1]
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        mask = tree_mask(cache, jnp.tril(jnp.ones((count, count), bool)))
        _, layer = self.layer(
            params, windows, positions, mask, cache.layers[0], cache.lengths
        )
        return replace(cache, layers=(layer,))
