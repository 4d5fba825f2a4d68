"""Checks that a drafter fits its target and its tree."""

from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def check_width(width: int, target: DrafterTarget, reason: str) -> None:
    """Checks that drafter and target have the same width.

    Args:
      width: width of the drafter, `D`.
      target: configuration of the target.
      reason: sentence on what they share, for the message.

    Raises:
      ConfigError: the widths differ.
    """
    if width != target.width:
        raise ConfigError(
            f"the drafter's width {width} is not the target's {target.width}; {reason}"
        )


def check_feature_layers(layers: tuple[int, ...], target: DrafterTarget) -> None:
    """Checks that the target has the layers that a drafter reads.

    Raises:
      ConfigError: it has fewer layers.
    """
    for layer in layers:
        if not 0 <= layer < target.layers:
            raise ConfigError(
                f"feature layer {layer} is beyond the target's {target.layers} layers "
                "(0 is the first)"
            )


def check_children(tree: Tree | DynamicTree, vocabulary: int) -> None:
    """Checks that there are tokens for all children of each node.

    Args:
      tree: the tree; a dynamic tree bounds its children itself.
      vocabulary: number of tokens that can be drafted.

    Raises:
      ConfigError: a node has more children than there are tokens.
    """
    if isinstance(tree, Tree) and tree.width > vocabulary:
        raise ConfigError(
            f"the tree asks for {tree.width} children of one node, but there are only "
            f"{vocabulary} tokens"
        )
