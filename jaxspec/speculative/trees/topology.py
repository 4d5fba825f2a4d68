"""Tables of a draft tree: parents, ancestors and children as arrays."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Int


@register_dataclass
@dataclass(frozen=True)
class Topology:
    """Tables of a draft tree.

    The leading axis is `B`, or 1 if the tree is the same for all sequences.

    Attributes:
      parents: int32 [B or 1, N], parent of each node; that of the root is 0.
      depths: int32 [B or 1, N], depth of each node; that of the root is 0.
      ranks: int32 [B or 1, N], rank of each node among its siblings.
      ancestors: bool [B or 1, N, N], entry `[n, m]` is True if `m` is `n` or an
        ancestor.
      slots: int32 [B or 1, N], index of each node among those that may have children.
      children: int32 [B or 1, I, W], children of each node, -1 for none.
      path_length: length of a path, `A`; static.
      internal: nodes that may have children, None for all; static.
    """

    parents: Int[Array, "#B N"]
    depths: Int[Array, "#B N"]
    ranks: Int[Array, "#B N"]
    ancestors: Bool[Array, "#B N N"]
    slots: Int[Array, "#B N"]
    children: Int[Array, "#B I W"]
    path_length: int = field(metadata={"static": True})
    internal: tuple[int, ...] | None = field(metadata={"static": True})

    def gather_internal(self, x: Array) -> Array:
        """Entries [B, I, ...] of an array [B, N, ...] at nodes with children."""
        return x if self.internal is None else x[:, np.array(self.internal, int)]

    def gather_parents(self, x: Array) -> Array:
        """Entries [B, N] of an array [B, N] at the parent of each node."""
        return gather_nodes(x, self.parents)

    def at_parent(self, x: Array, tokens: Array) -> Array:
        """Entries [B, N, m] of an array [B, N, V] at the parent of each node.

        Args:
          x: array [B, N, V].
          tokens: int32 [B, N, m], tokens whose entries are taken.
        """
        sequence = jnp.arange(x.shape[0])[:, None, None]
        return x[sequence, self.parents[..., None], tokens]

    def gather_children(self, x: Array, default) -> Array:
        """Entries [B, I, W] of an array [B, N] at all children; else `default`."""
        flat = self.children.reshape(self.children.shape[0], -1)
        entries = gather_nodes(x, jnp.maximum(flat, 0))
        entries = entries.reshape(x.shape[0], *self.children.shape[1:])
        return jnp.where(self.children >= 0, entries, default)

    def children_to_nodes(self, x: Array) -> Array:
        """Entries [B, N] of each node from an array [B, I, W] of children.

        Inverse of `gather_children`. 0 at nodes after the first `W` siblings.
        """
        width = self.children.shape[2]
        if not self.children.shape[1]:
            return jnp.zeros((x.shape[0], self.parents.shape[1]), x.dtype)
        index = gather_nodes(self.slots, self.parents) * width + jnp.minimum(
            self.ranks, width - 1
        )
        entries = gather_nodes(x.reshape(x.shape[0], -1), index)
        return jnp.where(self.ranks < width, entries, 0)

    def cumprod_path(self, step: Array) -> Array:
        """Products [B, N] of `step` [B, N] over each node and its ancestors."""
        return jnp.prod(jnp.where(self.ancestors, step[:, None, :], 1), axis=-1)

    def path(self, node: Int[Array, "B"]) -> Int[Array, "B A"]:
        """Nodes from the root to a node of each sequence, padded with that node."""
        batch, size = node.shape[0], self.parents.shape[1]
        ancestors = gather_nodes(self.ancestors, node[:, None])[:, 0]  # [B, N]
        depths = jnp.broadcast_to(self.depths, (batch, size))
        index = jnp.arange(self.path_length)[None, :, None]
        on_path = ancestors[:, None] & (depths[:, None] == index)  # [B, A, N]
        path = jnp.argmax(on_path, axis=-1).astype(jnp.int32)
        exists = jnp.any(on_path, axis=-1)
        return jnp.where(exists, path, node[:, None].astype(jnp.int32))


def gather_nodes(x: Array, index: Int[Array, "b M"]) -> Array:
    """Entries [B, M, ...] of an array [b, N, ...] at `M` nodes of each sequence."""
    batch = max(x.shape[0], index.shape[0])
    x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
    index = jnp.broadcast_to(index, (batch, index.shape[1]))
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


def static_topology(tree: Tree) -> Topology:
    """Tables of a static tree, constants under `jit`."""
    return Topology(
        parents=jnp.maximum(jnp.asarray(tree.parents, jnp.int32), 0)[None],
        depths=jnp.asarray(tree.depths)[None],
        ranks=jnp.asarray(tree.ranks, jnp.int32)[None],
        ancestors=jnp.asarray(tree.ancestors)[None],
        slots=jnp.asarray(tree.slots)[None],
        children=jnp.asarray(tree.children)[None],
        path_length=tree.depth + 1,
        internal=tuple(tree.internal.tolist()),
    )


def grown_topology(
    parents: Int[Array, "B N"], valid: Bool[Array, "B N"], depth: int, width: int
) -> tuple[Topology, Bool[Array, "B N"]]:
    """Tables of dynamic trees; siblings are ranked by index.

    Args:
      parents: int32, parent of each node; that of the root is ignored. A node whose
        parent does not come before it is not valid, and gets the root as its parent.
      valid: mask of valid nodes. Other nodes have no rank, and are in no table of
        children.
      depth: largest number of drafted tokens on a path; deeper nodes are not valid.
      width: largest number of children of a node, `W`.

    Returns:
      The tables, and the mask of valid nodes; the root always is.
    """
    batch, size = parents.shape
    nodes = jnp.arange(size, dtype=jnp.int32)
    in_order = (parents >= 0) & (parents < nodes[None])
    parents = jnp.where(in_order, parents, 0).astype(jnp.int32)
    ancestors = jnp.broadcast_to(jnp.eye(size, dtype=bool), (batch, size, size))
    jump = parents
    for _ in range(int(np.ceil(np.log2(depth + 1)))):  # doubles the distance
        ancestors = ancestors | gather_nodes(ancestors, jump)
        jump = gather_nodes(jump, jump)
    depths = jnp.sum(ancestors, axis=-1, dtype=jnp.int32) - 1
    reached = ancestors[:, :, 0] & (depths <= depth)
    child = valid & in_order & reached & (nodes > 0)[None]
    siblings = parents[:, :, None] == parents[:, None, :]
    before = nodes[:, None] > nodes[None]
    earlier = siblings & child[:, None, :] & before[None]
    ranks = jnp.where(child, jnp.sum(earlier, axis=-1, dtype=jnp.int32), 0)
    sequence = jnp.arange(batch)[:, None]
    column = jnp.where(child, ranks, width)  # beyond the table: dropped
    children = jnp.full((batch, size, width), -1, jnp.int32)
    ids = jnp.broadcast_to(nodes, (batch, size))
    children = children.at[sequence, parents, column].set(ids, mode="drop")
    shape = Topology(
        parents=parents,
        depths=jnp.minimum(depths, depth),
        ranks=ranks,
        ancestors=ancestors,
        slots=nodes[None],
        children=children,
        path_length=depth + 1,
        internal=None,
    )
    return shape, child | (nodes == 0)[None]
