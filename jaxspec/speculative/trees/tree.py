"""Static draft trees: shape only, numpy inside, hashable."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.named_trees import rank_paths


def _levelled(row: Sequence[float]) -> list[float]:
    """The closest row that never rises: neighbors that do are averaged."""
    blocks: list[tuple[float, int]] = []
    for value in row:
        total, count = float(value), 1
        while blocks and blocks[-1][0] * count < total * blocks[-1][1]:
            before, size = blocks.pop()
            total, count = total + before, count + size
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


@dataclass(frozen=True)
class Tree:
    """The shape of a draft: who is whose child.

    Node 0 is the root, the last committed token. A node's `rank` says which of its
    drafter's choices it holds: 0 is the best child of its parent.

    Attributes:
      parents: parent of each node, -1 for the root; `parents[n] < n`.
      ranks: rank of each node among its parent's children, 0 for the root.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self):
        parents, ranks = self.parents, self.ranks
        if not parents or parents[0] != -1 or len(ranks) != len(parents):
            raise ConfigError(
                "a tree needs a root (parents[0] == -1) and one rank per node"
            )
        for n, parent in enumerate(parents[1:], start=1):
            if not 0 <= parent < n:
                raise ConfigError(
                    f"node {n} has parent {parent}; parents must come before children"
                )
        siblings = list(zip(parents[1:], ranks[1:], strict=True))
        if len(set(siblings)) != len(siblings) or min(ranks) < 0:
            raise ConfigError("two children of one node have the same rank")

    @classmethod
    def root(cls) -> "Tree":
        """No draft at all: plain autoregressive decoding."""
        return cls((-1,), (0,))

    @classmethod
    def chain(cls, length: int) -> "Tree":
        """`length` drafted tokens in a row."""
        if length < 1:
            raise ConfigError(f"a chain needs at least 1 drafted token, not {length}")
        return cls(tuple(range(-1, length)), (0,) * (length + 1))

    @classmethod
    def named(cls, name: str) -> "Tree":
        """Published tree, chain or paths of ranks, by name.

        Args:
          name: one of `named_trees.NAMES` ("naive_extend_57"), "chain-LENGTH"
            ("chain-7"), "root" (no draft), or paths of ranks ("0,1,00,01").

        Raises:
          ConfigError: no such tree.
        """
        paths = rank_paths(name)
        return cls.from_paths(paths) if paths else cls.root()

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> "Tree":
        """Builds the tree that holds the given paths of ranks.

        Args:
          paths: each a node named by the ranks that lead to it from the root, for
            example `(0, 2)`. Parents that are not named are added.

        Raises:
          ConfigError: a rank is negative or no path is given.
        """
        nodes: set[tuple[int, ...]] = {()}
        for path in paths:
            path = tuple(int(rank) for rank in path)
            if any(rank < 0 for rank in path):
                raise ConfigError(f"path {path} has a negative rank")
            nodes.update(path[:i] for i in range(1, len(path) + 1))
        if len(nodes) == 1:
            raise ConfigError("from_paths needs at least one path")
        order = sorted(nodes, key=lambda path: (len(path), path))
        index = {path: n for n, path in enumerate(order)}
        return cls(
            tuple(index[path[:-1]] if path else -1 for path in order),
            tuple(path[-1] if path else 0 for path in order),
        )

    @classmethod
    def optimal(
        cls, acceptance: Sequence[Sequence[float]], nodes: int, max_depth: int
    ) -> "Tree":
        """The tree with the most expected accepted tokens for its size.

        Sequoia's dynamic programme (arXiv 2402.12374) under the assumption that
        acceptance depends on depth and rank alone; then the best tree is simply the
        `nodes - 1` most probable paths, which are closed under parents.

        Args:
          acceptance: `[depth][rank]`, chance that the child of this rank is the one
            accepted, given that its parent was. The last row serves deeper levels. A
            row that rises is noise, as ranks are tried in turn: it is levelled by
            isotonic regression, so no rank is skipped.
          nodes: number of nodes, the root included.
          max_depth: most drafted tokens on a path.

        Raises:
          ConfigError: too small a tree, or nothing is ever accepted.
        """
        if nodes < 2 or max_depth < 1:
            raise ConfigError("an optimal tree needs at least 2 nodes and depth 1")
        falling = [_levelled(row) for row in acceptance]
        if not falling or not falling[0] or not falling[0][0] > 0:
            raise ConfigError(
                "no draft is ever accepted at the root, so no tree is worth verifying; "
                "decode plainly"
            )

        def chance(depth: int, rank: int) -> float:
            row = falling[min(depth, len(falling) - 1)]
            return row[rank] if rank < len(row) else 0.0

        paths: list[tuple[int, ...]] = []
        heap: list[tuple[float, tuple[int, ...]]] = [
            (-chance(0, rank), (rank,)) for rank in range(len(falling[0]))
        ]
        heapq.heapify(heap)
        while heap and len(paths) < nodes - 1:
            value, path = heapq.heappop(heap)
            if value == 0.0:
                break
            paths.append(path)
            if len(path) < max_depth:
                width = len(falling[min(len(path), len(falling) - 1)])
                for rank in range(width):
                    child = value * chance(len(path), rank)
                    heapq.heappush(heap, (child, (*path, rank)))
        return cls.from_paths(paths)

    def expected_tokens(self, acceptance: Sequence[Sequence[float]]) -> float:
        """Mean tokens a call under the assumption of `optimal`: accepted ones and one.

        Args:
          acceptance: as in `optimal`.
        """
        chance = np.ones(self.size)
        for n, parent in enumerate(self.parents[1:], start=1):
            row = acceptance[min(int(self.depths[parent]), len(acceptance) - 1)]
            rank = self.ranks[n]
            chance[n] = chance[parent] * (row[rank] if rank < len(row) else 0.0)
        return float(chance.sum())

    @property
    def size(self) -> int:
        """`N`, nodes with the root."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Most drafted tokens on a path; `A = depth + 1`."""
        return int(self.depths.max())

    @cached_property
    def depths(self) -> np.ndarray:
        """`int32 [N]`, 0 for the root."""
        depths = np.zeros(self.size, np.int32)
        for n, parent in enumerate(self.parents[1:], start=1):
            depths[n] = depths[parent] + 1
        return depths

    @cached_property
    def ancestors(self) -> np.ndarray:
        """`bool [N, N]`: `ancestors[n, m]` says that m is n or above it."""
        closed = np.eye(self.size, dtype=bool)
        for n, parent in enumerate(self.parents[1:], start=1):
            closed[n] |= closed[parent]
        return closed

    @cached_property
    def paths(self) -> np.ndarray:
        """`int32 [N, A]`: nodes from the root to each node, padded with itself."""
        paths = np.zeros((self.size, self.depth + 1), np.int32)
        for n in range(self.size):
            path = np.flatnonzero(self.ancestors[n])
            paths[n] = n
            paths[n, : len(path)] = path
        return paths

    @cached_property
    def rank_paths(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that lead from the root to each node; `()` for the root itself."""
        found: list[tuple[int, ...]] = [()]
        for parent, rank in zip(self.parents[1:], self.ranks[1:], strict=True):
            found.append((*found[parent], rank))
        return tuple(found)

    @cached_property
    def levels(self) -> tuple[np.ndarray, ...]:
        """Nodes of each depth, root first; int32, as all tables.

        JAX remembers as what it read a NumPy array of 64 bits, also after its 64-bit
        mode was switched; a tree may outlive that.
        """
        return tuple(
            np.flatnonzero(self.depths == d).astype(np.int32)
            for d in range(self.depth + 1)
        )

    @cached_property
    def internal(self) -> np.ndarray:
        """`int32 [I]`: nodes that have children."""
        return np.unique(np.array(self.parents[1:], np.int32))

    @property
    def width(self) -> int:
        """`W`, most choices that a drafter must offer at one node."""
        return max(self.ranks) + 1

    @cached_property
    def slots(self) -> np.ndarray:
        """`int32 [N]`: place of each node among `internal`; 0 for leaves."""
        slots = np.zeros(self.size, np.int32)
        slots[self.internal] = np.arange(len(self.internal))
        return slots

    @cached_property
    def children(self) -> np.ndarray:
        """`int32 [I, W]`: child of each rank of each internal node, -1 for none."""
        children = np.full((len(self.internal), self.width), -1, np.int32)
        for n, parent in enumerate(self.parents[1:], start=1):
            children[self.slots[parent], self.ranks[n]] = n
        return children

    @property
    def gapless(self) -> bool:
        """Whether each node's children have the ranks 0, 1, ... without a gap."""
        held = self.children >= 0
        return bool((held[:, 1:] <= held[:, :-1]).all())
