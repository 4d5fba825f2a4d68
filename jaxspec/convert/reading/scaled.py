"""Float8 weights with stored scales, dequantized to float32."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxspec.convert.reading.source import Stored
from jaxspec.errors import DataError

# Names of the scale of `X.weight`, after `X.`. All are factors, also "inv".
SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
# Scales of activations, which released kernels quantize, too; we do not.
ACTIVATIONS = ("input_scale", "activation_scale", "scale_input")
MARK = "scaled_fp8"
BLOCK = (128, 128)


def apply_scales(
    tensors: Mapping[str, Stored], config: Mapping[str, Any]
) -> dict[str, Stored]:
    """Replaces float8 weights by float32 products with their scales, computed on read.

    A scale is a scalar, or has one element per row or per block of the weight. Float8
    weights without a scale are unchanged: they were cast, not quantized.

    Args:
      tensors: tensors by name.
      config: config of the model; its `quantization_config` may have the block size.

    Returns:
      All tensors but the scales, by name.

    Raises:
      DataError: a scale does not fit its weight, or the config has a quantization and
        weights of 8 bits have no scale.
    """
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, Mapping) else {}
    block = tuple(quantization.get("weight_block_size") or BLOCK)
    result, unscaled = dict(tensors), []
    for name, tensor in tensors.items():
        has_8_bits = np.dtype(tensor.dtype).itemsize == 1 and tensor.size > 1
        stem = name.removesuffix("weight")
        scales = [stem + s for s in SCALES if stem + s in tensors and stem != name]
        if scales and np.dtype(tensor.dtype).name.startswith("float8"):
            result[name] = _scaled(name, tensor, tensors[scales[0]], block)
            for used in (scales[0], *(stem + a for a in ACTIVATIONS), MARK):
                result.pop(used, None)
        elif has_8_bits and np.dtype(tensor.dtype) != np.bool_:
            unscaled.append(name)
    if quantization and unscaled:
        method = quantization.get("quant_method") or quantization.get("quant_algo")
        name = unscaled[0]
        raise DataError(
            f"'{tensors[name].file}' holds weights quantized by {method or 'a method'} "
            f"({name} is {tensors[name].dtype}), but only float8 with scales is "
            "supported; convert the original weights"
        )
    return result


def _scaled(name: str, tensor: Stored, scale: Stored, block: tuple[int, ...]) -> Stored:
    """Returns a weight times its scale."""
    shape = tensor.shape
    by_block = len(block) == len(shape) and tuple(
        -(-n // b) for n, b in zip(shape, block, strict=True)
    )
    by_row = (shape[0], *(1,) * (len(shape) - 1)) if shape else ()
    if scale.size == 1:
        scale_shape = ()
    elif scale.shape in (shape[:1], by_row):
        scale_shape = by_row
    elif scale.shape == by_block:
        scale_shape = by_block
    else:
        raise DataError(
            f"'{tensor.file}': the scale of {name} {shape} is {scale.shape}; "
            f"supported are one number, one per row, and one per block of {block}"
        )

    def read() -> np.ndarray:
        factors = scale.read().astype(np.float32).reshape(scale_shape)
        if scale_shape == by_block:
            for axis, step in enumerate(block):
                factors = np.repeat(factors, step, axis)
            factors = factors[tuple(slice(n) for n in shape)]
        return tensor.read().astype(np.float32) * factors

    return replace(tensor, dtype=np.dtype(np.float32), read=read)
