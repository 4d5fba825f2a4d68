"""Small random models, and released files made from them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.config import TransformerConfig
from jaxspec.convert.export import export
from jaxspec.convert.reading.safetensors import read_safetensors
from jaxspec.drafters.dflash.drafter import DFlash
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.models.transformer.model import Transformer

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
    """Returns random numbers of the same shapes; integers are unchanged."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            x
            if jnp.issubdtype(x.dtype, jnp.integer)
            else jnp.asarray(rng.standard_normal(x.shape), dtype)
        ),
        shapes,
    )


def prior(config=CLASSES, dtype=jnp.float32):
    params = filled(jax.eval_shape(Transformer(config).init, jax.random.key(0)), dtype)
    return Checkpoint("prior", config, params)


def block_drafter(target=CLASSES, dtype=jnp.float32):
    config = DFlashConfig(
        block_size=4,
        layers=2,
        width=32,
        heads=4,
        ffn_width=48,
        feature_layers=(0, 1),
        markov_rank=6,
    )
    drafter = DFlash(config, target)
    params = filled(drafter.init_params(jax.random.key(1)), dtype, 1)
    return Checkpoint("dflash", drafter.config, params, target=drafter.target)


def feature_head(version, target=CLASSES, dtype=jnp.float32, **changes):
    feature_layers = (1,) if version == 1 else (0, 1)
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 48, **changes}
    config = EagleConfig(version, feature_layers=feature_layers, **sizes)
    drafter = Eagle(config, target)
    params = filled(drafter.init_params(jax.random.key(2)), dtype, 2)
    return Checkpoint("eagle", drafter.config, params, target=drafter.target)


def released(folder, config=CLASSES):
    """Returns the arrays of a LlamaGen model in the released layout, by name."""
    save(folder / "checkpoint", prior(config))
    file = export(folder / "checkpoint", folder / "exported", "llamagen")
    return {name: tensor.read() for name, tensor in read_safetensors(file).items()}


def written(folder, checkpoint):
    """Saves a checkpoint and returns its folder."""
    save(folder, checkpoint)
    return folder
