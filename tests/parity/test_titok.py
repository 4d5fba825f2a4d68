# ruff: noqa: E402
"""One-dimensional tokenizers and MaskGIT's VQGAN against PyTorch twins."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jaxspec.checkpoint import Checkpoint, load_checkpoint, save
from jaxspec.cli import main
from jaxspec.config import MaskGITTokenizerConfig, TransformerConfig, ViTConfig
from jaxspec.errors import DataError
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.random_weights import randomized
from tests.parity.titok_twin import Faults, MaskGIT, TiTok

pytestmark = pytest.mark.parity

# Channels, multipliers, blocks, groups, codes and their width.
PIXELS = (8, (1, 2, 4), 2, 4, 40, 6)
SIZES = {
    "patches": 8,
    "patch": 4,
    "length": 12,
    "size": 64,
    "dim": 5,
    "encoder": (64, 1, 2),
    "decoder": (128, 2, 1),
    "pixels": PIXELS,
}


def images():
    return torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0))


def as_ours(images):
    """Images [B, h, w, 3] in [-1, 1]."""
    return 2 * as_jax(images.permute(0, 2, 3, 1)) - 1


@pytest.fixture(scope="module")
def maskgit():
    twin = randomized(MaskGIT(*PIXELS), seed=1)
    return twin, converted(twin.state_dict(), image_size=32, groups=4)


def test_the_size_of_maskgit_images_follows_from_the_prior_in_the_bundle(tmp_path):
    twin = randomized(MaskGIT(*PIXELS), seed=1)
    torch.save(twin.state_dict(), tmp_path / "vq.bin")
    config = TransformerConfig(40, layers=1, width=8, heads=2, grid=8, classes=3)
    params = Transformer(config).init(jax.random.key(0))
    save(tmp_path / "bundle" / "prior", Checkpoint("prior", config, params))
    command = ["convert", str(tmp_path / "vq.bin"), str(tmp_path / "bundle")]
    assert main([*command, "--set", "groups=4"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.tokenizer.config == MaskGITTokenizerConfig(32, *PIXELS)


def test_orders_are_chosen_on_the_command_line(tmp_path, capsys):
    twin = randomized(TiTok(two_stage=True, **SIZES), seed=2)
    torch.save(twin.state_dict(), tmp_path / "titok.bin")
    command = ["convert", str(tmp_path / "titok.bin"), str(tmp_path / "bundle")]
    command += ["--set", "groups=4", "--set"]
    assert main([*command, "mixed_order=False"]) == 0
    config = load_checkpoint(tmp_path / "bundle" / "tokenizer").config
    assert config.mixed_order is False and config.normalized is True
    assert main([*command, "mixed_order=no"]) == 2
    assert "choose true or false" in capsys.readouterr().err


@pytest.fixture(scope="module", params=[True, False], ids=["two stages", "pixels"])
def titok(request):
    twin = randomized(TiTok(two_stage=request.param, **SIZES), seed=2)
    options = {"groups": 4} if request.param else {}
    state = {**twin.state_dict(), "quantize.embed_prob": torch.zeros(64)}
    return twin, converted(state, **options, prefixes=True)


def test_maskgit_tokens_and_images(maskgit):
    """Control: a shortcut that reads the input of its block."""
    twin, ours = maskgit
    assert ours.kind == "maskgit_tokenizer"
    assert ours.config == MaskGITTokenizerConfig(32, *PIXELS)
    features = jax.jit(ours.model.embed)(ours.params, as_ours(images()))
    assert_close(features, twin.encoder(images()).permute(0, 2, 3, 1), 1e-4)
    codes = jax.jit(ours.model.encode)(ours.params, as_ours(images()))
    assert (np.asarray(codes) == twin.encode(images()).numpy()).mean() > 0.99
    wrong = Faults(own_shortcut=True)
    assert (np.asarray(codes) == twin.encode(images(), wrong).numpy()).mean() < 0.9
    drawn = torch.randint(0, 40, (2, 64), generator=torch.manual_seed(1))
    found = jax.jit(ours.model.decode)(ours.params, as_jax(drawn))
    assert_close(found, as_torch_range(twin.decode(drawn)), 1e-4)
    other = as_torch_range(twin.decode(drawn, wrong))
    assert np.abs(np.asarray(found) - other.numpy()).max() > 1e-2


def as_torch_range(images):
    return 2 * images.permute(0, 2, 3, 1) - 1


def test_titok_sizes_are_read_from_the_files(titok):
    twin, ours = titok
    c = ours.config
    assert ours.kind == "one_d_tokenizer" and (c.image_size, c.length) == (32, 12)
    assert c.encoder == ViTConfig(2, 64, 1) and c.decoder == ViTConfig(1, 128, 2)
    assert c.mixed_order == c.normalized == twin.two_stage == (c.pixels is not None)


def test_titok_images_become_the_same_tokens(titok):
    """Controls: outputs in their right order, and codes without normalization."""
    twin, ours = titok
    vectors = jax.jit(ours.model.embed)(ours.params, as_ours(images()))
    assert_close(vectors, twin.vectors(images()), 1e-4)
    codes = np.asarray(jax.jit(ours.model.encode)(ours.params, as_ours(images())))
    np.testing.assert_array_equal(codes, twin.encode(images()).numpy())
    if twin.two_stage:
        for wrong in (Faults(ordered=True), Faults(unnormalized=True)):
            assert (codes == twin.encode(images(), wrong).numpy()).mean() < 0.9


@pytest.mark.parametrize("count", [12, 5, 1])
def test_titok_prefixes_of_tokens_become_the_same_images(titok, count):
    """Controls: positions of the last tokens, codes without normalization."""
    twin, ours = titok
    codes = torch.randint(0, 64, (2, count), generator=torch.manual_seed(4))
    found = jax.jit(ours.model.decode)(ours.params, as_jax(codes))
    assert_close(found, as_torch_range(twin.decode(codes)), 1e-4)
    padded = np.pad(as_jax(codes), ((0, 0), (0, 12 - count)), constant_values=-1)
    partial = jax.jit(ours.model.decode_partial)(ours.params, padded)
    assert_close(partial, as_torch_range(twin.decode(codes)), 1e-4)
    faults = [Faults(token_last=True)] if count < 12 else []
    faults += [Faults(unnormalized=True)] if twin.two_stage else []
    for wrong in faults:
        other = as_torch_range(twin.decode(codes, wrong)).numpy()
        assert np.abs(np.asarray(found) - other).max() > 1e-3, wrong


@pytest.mark.variants(1)
@pytest.mark.parametrize("width", [512, 768, 1024], ids=["S", "B", "L"])
def test_a_layer_of_every_released_width(width):
    """TiTok-S, -B and -L, with their 4,096 codes of 12 channels."""
    half = width, width // 64, 1
    sizes = {**SIZES, "size": 4096, "dim": 12, "encoder": half, "decoder": half}
    twin = randomized(TiTok(two_stage=False, **sizes), seed=2)
    ours = converted(twin.state_dict())
    vectors = jax.jit(ours.model.embed)(ours.params, as_ours(images()))
    assert_close(vectors, twin.vectors(images()), 1e-4)
    codes = torch.randint(0, 4096, (2, 12), generator=torch.manual_seed(4))
    found = jax.jit(ours.model.decode)(ours.params, as_jax(codes))
    assert_close(found, as_torch_range(twin.decode(codes)), 1e-4)


def test_maskgit_in_its_released_size():
    sizes = 128, (1, 1, 2, 2, 4), 2, 32, 1024, 256
    twin = randomized(MaskGIT(*sizes), seed=1)
    ours = converted(twin.state_dict(), image_size=32)
    assert ours.config == MaskGITTokenizerConfig(32, *sizes)
    features = jax.jit(ours.model.embed)(ours.params, as_ours(images()))
    assert_close(features, twin.encoder(images()).permute(0, 2, 3, 1), 1e-4)
    codes = torch.randint(0, 1024, (2, 4), generator=torch.manual_seed(1))
    found = jax.jit(ours.model.decode)(ours.params, as_jax(codes))
    assert_close(found, as_torch_range(twin.decode(codes)), 1e-4)


def test_ta_titok_decodes_with_a_text(tmp_path):
    """Controls: another text, and positions of the text in reverse."""
    twin = randomized(TiTok(two_stage=False, text=(7, 24), **SIZES), seed=3)
    ours = converted(twin.state_dict())
    assert (ours.config.text_length, ours.config.text_width) == (7, 24)
    codes = torch.randint(0, 64, (2, 12), generator=torch.manual_seed(4))
    text = torch.randn(2, 7, 24, generator=torch.manual_seed(5))
    decode = jax.jit(ours.model.decode)
    found = decode(ours.params, as_jax(codes), as_jax(text))
    assert_close(found, as_torch_range(twin.decode(codes, text=text)), 1e-4)
    turned = Faults(text_turned=True)
    for other in (twin.decode(codes, turned, text), twin.decode(codes, text=-text)):
        assert np.abs(np.asarray(found) - as_torch_range(other).numpy()).max() > 1e-3
    partial = jax.jit(ours.model.decode_partial)
    known = as_jax(codes).at[:, 5:].set(-1)
    seen = partial(ours.params, known, as_jax(text))
    first = as_torch_range(twin.decode(codes[:, :5], text=text))
    assert_close(seen, first, 1e-4)
    with pytest.raises(DataError, match=r"a text of shape \(2, 7, 24\), not None"):
        ours.model.decode(ours.params, as_jax(codes))
    torch.save(twin.state_dict(), tmp_path / "ta.bin")
    assert main(["convert", str(tmp_path / "ta.bin"), str(tmp_path / "bundle")]) == 0
