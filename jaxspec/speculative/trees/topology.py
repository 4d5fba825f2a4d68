"""Who is whose child in one draft, as arrays: of a static tree or grown this round."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Int


@register_dataclass
@dataclass(frozen=True)
class Topology:
    """Tables of a draft's shape; the leading axis `b` is 1 where all rows agree.

    Attributes:
      parents: int32 [b, N], the root's is 0.
      depths: int32 [b, N].
      ranks: int32 [b, N], place among siblings.
      ancestors: bool [b, N, N]: `[n, m]` says that m is n or above it.
      slots: int32 [b, N], place of a node among those that may have children.
      children: int32 [b, I, W], -1 for none.
      path_length: `A`; static.
      internal: the nodes that may have children, None for all; static.
    """

    parents: Int[Array, "b N"]
    depths: Int[Array, "b N"]
    ranks: Int[Array, "b N"]
    ancestors: Bool[Array, "b N N"]
    slots: Int[Array, "b N"]
    children: Int[Array, "b I W"]
    path_length: int = field(metadata={"static": True})
    internal: tuple[int, ...] | None = field(metadata={"static": True})

    def gather_internal(self, x: Array) -> Array:
        """`[B, N, ...]` at the nodes that may have children, `[B, I, ...]`."""
        return x if self.internal is None else x[:, np.array(self.internal, int)]

    def gather_parents(self, x: Array) -> Array:
        """`[B, N]` at each node's parent."""
        return gather_nodes(x, self.parents)

    def at_parent(self, x: Array, tokens: Array) -> Array:
        """Entries `[B, N, m]` of `x [B, N, V]` at each node's parent, for `tokens`."""
        row = jnp.arange(x.shape[0])[:, None, None]
        return x[row, self.parents[..., None], tokens]

    def gather_children(self, x: Array, default) -> Array:
        """`[B, N]` at each child, `[B, I, W]`; `default` where there is none."""
        flat = self.children.reshape(self.children.shape[0], -1)
        found = gather_nodes(x, jnp.maximum(flat, 0))
        found = found.reshape(x.shape[0], *self.children.shape[1:])
        return jnp.where(self.children >= 0, found, default)

    def children_to_nodes(self, x: Array) -> Array:
        """`[B, I, W]` of children as seen from their parents, at each node `[B, N]`.

        0 at nodes beyond the `W` children that a node may have.
        """
        width = self.children.shape[2]
        if not self.children.shape[1]:
            return jnp.zeros((x.shape[0], self.parents.shape[1]), x.dtype)
        place = gather_nodes(self.slots, self.parents) * width + jnp.minimum(
            self.ranks, width - 1
        )
        found = gather_nodes(x.reshape(x.shape[0], -1), place)
        return jnp.where(self.ranks < width, found, 0)

    def cumprod_path(self, step: Array) -> Array:
        """Products `[B, N]` of `step [B, N]` over each node and those above it."""
        return jnp.prod(jnp.where(self.ancestors, step[:, None, :], 1), axis=-1)

    def path(self, node: Int[Array, "B"]) -> Int[Array, "B A"]:
        """Nodes from the root to a node of each row, padded with that node."""
        rows, size = node.shape[0], self.parents.shape[1]
        above = gather_nodes(self.ancestors, node[:, None])[:, 0]  # [B, N]
        depths = jnp.broadcast_to(self.depths, (rows, size))
        place = jnp.arange(self.path_length)[None, :, None]
        at = above[:, None] & (depths[:, None] == place)  # [B, A, N]
        found = jnp.argmax(at, axis=-1).astype(jnp.int32)
        return jnp.where(jnp.any(at, axis=-1), found, node[:, None].astype(jnp.int32))


def gather_nodes(x: Array, index: Int[Array, "b M"]) -> Array:
    """`x[b, index[b, m]]` with either leading axis 1 or `B`."""
    rows = max(x.shape[0], index.shape[0])
    x = jnp.broadcast_to(x, (rows, *x.shape[1:]))
    index = jnp.broadcast_to(index, (rows, index.shape[1]))
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


def static_topology(tree: Tree) -> Topology:
    """The tables of a static tree, constants under `jit`."""
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
    """The tables of trees given by their parents; siblings rank in order of index.

    Args:
      parents: parent of each node, before it; the root's is ignored. A node whose
        parent is not before it is not valid, and hangs below the root.
      valid: nodes that are not valid take no rank and are nobody's child.
      depth: most drafted tokens on a path. Deeper nodes are not valid.
      width: `W`.

    Returns:
      The tables, and which nodes are valid; the root always is.
    """
    rows, size = parents.shape
    nodes = jnp.arange(size, dtype=jnp.int32)
    in_order = (parents >= 0) & (parents < nodes[None])
    parents = jnp.where(in_order, parents, 0).astype(jnp.int32)
    ancestors = jnp.broadcast_to(jnp.eye(size, dtype=bool), (rows, size, size))
    jump = parents
    for _ in range(int(np.ceil(np.log2(depth + 1)))):  # twice as far each time
        ancestors = ancestors | gather_nodes(ancestors, jump)
        jump = gather_nodes(jump, jump)
    depths = jnp.sum(ancestors, axis=-1, dtype=jnp.int32) - 1
    reached = ancestors[:, :, 0] & (depths <= depth)
    child = valid & in_order & reached & (nodes > 0)[None]
    siblings = parents[:, :, None] == parents[:, None, :]
    at_parent = nodes[:, None] > nodes[None]
    earlier = siblings & child[:, None, :] & at_parent[None]
    ranks = jnp.where(child, jnp.sum(earlier, axis=-1, dtype=jnp.int32), 0)
    row = jnp.arange(rows)[:, None]
    place = jnp.where(child, ranks, width)  # beyond the table: dropped
    children = jnp.full((rows, size, width), -1, jnp.int32)
    numbers = jnp.broadcast_to(nodes, (rows, size))
    children = children.at[row, parents, place].set(numbers, mode="drop")
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
