"""The default tree of each kind of device, chosen by measurement."""

import jax

from jaxspec.spec.named_trees import named_tree
from jaxspec.spec.tree import Tree

# See docs/reports/ for the measurements.
_DEFAULTS = {"cpu": "chain-4", "gpu": "naive_extend_57", "tpu": "naive_extend_57"}


def default_tree(platform: str | None = None) -> Tree:
    """The tree that `jaxspec generate` uses when none is named."""
    platform = platform or jax.devices()[0].platform
    return named_tree(_DEFAULTS.get(platform, "naive_extend_57"))
