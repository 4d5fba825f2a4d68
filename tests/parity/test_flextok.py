# ruff: noqa: E402
"""FlexTok's tokenizers against a PyTorch twin, with the autoencoder of diffusers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import save_file

from jaxspec.checkpoint import load_checkpoint
from jaxspec.cli import main
from jaxspec.config import ViTConfig
from jaxspec.errors import ConfigError, DataError
from jaxspec.tokenizers.flow.model import FlowTokenizer
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.flextok_twin import RIGHT, Faults, FlexTok
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

# Heads of 32 channels; released ones have 64, of which the scale is the usual one.
SIZES = {"encoder": (64, 2, 2), "decoder": (64, 3, 2)}
SETTINGS = {"levels": (5, 4, 3), "groups": 4, "scale": 0.7, "heads": 2}
STEPS = 4


def twin_of(kinds):
    twin = randomized(FlexTok(kinds=kinds, **SIZES), seed=kinds).with_sinusoids()
    twin.encoder.module_dict["enc_patch_emb"].patch_proj.weight *= 4
    return twin


@pytest.fixture(scope="module", params=[1, 2], ids=["shared", "apart"])
def pair(request):
    twin = twin_of(request.param)
    return twin, converted(twin.state_dict(), **SETTINGS)


def images():
    return 2 * torch.rand(3, 3, 16, 16, generator=torch.manual_seed(0)) - 1


def ours(images):
    return as_jax(images.permute(0, 2, 3, 1))


def test_sizes_are_read_from_the_files(pair):
    twin, found = pair
    c = found.config
    assert found.kind == "flow_tokenizer"
    assert (c.image_size, c.patch_size, c.length, c.levels) == (16, 2, 6, (5, 4, 3))
    assert c.encoder == ViTConfig(2, 64, 2) and c.decoder == ViTConfig(3, 64, 2)
    kinds = twin.decoder.module_dict["dec_transformer"].blocks[0].kinds
    assert c.token_modulation == (kinds == 2)
    assert (c.latents.scale, c.latents.channels, c.latents.grid) == (0.7, 4, 8)


def test_images_become_the_same_tokens(pair):
    """Controls: queries that see later ones, and the usual scale of attention."""
    twin, found = pair
    codes = np.asarray(jax.jit(found.model.encode)(found.params, ours(images())))
    np.testing.assert_array_equal(codes, twin.encode(images(), 0.7).numpy())
    assert len(np.unique(codes)) > 3
    for wrong in (Faults(full_encoder=True), Faults(plain_scale=True)):
        assert (codes != twin.encode(images(), 0.7, wrong).numpy()).any(), wrong


@pytest.mark.parametrize("kept", [6, 2])
@pytest.mark.parametrize("null", [False, True])
def test_the_flow_is_the_same(pair, kept, null):
    """Controls: positions of hidden tokens, another order of shifts and gates."""
    twin, found = pair
    generator = torch.manual_seed(3)
    ids = torch.randint(0, 60, (2, 6), generator=generator)
    grid, time = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([0.9, 0.2])
    seen = jnp.broadcast_to(jnp.arange(6) < kept, (2, 6))
    vectors = found.params["codebook"][as_jax(ids)]
    np.testing.assert_allclose(vectors, twin.embedded(ids), atol=1e-6)
    speed = jax.jit(found.model.velocity)(
        found.params, ours(grid), as_jax(time), vectors, seen, jnp.full(2, null)
    )
    quants = twin.embedded(ids)

    def expected(faults=RIGHT):
        return twin.velocity(grid, time, quants, kept, null, faults).permute(0, 2, 3, 1)

    assert_close(speed, expected(), 1e-4)
    wrongs = [Faults(dit_order=True), Faults(plain_scale=True)]
    if kept < 6 and not null:
        wrongs.append(Faults(placed_mask=True))
    for wrong in wrongs:
        assert np.abs(np.asarray(speed) - expected(wrong).numpy()).max() > 1e-3, wrong


@pytest.mark.variants(1)
@pytest.mark.parametrize("depths", [(12, 12), (18, 18), (18, 28)])
def test_a_layer_of_every_released_width(depths):
    """FlexTok's halves have a head of 64 channels for each of their layers."""
    halves = [(64 * depth, 1, depth) for depth in depths]
    twin = FlexTok(kinds=2, encoder=halves[0], decoder=halves[1])
    twin = randomized(twin, seed=2).with_sinusoids()
    settings = {k: v for k, v in SETTINGS.items() if k != "heads"}
    found = converted(twin.state_dict(), **settings)
    codes = np.asarray(jax.jit(found.model.encode)(found.params, ours(images())))
    np.testing.assert_array_equal(codes, twin.encode(images(), 0.7).numpy())
    grid, time = torch.randn(3, 4, 8, 8), torch.tensor([0.9, 0.2, 0.5])
    quants = twin.embedded(torch.from_numpy(codes).long())
    seen, null = jnp.ones((3, 6), bool), jnp.zeros(3, bool)
    vectors = found.params["codebook"][codes]
    speed = jax.jit(found.model.velocity)(
        found.params, ours(grid), as_jax(time), vectors, seen, null
    )
    expected = twin.velocity(grid, time, quants, 6, False).permute(0, 2, 3, 1)
    assert_close(speed, expected, 1e-4)
    turned = twin.velocity(grid, time, quants, 6, False, Faults(dit_order=True))
    other = turned.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.asarray(speed) - other).max() > 1e-3


