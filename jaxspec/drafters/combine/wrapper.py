"""Base class of drafters that change another drafter."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class DrafterWrapper:
    """Forwards what an engine asks of a drafter beside its three functions.

    Attributes:
      drafter: drafter that is changed.
    """

    drafter: Drafter

    @property
    def num_extra_queries(self) -> int:
        """Extra queries of the drafter."""
        return getattr(self.drafter, "num_extra_queries", 0)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers that the drafter reads; missing if the drafter names none."""
        return getattr(self.drafter, "feature_layers")  # noqa: B009

    @property
    def caption_padding(self) -> str:
        """Setting of `Transformer.as_target`; missing if the drafter has none."""
        return getattr(self.drafter, "caption_padding")  # noqa: B009

    @property
    def with_target_params(self) -> Callable[..., Params]:
        """The drafter's; missing if the drafter reads no parameters of the target."""
        return getattr(self.drafter, "with_target_params")  # noqa: B009

    @property
    def check_tree(self) -> Callable[[Tree | DynamicTree], None]:
        """The drafter's; missing if it fills every tree."""
        return getattr(self.drafter, "check_tree")  # noqa: B009

    @property
    def max_depth(self) -> int:
        """Largest number of drafted tokens on a path; missing if there is no bound."""
        return getattr(self.drafter, "max_depth")  # noqa: B009
