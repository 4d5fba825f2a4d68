"""Data parallelism: the sequences of a batch divided among groups of devices."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import register_dataclass

from jaxspec.core.arguments import check_keys
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.sharding.mesh import check_mesh
from jaxspec.typing import BatchKeys, PyTree


@register_dataclass
@dataclass(frozen=True)
class Replicated:
    """Arrays that all sequences of a batch share, see `over_batch`.

    Attributes:
      value: pytree of arrays.
    """

    value: Any

    is_replicated: ClassVar[bool] = True


def over_batch(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Divides the sequences of a function's arguments along the mesh axis "data".

    Sequences do not depend on each other, so each group of devices with the same index
    along "data" runs its own loop over its own sequences. Along "model" the compiler
    follows the shardings of the parameters. Call the result under `jit`.

    Arrays within objects whose `is_replicated` is true (`Variables`, `Replicated`,
    `StoppingCriteria` of all sequences) and scalars are replicated. The first axis of
    every other array is the batch, which is divided; keys are one for each sequence.

    Args:
      mesh: mesh with an axis "data", see `make_mesh`.
      function: `generate`, `init` or `step` of an engine, or any function that treats
        sequences separately.

    Returns:
      A function of the same arguments. The first axis of its results is the batch, too;
      a scalar is the largest of all groups.

    Raises:
      ConfigError: the mesh lacks an axis; or, when called, there is a single key, or
        "data" does not divide the number of sequences. `pad_batch` makes it a multiple.
    """
    mesh = check_mesh(mesh)
    groups = mesh.shape["data"]

    def run(*arguments: Any, **options: Any) -> Any:
        _check_divisible((arguments, options), groups)
        inputs = _without_empty((arguments, options), groups)

        def local(inputs):
            arguments, options = _with_empty(inputs)
            result = function(*arguments, **options)
            return jax.tree.map(
                lambda x: x if jnp.ndim(x) else jax.lax.pmax(x, "data"), result
            )

        shapes = jax.eval_shape(lambda a, o: function(*a, **o), arguments, options)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(_specs(inputs),),
            out_specs=_specs(shapes),
            axis_names={"data"},
            check_vma=False,
        )(inputs)

    return run


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Empty:
    """Array without elements, on one device."""

    shape: tuple[int, ...]
    dtype: Any


def _without_empty(tree: PyTree, groups: int) -> PyTree:
    """Replaces arrays without elements, at which XLA of JAX 0.11 crashes."""

    def replaced(x, parts):
        if jnp.size(x) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return _Empty((x.shape[0] // parts, *x.shape[1:]), x.dtype)

    def of_leaf(x):
        if _is_replicated(x):
            return jax.tree.map(lambda y: replaced(y, 1), x)
        return replaced(x, groups)

    return jax.tree.map(of_leaf, tree, is_leaf=_is_replicated)


def _with_empty(tree: PyTree) -> PyTree:
    """Makes the arrays without elements again."""

    def is_empty(x):
        return isinstance(x, _Empty)

    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype) if is_empty(x) else x,
        tree,
        is_leaf=is_empty,
    )


def _is_replicated(x: Any) -> bool:
    return getattr(x, "is_replicated", False)


def _specs(tree: PyTree) -> PyTree:
    """Partition spec of each array of a pytree."""

    def spec(x):
        if _is_replicated(x) or not jnp.ndim(x):
            return PartitionSpec()
        return PartitionSpec("data")

    return jax.tree.map(spec, tree, is_leaf=_is_replicated)


def _check_divisible(tree: PyTree, groups: int) -> None:
    for x in jax.tree.leaves(tree, is_leaf=_is_replicated):
        if _is_replicated(x):
            continue
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            # A single key would give all groups the same noise.
            check_keys(x)
        if jnp.ndim(x) and jnp.shape(x)[0] % groups:
            raise ConfigError(
                f"{jnp.shape(x)[0]} sequences do not divide among {groups} groups of "
                "devices along 'data'; pad them with pad_batch"
            )


def pad_batch(
    mesh: Mesh,
    prompt: PyTree,
    *,
    sampling: Sampling,
    keys: BatchKeys,
    stopping: StoppingCriteria,
) -> tuple[PyTree, dict[str, Any]]:
    """Repeats the last sequence until the mesh's "data" axis divides their number.

    Repeated sequences end after their first token. In the result of `generate` they
    come after the original ones; in the state of an engine they do not.

    Args:
      mesh: mesh with an axis "data".
      prompt: prompts of `B` sequences.
      sampling: sampling settings, of all sequences or of each.
      keys: typed keys [B].
      stopping: stopping criteria, of all sequences or of each.

    Returns:
      The prompts, and the other arguments by name, for `Engine.generate`.

    Raises:
      ConfigError: the keys are not one typed key for each sequence.
    """
    check_keys(keys)
    batch = keys.shape[0]
    more = -batch % mesh.shape["data"]

    def pad(x):
        return jnp.concatenate([x, jnp.repeat(x[-1:], more, axis=0)])

    asked = jnp.arange(batch + more) < batch
    stopping = jax.tree.map(pad, stopping.for_batch(batch))
    max_new_tokens = jnp.where(asked, stopping.max_new_tokens, 1)
    options = {
        "sampling": jax.tree.map(pad, sampling.for_batch(batch)),
        "keys": pad(keys),
        "stopping": replace(stopping, max_new_tokens=max_new_tokens),
    }
    return jax.tree.map(pad, prompt), options