@pytest.mark.parametrize("kept", [6, 1])
def test_first_tokens_become_the_same_images(pair, kept):
    twin, found = pair
    model = FlowTokenizer(replace(found.config, steps=STEPS))
    key = jax.random.key(0)
    noise = np.array(jax.random.normal(key, (8, 8, 4)))
    noise = torch.from_numpy(noise).permute(2, 0, 1).expand(2, -1, -1, -1)
    ids = torch.randint(0, 60, (2, kept), generator=torch.manual_seed(4))
    image = jax.jit(model.decode)(found.params, as_jax(ids), key)
    expected = twin.decode(ids, noise, 0.7, STEPS, 7.5).permute(0, 2, 3, 1)
    assert_close(image, expected, 1e-4)
    other = twin.decode(ids, noise, 0.7, STEPS, 1.0).permute(0, 2, 3, 1)
    assert np.abs(np.asarray(image) - other.numpy()).max() > 1e-2


def settings_of(twin, half="encoder", part="enc_seq_packer", **changed):
    """Settings as in the metadata of a released file, some of one part changed."""
    parts = {
        "encoder": {"enc_seq_packer": {"mask_mode": "causal_last"}},
        "decoder": {"dec_time_embedder": {"max_timestep": 1.0}},
    }
    for name, of in (("enc_transformer", "encoder"), ("dec_transformer", "decoder")):
        parts[of][name] = {"head_dim": 32, "act_layer": {"path": "torch.nn.SiLU"}}
    parts[half].setdefault(part, {}).update(changed)
    return {
        "vae": str({"_target_": "any", "scaling_factor": 0.7}),
        "regularizer": str({"levels": list(twin.levels)}),
        **{of: str({"module_dict": value}) for of, value in parts.items()},
        "other": "no settings",
        "long": "{" + " " * 100_000 + "}",
    }


def test_settings_are_read_from_the_header_of_the_file(tmp_path, capsys):
    twin = twin_of(2)
    state = {name: x.contiguous() for name, x in twin.state_dict().items()}
    file, out = tmp_path / "model.safetensors", tmp_path / "bundle"
    command = ["convert", str(file), str(out), "--set", "groups=4"]

    def convert(*changed, **settings):
        save_file(state, file, metadata=settings_of(twin, *changed, **settings))
        return main(command)

    assert convert() == 0
    config = load_checkpoint(out / "tokenizer").config
    assert config.levels == twin.levels and config.latents.scale == 0.7
    assert config.encoder.heads == config.decoder.heads == 2
    assert config.time_scale == 1000
    for half, part, changed in (
        ("encoder", "enc_seq_packer", {"mask_mode": "causal"}),
        ("decoder", "dec_transformer", {"qk_norm": False}),
        ("encoder", "enc_transformer", {"act_layer": {"path": "torch.nn.GELU"}}),
        ("decoder", "dec_to_patches", {"use_mup_readout": True}),
    ):
        capsys.readouterr()
        assert convert(half, part, **changed) == 2
        error = capsys.readouterr().err
        assert f"{part}.{next(iter(changed))}=" in error and "not supported" in error


def test_times_have_the_scale_of_the_settings():
    twin = twin_of(1)
    parts = {"dec_time_embedder": {"max_timestep": 500.0}}
    config = {"decoder": {"module_dict": parts}}
    assert (
        converted(twin.state_dict(), config=config, **SETTINGS).config.time_scale == 2
    )
    parts["dec_time_embedder"] = {}  # the original's default
    assert (
        converted(twin.state_dict(), config=config, **SETTINGS).config.time_scale == 1
    )


def test_what_is_missing_or_different_is_named():
    twin = twin_of(1)
    state = twin.state_dict()
    with pytest.raises(ConfigError, match="--set scale=NUMBER"):
        converted(state, levels=(5, 4, 3), groups=4)
    with pytest.raises(ConfigError, match="--set levels=N,N"):
        converted(state, scale=0.7, groups=4)
    with pytest.raises(ConfigError, match="--set levels=N,N"):
        converted(state, **{**SETTINGS, "levels": ("5", "4", "3")})
    alone = {k: x for k, x in state.items() if not k.startswith("vae.")}
    with pytest.raises(DataError, match="has no autoencoder"):
        converted(alone, **SETTINGS)
    name = "decoder.module_dict.dec_patches_posemb_module.posembs"
    turned = {**state, name: state[name].transpose(2, 3).contiguous()}
    with pytest.raises(DataError, match="no sinusoids of a square grid"):
        converted(turned, **SETTINGS)
