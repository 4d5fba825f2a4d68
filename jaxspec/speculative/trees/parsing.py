"""Trees by name, and the default tree and batch size of a device."""

import re
from typing import Any

import jax

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import (
    Beam,
    BestFirst,
    DynamicTree,
    StochasticBeam,
)
from jaxspec.speculative.trees.tree import Tree

# Probability that the accepted child has rank 0, 1, ..., given that its parent was
# accepted: embedded model, cfg 2, temperature 1, 64 images, tree naive_extend_57, mean
# of depths 1 to 3, which hardly differ (`hits` of `jaxspec bench generate`).
ACCEPTANCE = ((0.60, 0.17, 0.075, 0.043, 0.032),)
MAX_DEPTH = 8
# The CPU default is measured, see docs/reports/. Accelerators are not measured yet:
# their default is the widest published tree that an idle device verifies at little
# cost.
_DEFAULTS = {"cpu": "optimal-5"}
_ACCELERATOR = "optimal-58"


def parse_tree(name: str, max_depth: int = MAX_DEPTH) -> Tree | DynamicTree:
    """Parses the name of a static or dynamic tree.

    Args:
      name: name of `Tree.named`; or "optimal-NODES", the optimal static tree for the
        acceptance of the embedded model; or one of the dynamic trees "beam-NODES",
        "best-first-NODES" and "stochastic-beam-DEPTHxBEAM".
      max_depth: largest depth of optimal, beam and best-first trees, see `deepest`.

    Raises:
      ConfigError: there is no such tree.
    """
    if match := re.fullmatch(r"optimal-(\d{1,4})", name):
        return Tree.optimal(ACCEPTANCE, int(match[1]), max_depth)
    if match := re.fullmatch(r"(beam|best-first)-(\d{1,4})", name):
        nodes = int(match[2])
        if match[1] == "beam":
            return Beam(nodes, max_depth, beam=max(nodes - 1, 1), branch=10)
        return BestFirst(nodes, max_depth)
    if match := re.fullmatch(r"stochastic-beam-(\d{1,2})x(\d{1,3})", name):
        return StochasticBeam(int(match[1]), int(match[2]))
    try:
        return Tree.named(name)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or optimal-NODES, beam-NODES, best-first-NODES, "
            "stochastic-beam-DEPTHxBEAM"
        ) from None


def default_batch() -> int:
    """Default batch size: 1 on a CPU, which has no idle units for a larger one."""
    return 1 if jax.devices()[0].platform == "cpu" else 8


def default_tree(
    platform: str | None = None, max_depth: int = MAX_DEPTH
) -> Tree | DynamicTree:
    """Default tree of a platform, by default that of the first device."""
    platform = platform or jax.devices()[0].platform
    return parse_tree(_DEFAULTS.get(platform, _ACCELERATOR), max_depth)


def deepest(drafter: Any) -> int:
    """Largest depth of named trees for a drafter: `MAX_DEPTH`, or its own limit."""
    return min(MAX_DEPTH, getattr(drafter, "max_depth", MAX_DEPTH))


def tree_for(drafter: Any, name: str | None = None) -> Tree | DynamicTree:
    """Tree by name, or the default of the device, within the depth of a drafter.

    Raises:
      ConfigError: there is no such tree.
    """
    depth = deepest(drafter)
    return parse_tree(name, depth) if name else default_tree(max_depth=depth)
