"""What passes between the loop, a drafter and a verifier in one round."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling, Step
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import (
    Topology,
    gather_nodes,
    grown_topology,
    static_topology,
)
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params, PyTree

# How a node's children are chosen from the drafter's distribution q:
#   coupled              the best of log q + the noise that the target will use
#   top                  the likeliest
#   without_replacement  drawn one after another, none twice (Gumbel-top-k)
#   with_replacement     drawn independently
#   top_and_sample       the likeliest, and a last one drawn from the rest
Selection = Literal[
    "coupled", "top", "without_replacement", "with_replacement", "top_and_sample"
]


@register_dataclass
@dataclass(frozen=True)
class InitContext:
    """What a drafter may know before the first round.

    Attributes:
      prompt: what the target was given, `B` rows.
      features: [R, P, E], the target's, of `P` positions; those beyond a row's length
        mean nothing.
      lengths: int32 [R], of the prompts, both streams.
      tree: what drafts will look like; static.
      rows: `B`; static.
      extra: at most so many positions will follow; static.
    """

    prompt: PyTree
    features: Float[Array, "R P E"]
    lengths: Int[Array, "R"]
    tree: Tree | DynamicTree = field(metadata={"static": True})
    rows: int = field(metadata={"static": True})
    extra: int = field(metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class DraftContext:
    """What a drafter may know before it proposes.

    Attributes:
      root: int32 [B], the newest committed token; the target has not read it yet.
      tokens: int32 [B, T], generated tokens; garbage from `index` on.
      position: int32 [B], the root's absolute position.
      index: int32 [B], which generated token comes next (0 is the first).
      noise: float32 [B, A, V], Gumbel noise of the positions after the root; zero in
        greedy rows. Ranking by `log q + noise` is what makes drafts agree with a
        coupled verification.
      keys: typed keys [B] for the drafter's own draws, of this root alone.
      sampling: the settings that the target's distribution will be processed with.
      tree: shape of the draft, or the bound of one that grows; static.
      selection: how children are to be chosen; static.
      order: processing steps; static.
    """

    root: Int[Array, "B"]
    tokens: Int[Array, "B T"]
    position: Int[Array, "B"]
    index: Int[Array, "B"]
    noise: Float[Array, "B A V"]
    keys: BatchKeys
    sampling: Sampling
    tree: Tree | DynamicTree = field(metadata={"static": True})
    selection: Selection = field(default="coupled", metadata={"static": True})
    order: tuple[Step, ...] = field(default=LLAMAGEN_ORDER, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class ExtraQueries:
    """Rows that ride along in the verify pass; what they yield goes to the drafter.

    They see the committed past, and what `mask` allows of the tree and of each other.
    Nothing sees them but themselves, and their keys and values are never committed.

    Attributes:
      tokens: int32 [B, X].
      positions: int32 [B, X], absolute.
      mask: bool [B, X, N + X].
      ahead: how many places after its own a row predicts a token: 1, or 0 for rows
        that fill their own place; static. Guidance may depend on the place.
    """

    tokens: Int[Array, "B X"]
    positions: Int[Array, "B X"]
    mask: Bool[Array, "B X M"]
    ahead: int = field(default=1, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class Draft:
    """Drafted tokens laid out on a tree.

    Attributes:
      tokens: int32 [B, N]; node 0 is the root. A node whose token is not in `[0, V)`
        is not valid.
      valid: bool [B, N]; a node that is not valid is never accepted, nor is what hangs
        below it.
      log_q: float32 [B, I, V], the drafter's processed log-probabilities after each
        node that may have children (`Tree.internal`; all `N` of a grown tree).
      parents: int32 [B, N] of a tree grown this round; None for a static one. A node
        whose parent is not before it, or that lies deeper than `tree.depth`, is not
        valid. A node has at most `tree.width` valid children; verifiers that draw
        ignore what is more.
      confidence: float32 [B, N], predicted chance that a node is accepted once its
        parent is.
      extra: rows that ride along.
      selection: how children were chosen; "guess" if nothing is known. A verifier that
        needs honest samples refuses others. Static.
      pruned_by: what decided which nodes are valid: nothing or what lies above a node
        ("past"), or also the node's own token ("token"). Static.
    """

    tokens: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    log_q: Float[Array, "B I V"] | None = None
    parents: Int[Array, "B N"] | None = None
    confidence: Float[Array, "B N"] | None = None
    extra: ExtraQueries | None = None
    selection: Selection | Literal["guess"] = field(
        default="guess", metadata={"static": True}
    )
    pruned_by: Literal["past", "token"] = field(
        default="past", metadata={"static": True}
    )

    def topology(self, tree: Tree | DynamicTree) -> Topology:
        """The tables of this draft's shape.

        Raises:
          ConfigError: a grown tree without parents, or arrays that do not fit.
        """
        self._check(tree)
        return self._placed(tree, self.valid)[0]

    def checked(
        self, tree: Tree | DynamicTree, vocab_size: int
    ) -> tuple["Draft", Topology]:
        """This draft with every impossible node made invalid, and its tables.

        Afterwards all tokens are in `[0, vocab_size)`, so a target can read them, and
        what is valid hangs on the root by parents that come before their children.
        Siblings that were drawn from what others left are samples only beside these:
        behind one that is missing, they are invalid, too.

        Raises:
          ConfigError: as `topology`.
        """
        self._check(tree, vocab_size)
        tokens = jnp.asarray(self.tokens)
        if tokens.dtype.itemsize < 4:  # too narrow to be compared with `V`
            tokens = tokens.astype(jnp.int32)
        known = (tokens >= 0) & (tokens < vocab_size)
        valid = self.valid & known
        if self.selection in ("without_replacement", "top_and_sample"):
            if self.parents is not None:  # drawn in order of index; some are not used
                order, missing = np.arange(tree.size), self.valid & ~known
                valid &= ~_behind(self.parents, order, missing)
            elif isinstance(tree, Tree):
                parents, order = np.array(tree.parents)[None], np.array(tree.ranks)
                # What was given need not be valid, as long as it is known.
                missing = ~valid if self.selection == "without_replacement" else ~known
                valid &= ~_behind(parents, order, missing)
        shape, valid = self._placed(tree, valid)
        tokens = jnp.where(known, tokens, 0).astype(jnp.int32)
        return replace(self, tokens=tokens, valid=valid.at[:, 0].set(True)), shape

    def _placed(
        self, tree: Tree | DynamicTree, valid: Bool[Array, "B N"]
    ) -> tuple[Topology, Bool[Array, "B N"]]:
        """The tables, and which nodes their places allow to be valid."""
        if self.parents is not None:
            return grown_topology(self.parents, valid, tree.depth, tree.width)
        if not isinstance(tree, Tree):
            raise ConfigError(
                f"{type(tree).__name__} bounds trees that are grown each round; the "
                "draft has to name its `parents`"
            )
        return static_topology(tree), valid

    def _check(self, tree: Tree | DynamicTree, vocab_size: int | None = None) -> None:
        """Refuses arrays of other shapes or kinds than the tree's."""
        rows = jnp.shape(self.tokens)[:1]
        nodes = (*rows, tree.size)
        wanted = {"tokens": (nodes, jnp.integer), "valid": (nodes, jnp.bool_)}
        wanted |= {"parents": (nodes, jnp.integer), "confidence": (nodes, jnp.floating)}
        for name, (shape, kind) in wanted.items():
            x = getattr(self, name)
            if x is None:
                continue
            if jnp.shape(x) != shape or not jnp.issubdtype(x.dtype, kind):
                raise ConfigError(
                    f"Draft.{name} is {x.dtype} {list(jnp.shape(x))}; a tree of "
                    f"{tree.size} nodes needs {kind.__name__} [B, {tree.size}]"
                )
        if self.log_q is None:
            return
        count = tree.size
        if isinstance(tree, Tree) and self.parents is None:
            count = len(tree.internal)
        found = jnp.shape(self.log_q)
        shape = (*rows, count, vocab_size or found[-1])
        if found != shape:
            raise ConfigError(
                f"Draft.log_q has shape {list(found)}; this draft needs "
                f"{list(shape)}, a row for each node that may have children"
            )

    def keep(self, wanted: Bool[Array, "B N"], *, past: bool) -> "Draft":
        """The draft with some nodes made invalid; `past` as in `pruned_by`."""
        pruned_by = self.pruned_by if past else "token"
        wanted = wanted.at[:, 0].set(True)
        return replace(self, valid=self.valid & wanted, pruned_by=pruned_by)


