"""Small random models of ours, and files of theirs made from them."""

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.config import BlockDiffusionConfig, FeatureHeadConfig, TransformerConfig
from jaxspec.convert.export import export
from jaxspec.convert.reading.safetensors import read_safetensors
from jaxspec.drafters.block_diffusion import BlockDiffusion
from jaxspec.drafters.feature_head import FeatureHead
from jaxspec.models.transformer import Transformer

CLASSES = TransformerConfig(
    vocab_size=40,
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    ffn_width=48,
    grid=4,
    classes=5,
)
CAPTIONS = TransformerConfig(
    vocab_size=40,
    layers=2,
    width=32,
    heads=4,
    ffn_width=48,
    grid=4,
    condition="caption",
    caption_length=6,
    caption_width=10,
)


def filled(shapes, dtype=jnp.float32, seed=0):
    """Random numbers of these shapes; integers stay what they are."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        x
        if jnp.issubdtype(x.dtype, jnp.integer)
        else jax.random.normal(k, x.shape, dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def prior(config=CLASSES, dtype=jnp.float32):
    params = filled(Transformer(config).init(jax.random.key(0)), dtype)
    return Checkpoint("prior", config, params)


def block_drafter(target=CLASSES, dtype=jnp.float32):
    config = BlockDiffusionConfig(
        block_size=4,
        layers=2,
        width=32,
        heads=4,
        ffn_width=48,
        taps=(0, 1),
        markov_rank=6,
    )
    drafter = BlockDiffusion(config, target)
    params = filled(drafter.init_params(jax.random.key(1)), dtype, 1)
    return Checkpoint("block_diffusion", drafter, params)


def feature_head(version, target=CLASSES, dtype=jnp.float32, **changes):
    taps = (1,) if version == 1 else (0, 1)
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48, **changes}
    config = FeatureHeadConfig(version, taps=taps, **sizes)
    drafter = FeatureHead(config, target)
    params = filled(drafter.init_params(jax.random.key(2)), dtype, 2)
    return Checkpoint("feature_head", drafter, params)


def released(folder, config=CLASSES):
    """A LlamaGen model as it is released: arrays by name, and no config."""
    save(folder / "mine", prior(config))
    file = export(folder / "mine", folder / "theirs", "llamagen")
    return {name: tensor.read() for name, tensor in read_safetensors(file).items()}


def written(folder, checkpoint):
    """The same on disk."""
    save(folder, checkpoint)
    return folder
