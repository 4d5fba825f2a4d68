"""Sharding of a training's state and batches over a mesh of devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.checkpoint import named_leaves
from jaxspec.errors import ConfigError
from jaxspec.sharding import SHARDING_RULES, spec_of
from jaxspec.sharding.rules import spread


@dataclass(frozen=True)
class TrainSharding:
    """One device, or a mesh: batches along "data", parameters by path along "model".

    Attributes:
      mesh: mesh with the axes "data" and "model"; None for one device.
      fsdp: True to divide parameters, their average and the optimizer's state along
        "data" as well. The compiler gathers a matrix where it is used.
    """

    mesh: Mesh | None = None
    fsdp: bool = False

    def shardings(self, tree: Any) -> Any:
        """Shardings of all arrays of a training state, or of parameters."""
        assert self.mesh is not None
        sizes = dict(self.mesh.shape)
        shardings = []
        for path, x in named_leaves(tree):
            spec = (
                spec_of(path, x.shape, sizes, SHARDING_RULES)
                if x.ndim
                else PartitionSpec()
            )
            spec = spread(spec, x.shape, sizes) if self.fsdp else spec
            shardings.append(NamedSharding(self.mesh, spec))
        return jax.tree.unflatten(jax.tree.structure(tree), shardings)

    def device_put(self, tree: Any) -> Any:
        """The pytree with every array on its devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, self.shardings(tree))

    def compile(self, step: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """Jits `step(state, ...) -> (state, metrics)`, which keeps the sharding.

        The state is donated.
        """
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        out = self.shardings(state), NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(step, donate_argnums=0, out_shardings=out)

    def shard_batches(self, batch_fn: Callable[[int], Any]) -> Callable[[int], Any]:
        """`batch_fn` with its batches divided along "data".

        Raises:
          ConfigError: on a call, if the batch size is not a multiple of the axis.
        """
        if self.mesh is None:
            return batch_fn
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        groups = self.mesh.shape["data"]

        def sharded(step: int) -> Any:
            batch = batch_fn(step)
            for x in jax.tree.leaves(batch):
                if len(x) % groups:
                    raise ConfigError(
                        f"a batch of {len(x)} does not divide among {groups} devices "
                        "along 'data'; choose another --mesh or batch"
                    )
            return jax.device_put(batch, sharding)

        return sharded


ONE_DEVICE = TrainSharding()
