"""Drafts, the drafter protocol, and inputs and results of drafters."""

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

# Selection of the children of a node from the drafter's distribution q:
#   coupled              best of log q + noise, the noise that the target will use
#   top                  likeliest tokens
#   without_replacement  samples without replacement (Gumbel-top-k)
#   with_replacement     independent samples
#   top_and_sample       likeliest tokens, and a last one sampled from the rest
Selection = Literal[
    "coupled", "top", "without_replacement", "with_replacement", "top_and_sample"
]


@register_dataclass
@dataclass(frozen=True)
class InitContext:
    """Input of `Drafter.init`, before the first round.

    Attributes:
      prompt: prompts of the target, or a `Prefixed` of them; `B` along the first axis
        of every array.
      features: float [R, P, E], hidden states of the target at the positions of prompt
        and given tokens but the last, which is the first root; arbitrary beyond their
        number.
      lengths: int32 [R], numbers of these positions in all branches.
      tree: draft tree, or the bound of a dynamic one; static.
      batch: number of sequences, `B`; static.
      extra: largest number of positions after the prompt; static.
    """

    prompt: PyTree
    features: Float[Array, "R P E"]
    lengths: Int[Array, "R"]
    tree: Tree | DynamicTree = field(metadata={"static": True})
    batch: int = field(metadata={"static": True})
    extra: int = field(metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class MixedLogits:
    """Logits that `drafters.grow` interpolates with those of a drafter.

    Attributes:
      logits: float32 [B, G, V], logits of the tokens 1 to `G` places after the root.
      known: bool [B, G], mask of the places that have logits.
      weight: their share, 0 to 1; static.
    """

    logits: Float[Array, "B G V"]
    known: Bool[Array, "B G"]
    weight: float = field(metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class DraftContext:
    """Input of `Drafter.propose`.

    Attributes:
      root: int32 [B], last committed token, which the target has not read yet.
      tokens: int32 [B, T], given tokens of the sequence (`Prefixed`), then generated
        ones; arbitrary from `index` on.
      position: int32 [B], absolute position of the root.
      index: int32 [B], index of the next of these tokens; the first is 0.
      noise: float32 [B, A, V], Gumbel noise of the positions after the root; 0 in
        greedy sequences. Candidates ranked by `log q + noise` have the highest
        acceptance under coupled verification.
      keys: typed keys [B] for samples of the drafter at this root.
      sampling: sampling settings, with which the target's logits will be processed.
      tree: draft tree, or the bound of a dynamic one; static.
      selection: selection of the children of a node; static.
      order: logits processors in order; static.
      mixed: logits that `drafters.grow` mixes into the drafter's; None for none.
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
    mixed: MixedLogits | None = None


@register_dataclass
@dataclass(frozen=True)
class ExtraQueries:
    """Additional queries of the verify pass, whose results the drafter observes.

    They attend to the committed tokens, and to nodes and extra queries by `mask`. Nodes
    do not attend to them, and their keys and values are never committed.

    Attributes:
      tokens: int32 [B, X], token of each query.
      positions: int32 [B, X], absolute position of each query.
      mask: bool [B, X, M], `M = N + X`: nodes, then extra queries, to which each query
        attends.
      ahead: offset from a query to the position that it predicts: 1, or 0 for masks,
        which predict their own position; static. Guidance depends on this position.
    """

    tokens: Int[Array, "B X"]
    positions: Int[Array, "B X"]
    mask: Bool[Array, "B X M"]
    ahead: int = field(default=1, metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class Draft:
    """Drafted tokens at the nodes of a draft tree.

    Attributes:
      tokens: int32 [B, N], token of each node; node 0 is the root. A node whose token
        is not in `[0, V)` is not valid.
      valid: bool [B, N], mask of the nodes that may be accepted; a node below one that
        is not valid is not accepted either.
      log_q: float32 [B, I, V], drafter's processed log-probabilities after each node
        that may have children (`Tree.internal`; all `N` nodes of a dynamic tree).
      parents: int32 [B, N], parents of the nodes of a dynamic tree; None for a static
        one. A node whose parent does not come before it, or that is deeper than
        `tree.depth`, is not valid. A node has at most `tree.width` valid children;
        verifiers that sample ignore further ones.
      confidence: float32 [B, N], estimated probability that a node is accepted if its
        parent is.
      extra: extra queries of the verify pass.
      selection: selection by which children were chosen; "guess" if unknown. Verifiers
        that need samples reject drafts without. Static.
      pruned_by: information that decided which nodes are valid: "past" for the
        ancestors of a node at most, "token" for its own token, too. Static.
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
        """Tables of the tree of this draft.

        Raises:
          ConfigError: a dynamic tree has no parents, or shapes do not fit.
        """
        self._check(tree)
        return self._topology(tree, self.valid)[0]

    def checked(
        self, tree: Tree | DynamicTree, vocab_size: int
    ) -> tuple["Draft", Topology]:
        """Draft in which every impossible node is invalid, and the tables of its tree.

        All tokens of the result are in `[0, vocab_size)`, so that a target can read
        them, and every valid node descends from the root by parents that come before
        their children. Samples without replacement are samples only together with the
        earlier ones: siblings after an invalid one are invalid, too.

        Raises:
          ConfigError: a dynamic tree has no parents, or shapes do not fit.
        """
        self._check(tree, vocab_size)
        tokens = jnp.asarray(self.tokens)
        if tokens.dtype.itemsize < 4:  # too small for a comparison with `V`
            tokens = tokens.astype(jnp.int32)
        known = (tokens >= 0) & (tokens < vocab_size)
        valid = self.valid & known
        if self.selection in ("without_replacement", "top_and_sample"):
            if self.parents is not None:  # sampled in order of index, some unused
                order, missing = np.arange(tree.size), self.valid & ~known
                valid &= ~_behind(self.parents, order, missing)
            elif isinstance(tree, Tree):
                parents, order = np.array(tree.parents)[None], np.array(tree.ranks)
                # The likeliest tokens need not be valid, only in the vocabulary.
                missing = ~valid if self.selection == "without_replacement" else ~known
                valid &= ~_behind(parents, order, missing)
        shape, valid = self._topology(tree, valid)
        tokens = jnp.where(known, tokens, 0).astype(jnp.int32)
        return replace(self, tokens=tokens, valid=valid.at[:, 0].set(True)), shape

    def _topology(
        self, tree: Tree | DynamicTree, valid: Bool[Array, "B N"]
    ) -> tuple[Topology, Bool[Array, "B N"]]:
        """Tables of the tree, and the valid nodes that are reachable in it."""
        if self.parents is not None:
            parents, valid = jnp.asarray(self.parents), jnp.asarray(valid)
            return grown_topology(parents, valid, tree.depth, tree.width)
        if not isinstance(tree, Tree):
            raise ConfigError(
                f"{type(tree).__name__} is the bound of dynamic trees; set the "
                "`parents` of the draft"
            )
        return static_topology(tree), valid

    def _check(self, tree: Tree | DynamicTree, vocab_size: int | None = None) -> None:
        """Checks shapes and dtypes of the arrays."""
        batch = jnp.shape(self.tokens)[:1]
        nodes = (*batch, tree.size)
        expected = {
            "tokens": (nodes, jnp.integer),
            "valid": (nodes, jnp.bool_),
            "parents": (nodes, jnp.integer),
            "confidence": (nodes, jnp.floating),
        }
        for name, (shape, kind) in expected.items():
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
        actual = jnp.shape(self.log_q)
        shape = (*batch, count, vocab_size or actual[-1])
        if actual != shape:
            raise ConfigError(
                f"Draft.log_q has shape {list(actual)}; this draft needs "
                f"{list(shape)}, a distribution for each node that may have children"
            )

    def keep(self, kept: Bool[Array, "B N"], *, past: bool) -> "Draft":
        """Makes all other nodes than those of a mask invalid.

        Args:
          kept: mask of the nodes that stay valid; the root always does.
          past: whether the mask depends on ancestors only, see `pruned_by`.
        """
        pruned_by = self.pruned_by if past else "token"
        kept = kept.at[:, 0].set(True)
        return replace(self, valid=self.valid & kept, pruned_by=pruned_by)


def _behind(
    parents: Int[Array | np.ndarray, "b N"],
    order: np.ndarray,
    missing: Bool[Array, "B N"],
) -> Bool[Array, "B N"]:
    """Mask of the nodes with a missing sibling before them in `order [N]`."""
    siblings = parents[:, :, None] == parents[:, None, :]
    before = (order[:, None] > order[None]) & (np.arange(len(order)) > 0)[None]
    before = siblings & before[None]
    return jnp.any(before & missing[:, None, :], axis=-1)


@register_dataclass
@dataclass(frozen=True)
class RoundResult:
    """Input of `Drafter.observe`, after a round.

    Under `jit`, arrays that a drafter does not use are not computed.

    Attributes:
      tokens: int32 [B, A], emitted tokens; arbitrary beyond `counts`.
      counts: int32 [B], number of emitted tokens; 0 in finished sequences.
      path: int32 [B, A], accepted nodes, root first.
      accepted: int32 [B], number of accepted drafted tokens.
      features: float [R, N, E], features of all nodes, from all branches.
      logits: float32 [B, N, V], logits of the target after all nodes, with guidance,
        before temperature and filters.
      draft: draft of the round.
      tree: draft tree, or the bound of a dynamic one; static.
      extra: float [R, X, E], features of the extra queries; None without.
      extra_logits: float32 [B, X, V], logits of the target after the extra queries,
        with guidance; None without.
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
        """Entries of an array [B or R, N, ...] at the accepted nodes."""
        return gather_nodes(
            x, jnp.concatenate([self.path] * (x.shape[0] // len(self.path)))
        )


class Drafter(Protocol):
    """Three pure functions that draft tokens, like an optax transformation.

    A drafter is static and hashable. Its state is a pytree of arrays of fixed shapes;
    their first axis is the batch, except within `Shared`. Drafts need not be good:
    under a lossless verifier they only affect speed, if `Draft.selection` is correct.

    A drafter with `ExtraQueries` has an attribute `num_extra_queries`: their number
    `X`, or a function of the tree that returns it.
    """

    def init(self, params: Params, ctx: InitContext) -> Any:
        """Returns the state after the prompts."""
        ...

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """Drafts tokens for the nodes of `ctx.tree` after the root."""
        ...

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Returns the state after a round."""
        ...


def join_target_params(
    drafter: Drafter | None, params: Params, target_params: Params
) -> Params:
    """Joins a drafter's parameters with those of the target that it reads.

    Parameters that have been joined already (a dict with "own") are returned unchanged,
    and so are those of a drafter without `with_target_params`.
    """
    join = getattr(drafter, "with_target_params", None)
    if join is None or (isinstance(params, dict) and "own" in params):
        return params
    return join(params, target_params)


def num_extra_queries(drafter: Drafter | None, tree: Tree | DynamicTree) -> int:
    """Number of extra queries of a drafter, `X`; 0 without."""
    count: int | Callable[..., int] = getattr(drafter, "num_extra_queries", 0)
    return count if isinstance(count, int) else count(tree)
