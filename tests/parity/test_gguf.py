"""GGUF blocks against the package gguf, bit by bit."""

import numpy as np
import pytest

from jaxspec.convert.reading.gguf.blocks import KINDS

gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")
pytestmark = pytest.mark.parity
QUANTIZED = {code: kind for code, kind in KINDS.items() if kind.numbers > 1}


@pytest.mark.parametrize("code", QUANTIZED, ids=[k.name for k in QUANTIZED.values()])
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
def test_random_blocks_are_decoded_as_by_the_reference(code):
    kind = KINDS[code]
    raw = np.random.default_rng(code).integers(0, 256, (64, kind.bytes), np.uint8)
    expected = quants.dequantize(raw, gguf.GGMLQuantizationType(code))
    np.testing.assert_array_equal(kind.decode(raw), expected)
