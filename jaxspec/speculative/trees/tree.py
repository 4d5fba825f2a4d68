"""Static draft trees: hashable, with numpy tables."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.named_trees import rank_paths


def _non_increasing(values: Sequence[float]) -> list[float]:
    """Isotonic regression: the closest non-increasing values."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        total, count = float(value), 1
        while blocks and blocks[-1][0] * count < total * blocks[-1][1]:
            block_total, block_count = blocks.pop()
            total, count = total + block_total, count + block_count
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


@dataclass(frozen=True)
class Tree:
    """Static draft tree.

    Node 0 is the root, the last committed token. The rank of a node is the rank of its
    token among the drafter's candidates after its parent; 0 is the best one.

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
                "a tree needs a root (parents[0] == -1) and one rank for each node"
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
        """Tree without drafted tokens, for plain decoding."""
        return cls((-1,), (0,))

    @classmethod
    def chain(cls, length: int) -> "Tree":
        """Chain of `length` drafted tokens."""
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
          ConfigError: there is no such tree.
        """
        paths = rank_paths(name)
        return cls.from_paths(paths) if paths else cls.root()

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> "Tree":
        """Builds a tree from paths of ranks.

        Args:
          paths: nodes, each as the ranks on the path from the root to it, for example
            `(0, 2)`. Missing parents are added.

        Raises:
          ConfigError: a rank is negative, or there is no path.
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
        """Tree with the largest expected number of accepted tokens.

        Optimum of Sequoia (arXiv 2402.12374) if acceptance depends on depth and rank
        only. The tree then consists of the `nodes - 1` most probable paths, which
        include all their parents.

        Args:
          acceptance: probabilities `[depth][rank]` that the child of this rank is
            accepted, given that its parent was. The last depth stands for all deeper
            ones. Probabilities that increase with the rank are noise, as candidates are
            tried in order of rank: isotonic regression removes it, so that no rank is
            skipped.
          nodes: number of nodes, root included.
          max_depth: largest number of drafted tokens on a path.

        Raises:
          ConfigError: the tree is too small, or all probabilities are 0.
        """
        if nodes < 2 or max_depth < 1:
            raise ConfigError("an optimal tree needs at least 2 nodes and depth 1")
        probs = [_non_increasing(by_rank) for by_rank in acceptance]
        if not probs or not probs[0] or not probs[0][0] > 0:
            raise ConfigError(
                "no draft is ever accepted at the root; decode without a drafter"
            )

        def chance(depth: int, rank: int) -> float:
            by_rank = probs[min(depth, len(probs) - 1)]
            return by_rank[rank] if rank < len(by_rank) else 0.0

        paths: list[tuple[int, ...]] = []
        heap: list[tuple[float, tuple[int, ...]]] = [
            (-chance(0, rank), (rank,)) for rank in range(len(probs[0]))
        ]
        heapq.heapify(heap)
        while heap and len(paths) < nodes - 1:
            value, path = heapq.heappop(heap)
            if value == 0.0:
                break
            paths.append(path)
            if len(path) < max_depth:
                width = len(probs[min(len(path), len(probs) - 1)])
                for rank in range(width):
                    child = value * chance(len(path), rank)
                    heapq.heappush(heap, (child, (*path, rank)))
        return cls.from_paths(paths)

    def expected_tokens(self, acceptance: Sequence[Sequence[float]]) -> float:
        """Expected number of tokens per call, under the assumption of `optimal`.

        Args:
          acceptance: probabilities `[depth][rank]`, see `optimal`.
        """
        chance = np.ones(self.size)
        for n, parent in enumerate(self.parents[1:], start=1):
            by_rank = acceptance[min(int(self.depths[parent]), len(acceptance) - 1)]
            rank = self.ranks[n]
            step = by_rank[rank] if rank < len(by_rank) else 0.0
            chance[n] = chance[parent] * step
        return float(chance.sum())

    @property
    def size(self) -> int:
        """Number of nodes, `N`, root included."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Largest number of drafted tokens on a path; `A = depth + 1`."""
        return int(self.depths.max())

    @cached_property
    def depths(self) -> np.ndarray:
        """Depth of each node, int32 [N]; 0 for the root."""
        depths = np.zeros(self.size, np.int32)
        for n, parent in enumerate(self.parents[1:], start=1):
            depths[n] = depths[parent] + 1
        return depths

    @cached_property
    def ancestors(self) -> np.ndarray:
        """Table, bool [N, N], that is True at `[n, m]` if `m` is `n` or an ancestor."""
        ancestors = np.eye(self.size, dtype=bool)
        for n, parent in enumerate(self.parents[1:], start=1):
            ancestors[n] |= ancestors[parent]
        return ancestors

    @cached_property
    def paths(self) -> np.ndarray:
        """Nodes from the root to each node, int32 [N, A], padded with the node."""
        paths = np.zeros((self.size, self.depth + 1), np.int32)
        for n in range(self.size):
            path = np.flatnonzero(self.ancestors[n])
            paths[n] = n
            paths[n, : len(path)] = path
        return paths

    @cached_property
    def rank_paths(self) -> tuple[tuple[int, ...], ...]:
        """Ranks on the path from the root to each node; `()` for the root."""
        paths: list[tuple[int, ...]] = [()]
        for parent, rank in zip(self.parents[1:], self.ranks[1:], strict=True):
            paths.append((*paths[parent], rank))
        return tuple(paths)

    @cached_property
    def levels(self) -> tuple[np.ndarray, ...]:
        """Nodes of each depth, root first, int32.

        No table has 64 bits: JAX caches the dtype to which it converted a 64-bit array,
        and does not convert it again if its 64-bit mode changes.
        """
        return tuple(
            np.flatnonzero(self.depths == d).astype(np.int32)
            for d in range(self.depth + 1)
        )

    @cached_property
    def internal(self) -> np.ndarray:
        """Nodes that have children, int32 [I]."""
        return np.unique(np.array(self.parents[1:], np.int32))

    @property
    def width(self) -> int:
        """Number of candidates that a drafter needs at a node, `W`."""
        return max(self.ranks) + 1

    @cached_property
    def slots(self) -> np.ndarray:
        """Index of each node in `internal`, int32 [N]; 0 for leaves."""
        slots = np.zeros(self.size, np.int32)
        slots[self.internal] = np.arange(len(self.internal))
        return slots

    @cached_property
    def children(self) -> np.ndarray:
        """Child of each rank of each internal node, int32 [I, W]; -1 for none."""
        children = np.full((len(self.internal), self.width), -1, np.int32)
        for n, parent in enumerate(self.parents[1:], start=1):
            children[self.slots[parent], self.ranks[n]] = n
        return children

    @property
    def gapless(self) -> bool:
        """Whether the children of each node have the ranks 0, 1, ... without gaps."""
        exists = self.children >= 0
        return bool((exists[:, 1:] <= exists[:, :-1]).all())
