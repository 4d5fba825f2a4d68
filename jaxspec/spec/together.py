"""Control flow on a mesh: groups of devices go the same way where they have to."""

import jax
import jax.numpy as jnp

from jaxspec.typing import Array, Bool, Int


def highest(number: Int[Array, ""]) -> Int[Array, ""]:
    """The largest number of all groups of devices that work on rows of their own.

    Under `sharding.over_rows` each group runs its own loop. As long as a group is one
    device, it does so at its own pace, and this is the number itself. Where a group
    shares parameters among several devices, these exchange sums, and the compiler may
    join exchanges of all groups in one: then all must branch and go on alike.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shared = any(mesh.shape[axis] > 1 for axis in mesh.auto_axes)
    if not mesh.manual_axes or not shared:
        return number
    return jax.lax.pmax(number, mesh.manual_axes)


def agreed(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether any group says so; see `highest`."""
    return highest(jnp.asarray(flag).astype(jnp.int32)) > 0
