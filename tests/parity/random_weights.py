"""Random weights with which every part of a network affects the output."""

import torch
from torch import nn


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """Fills a module in place and returns it, in evaluation mode.

    Matrices get unit gain, tables entries of order 1, norms weights around 1; biases
    are around 0.
    """
    torch.manual_seed(seed)
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        stored = module.state_dict()  # without tables of angles
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if name not in stored or x.ndim == 0 or not x.is_floating_point():
                continue
            if name.endswith("bias"):
                x.normal_(std=0.2)
            elif x.ndim == 1:
                x.normal_(mean=1.0, std=0.2)
            elif x in tables or name.endswith("embedding"):
                x.normal_()
            else:
                x.normal_(std=x[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)
