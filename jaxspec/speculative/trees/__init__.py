"""Draft trees: static trees, and bounds of dynamic ones."""

from jaxspec.core.lazy import lazy_names

_NAMES = {
    "Beam": "jaxspec.speculative.trees.dynamic",
    "BestFirst": "jaxspec.speculative.trees.dynamic",
    "DynamicTree": "jaxspec.speculative.trees.dynamic",
    "StochasticBeam": "jaxspec.speculative.trees.dynamic",
    "Topology": "jaxspec.speculative.trees.topology",
    "Tree": "jaxspec.speculative.trees.tree",
    "parse_tree": "jaxspec.speculative.trees.parsing",
}
__all__ = [*_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
