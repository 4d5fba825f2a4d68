"""A block-diffusion drafter: one pass, one denoising step, a whole tree of guesses."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.config import DFlashConfig, TransformerConfig
from jaxspec.drafters.block_network import DFlashNetwork, KeysValues
from jaxspec.drafters.grow import at_depth, grow
from jaxspec.drafters.grow.select import drafter_log_probs
from jaxspec.drafters.row_above import row_above
from jaxspec.drafters.shared import shared_target_params
from jaxspec.drafters.stop_head import AcceptanceHead
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.spec.cache import KVCache, init_cache, write
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.topology import gather_nodes
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockState:
    """What the drafter carries between rounds.

    Attributes:
      cache: keys and values of the context, slot = absolute position.
      pending: [R, A, E], features of the last accepted path, not yet in the cache.
      counts: int32 [R], how many of them are real.
    """

    cache: KVCache
    pending: Float[Array, "R A E"]
    counts: Int[Array, "R"]


@dataclass(frozen=True)
class DFlash:
    """DFlash's drafter for a given target; static and hashable.

    Sources: DFlash (arXiv 2602.06036) for the injected context, DSpark (arXiv
    2607.05147) for drafting from the anchor's own row and for the Markov head, JetSpec
    (arXiv 2606.18394) for causal blocks. Ranking children by `log q + noise` and
    merging both guidance streams of the drafter are ours.

    Parameters are a dict: "own" (the drafter's network), "embedding" [V, D] and "head"
    [D, V] of the target, which are shared and frozen, and "stop"; see
    `with_target_params`.

    Attributes:
      config: of the network.
      target: the target's.
      stop: predicts from `stop_states` how likely a drafted token is to be accepted;
        `ConfidenceCutoff("head")` reads it.
    """

    config: DFlashConfig
    target: TransformerConfig
    stop: AcceptanceHead | None = None

    def __post_init__(self):
        if self.stop is not None and self.stop.width != self.config.width:
            raise ConfigError(
                f"the stop head reads {self.stop.width} numbers, the drafter's states "
                f"have {self.config.width}"
            )
        if self.stop is not None and self.config.confidence:
            raise ConfigError("confidence=True and a stop head say the same; keep one")
        if self.config.width != self.target.width:
            raise ConfigError(
                f"the drafter's width {self.config.width} is not the target's "
                f"{self.target.width}; they share embedding and head"
            )
        if self.config.above and (
            self.target.rope != "grid" or self.config.block_size >= self.target.grid
        ):
            raise ConfigError(
                "above=True needs a target on a grid, and a block shorter than a row"
            )
        for layer in self.config.feature_layers:
            if not 0 <= layer < self.target.layers:
                raise ConfigError(
                    f"tap {layer} is beyond the target's {self.target.layers} layers "
                    "(0 is the first)"
                )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read."""
        return self.config.feature_layers

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path: the rows of a block that predict."""
        return self.config.block_size - self._first

    @property
    def _first(self) -> int:
        """The row that predicts the token behind the anchor."""
        return int(self.config.same_place)

    def network(self, own: Params) -> DFlashNetwork:
        """The Linen module bound to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> DFlashNetwork:
        return DFlashNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Random float32 parameters of the drafter's own network; consumes `key`."""
        c, t = self.config, self.target
        features = jnp.zeros((1, 1, t.width * len(c.feature_layers)))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        anchor = jnp.zeros((1, c.width))
        return self._module.init(key, features, angles, anchor)["params"]

    def with_target_params(
        self, own: Params, target_params: Params, stop: Params = None
    ) -> Params:
        """Joins the drafter's parameters with what it shares with the target."""
        shared = shared_target_params(self.target, target_params, norm=False)
        return {"own": own, **shared, "stop": stop}

    def stop_states(
        self,
        params: Params,
        rows: Float[Array, "... D"],
        tokens: Int[Array, "..."],
    ) -> Float[Array, "... D"]:
        """What a stop head reads of a drafted token.

        Args:
          params: see `with_target_params`.
          rows: outputs of the block rows that predicted the tokens, conditional stream.
          tokens: the drafted tokens.
        """
        return rows + params["embedding"][tokens]

    def embed_above(
        self, params: Params, tokens: Int[Array, "B T"], index: Int[Array, "B ..."]
    ) -> Float[Array, "B ... E"]:
        """Embeddings of the nearest tokens of the row above; 0 where there are none.

        Args:
          params: see `with_target_params`.
          tokens: generated so far, by place in the image.
          index: the places that block rows predict.
        """
        above, there = row_above(tokens, index, self.target.grid)
        embedded = jnp.where(there[..., None], params["embedding"][above], 0.0)
        return embedded.reshape(*index.shape, -1)

    def angles(self, positions: Int[Array, "R T"]) -> Float[Array, "R T f 2"]:
        """Rotary angles of absolute positions: the target's scheme at our head size."""
        return angles_of(self.target, positions, self.config.head_size)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that this drafter cannot fill.

        Raises:
          ConfigError: the tree is deeper than the block, or a node has more children
            than there are tokens.
        """
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, the drafter's block reaches "
                f"{self.max_depth}; choose a shallower tree"
            )
        if isinstance(tree, Tree) and tree.width > self.target.vocab_size:
            raise ConfigError(
                f"the tree asks for {tree.width} children of one node, but there are "
                f"only {self.target.vocab_size} tokens"
            )

    def init(self, params: Params, ctx: InitContext) -> BlockState:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, features, depth = self.config, ctx.features, ctx.tree.depth
        streams, length, width = features.shape
        # The path and the block are written behind the last committed position.
        capacity = length + ctx.extra + max(c.block_size, depth + 1)
        cache = init_cache(
            c.layers, streams, c.num_kv_heads, capacity, c.head_size, features.dtype
        )
        cache = self._commit(params, cache, features, ctx.lengths)
        pending = jnp.zeros((streams, depth + 1, width), features.dtype)
        return BlockState(cache, pending, jnp.zeros(streams, jnp.int32))

    def propose(
        self, params: Params, state: BlockState, ctx: DraftContext
    ) -> tuple[Draft, BlockState]:
        """See `spec.draft.Drafter`."""
        depth = ctx.tree.depth
        cache = self._commit(params, state.cache, state.pending, state.counts)
        h, cache = self._block_rows(params, cache, ctx, depth)
        base = self._logits(params, h, ctx)  # [B, depth, V]
        path, refined = None, base
        for _ in range(self.config.refinements):
            path = self._best_path(params, refined, ctx)
            h, cache = self._block_rows(params, cache, ctx, depth, path)
            refined = self._logits(params, h, ctx)

        def step(depth, tokens, own, shared):
            logits = at_depth(base, depth)
            if path is not None:  # what was refined is for the path it was refined on
                known = jnp.concatenate([ctx.root[:, None], path], axis=1)
                own &= tokens == at_depth(known[..., None], depth)[..., 0]
                logits = jnp.where(own[..., None], at_depth(refined, depth), logits)
            if self.config.markov_rank:
                # The bias is the same in both streams, so it passes through guidance.
                logits = logits + self.network(params["own"]).markov(tokens)
            logits = jnp.broadcast_to(logits, (*tokens.shape, logits.shape[-1]))
            return logits, own, shared

        draft, _ = grow(ctx, step, jnp.ones((len(ctx.root), 1), bool))
        if self.stop is not None or self.config.confidence:
            draft = replace(draft, confidence=self._confidence(params, h, draft, ctx))
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def _confidence(self, params, h, draft, ctx) -> Float[Array, "B N"]:
        """How likely each node is to be accepted, by the row that guessed it."""
        shape = draft.topology(ctx.tree)
        rows = gather_nodes(h[: len(draft.tokens)], jnp.maximum(shape.depths - 1, 0))
        if self.stop is not None:
            states = self.stop_states(params, rows, draft.tokens)
            return self.stop.confidence(params["stop"], states)
        before = jnp.take_along_axis(draft.tokens, shape.parents, axis=1)
        return jax.nn.sigmoid(self.network(params["own"]).confidence(rows, before))

    def observe(
        self, params: Params, state: BlockState, result: RoundResult
    ) -> BlockState:
        """See `spec.draft.Drafter`; the work is left to the next `propose`."""
        streams = state.counts.shape[0] // result.counts.shape[0]
        return replace(
            state,
            pending=result.on_path(result.features),
            counts=jnp.concatenate([result.counts] * streams),
        )

    def _commit(self, params, cache, features, counts) -> KVCache:
        """Writes the context of newly committed positions."""
        positions = cache.lengths[:, None] + jnp.arange(features.shape[1])[None]
        network = self.network(params["own"])
        contexts = network.context(features, self.angles(positions))
        layers = tuple(
            (write(old_k, k, cache.lengths), write(old_v, v, cache.lengths))
            for (old_k, old_v), (k, v) in zip(cache.layers, contexts, strict=True)
        )
        return replace(cache, layers=layers, lengths=cache.lengths + counts)

    def _logits(
        self, params: Params, h: Array, ctx: DraftContext
    ) -> Float[Array, "B G V"]:
        """Scores after the block's rows, guidance merged."""
        logits = head_scores(params["head"], h)
        index = ctx.index[:, None] + jnp.arange(h.shape[1])[None]
        return apply_cfg(logits, ctx.sampling, index)

    def _best_path(
        self, params: Params, logits: Array, ctx: DraftContext
    ) -> Int[Array, "B G"]:
        """The rank-0 path: what the target would draw if it agreed with the drafter."""
        token, path = ctx.root, []
        for depth in range(logits.shape[1]):
            scores = logits[:, depth]
            if self.config.markov_rank:
                scores = scores + self.network(params["own"]).markov(token)
            scores = drafter_log_probs(ctx, scores[:, None])[:, 0]
            if ctx.selection == "coupled":
                scores = scores + ctx.noise[:, depth]
            token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
            path.append(token)
        return jnp.stack(path, axis=1)

    def _block_rows(
        self,
        params: Params,
        cache: KVCache,
        ctx: DraftContext,
        depth: int,
        path: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "R G D"], KVCache]:
        """One pass over the block; its own keys and values are scratch.

        Causal rows do not see later ones, so only as many as the tree is deep are run.
        """
        first = self._first
        rows = first + depth if self.config.causal else self.config.block_size
        streams = cache.lengths.shape[0] // ctx.root.shape[0]
        root = jnp.concatenate([ctx.root] * streams)
        starts = cache.lengths
        positions = starts[:, None] + jnp.arange(rows)[None]
        mask = block_mask(cache, rows, self.config)
        written: list[KeysValues] = []

        def join_at(layer):
            def join(own):
                k = write(cache.layers[layer][0], own[0], starts)
                v = write(cache.layers[layer][1], own[1], starts)
                written.append((k, v))
                return k, v

            return join

        network = self.network(params["own"])
        guessed = None
        if path is not None:
            short = (
                (0, 0),
                (0, self.config.block_size - 1 - path[:, :-1].shape[1]),
                (0, 0),
            )
            guessed = jnp.pad(params["embedding"][path[:, :-1]], short)
            guessed = jnp.concatenate([guessed] * streams)
        above = None
        if self.config.above:
            index = ctx.index[:, None] + jnp.arange(self.config.block_size)[None]
            above = self.embed_above(params, ctx.tokens, index)
            above = jnp.concatenate([above] * streams)
        h = network.block_input(params["embedding"][root], guessed, above)[:, :rows]
        joins = [join_at(layer) for layer in range(self.config.layers)]
        h = network.block(h, self.angles(positions), mask, joins)
        return h[:, first : first + depth], replace(cache, layers=tuple(written))


def block_mask(cache: KVCache, rows: int, config: DFlashConfig) -> Bool[Array, "R G S"]:
    """Block rows see the committed context, and the block (causally or whole)."""
    slot = jnp.arange(cache.capacity)[None] - cache.lengths[:, None]  # [R, S]
    row = jnp.arange(rows)[None, :, None]
    last = row if config.causal else jnp.full_like(row, rows - 1)
    seen = slot[:, None, :] <= last
    return seen & (slot[:, None, :] >= -config.window) if config.window else seen
