"""Conversion of PyTorch state dicts by the converter of the library."""

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

from jaxspec.checkpoint import Checkpoint
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.params import build_params
from jaxspec.convert.plan import plan_conversion
from jaxspec.convert.reading.source import Source, Stored
from jaxspec.convert.recognition import families_of

# For dtypes that NumPy only has from `ml_dtypes`: a PyTorch dtype of the same width.
WIDTHS = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.int8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.int8, ml_dtypes.float8_e5m2),
}


def as_numpy(x):
    """Tensor of any dtype as a NumPy array of the same dtype."""
    x = x.detach().cpu().contiguous()
    if x.dtype in WIDTHS:
        bits, kind = WIDTHS[x.dtype]
        return x.view(bits).numpy().view(kind)
    return x.numpy()


def source_of(state, config=None):
    """State dict as a source of the converter."""

    def stored(x):
        x = as_numpy(x)
        return Stored(x.shape, x.dtype, Path("memory"), lambda: x)

    return Source("memory", {k: stored(x) for k, x in state.items()}, config or {})


def converted(state, family=None, *, config=None, target=None, **overrides):
    """Converted checkpoint; by default the family is recognized."""
    source = source_of(state, config)
    family = FAMILIES[family] if family else families_of(source)[0]
    conversion = plan_conversion(source, family, overrides=overrides, target=target)
    tree = {}
    for path, x in build_params(conversion):
        *above, last = path.split("/")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = jnp.asarray(np.array(x))
    plan = conversion.plan
    return Checkpoint(
        plan.kind, plan.config, tree, dict(plan.metadata), target=plan.target
    )
