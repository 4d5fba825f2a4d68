"""Rows divided among devices: each group of devices runs a loop of its own."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxspec.errors import ConfigError
from jaxspec.sharding.mesh import check_mesh
from jaxspec.spec.sampling import Sampling
from jaxspec.spec.state import StoppingCriteria
from jaxspec.typing import BatchKeys, PyTree

# Arguments of the engine's functions that all rows share.
SHARED = ("params", "drafter_params", "verifier_params")


def over_rows(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with its rows divided along the mesh's "data" axis.

    Rows never look at one another, so each group of devices that shares a value of
    "data" works on its own rows, for as many rounds as these need. Along "model" the
    compiler divides what the parameters' shardings ask for: nothing else has to be
    said. Call the result under `jit`.

    Args:
      mesh: with an axis "data"; see `make_mesh`.
      function: `generate`, `init_state` or `spec_step` of an engine:
        `partial(generate, engine)`. Its arguments named in `SHARED` are whole
        everywhere, of all others the first axis is rows.

    Returns:
      The function, of the same arguments, by position or by name. Results have rows
      first, too; a number that is not per row is the largest of all groups.

    Raises:
      ConfigError: the mesh lacks an axis; or, when called, "data" does not divide the
        rows: `fill_rows` makes it so.
    """
    mesh = check_mesh(mesh)
    groups, signature = mesh.shape["data"], inspect.signature(function)

    def run(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        rows = {name: x for name, x in given.items() if name not in SHARED}
        counts = {jnp.shape(x)[0] for x in jax.tree.leaves(rows) if jnp.ndim(x)}
        for count in counts:
            if count % groups:
                raise ConfigError(
                    f"{count} rows do not divide among {groups} devices along 'data'; "
                    "fill them up with fill_rows"
                )

        def local(given):
            result = function(**given)
            most = lambda x: x if jnp.ndim(x) else jax.lax.pmax(x, "data")  # noqa: E731
            return jax.tree.map(most, result)

        def spec(x):
            return PartitionSpec("data") if jnp.ndim(x) else PartitionSpec()

        specs = {
            name: PartitionSpec() if name in SHARED else jax.tree.map(spec, x)
            for name, x in given.items()
        }
        out = jax.tree.map(spec, jax.eval_shape(lambda g: function(**g), given))
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=out,
            axis_names={"data"},
            check_vma=False,
        )(given)

    return run


def fill_rows(
    mesh: Mesh,
    prompt: PyTree,
    sampling: Sampling,
    keys: BatchKeys,
    stopping: StoppingCriteria,
) -> tuple[PyTree, Sampling, BatchKeys, StoppingCriteria]:
    """As many rows as the mesh's "data" axis divides, the last one repeated.

    What is added ends after its first token. Take the rows you asked for from the front
    of the result: of what `generate` returns, not of an engine's state.
    """
    rows = keys.shape[0]
    more = -rows % mesh.shape["data"]

    def fill(x):
        return jnp.concatenate([x, jnp.repeat(x[-1:], more, axis=0)])

    budget = jnp.where(jnp.arange(rows + more) < rows, fill(stopping.max_new_tokens), 1)
    stopping = replace(jax.tree.map(fill, stopping), max_new_tokens=budget)
    prompt, sampling = jax.tree.map(fill, (prompt, sampling))
    return prompt, sampling, fill(keys), stopping
