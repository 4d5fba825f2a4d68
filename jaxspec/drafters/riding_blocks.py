"""Drafts that the target makes itself, in rows that ride along in the verify pass."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.drafters.grow import at_depth, grow
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import (
    Draft,
    DraftContext,
    ExtraQueries,
    InitContext,
    RoundResult,
)
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.topology import gather_nodes
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Bool, Float, Params


@register_dataclass
@dataclass(frozen=True)
class InlineState:
    """What the block behind the last accepted node said.

    Attributes:
      logits: float32 [B, G, V], of the tokens after the root.
      known: bool [B], False before the first verify pass.
    """

    logits: Float[Array, "B G V"]
    known: Bool[Array, "B"]


@dataclass(frozen=True)
class InlineBlocks:
    """Behind each node of the tree rides a block that predicts what would follow it.

    So whichever node is accepted last, the guesses for what comes after it are there,
    from the very pass that accepted it. A block sees the committed past, its node and
    the node's ancestors, and itself; nobody sees a block.

    `tidar` and `prompt_ids` make the two published kinds. No parameters: what is
    trained is the target (TiDAR) or rows of its embedding (PPD).

    Attributes:
      vocab_size: `V`.
      ids: tokens of a block's rows, from the target's `extra_tokens` as a rule.
      whole: rows of a block see one another; else only earlier ones.
      shift: row `j` (1 is the first) stands `j` places after its node and predicts the
        token `shift` places later: 1 for a model's next-token rows, 0 for rows that
        predict the token in their own place.
    """

    vocab_size: int
    ids: tuple[int, ...]
    whole: bool
    shift: int

    def __post_init__(self):
        if not self.ids or self.shift not in (0, 1):
            raise ConfigError("a block needs rows, and a shift of 0 or 1")

    @property
    def max_depth(self) -> int:
        """Tokens after the root that a block predicts; the root is the next token."""
        return len(self.ids) + self.shift - 1

    def extra_rows(self, tree: Tree | DynamicTree) -> int:
        """A block for each of the tree's nodes."""
        return tree.size * len(self.ids)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that blocks cannot ride on.

        Raises:
          ConfigError: the tree is deeper than the blocks reach, or not static.
        """
        if not isinstance(tree, Tree):
            raise ConfigError("blocks ride on a static tree; name one")
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, blocks of {len(self.ids)} rows reach "
                f"{self.max_depth} tokens beyond the root; choose a shallower tree"
            )

    def init(self, params: Params, ctx: InitContext) -> InlineState:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        logits = jnp.zeros((ctx.rows, self.max_depth, self.vocab_size), jnp.float32)
        return InlineState(logits, jnp.zeros(ctx.rows, bool))

    def propose(
        self, params: Params, state: InlineState, ctx: DraftContext
    ) -> tuple[Draft, InlineState]:
        """See `spec.draft.Drafter`; nothing is drafted before the first pass."""

        def step(depth, tokens, own, shared):
            logits = at_depth(state.logits, depth)
            wide = (*tokens.shape, self.vocab_size)
            return jnp.broadcast_to(logits, wide), own, shared

        draft, _ = grow(ctx, step)
        draft = draft.keep(state.known[:, None], past=True)
        return replace(draft, extra=self._riders(ctx)), state

    def observe(
        self, params: Params, state: InlineState, result: RoundResult
    ) -> InlineState:
        """Keeps what the block behind the last accepted node said."""
        assert result.extra_logits is not None
        rows, size = len(result.path), len(self.ids)
        last = jnp.take_along_axis(result.path, result.accepted[:, None], axis=1)
        blocks = result.extra_logits.reshape(rows, result.tree.size, size, -1)
        logits = gather_nodes(blocks, last)[:, 0, size - self.max_depth :]
        return InlineState(logits, jnp.ones(rows, bool))

    def _riders(self, ctx: DraftContext) -> ExtraQueries:
        """`N` blocks, node by node."""
        tree, size = ctx.tree, len(self.ids)
        assert isinstance(tree, Tree)  # see `check_tree`
        count, rows = self.extra_rows(tree), ctx.root.shape[0]
        node, row = np.divmod(np.arange(count), size)
        ahead = jnp.asarray(tree.depths[node] + 1 + row, jnp.int32)
        positions = ctx.position[:, None] + ahead[None]
        own = node[:, None] == node
        if not self.whole:
            own &= row[:, None] >= row
        mask = np.concatenate([tree.ancestors[node], own], axis=1)
        tokens = jnp.asarray(np.array(self.ids, np.int32)[row])
        return ExtraQueries(
            jnp.broadcast_to(tokens, (rows, count)),
            positions,
            jnp.broadcast_to(mask, (rows, *mask.shape)),
            self.shift,
        )


def tidar(target: TransformerConfig, block: int) -> InlineBlocks:
    """TiDAR's blocks of masks (arXiv 2511.08923), with the target's own embedding.

    The first row of a block stands where the next root will and is not needed: the
    target's next-token scores decide it.

    The paper's tree is `Tree.chain(block - 1)`.

    Args:
      target: a model trained by TiDAR's recipe; its first extra token is the mask.
      block: rows of a block, 4 to 16.
    """
    _needs_extra(target, 1)
    ids = (target.vocab_size,) * block
    return InlineBlocks(target.vocab_size, ids, whole=True, shift=0)


def ppd(target: TransformerConfig, count: int) -> InlineBlocks:
    """Parallel prompt decoding (arXiv 2405.18628): trained tokens behind each node.

    Args:
      target: whose extra tokens are the prompt tokens.
      count: of them; 3 in the paper.
    """
    _needs_extra(target, count)
    ids = tuple(range(target.vocab_size, target.vocab_size + count))
    return InlineBlocks(target.vocab_size, ids, whole=False, shift=1)


def _needs_extra(target: TransformerConfig, count: int) -> None:
    if target.extra_tokens < count:
        raise ConfigError(
            f"the target has {target.extra_tokens} extra tokens, {count} are needed; "
            "set TransformerConfig.extra_tokens and see `with_extra_tokens`"
        )


def with_extra_tokens(params: Params, rows: Float[Array, "X D"]) -> Params:
    """A target's parameters with rows added to its embedding.

    The vocabulary and the output head stay as they are, so nothing else changes.
    """
    table = params["embedding"]["embedding"]
    table = jnp.concatenate([table, rows.astype(table.dtype)])
    return {**params, "embedding": {**params["embedding"], "embedding": table}}
