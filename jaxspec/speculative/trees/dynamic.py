"""Bounds of trees whose shape is decided anew in each round: static, hashable.

What is compiled depends on the bound alone; which nodes stand where is data. How such
a tree is grown is in `drafters.tree_drafting`.
"""

from dataclasses import dataclass

from jaxspec.core.numbers import within
from jaxspec.errors import ConfigError


@dataclass(frozen=True)
class Beam:
    """The likeliest paths under the drafter: EAGLE-2's rerank, DDTree's layered beam.

    At each depth the best `beam` nodes are expanded by their best `branch` children;
    of all nodes seen, the best `nodes - 1` are kept.

    Attributes:
      nodes: `N`, the root included.
      max_depth: most drafted tokens on a path.
      beam: nodes expanded at one depth; EAGLE-2 (arXiv 2406.16858) takes 10.
      branch: children of one expanded node; EAGLE-2 takes 10. For a factorized drafter
        `nodes - 1` of both find the best tree there is (DDTree, arXiv 2604.12989).
      sharpness: with coupled candidates a path's score is the sum of
        `log_softmax(sharpness * (log q + noise))`, an estimate of the chance that the
        target, under the same noise, follows it. Unused otherwise. Of .5, 1, 2, 3 and 4
        it accepted most with 2 on the embedded model.
    """

    nodes: int
    max_depth: int
    beam: int = 10
    branch: int = 10
    sharpness: float = 2.0

    def __post_init__(self):
        if min(self.nodes - 1, self.max_depth, self.beam, self.branch) < 1:
            raise ConfigError(f"{self} needs 2 nodes, and 1 of everything else")
        within("sharpness", self.sharpness, above=True)

    @property
    def size(self) -> int:
        """`N`."""
        return self.nodes

    @property
    def depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.max_depth

    @property
    def width(self) -> int:
        """`W`."""
        return min(self.branch, self.nodes - 1)


@dataclass(frozen=True)
class StochasticBeam:
    """RSD-S (arXiv 2402.14160): paths sampled without replacement from the drafter.

    Attributes:
      max_depth: depth of every path.
      beam: nodes kept at each depth.
    """

    max_depth: int
    beam: int

    def __post_init__(self):
        if min(self.max_depth, self.beam) < 1:
            raise ConfigError(f"{self} needs depth 1 and one path")

    @property
    def size(self) -> int:
        """`N`."""
        return 1 + self.max_depth * self.beam

    @property
    def depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.max_depth

    @property
    def width(self) -> int:
        """`W`."""
        return self.beam


@dataclass(frozen=True)
class BestFirst:
    """DySpec (arXiv 2410.11744): one node at a time, where acceptance is likeliest.

    A place in the tree is chosen before its token is drawn, so drawn tokens stay
    honest samples and every verifier may judge them.

    Attributes:
      nodes: `N`, the root included.
      max_depth: most drafted tokens on a path.
      branch: most children of one node.
    """

    nodes: int
    max_depth: int
    branch: int = 10

    def __post_init__(self):
        if min(self.nodes - 1, self.max_depth, self.branch) < 1:
            raise ConfigError(f"{self} needs 2 nodes, depth 1 and one branch")

    @property
    def size(self) -> int:
        """`N`."""
        return self.nodes

    @property
    def depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.max_depth

    @property
    def width(self) -> int:
        """`W`."""
        return min(self.branch, self.nodes - 1)


DynamicTree = Beam | StochasticBeam | BestFirst
