"""EAGLE: one decoder layer that continues the target's features."""

import sys
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import EagleConfig, TransformerConfig
from jaxspec.drafters.draft_vocabulary import widened
from jaxspec.drafters.feature_network import EagleNetwork
from jaxspec.drafters.grow import expansions, grow
from jaxspec.drafters.history import following_tokens
from jaxspec.drafters.shared import shared_target_params, target_norm
from jaxspec.errors import ConfigError
from jaxspec.models.transformer import CaptionPadding
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of, sequence_angles
from jaxspec.spec.cache import KVCache, init_cache, tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class EagleState:
    """What the drafter carries between rounds.

    Attributes:
      cache: keys and values of all pairs that were read.
      features: [R, A, E], the target's features of committed positions that were not.
      tokens: int32 [B, A], the token after each of them; the root is the last.
      counts: int32 [B], how many of them are real.
    """

    cache: KVCache
    features: Float[Array, "R A E"]
    tokens: Int[Array, "B A"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class Eagle:
    """Predicts the next feature from a feature and the token after it; then again.

    With `version=1` the head of EAGLE (arXiv 2401.15077), as LANTERN uses it: last
    features, a static tree or, as EAGLE-2 (arXiv 2406.16858), a `Beam`. With
    `version=3` that of EAGLE-3 (arXiv 2503.01840): features of several layers, own
    output norm, perhaps a smaller vocabulary.

    Parameters are a dict, see `with_target_params`: "own", and of the target
    "embedding" [V, D], "head" [D, V] and "norm" [D].
    """

    config: EagleConfig
    target: TransformerConfig

    def __post_init__(self):
        c, t = self.config, self.target
        apart = c.version == 3 and c.own_embedding and c.draft_vocab
        if c.width != t.width and not apart:
            raise ConfigError(
                f"the drafter's width {c.width} is not the target's {t.width}; they "
                "share the embedding or the head, unless version 3 has its own: "
                "own_embedding=True and a draft_vocab"
            )
        if c.version == 1 and c.feature_layers != (t.layers - 1,):
            raise ConfigError(
                f"EAGLE-1 reads the last layer alone: feature_layers=({t.layers - 1},)"
            )
        for layer in c.feature_layers:
            if not 0 <= layer < t.layers:
                raise ConfigError(
                    f"tap {layer} is beyond the target's {t.layers} layers (0 is the "
                    "first)"
                )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read."""
        return self.config.feature_layers

    @property
    def caption_padding(self) -> CaptionPadding:
        """How the target is to read the padding of captions."""
        return self.config.caption_padding

    @property
    def max_depth(self) -> int:
        """Any depth: the head goes on with its own features."""
        return sys.maxsize

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that this drafter cannot fill.

        Raises:
          ConfigError: a node has more children than there are tokens.
        """
        most = self.config.draft_vocab or self.target.vocab_size
        if isinstance(tree, Tree) and tree.width > most:
            raise ConfigError(
                f"the tree asks for {tree.width} children of one node, but there are "
                f"only {most} tokens"
            )

    def network(self, own: Params) -> EagleNetwork:
        """The Linen module bound to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> EagleNetwork:
        return EagleNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Random float32 parameters; consumes `key`."""
        c, t = self.config, self.target
        one = jnp.zeros((1, 1, c.width))
        features = jnp.zeros((1, 1, t.width * len(c.feature_layers)))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        return self._module.init(key, features, one, angles)["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with what it shares with the target."""
        shared = shared_target_params(self.target, target_params, norm=True)
        if self.config.own_embedding:
            shared["embedding"] = own["embedding"]
        return {"own": own, **shared}

    def angles(self, positions: Int[Array, "R T"]) -> Float[Array, "R T f 2"]:
        """Rotary angles of pairs whose features are at `positions`.

        A pair stands where its token does, one place further on, as in LANTERN: on a
        grid the pair that begins an image then has its first cell, not the zeros of
        the condition. In a sequence only distances count.
        """
        c, places = self.config, positions + 1
        if c.rope_base is not None:
            return sequence_angles(places, c.head_size, c.rope_base, c.rope_scaling)
        return angles_of(self.target, places, c.head_size)

    def inputs(
        self, params: Params, features: Float[Array, "... E"]
    ) -> Float[Array, "... D"]:
        """The target's tapped features as the head takes them."""
        if self.config.version == 3:
            return self.network(params["own"]).join(features)
        return target_norm(self.target, params, features)

    def scores(self, params: Params, h: Float[Array, "... D"]) -> Float[Array, "... U"]:
        """Logits float32 from the head's outputs, over the draft's vocabulary."""
        own, head = params["own"], params["head"]
        if self.config.version == 3:
            h = self.network(own).normed(h)
            head = own["head"] if self.config.draft_vocab else head
        return head_scores(head, h)

    def init(self, params: Params, ctx: InitContext) -> EagleState:
        """See `spec.draft.Drafter`; reads all pairs of the prompt but the last.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        streams, length, width = ctx.features.shape
        room = ctx.extra + path + expansions(ctx.tree)[0]
        cache = init_cache(
            1,
            streams,
            c.num_kv_heads,
            length + room,
            c.head_size,
            ctx.features.dtype,
        )
        tokens = following_tokens(ctx)
        last = jnp.maximum(ctx.lengths - 1, 0)
        cache, _ = self._read(params, cache, ctx.features, tokens, length)
        cache = replace(cache, lengths=cache.lengths + last)
        features = jnp.take_along_axis(ctx.features, last[:, None, None], axis=1)
        return EagleState(
            cache,
            jnp.pad(features, ((0, 0), (0, path - 1), (0, 0))),
            jnp.zeros((ctx.rows, path), jnp.int32),
            jnp.ones(ctx.rows, jnp.int32),
        )

    def propose(
        self, params: Params, state: EagleState, ctx: DraftContext
    ) -> tuple[Draft, EagleState]:
        """See `spec.draft.Drafter`."""
        rows, path = state.tokens.shape
        streams = state.features.shape[0] // rows

        def both(x):
            return jnp.concatenate([x] * streams)

        def by_row(x):  # [R, M, D] to [B, M, streams, D]
            return x.reshape(streams, rows, *x.shape[1:]).transpose(1, 2, 0, 3)

        def by_stream(x):
            return x.transpose(2, 0, 1, 3).reshape(streams * rows, x.shape[1], -1)

        last = jnp.maximum(state.counts - 1, 0)
        here = jnp.arange(path)[None] == last[:, None]
        tokens = jnp.where(here, ctx.root[:, None], state.tokens)
        cache, h = self._read(params, state.cache, state.features, tokens, path)
        first = jnp.take_along_axis(h, both(last)[:, None, None], axis=1)
        lengths = cache.lengths + both(state.counts)
        slots = expansions(ctx.tree)[0]

        def step(depth, tokens, own, shared):
            seen, above = own
            layers, used = shared
            ahead = jnp.broadcast_to(jnp.reshape(depth, (-1, 1)), tokens.shape)
            if used is None:  # the root was read above
                h, shared = first, (layers, 0)
            else:
                own_slot = used + jnp.arange(tokens.shape[1])[:, None]
                seen |= (jnp.arange(slots)[None] == own_slot)[None]
                behind = replace(cache, layers=layers, lengths=lengths)
                mask = tree_mask(behind, both(seen))
                positions = lengths[:, None] - 1 + both(ahead)
                behind = replace(behind, lengths=lengths + used)
                h, layer = self.network(params["own"]).layer(
                    params["embedding"][both(tokens)],
                    by_stream(above),
                    self.angles(positions),
                    mask,
                    behind.layers[0],
                    behind.lengths,
                )
                shared = (layer,), used + tokens.shape[1]
            logits = self.scores(params, h)
            logits = apply_cfg(logits, ctx.sampling, ctx.index[:, None] + ahead)
            if self.config.draft_vocab:  # after guidance: -inf less -inf is NaN
                ids = params["own"]["ids"]
                logits = widened(logits, ids, self.target.vocab_size)
            return logits, (seen, by_row(h)), shared

        nothing = jnp.zeros((rows, 1, slots), bool)
        own = nothing, by_row(jnp.zeros_like(first))
        draft, (layers, _) = grow(ctx, step, own, (cache.layers, None))
        cache = replace(cache, layers=layers, lengths=lengths)
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def observe(
        self, params: Params, state: EagleState, result: RoundResult
    ) -> EagleState:
        """See `spec.draft.Drafter`; the pairs are read by the next `propose`."""
        return replace(
            state,
            features=result.on_path(result.features),
            tokens=result.tokens,
            counts=result.counts,
        )

    def _read(self, params, cache, features, tokens, count):
        """Writes committed pairs behind the cache's; the lengths stay."""
        streams = features.shape[0] // tokens.shape[0]
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        h, layer = self.network(params["own"]).layer(
            params["embedding"][jnp.concatenate([tokens] * streams)],
            self.inputs(params, features),
            self.angles(positions),
            tree_mask(cache, jnp.tril(jnp.ones((count, count), bool))),
            cache.layers[0],
            cache.lengths,
        )
        return replace(cache, layers=(layer,)), h
