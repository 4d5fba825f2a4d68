"""Contract of drafters that are trained and stored in checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxspec.config import TransformerConfig
from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Params


class TrainedDrafter(Protocol):
    """Functions of a drafter that is trained for a target; static and hashable.

    Attributes:
      config: configuration of the drafter.
      target: configuration of the target, or a `FeatureTarget`.
    """

    config: Any
    target: DrafterTarget

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs the drafter reads."""
        ...

    @property
    def max_depth(self) -> int:
        """Largest number of drafted tokens on a path."""
        ...

    def init_params(self, key: Array) -> Params:
        """Random parameters of the drafter alone; consumes `key`."""
        ...

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with those of the target that it reads."""
        ...

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that the drafter can fill a tree.

        Raises:
          ConfigError: it cannot.
        """
        ...


@runtime_checkable
class ExtendsTarget(Protocol):
    """A trained drafter whose parameters become parameters of the target."""

    @property
    def extended_target(self) -> TransformerConfig:
        """Configuration of the target with these parameters."""
        ...

    @property
    def drafter(self) -> Drafter:
        """Drafter of the extended target; it has no parameters."""
        ...

    def extend_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with the target's."""
        ...


@dataclass(frozen=True)
class DrafterKind:
    """A kind of trained drafter.

    Attributes:
      name: kind of its checkpoints.
      config: class of its configuration.
      drafter: `(config, target's config) -> TrainedDrafter`.
      training_outputs: `(drafter, params, teacher, key) -> DrafterOutputs`, see
        `drafters.common.training`; consumes `key`.
    """

    name: str
    config: type
    drafter: Callable[[Any, TransformerConfig], Any]
    training_outputs: Callable[..., Any]
