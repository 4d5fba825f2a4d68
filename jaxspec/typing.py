"""The one alphabet of dimension letters, as jaxtyping aliases.

========  =====================================================================
letter    meaning
========  =====================================================================
``B``     rows: sequences that are generated side by side
``R``     streams x rows, stream-major: with guidance ``R = 2 B``, conditional
          rows first
``T``     query positions of one forward pass
``N``     nodes of a draft tree; node 0 is the root, the last committed token
``A``     path length: tree depth + 1
``G``     rows of a drafter's block
``S``     cache slots
``I``     nodes that may have children
``W``     most children of one node
``L``     layers
``D``     model width
``H``     query heads
``K``     key/value heads
``F``     head size
``V``     vocabulary
========  =====================================================================
"""

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params = PyTree
Tokens = Int[Array, "B T"]
Logits = Float[Array, "B T V"]
BatchKeys = Key[Array, "B"]
Mask = Bool[Array, "R T S"]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Logits",
    "Mask",
    "Params",
    "PyTree",
    "BatchKeys",
    "Tokens",
]
