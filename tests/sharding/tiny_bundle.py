"""Small bundle with random weights, which compiles fast."""

import jax

from jaxspec.checkpoint import Checkpoint, save
from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.tokenizers.vqgan.model import Tokenizer
from tests.models.tiny import random_params

CODES, GRID = 32, 4
TOKENIZER = TokenizerConfig(
    image_size=32,
    patch_size=8,
    channels=8,
    multipliers=(1,),
    encoder_blocks=1,
    decoder_blocks=1,
    attention="middle",
    groups=4,
    latent_channels=8,
    codebook_size=CODES,
    code_dim=4,
)
PRIOR = TransformerConfig(
    vocab_size=CODES, layers=2, width=32, heads=4, kv_heads=2, grid=GRID, classes=3
)


def save_bundle(folder):
    """Writes `tokenizer/` and `prior/`."""
    params = Tokenizer(TOKENIZER).init(jax.random.key(1))
    save(folder / "tokenizer", Checkpoint("tokenizer", TOKENIZER, params))
    save(folder / "prior", Checkpoint("prior", PRIOR, random_params(PRIOR)))
    return folder
