"""States of drafters: arrays of sequences, and arrays that they share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.shared import Shared
from jaxspec.typing import PyTree


def repeat_first(x: PyTree, batch: int) -> PyTree:
    """Copies the first sequence to all others; shared arrays and scalars stay."""

    def copy(leaf):
        if isinstance(leaf, Shared) or not jnp.ndim(leaf):
            return leaf
        return leaf[np.arange(len(leaf)) // batch * batch]

    return jax.tree.map(copy, x, is_leaf=lambda leaf: isinstance(leaf, Shared))


def own_leaves(state: PyTree) -> list[tuple[str, Any]]:
    """Paths and arrays of a state, without what is shared."""
    leaves = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda leaf: isinstance(leaf, Shared)
    )
    return [
        (jax.tree_util.keystr(path) or "its top", x)
        for path, x in leaves
        if not isinstance(x, Shared)
    ]


def has_shared(state: PyTree) -> bool:
    """Whether sequences share a part of a state."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, Shared))
    return any(isinstance(leaf, Shared) for leaf in leaves)
