"""Dimension letters of array annotations, and jaxtyping aliases.

The letters have one meaning everywhere. Lower-case letters and words are sizes within
one function.

========  =====================================================================
letter    meaning
========  =====================================================================
``B``     sequences of a batch
``R``     CFG branches x sequences; with two branches ``R = 2 B``, conditional
          ones first
``T``     tokens, or queries of a forward pass
``N``     nodes of a draft tree; node 0 is the root, the last committed token
``A``     path length: tree depth + 1
``G``     queries of a drafter's block
``X``     extra queries of a verify pass
``S``     slots of a KV cache
``P``     prompt positions
``Y``     positions of whole sequences: prompt and tokens
``I``     nodes that may have children
``W``     children of a node
``L``     layers
``D``     model width
``E``     feature width
``H``     query heads
``K``     key/value heads
``F``     head size
``V``     vocabulary
``C``     width of a codebook entry, or channels
``J``     stop tokens
``Q``     requests of a queue
``M``     any other count, named in the docstring
========  =====================================================================
"""

from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

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
    "UInt32",
]
