"""Control flow on a mesh: common decisions of device groups."""

from functools import reduce
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int, PyTree

T = TypeVar("T", bound=PyTree)


def varying(tree: T, *by: Array) -> T:
    """Marks arrays as varying along the mesh axes along which the arrays `by` vary.

    Under `shard_map` with `check_vma` the type of an array includes the mesh axes along
    which it may vary. The carry of a loop must have the same type before and after each
    iteration, but its first value is often a constant. Outside of `shard_map` the
    arrays are returned unchanged; inside, a `where` is added, which XLA removes.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    false = reduce(jnp.logical_or, (x.ravel()[:1].astype(bool)[0] & False for x in by))

    def mark(x):
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data(x)
            return jax.random.wrap_key_data(mark(data), impl=jax.random.key_impl(x))
        return jnp.where(false, jnp.zeros_like(x), x)

    return jax.tree.map(mark, tree)


def group_max(number: Int[Array, ""]) -> Int[Array, ""]:
    """Largest number of all groups of devices, if they have to take the same branches.

    Under `sharding.over_batch` each group of devices runs its own loop over its own
    sequences. If a group is one device, groups run independently, and the number is
    returned unchanged. With tensor parallelism, XLA may merge collectives of several
    groups; groups that take different branches would then deadlock.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shared = any(mesh.shape[axis] > 1 for axis in mesh.auto_axes)
    if not mesh.manual_axes or not shared:
        return number
    return jax.lax.pmax(number, mesh.manual_axes)


def any_group(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Logical or over groups that have to take the same branches, see `group_max`."""
    return group_max(jnp.asarray(flag).astype(jnp.int32)) > 0
