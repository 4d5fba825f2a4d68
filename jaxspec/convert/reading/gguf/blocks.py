"""Encodings of numbers in GGUF files: plain ones, and blocks of quantized numbers.

A block holds 32 or 256 numbers and their scales. Names and layouts are those of ggml
(ggml-common.h, ggml-quants.c); nibbles and bits of higher positions follow those of
lower ones as described at each function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Blocks = np.ndarray  # uint8 [n, bytes of a block]


@dataclass(frozen=True)
class BlockKind:
    """An encoding.

    Attributes:
      name: name in ggml.
      numbers: numbers of a block.
      bytes: bytes of a block.
      dtype: dtype of the decoded numbers.
      decode: function from blocks uint8 [n, bytes] to numbers [n, numbers].
    """

    name: str
    numbers: int
    bytes: int
    dtype: np.dtype
    decode: Callable[[Blocks], np.ndarray]


def _half(blocks: Blocks, start: int) -> np.ndarray:
    """Half-precision number at a position of every block, as float32 [n, 1]."""
    raw = np.ascontiguousarray(blocks[:, start : start + 2])
    return raw.view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low nibbles of bytes [n, m], then the high ones, [n, 2 m]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _bits(packed: np.ndarray) -> np.ndarray:
    """Bits of four bytes [n, 4], lowest first, [n, 32]."""
    return np.unpackbits(np.ascontiguousarray(packed), axis=-1, bitorder="little")


def _q8_0(blocks: Blocks) -> np.ndarray:
    """Scale, 32 signed bytes."""
    quants = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return _half(blocks, 0) * quants.astype(np.float32)


def _q4_0(blocks: Blocks) -> np.ndarray:
    """Scale, nibbles around 8."""
    quants = _nibbles(blocks[:, 2:]).astype(np.float32)
    return _half(blocks, 0) * (quants - 8)


def _q4_1(blocks: Blocks) -> np.ndarray:
    """Scale, minimum, nibbles."""
    quants = _nibbles(blocks[:, 4:]).astype(np.float32)
    return _half(blocks, 0) * quants + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> np.ndarray:
    """Scale, fifth bits, nibbles; around 16."""
    quants = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (quants.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> np.ndarray:
    """Scale, minimum, fifth bits, nibbles."""
    quants = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * quants.astype(np.float32) + _half(blocks, 2)


def _sub_blocks(scales: np.ndarray, quants: np.ndarray) -> np.ndarray:
    """Quants [n, 256], each times the scale [n, s] of its part of a block."""
    parts = quants.astype(np.float32).reshape(len(quants), scales.shape[1], -1)
    return scales[:, :, None] * parts


def _six_bit_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits each, from 12 bytes.

    The first four of both are the low six bits of bytes 0 to 3 and 4 to 7; of the last
    four, bytes 8 to 11 have the low nibbles, and the bytes before the two high bits.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = [first & 63, third & 15 | first >> 6 << 4]
    minima = [second & 63, third >> 4 | second >> 6 << 4]
    return (
        np.concatenate(scales, axis=1).astype(np.float32),
        np.concatenate(minima, axis=1).astype(np.float32),
    )


def _with_minima(blocks: Blocks, quants: np.ndarray) -> np.ndarray:
    """Numbers of eight parts with six-bit scales and minima, as in Q4_K and Q5_K."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scales, minima = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (_sub_blocks(scales, quants) - minima[:, :, None]).reshape(len(blocks), -1)


def _q4_k(blocks: Blocks) -> np.ndarray:
    """Two scales, 12 bytes of scales and minima, nibbles in four runs of 32 bytes."""
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    return _with_minima(blocks, _nibbles(packed).reshape(len(blocks), -1))


def _q5_k(blocks: Blocks) -> np.ndarray:
    """As Q4_K, with 32 bytes of fifth bits: bit `j` of each belongs to part `j`."""
    packed = blocks[:, 48:].reshape(-1, 4, 32)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    quants = _nibbles(packed).reshape(-1, 8, 32) | high << 4
    return _with_minima(blocks, quants.reshape(len(blocks), -1))


def _q6_k(blocks: Blocks) -> np.ndarray:
    """Nibbles of two halves, two higher bits of each number, 16 scales; around 32."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    quants = (low | high << 4).reshape(len(blocks), -1).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    scales = _half(blocks, 208) * scales.astype(np.float32)
    return _sub_blocks(scales, quants).reshape(len(blocks), -1)


def _two_bits(packed: np.ndarray) -> np.ndarray:
    """Numbers of two bits, in two runs of 32 bytes; [n, 2, 4, 32]."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return packed.reshape(-1, 2, 1, 32) >> shifts & 3


def _q2_k(blocks: Blocks) -> np.ndarray:
    """16 bytes of scales (low nibbles) and minima (high), two bits a number."""
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minima = _half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    quants = _two_bits(blocks[:, 16:80]).reshape(len(blocks), -1)
    return (_sub_blocks(scales, quants) - minima[:, :, None]).reshape(len(blocks), -1)


def _q3_k(blocks: Blocks) -> np.ndarray:
    """32 bytes of third bits, two bits a number, 16 scales of six bits around 32."""
    third = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    low = _two_bits(blocks[:, 32:96]).reshape(-1, 8, 32)
    quants = (low | third << 2).reshape(len(blocks), -1).astype(np.float32) - 4
    packed = blocks[:, 96:108]
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (packed[:, None, 8:] >> shifts & 3).reshape(-1, 16)
    scales = (_nibbles(packed[:, :8]) | high << 4).astype(np.float32) - 32
    scales = _half(blocks, 108) * scales
    return _sub_blocks(scales, quants).reshape(len(blocks), -1)


def _plain(name: str, dtype: np.dtype) -> BlockKind:
    """Encoding of numbers that are stored as they are."""
    size = dtype.itemsize
    return BlockKind(name, 1, size, dtype, lambda blocks: blocks.view(dtype))


def _quantized(name: str, numbers: int, size: int, decode) -> BlockKind:
    return BlockKind(name, numbers, size, np.dtype(np.float32), decode)


# Encodings by their code in the file.
KINDS = {
    0: _plain("F32", np.dtype("<f4")),
    1: _plain("F16", np.dtype("<f2")),
    2: _quantized("Q4_0", 32, 18, _q4_0),
    3: _quantized("Q4_1", 32, 20, _q4_1),
    6: _quantized("Q5_0", 32, 22, _q5_0),
    7: _quantized("Q5_1", 32, 24, _q5_1),
    8: _quantized("Q8_0", 32, 34, _q8_0),
    10: _quantized("Q2_K", 256, 84, _q2_k),
    11: _quantized("Q3_K", 256, 110, _q3_k),
    12: _quantized("Q4_K", 256, 144, _q4_k),
    13: _quantized("Q5_K", 256, 176, _q5_k),
    14: _quantized("Q6_K", 256, 210, _q6_k),
    30: _plain("BF16", np.dtype(ml_dtypes.bfloat16)),
}
