"""Automatic choice of the draft tree, from costs that are measured on the device."""

from jaxspec.pipeline.tree_choice.choice import (
    AUTO,
    TreeChoice,
    choose_tree,
    fastest_tree,
)

__all__ = ["AUTO", "TreeChoice", "choose_tree", "fastest_tree"]
