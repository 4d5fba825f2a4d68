"""Control flow on a mesh: groups of devices go the same way where they have to."""

from functools import reduce
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int, PyTree

T = TypeVar("T", bound=PyTree)


def varying(tree: T, *by: Array) -> T:
    """The same arrays, of the type of those that differ among devices as `by` do.

    Under `shard_map` with `check_vma` the type of an array has the mesh axes along
    which it may differ. A loop needs equal types before and after each turn, but what
    it starts from is often a constant. Outside of `shard_map` the arrays are returned
    as they are; inside, a choice is added that the compiler folds.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    nothing = reduce(jnp.logical_or, ((x.ravel()[:1] != 0)[0] & False for x in by))

    def one(x):
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data(x)
            return jax.random.wrap_key_data(one(data), impl=jax.random.key_impl(x))
        return jnp.where(nothing, jnp.zeros_like(x), x)

    return jax.tree.map(one, tree)


def group_max(number: Int[Array, ""]) -> Int[Array, ""]:
    """The largest number of all groups of devices that work on rows of their own.

    Under `sharding.over_batch` each group runs its own loop. As long as a group is one
    device, it does so at its own pace, and this is the number itself. Where a group
    shares parameters among several devices, these exchange sums, and the compiler may
    join exchanges of all groups in one: then all must branch and go on alike.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shared = any(mesh.shape[axis] > 1 for axis in mesh.auto_axes)
    if not mesh.manual_axes or not shared:
        return number
    return jax.lax.pmax(number, mesh.manual_axes)


def any_group(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether any group says so; see `group_max`."""
    return group_max(jnp.asarray(flag).astype(jnp.int32)) > 0
