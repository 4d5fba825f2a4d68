"""Quantizers, and the entropies of LFQ, against vector-quantize-pytorch."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxspec.config import TokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.nn.scalar import (
    fsq_bounded,
    fsq_values,
    product_codebook,
    product_codes,
    sign_codes,
    sign_entropy,
)
from jaxspec.tokenizers.residual.model import ResidualTokenizer

torch = pytest.importorskip("torch")
quantizers = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.parity


def vectors(channels, count=200, scale=1.5):
    rng = np.random.default_rng(channels)
    return (scale * rng.standard_normal((2, count, channels))).astype(np.float32)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 5, 5), (8, 6)])
def test_fsq_has_the_same_codes_and_values(levels):
    """The control: digits of which the last channel is the fastest."""
    z = vectors(len(levels))
    with torch.no_grad():
        theirs, codes = quantizers.FSQ(levels=list(levels))(torch.from_numpy(z))
    found = np.asarray(product_codes(fsq_bounded(z, levels), levels))
    assert_array_equal(found, codes)
    assert_allclose(product_codebook(fsq_values(levels))[found], theirs, atol=1e-6)
    other = np.asarray(
        product_codes(fsq_bounded(z[..., ::-1], levels[::-1]), levels[::-1])
    )
    assert (other != codes.numpy()).any()


def test_lfq_has_the_same_signs_and_counts_its_bits_from_the_other_end():
    """The first channel is the highest bit there, and the lowest one here."""
    z = vectors(6)
    quantizer = quantizers.LFQ(codebook_size=64, dim=6).eval()
    with torch.no_grad():
        theirs, codes, _ = quantizer(torch.from_numpy(z))
    book = product_codebook(((-1.0, 1.0),) * 6)
    assert_allclose(book[np.asarray(sign_codes(z))], theirs, atol=1e-6)
    assert_array_equal(np.asarray(sign_codes(z[..., ::-1])), codes)
    assert (np.asarray(sign_codes(z)) != codes.numpy()).any()


def test_lfq_has_the_same_entropies():
    """The control: another temperature."""
    z = vectors(6, scale=0.05)
    quantizer = quantizers.LFQ(codebook_size=64, dim=6).train()
    with torch.no_grad():
        _, terms = quantizer(
            torch.from_numpy(z), inv_temperature=100.0, return_loss_breakdown=True
        )
    own, mean = (float(x) for x in sign_entropy(z.reshape(-1, 6)))
    assert_allclose(own, terms.per_sample_entropy, rtol=1e-4)
    assert_allclose(mean, terms.batch_entropy, rtol=1e-4)
    cold, _ = sign_entropy(z.reshape(-1, 6), temperature=0.005)
    assert abs(float(cold) - terms.per_sample_entropy) > 0.1


def test_residual_quantization_has_the_same_codes_and_sums():
    """The control: codes of the vectors themselves at each depth."""
    networks = TokenizerConfig(
        image_size=16,
        patch_size=4,
        channels=8,
        multipliers=(1,),
        groups=2,
        latent_channels=8,
        codebook_size=32,
        code_dim=8,
        normalized="none",
    )
    tokenizer = ResidualTokenizer(ResidualTokenizerConfig(networks, depth=3))
    layers = quantizers.ResidualVQ(dim=8, codebook_size=32, num_quantizers=3).eval()
    z = vectors(8)
    with torch.no_grad():
        theirs, codes, _ = layers(torch.from_numpy(z))
    books = layers.codebooks.numpy()
    found, _, entries = tokenizer.residuals(books.reshape(-1, 8), z)
    assert_array_equal(np.asarray(found) - 32 * np.arange(3), codes)
    assert_allclose(np.asarray(entries).sum(-2), theirs, atol=1e-5)
    alone = ((z[..., None, :] - books[1]) ** 2).sum(-1).argmin(-1)
    assert (alone != codes[..., 1].numpy()).any()
