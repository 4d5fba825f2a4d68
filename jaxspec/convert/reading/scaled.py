"""Weights in eight bits that are stored with their scales, as the numbers they mean."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxspec.convert.reading.stored import Stored
from jaxspec.errors import DataError

# Beside `X.weight`: `X.` and one of these. All are factors, whatever their name.
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
# Of the activations, which the released kernels round as well; ours are not rounded.
ACTIVATIONS = ("input_scale", "activation_scale", "scale_input")
MARK = "scaled_fp8"
BLOCK = (128, 128)


def with_scales(
    tensors: Mapping[str, Stored], config: Mapping[str, Any]
) -> dict[str, Stored]:
    """Float8 weights multiplied by their scales when they are read, as float32.

    A scale is one number, one for each row, or one for each block of rows and columns.
    Float8 weights without a scale stay as they are: the format alone was changed.

    Args:
      tensors: by name.
      config: of the model; its `quantization_config` may give the size of blocks.

    Raises:
      DataError: a scale does not fit its weight, or the config says that weights are
        quantized and they have no scales that are known here.
    """
    entry = config.get("quantization_config")
    entry = entry if isinstance(entry, Mapping) else {}
    block = tuple(entry.get("weight_block_size") or BLOCK)
    found, left = dict(tensors), []
    for name, tensor in tensors.items():
        eighth = np.dtype(tensor.dtype).itemsize == 1 and tensor.size > 1
        stem = name.removesuffix("weight")
        beside = [stem + s for s in SCALES if stem + s in tensors and stem != name]
        if beside and np.dtype(tensor.dtype).name.startswith("float8"):
            found[name] = _scaled(name, tensor, tensors[beside[0]], block)
            for used in (beside[0], *(stem + a for a in ACTIVATIONS), MARK):
                found.pop(used, None)
        elif eighth and np.dtype(tensor.dtype) != np.bool_:
            left.append(name)
    if entry and left:
        method = entry.get("quant_method") or entry.get("quant_algo") or "some method"
        raise DataError(
            f"'{tensors[left[0]].file}' holds weights quantized by {method} "
            f"({left[0]} is {tensors[left[0]].dtype}), and only float8 with scales is "
            "read; convert the weights that it was made from"
        )
    return found


def _scaled(name: str, tensor: Stored, scale: Stored, block: tuple[int, ...]) -> Stored:
    """A weight times its scale."""
    shape = tensor.shape
    blocks = len(block) == len(shape) and tuple(
        -(-n // b) for n, b in zip(shape, block, strict=True)
    )
    by_row = (shape[0], *(1,) * (len(shape) - 1)) if shape else ()
    if scale.size == 1:
        form = ()
    elif scale.shape in (shape[:1], by_row):
        form = by_row
    elif scale.shape == blocks:
        form = blocks
    else:
        raise DataError(
            f"'{tensor.file}': the scale of {name} {shape} is {scale.shape}: neither "
            f"one number, nor one for each row, nor one for each block of {block}"
        )

    def read() -> np.ndarray:
        factors = scale.read().astype(np.float32).reshape(form)
        if form == blocks:
            for axis, step in enumerate(block):
                factors = np.repeat(factors, step, axis)
            factors = factors[tuple(slice(n) for n in shape)]
        return tensor.read().astype(np.float32) * factors

    return replace(tensor, dtype=np.dtype(np.float32), read=read)