def _behind(
    parents: Int[Array | np.ndarray, "b N"],
    order: np.ndarray,
    missing: Bool[Array, "B N"],
) -> Bool[Array, "B N"]:
    """Nodes with a missing sibling before them in `order [N]`."""
    siblings = parents[:, :, None] == parents[:, None, :]
    before = (order[:, None] > order[None]) & (np.arange(len(order)) > 0)[None]
    before = siblings & before[None]
    return jnp.any(before & missing[:, None, :], axis=-1)


@register_dataclass
@dataclass(frozen=True)
class RoundResult:
    """What a drafter learns after a round. What it does not use is not computed.

    Attributes:
      tokens: int32 [B, A], what was emitted; garbage beyond `counts`.
      counts: int32 [B], how many tokens; 0 in finished rows.
      path: int32 [B, A], accepted nodes, root first.
      accepted: int32 [B], drafted tokens that were accepted.
      features: [R, N, E], the target's features of all nodes, both streams.
      logits: float32 [B, N, V], the target's after all nodes; guidance merged, not
        processed, as `grow` takes them.
      draft: what was proposed.
      tree: the round's; static.
      extra: [R, X, E], features of the extra rows, None without.
      extra_logits: float32 [B, X, V], the target's after the extra rows, likewise.
    """

    tokens: Int[Array, "B A"]
    counts: Int[Array, "B"]
    path: Int[Array, "B A"]
    accepted: Int[Array, "B"]
    features: Float[Array, "R N E"]
    logits: Float[Array, "B N V"]
    draft: Draft
    tree: Tree | DynamicTree = field(metadata={"static": True})
    extra: Float[Array, "R X E"] | None = None
    extra_logits: Float[Array, "B X V"] | None = None

    def on_path(self, x: Array) -> Array:
        """`[B or R, N, ...]` at the accepted nodes, `[B or R, A, ...]`."""
        return gather_nodes(
            x, jnp.concatenate([self.path] * (x.shape[0] // len(self.path)))
        )


class Drafter(Protocol):
    """Three pure functions, in the manner of an optax transformation.

    A drafter is static and hashable; what changes lives in its state, a tree of
    arrays of fixed shapes, rows first but for what is `Shared`. It may be wrong in any
    way: under a lossless verifier it can change the speed and nothing else, as long as
    `Draft.selection` is true.

    One that sends `ExtraQueries` has `num_extra_queries`: their static number `X`, or a
    function of the tree that returns it.
    """

    def init(self, params: Params, ctx: InitContext) -> Any:
        """State after prompts."""
        ...

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Drafts tokens for the nodes of `ctx.tree` after the root."""
        ...

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Learns what became of the draft."""
        ...


def num_extra_queries(drafter: Drafter | None, tree: Tree | DynamicTree) -> int:
    """`X` of a drafter."""
    found: int | Callable[..., int] = getattr(drafter, "num_extra_queries", 0)
    return found if isinstance(found, int) else found(tree)
