"""Where a training keeps its arrays: on one device, or divided among several."""

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
class Layout:
    """One device, or a mesh: rows along "data", parameters by rules along "model".

    Attributes:
      mesh: None for one device.
      fsdp: parameters, averages and the optimizer's arrays are divided along "data",
        too; the compiler gathers a matrix where it is used.
    """

    mesh: Mesh | None = None
    fsdp: bool = False

    def shardings(self, tree: Any) -> Any:
        """Of every array of a training's state, or of parameters."""
        assert self.mesh is not None
        sizes = dict(self.mesh.shape)
        found = []
        for path, x in named_leaves(tree):
            spec = (
                spec_of(path, x.shape, sizes, SHARDING_RULES)
                if x.ndim
                else PartitionSpec()
            )
            spec = spread(spec, x.shape, sizes) if self.fsdp else spec
            found.append(NamedSharding(self.mesh, spec))
        return jax.tree.unflatten(jax.tree.structure(tree), found)

    def place(self, tree: Any) -> Any:
        """The tree, each array where it belongs."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, self.shardings(tree))

    def compile(self, step: Callable[..., Any], state: Any) -> Callable[..., Any]:
        """`step(state, ...) -> (state, metrics)`, jitted; the state stays in place."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        out = self.shardings(state), NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(step, donate_argnums=0, out_shardings=out)

    def rows(self, batch_fn: Callable[[int], Any]) -> Callable[[int], Any]:
        """`batch_fn`, with the rows of its batches divided along "data".

        Raises:
          ConfigError: when called, if they do not divide.
        """
        if self.mesh is None:
            return batch_fn
        place = NamedSharding(self.mesh, PartitionSpec("data"))
        groups = self.mesh.shape["data"]

        def divided(step: int) -> Any:
            batch = batch_fn(step)
            for x in jax.tree.leaves(batch):
                if len(x) % groups:
                    raise ConfigError(
                        f"a batch of {len(x)} does not divide among {groups} devices "
                        "along 'data'; choose another --mesh or batch"
                    )
            return jax.device_put(batch, place)

        return divided


ONE_DEVICE = Layout()
